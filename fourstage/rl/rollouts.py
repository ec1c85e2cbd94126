"""Around a rollout: how the policy is sampled, and when a checkpoint may be taken."""

from transformers import TrainerCallback


class SaveAtRollouts(TrainerCallback):
    """Moves a save to the end of the update that it falls in: a checkpoint holds no rollout, and resuming makes one.

    Args:
        period: optimizer steps of an update.
    """

    def __init__(self, period: int):
        self.period, self.waiting = period, False

    def on_step_end(self, args, state, control, **kwargs):
        wanted = control.should_save or self.waiting
        between = state.global_step % self.period != 0 and state.global_step < state.max_steps
        control.should_save, self.waiting = wanted and not between, wanted and between

    on_epoch_end = on_step_end
