"""Rollouts: whose random numbers choose their tokens, when a checkpoint may be taken, what a resumed run takes up."""

import itertools
import math
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import GRPOTrainer
from trl.trainer.utils import RepeatSampler

from fourstage.evaluation.generation import plain_sampling
from fourstage.models.fused_head import base_model
from fourstage.rl.decoding import quick_generation
from fourstage.rl.sampling import row_uniforms
from fourstage.rl.trl_contract import config_of


class RolloutNumbers(TrainerCallback):
    """Gives every row of a rollout random numbers of its own: the same in one process, in several, and when resumed.

    In training they depend on the seed, the number of the rollout, and the row's place in it over all processes; in an
    evaluation on the seed and the row's place among all that are evaluated, so that every evaluation has the same.
    """

    def __init__(self) -> None:
        self.evaluated = 0  # rows, over all processes

    def on_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """Has the next evaluation begin with its first row."""
        self.evaluated = 0

    on_predict = on_evaluate

    @contextmanager
    def choose_tokens(self, trainer: GRPOTrainer, rows: int) -> Generator[None]:
        """The policy's `generate` samples by these numbers, quickly where it can, for a rollout of `rows` rows."""
        numbers = self.of_rollout(trainer, rows)
        policy = trainer.accelerator.unwrap_model(trainer.model_wrapped)
        sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled  # there TRL keeps the processes in step
        with plain_sampling(base_model(policy)), quick_generation(policy, numbers, own_loop=sharded):
            yield

    def of_rollout(self, trainer: GRPOTrainer, rows: int) -> Callable[[int, int], torch.Tensor]:
        """What gives the (tokens, rows) numbers of each `generate` of a rollout of `rows` rows, called with both."""
        key, first = self._place(trainer, rows)
        calls = itertools.count()  # a rollout with tools generates several times
        return lambda rows, tokens: row_uniforms([*key, next(calls)], first, rows, tokens)

    def _place(self, trainer: GRPOTrainer, rows: int) -> tuple[list[int], int]:
        """(seed, kind and number of the rollout; the number in it of this process's first row)."""
        args, accelerator = config_of(trainer), trainer.accelerator
        first = accelerator.process_index * rows
        assert trainer.model is not None  # a built trainer has one
        if not trainer.model.training:
            first += self.evaluated
            self.evaluated += accelerator.num_processes * rows
            return [args.seed, 1, 0], first
        parts = args.gradient_accumulation_steps
        done = trainer.state.global_step * parts + trainer._step % parts  # micro-batches, also after a resume
        assert args.steps_per_generation  # GRPOConfig has filled it
        return [args.seed, 0, done // (args.steps_per_generation * args.num_iterations)], first


class SaveAtRollouts(TrainerCallback):
    """Moves each save to the end of its update: a checkpoint holds no rollout, and a resumed run begins with a new one.

    Args:
        period: optimizer steps of an update.
    """

    def __init__(self, period: int):
        self.period, self.waiting = period, False

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        train_dataloader: DataLoader | None = None,
        **kwargs: Any,
    ) -> None:
        """Draws the orders of the epochs before the checkpoint, as the epoch that goes on has one drawn after them.

        TRL 1.16's sampler has a generator of its own, which no checkpoint keeps, and draws an order an epoch from it.
        """
        sampler = _repeat_sampler(train_dataloader)
        if not state.global_step or train_dataloader is None or sampler is None or not sampler.shuffle:
            return
        updates = math.ceil(len(train_dataloader) / args.gradient_accumulation_steps)  # as transformers counts
        for _ in range(state.global_step // updates):
            torch.randperm(sampler.num_samples, generator=sampler.generator)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Saves now what is due, or keeps it waiting inside an update."""
        due = control.should_save or self.waiting
        inside = state.global_step % self.period != 0 and state.global_step < state.max_steps
        control.should_save, self.waiting = due and not inside, due and inside

    on_epoch_end = on_step_end


def _repeat_sampler(holder: Any) -> RepeatSampler | None:
    """The sampler below a data loader, which may lie in several others of accelerate."""
    while holder is not None and not isinstance(holder, RepeatSampler):
        below = getattr(holder, "batch_sampler", None)
        holder = getattr(holder, "sampler", None) if below is None else below
    return holder
