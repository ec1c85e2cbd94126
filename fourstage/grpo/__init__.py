"""GRPO on TRL's trainer with quicker rollouts: `from fourstage.grpo import GRPOTrainer`."""

__all__ = ["GRPOTrainer"]


def __getattr__(name: str):
    """Imports the trainer when it is asked for, so that `--help` of a recipe need not wait for it."""
    if name != "GRPOTrainer":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from fourstage.grpo.trainer import GRPOTrainer

    return GRPOTrainer
