"""Around a rollout: how the policy is sampled, and when a checkpoint may be taken."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import GenerationConfig, PreTrainedModel, TrainerCallback

_IDS = ("pad_token_id", "bos_token_id", "eos_token_id")
# What of a generation_config does not touch the probabilities that tokens are drawn from.
_HARMLESS = (*_IDS, "use_cache", "output_attentions", "output_hidden_states", "transformers_version", "max_length")


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


@contextmanager
def plain_sampling(model: PreTrainedModel) -> Iterator[None]:
    """Within it `generate` knows the trainer's own sampling settings only: the model's would fill those left open, and
    the policy would not be sampled from the probabilities that it is trained on."""
    own = model.generation_config
    model.generation_config = GenerationConfig(**{name: getattr(own, name) for name in _IDS})
    try:
        yield
    finally:
        model.generation_config = own


def ignored_sampling_fields(model: PreTrainedModel) -> dict[str, Any]:
    """What the model's generation_config says about sampling and rollouts do not follow.

    Example: {"temperature": 0.6, "top_p": 0.9}.
    """
    fields = model.generation_config.to_diff_dict()
    return {name: value for name, value in fields.items() if name not in _HARMLESS and not name.startswith("_")}
