"""What PPOTrainer reports of a rollout and of a step, under the names of TRL 1.12's PPOTrainer."""

import torch
from torch import Tensor

from fourstage.ppo import functional as F
from fourstage.rl.batches import Batch


def rollout_metrics(batches: list[Batch], masks: list[Tensor], kls: list[Tensor], beta: float) -> dict[str, Tensor]:
    """Each (B,), one value per completion of the rollout: its score, and sums over its tokens in nats."""
    kl = torch.cat([kl.sum(dim=1) for kl in kls])
    scores = torch.cat([batch["scores"] for batch in batches])
    surprise = [-b["old_per_token_logps"].masked_fill(~m, 0.0).sum(dim=1) for b, m in zip(batches, masks, strict=True)]
    return {
        "objective/kl": kl,
        "objective/entropy": torch.cat(surprise),
        "objective/non_score_reward": -beta * kl,
        "objective/scores": scores,
        "objective/rlhf_reward": scores - beta * kl,
    }


def rollout_explained_variance(batches: list[Batch], masks: list[Tensor], reduce: F.Reduce) -> Tensor:
    """How much of the variance of the returns the critic's values explain, over the rollout of all processes."""
    values, returns = (torch.cat([batch[name].flatten() for batch in batches]) for name in ("values", "returns"))
    return F.explained_variance(values, returns, torch.cat([mask.flatten() for mask in masks]), reduce)


def policy_metrics(logps: Tensor, batch: Batch, low: float, high: float) -> dict[str, Tensor]:
    """Each (B, T), one value per token of a minibatch, from its log-probabilities now. Not masked.

    `val/ratio_var` is the square of the ratio: its variance once the square of the mean is subtracted from the mean.
    """
    difference = logps - batch["old_per_token_logps"]
    ratio = difference.exp()
    losses, clipped = F.policy_losses(ratio, batch["advantages"], low, high)
    return {
        "policy/approxkl_avg": 0.5 * difference**2,
        "policy/clipfrac_avg": clipped.float(),
        "loss/policy_avg": losses,
        "val/ratio": ratio,
        "val/ratio_var": ratio**2,
    }
