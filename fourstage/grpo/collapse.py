"""Watches a GRPO run for the ways in which it stops to learn, and says why, once each."""

import math
import warnings

from transformers import TrainerCallback


class WatchCollapse(TrainerCallback):
    """Warns when, over `patience` logs in a row, a run cannot learn or is about to lose its variety.

    - every group has zero spread: all completions of a prompt earn the same, so all advantages are 0;
    - every completion hits the limit: none ends, so an answer at the end is cut off;
    - entropy dies: it falls below `entropy_share` of what it was in the first logs.
    """

    def __init__(self, patience: int = 5, entropy_share: float = 0.1):
        self.patience, self.entropy_share = patience, entropy_share
        self.seen: dict[str, int] = {}
        self.first_entropies: list[float] = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero or "frac_reward_zero_std" not in (logs or {}):
            return
        reward, entropy = logs["reward"], logs.get("entropy", math.nan)
        if len(self.first_entropies) < self.patience:
            self.first_entropies.append(entropy)
        start = sum(self.first_entropies) / len(self.first_entropies)
        self._count(
            "spread",
            logs["frac_reward_zero_std"] == 1.0,
            f"all completions of a prompt earned the same in {{}} logs (mean reward {reward:.3g}), so nothing is "
            "learned. A mean at the bottom: the task is too hard for this model, or answers are not in the form that "
            "the reward reads (look at completions.jsonl): tune it on solved examples first (recipes/sft.py), choose "
            "easier problems, or raise num_generations. A mean at the top: choose harder problems",
        )
        self._count(
            "limit",
            logs.get("completions/clipped_ratio", 0.0) == 1.0,
            f"all completions reached max_completion_length={args.max_completion_length} in {{}} logs: they are cut "
            "off before they end. Raise it; or the model never learned to stop (recipes/sft.py teaches it)",
        )
        self._count(
            "entropy",
            entropy < self.entropy_share * start,
            f"the entropy of the policy is {entropy:.3g} nats a token, it was {start:.3g}: it says one thing only and "
            "finds nothing new. Lower learning_rate, raise temperature or epsilon_high, or stop here",
        )

    def _count(self, what: str, happens: bool, message: str) -> None:
        self.seen[what] = self.seen.get(what, 0) + 1 if happens else 0
        if self.seen[what] == self.patience:
            warnings.warn(message.format(self.patience), stacklevel=2)
            self.seen[what] = -(10**9)  # said once
