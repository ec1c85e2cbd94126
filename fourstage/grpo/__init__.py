"""GRPO on TRL's trainer with quicker rollouts: `from fourstage.grpo import GRPOConfig, GRPOTrainer`."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fourstage.grpo.config import GRPOConfig
    from fourstage.grpo.trainer import GRPOTrainer

__all__ = ["GRPOConfig", "GRPOTrainer"]


def __getattr__(name: str) -> type:
    """Imports each when it is asked for, so that `--help` of a recipe need not wait for the trainer."""
    if name == "GRPOConfig":
        from fourstage.grpo.config import GRPOConfig

        return GRPOConfig
    if name == "GRPOTrainer":
        from fourstage.grpo.trainer import GRPOTrainer

        return GRPOTrainer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
