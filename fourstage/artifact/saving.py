"""What happens around a run's checkpoints: how one is taken, and what makes a resumed run end as one in one piece."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_pt_utils import safe_globals

from fourstage.artifact.checkpoints import rotate, seal, unseal
from fourstage.artifact.run import Run, drop_pickled_arguments
from fourstage.atomic import write_through
from fourstage.ranges import check_best_metric


class CleanRun(TrainerCallback):
    """Every recipe's trainer has it: evaluating leaves the weights alone, checkpoints are whole, keep no secret and
    reach the Hub.

    Data loaders and sampled answers draw from the random state that dropout draws from, so it is put back after an
    evaluation: a run may then be resumed with other evaluations. training_args.bin is taken out of each checkpoint:
    nothing reads that pickle, and it can hold a token. Older checkpoints are removed here and not by the trainer, which
    removes them before the new one is on the disk and tells their age by the clock.
    """

    def __init__(self, run: Run, args: TrainingArguments):
        self.run, self._before = run, None
        self._limit, args.save_total_limit = args.save_total_limit, None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._before = _random_state() if args.eval_on_start else None

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if control.should_evaluate:
            self._before = _random_state()
        if control.should_save and state.is_world_process_zero:
            unseal(self._checkpoint(state))  # a damaged one of an earlier course may be there

    on_epoch_end = on_step_end

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        check_best_metric(args.metric_for_best_model, kwargs.get("metrics"))
        if self._before is not None:
            cpu, gpu = self._before
            torch.set_rng_state(cpu)
            if gpu is not None:
                torch.cuda.set_rng_state(gpu)
        self._before = None

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        process, checkpoint = PartialState(), self._checkpoint(state)
        if state.is_world_process_zero:
            drop_pickled_arguments(self.run.folder / "checkpoints")
        process.wait_for_everyone()  # each process has written its random state
        if process.is_local_main_process:
            write_through(checkpoint)
        process.wait_for_everyone()
        if state.is_world_process_zero:
            completions = self.run.folder / "completions.jsonl"
            seal(checkpoint, [completions])
            rotate(self.run.folder, state.global_step, self._limit, state.best_model_checkpoint)
        if self.run.hub:
            self.run.hub.push_checkpoint(self.run.folder, checkpoint, self.run.record)

    def _checkpoint(self, state: TrainerState) -> Path:
        return self.run.folder / "checkpoints" / f"checkpoint-{state.global_step}"


class EndAsInOnePiece(TrainerCallback):
    """A resumed run logs, evaluates and ends as one that was never cut off.

    Each checkpoint is a line of the log too, so that no half of a mean is lost with the process. The starting weights
    are measured once. TRL's count of tokens goes on. From a checkpoint of the last step nothing is trained:
    transformers would take one step more.
    """

    def __init__(self, run: Run, trainer: Trainer):
        self.run, self.trainer, self._done = run, trainer, False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._done = state.global_step >= state.max_steps
        args.eval_on_start = args.eval_on_start and state.global_step == 0
        counts = [row[name] for row in state.log_history for name in ("num_tokens", "eval_num_tokens") if name in row]
        if counts and state.global_step and "_total_train_tokens" in vars(self.trainer):
            vars(self.trainer)["_total_train_tokens"] = int(counts[-1])
        if self._done:
            self.trainer.get_batch_samples = _no_rows  # so that what is left of the last epoch takes no step

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        may_save = control.should_save or (args.save_strategy == "best" and control.should_evaluate)
        control.should_log |= may_save and args.logging_strategy != "no"

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.on_step_end(args, state, control)
        if self._done:
            control.should_log = control.should_evaluate = control.should_save = False
            control.should_training_stop = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._done and self.run.checkpoint:
            _restore_random_state(Path(self.run.checkpoint), args)


def _no_rows(
    epoch_iterator: Iterator, num_batches: int, device: torch.device
) -> tuple[list, torch.Tensor | int | None]:
    return [], None


def _random_state() -> tuple:
    return torch.get_rng_state(), torch.cuda.get_rng_state() if torch.cuda.is_available() else None


def _restore_random_state(checkpoint: Path, args: TrainingArguments) -> None:
    """What the trainer restores before the first step after a checkpoint, for a run that has none left.

    Nothing where another number of processes took the checkpoint.
    """
    name = "rng_state.pth" if args.world_size <= 1 else f"rng_state_{args.process_index}.pth"
    if not (checkpoint / name).is_file():
        return
    with safe_globals():
        state = torch.load(checkpoint / name, weights_only=True)
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["cpu"])
    if torch.cuda.is_available() and "cuda" in state:
        kept = state["cuda"]
        torch.cuda.set_rng_state_all(kept) if isinstance(kept, list) else torch.cuda.set_rng_state(kept)
