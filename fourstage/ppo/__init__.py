"""PPO for language models on current TRL: `from fourstage.ppo import PPOConfig, PPOTrainer`."""

from fourstage.ppo.config import PPOConfig

__all__ = ["PPOConfig", "PPOTrainer"]


def __getattr__(name: str):
    """Imports the trainer when it is asked for, so that `--help` of a recipe need not wait for it."""
    if name != "PPOTrainer":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from fourstage.ppo.trainer import PPOTrainer

    return PPOTrainer
