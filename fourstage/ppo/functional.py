"""The mathematics of PPO for language models, as functions of tensors: no model, no trainer, no state.

Shapes: B completions of at most T tokens. `mask` is boolean (B, T), True where the policy chose the token; what it
leaves out (padding, text of a tool) enters no sum, neither decays nor bootstraps, and comes back as 0. Ids are never
compared with a padding token. Sources: PPO is Schulman et al. 2017 (arXiv 1707.06347), GAE Schulman et al. 2015 (arXiv
1506.02438), the use on language models Ziegler et al. 2019 (arXiv 1909.08593, openai/lm-human-preferences at cbfd210),
the details Huang et al. 2024 (arXiv 2403.17031, "N+").
"""

from collections.abc import Callable

import torch
from torch import Tensor

Reduce = Callable[[Tensor], Tensor]  # sums a tensor over the processes


def local(sums: Tensor) -> Tensor:
    """The sum over processes where there is one."""
    return sums


def masked_mean(x: Tensor, mask: Tensor, reduce: Reduce = local) -> Tensor:
    """Mean of `x` where `mask` is True, over all processes; 0 where nothing is.

    Example: masked_mean([1., 2., 9.], [True, True, False]) -> 1.5.
    """
    total, count = reduce(torch.stack([x.masked_fill(~mask, 0.0).sum(), mask.sum().to(x.dtype)]))
    return total / count.clamp(min=1.0)


def masked_whiten(x: Tensor, mask: Tensor, shift_mean: bool = True, reduce: Reduce = local) -> Tensor:
    """`x` scaled to variance 1 (and mean 0 unless `shift_mean` is off) over the True places of all processes.

    The variance is the biased one, divided by n, as in lm-human-preferences (`whiten`, utils/core.py at cbfd210); 1e-8
    is added to it.

    Example: masked_whiten([1., 3., 9.], [True, True, False]) -> [-1., 1., 0.].
    """
    mean = masked_mean(x.double(), mask, reduce)
    variance = masked_mean((x.double() - mean) ** 2, mask, reduce)
    whitened = (x - mean) * torch.rsqrt(variance + 1e-8)
    whitened = whitened if shift_mean else whitened + mean
    return whitened.masked_fill(~mask, 0.0).to(x.dtype)


def per_token_kl(logps: Tensor, ref_logps: Tensor, mask: Tensor, estimator: str = "k1") -> Tensor:
    """Estimates of KL(policy || reference) at each token the policy sampled, (B, T).

    With d = logps - ref_logps: k1 = d, unbiased and of either sign, the one whose use in the reward gives the gradient
    of the reverse KL (arXiv 2510.01555); k3 = exp(-d) - 1 + d, never negative (joschu.net/blog/kl-approx.html).

    Example: logps = log 0.5, ref_logps = log 0.25 -> k1 = log 2 = 0.693, k3 = 0.5 - 1 + 0.693 = 0.193.
    """
    difference = (logps - ref_logps).masked_fill(~mask, 0.0)
    if estimator == "k1":
        return difference
    return torch.expm1(-difference) + difference


def last_token(mask: Tensor) -> Tensor:
    """(B,) index of the last True of each row: where a completion ends; 0 for a row without any.

    Example: [[True, True, False], [True, False, True]] -> [1, 2].
    """
    positions = torch.arange(mask.size(1), device=mask.device).expand_as(mask)
    return positions.masked_fill(~mask, 0).amax(dim=1)


def shaped_rewards(scores: Tensor, kl: Tensor, mask: Tensor, beta: float) -> Tensor:
    """Rewards per token, (B, T): -beta * KL at each token, and the score at the last one (Ziegler et al. 2019, eq. 2).

    The last token is the end token where the completion ends by itself: the policy is rewarded for ending there.

    Args:
        scores: (B,). kl: (B, T) per token.
    Example: score 1, kl [0.2, 0.1, 0], mask [True, True, False], beta 0.5 -> [-0.1, 0.95, 0].
    """
    at_end = torch.arange(mask.size(1), device=mask.device) == last_token(mask)[:, None]
    return (torch.where(at_end, scores[:, None], 0.0) - beta * kl).masked_fill(~mask, 0.0)


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimates and returns, each (B, T) (arXiv 1506.02438, eq. 16).

    Going back over the True tokens of a row: delta_t = r_t + gamma * V_{t+1} - V_t, with V = 0 after the last, and
    A_t = delta_t + gamma * lam * A_{t+1}; returns are A + V.

    Args:
        values: (B, T), V of the state before each token.
    Example: rewards [0, 1], values [0.5, 0.5], gamma = lam = 1 -> advantages [0.5, 0.5], returns [1, 1].
    """
    advantages = torch.zeros_like(rewards)
    after, following = rewards.new_zeros(len(rewards)), rewards.new_zeros(len(rewards))
    for t in reversed(range(rewards.size(1))):
        here = mask[:, t]
        delta = rewards[:, t] + gamma * following - values[:, t]
        after = torch.where(here, delta + gamma * lam * after, after)
        following = torch.where(here, values[:, t], following)
        advantages[:, t] = after.masked_fill(~here, 0.0)
    return advantages, (advantages + values).masked_fill(~mask, 0.0)


def value_losses(values: Tensor, old_values: Tensor, returns: Tensor, cliprange: float | None) -> tuple[Tensor, Tensor]:
    """Losses of the critic per token, 0.5 * (V - R)^2, and where clipping chose the loss, each (B, T); not masked.

    With a `cliprange`, V may gain only that far from its value at the rollout: the loss is the larger one of V and
    of V clipped to old +- cliprange (openai/baselines, ppo2/model.py at ea25b9e; N+ detail 8).

    Example: V 2, old 1, R 3, cliprange 0.2 -> max((2 - 3)^2, (1.2 - 3)^2) / 2 = 1.62, clipped.
    """
    losses = (values - returns) ** 2
    if cliprange is None:
        return 0.5 * losses, torch.zeros_like(losses, dtype=torch.bool)
    near = torch.clamp(values, old_values - cliprange, old_values + cliprange)
    near_losses = (near - returns) ** 2
    return 0.5 * torch.maximum(losses, near_losses), near_losses > losses


def policy_losses(ratio: Tensor, advantages: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """Clipped losses of the policy per token (arXiv 1707.06347, eq. 7), and where clipping chose the loss; not masked.

    Only for reporting: the loss that is trained on is TRL's, and a test holds that both agree.

    Example: ratio 1.5, advantage 1, low = high = 0.2 -> -min(1.5, 1.2) = -1.2, clipped.
    """
    plain, clipped = -advantages * ratio, -advantages * torch.clamp(ratio, 1 - low, 1 + high)
    return torch.maximum(plain, clipped), clipped > plain


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor, reduce: Reduce = local) -> Tensor:
    """1 - Var(returns - values) / Var(returns) over the True places: 1 is a perfect critic, 0 one that knows the mean.

    0 where the returns do not vary, since nothing is there to explain.
    """
    mean = masked_mean(returns, mask, reduce)
    variance = masked_mean((returns - mean) ** 2, mask, reduce)
    error = returns - values
    unexplained = masked_mean((error - masked_mean(error, mask, reduce)) ** 2, mask, reduce)
    return torch.where(variance > 1e-8, 1 - unexplained / variance.clamp(min=1e-8), torch.zeros_like(variance))
