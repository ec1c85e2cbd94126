"""PPO for language models on current TRL: `from fourstage.ppo import PPOConfig, PPOTrainer`."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fourstage.ppo.config import PPOConfig
    from fourstage.ppo.trainer import PPOTrainer

__all__ = ["PPOConfig", "PPOTrainer"]


def __getattr__(name: str) -> Any:
    """Imports each class on first use: a recipe's `--help` does not wait for the trainer, nor `functional` for TRL."""
    if name == "PPOConfig":
        from fourstage.ppo.config import PPOConfig

        return PPOConfig
    if name == "PPOTrainer":
        from fourstage.ppo.trainer import PPOTrainer

        return PPOTrainer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
