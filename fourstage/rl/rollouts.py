"""When a checkpoint may be taken: between rollouts."""

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class SaveAtRollouts(TrainerCallback):
    """Moves each save to the end of its update: a checkpoint holds no rollout, and a resumed run begins with a new one.

    Args:
        period: optimizer steps of an update.
    """

    def __init__(self, period: int):
        self.period, self.waiting = period, False

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Saves now what is due, or keeps it waiting inside an update."""
        due = control.should_save or self.waiting
        inside = state.global_step % self.period != 0 and state.global_step < state.max_steps
        control.should_save, self.waiting = due and not inside, due and inside

    on_epoch_end = on_step_end
