"""When a checkpoint may be taken: between rollouts. And what a resumed run has to take up besides."""

import math
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl.trainer.utils import RepeatSampler


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
