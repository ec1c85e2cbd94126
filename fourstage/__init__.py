"""The four stages of training an LLM, from random weights to a reasoning model.

from fourstage import GRPOConfig, GRPOTrainer, PPOConfig, PPOTrainer
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fourstage.grpo import GRPOConfig, GRPOTrainer
    from fourstage.ppo import PPOConfig, PPOTrainer

__version__ = "0.1.0"
__all__ = ["GRPOConfig", "GRPOTrainer", "PPOConfig", "PPOTrainer", "__version__"]


def __getattr__(name: str) -> type:
    """Imports a trainer or its settings when it is asked for: `import fourstage` alone takes no time."""
    if name in ("GRPOConfig", "GRPOTrainer"):
        from fourstage import grpo

        return getattr(grpo, name)
    if name in ("PPOConfig", "PPOTrainer"):
        from fourstage import ppo

        return getattr(ppo, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
