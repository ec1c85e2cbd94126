"""A training that is asked to stop: a checkpoint at the end of the step, then the command that resumes it."""

import os
from datetime import timedelta
from typing import Any

import torch
from accelerate import PartialState
from torch import distributed
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from fourstage import signals
from fourstage.artifact.record import redact


def save_when_asked(trainer: Trainer) -> None:
    """From the end of its first step on, SIGINT, SIGTERM and SIGHUP stop the training with a checkpoint.

    Before, they end it at once, as there is nothing to save, and so they do after the last step. A second one always
    does. PPO and GRPO save between rollouts, so they stop at the end of one. All processes stop at the same step.
    """
    asking = _SaveWhenAsked()
    # Before the trainer's own callbacks: one of them moves saves to the end of a rollout.
    trainer.callback_handler.callbacks.insert(0, asking)
    trainer.add_callback(_StopWhenSaved(trainer, asking, redact(signals.launch_command())))


class _SaveWhenAsked(TrainerCallback):
    """Asks for a checkpoint at the end of each step from the one on at which a signal had come to any process."""

    def __init__(self) -> None:
        self.number, self._group = 0, None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if PartialState().num_processes > 1:  # over the CPUs: to ask a GPU would have it wait at each step
            backend = "gloo" if distributed.is_gloo_available() else None
            self._group = distributed.new_group(backend=backend, timeout=timedelta(seconds=args.ddp_timeout))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.number = self.number or self._of_all(signals.asked())
        signals.take_first(_tell)
        control.should_save = control.should_save or self.number > 0

    def _of_all(self, number: int) -> int:
        if self._group is None:
            return number
        most = torch.tensor(number)
        distributed.all_reduce(most, distributed.ReduceOp.MAX, group=self._group)
        return int(most)


class _StopWhenSaved(TrainerCallback):
    """The last of the callbacks: ends the program once the checkpoint is there, before a training that ends would load
    its best weights and remove checkpoints."""

    def __init__(self, trainer: Trainer, asking: _SaveWhenAsked, command: str):
        self.trainer, self.asking, self.command = trainer, asking, command

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        signals.last_words(f"\nended by {{signal}}; from its last checkpoint the run goes on with: {self.command}")

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if not self.asking.number:
            return
        at = f"step {state.global_step} of {state.max_steps}"
        signals.last_words(f"\nstopped by {{signal}} after {at}, with a checkpoint; it goes on with:\n{self.command}")
        self.trainer.callback_handler.on_train_end(args, state, control)  # the bar, the trackers
        PartialState().wait_for_everyone()  # at the end of any, the launcher may end the others
        self.trainer.end()
        signals.end(self.asking.number)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.asking.number:
            return
        if late := signals.asked():  # in the evaluation of the last step
            signals.end(late)
        signals.take_first(None)


def _tell(number: int) -> None:
    signals.say(f"\nstopping with a checkpoint at the end of this step; kill {os.getpid()} ends it at once")
