"""Watches a GRPO run for signs that it has stopped learning, and warns of each once, with the likely cause."""

import math
import warnings
from typing import Any, cast

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import GRPOConfig


class WatchCollapse(TrainerCallback):
    """Warns if, in `patience` logs in a row, a run cannot learn or is about to lose its variety.

    - every group has zero spread: all completions of a prompt earn the same, so all advantages are 0;
    - every completion reaches the limit: none ends, so an answer at the end is cut off;
    - the entropy (nats a token) falls below `entropy_share` of its mean over the first `patience` logs.
    """

    def __init__(self, patience: int = 5, entropy_share: float = 0.1):
        self.patience, self.entropy_share = patience, entropy_share
        self.streaks: dict[str, int] = {}  # logs in a row with this sign
        self.warned: set[str] = set()
        self.first_entropies: list[float] = []

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Looks at the log of a training step; logs of evaluations have no `frac_reward_zero_std`."""
        if not state.is_world_process_zero or logs is None or "frac_reward_zero_std" not in logs:
            return
        reward, entropy = logs["reward"], logs.get("entropy", math.nan)
        if len(self.first_entropies) < self.patience:
            self.first_entropies.append(entropy)
        limit = cast(GRPOConfig, args).max_completion_length
        start = sum(self.first_entropies) / len(self.first_entropies)
        self._count(
            "spread",
            logs["frac_reward_zero_std"] == 1.0,
            f"all completions of a prompt earned the same in {{}} logs in a row (mean reward {reward:.3g}), so nothing "
            "is learned. If the mean is the lowest reward, the task is too hard for this model, or its answers are not "
            "in the form that the reward reads (look at completions.jsonl): tune it on solved examples first "
            "(recipes/sft.py), choose easier problems, or raise num_generations. If the mean is the highest reward, "
            "choose harder problems",
        )
        self._count(
            "limit",
            logs.get("completions/clipped_ratio", 0.0) == 1.0,
            f"all completions reached max_completion_length={limit} in {{}} logs in a row: they are cut off before "
            "they end. Raise it; or the model never learned to stop (recipes/sft.py teaches it)",
        )
        self._count(
            "entropy",
            entropy < self.entropy_share * start,
            f"the entropy of the policy is {entropy:.3g} nats a token, it was {start:.3g}: the policy repeats itself "
            "and finds nothing new. Lower learning_rate, raise temperature or epsilon_high, or stop here",
        )

    def _count(self, sign: str, is_seen: bool, message: str) -> None:
        self.streaks[sign] = self.streaks.get(sign, 0) + 1 if is_seen else 0
        if self.streaks[sign] == self.patience and sign not in self.warned:
            warnings.warn(message.format(self.patience), stacklevel=2)
            self.warned.add(sign)
