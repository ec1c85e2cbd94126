"""The mathematics of PPO for language models, as functions of tensors: no model, no trainer, no state.

Shapes: B completions of at most T tokens. `mask` is boolean (B, T), True where the policy chose the token. Masked
positions (padding, the output of a tool) do not enter sums, decay advantages or bootstrap, and come back as 0. Token
ids are never compared with a padding token.

Sources: PPO is Schulman et al. 2017 (arXiv 1707.06347), GAE Schulman et al. 2015 (arXiv 1506.02438), the use on
language models Ziegler et al. 2019 (arXiv 1909.08593, openai/lm-human-preferences at cbfd210), the details Huang et al.
2024 (arXiv 2403.17031, "N+").
"""

from collections.abc import Callable

import torch
from torch import Tensor

Reduce = Callable[[Tensor], Tensor]  # sums a tensor over the processes


def local(sums: Tensor) -> Tensor:
    """The sum over processes when there is only one: `sums` itself."""
    return sums


def masked_mean(x: Tensor, mask: Tensor, reduce: Reduce = local) -> Tensor:
    """Mean of `x` where `mask` is True, over all processes; 0 if `mask` is False everywhere.

    Example: masked_mean([1., 2., 9.], [True, True, False]) -> 1.5.
    """
    total, count = reduce(torch.stack([x.masked_fill(~mask, 0.0).sum(), mask.sum().to(x.dtype)]))
    return total / count.clamp(min=1.0)


def masked_whiten(x: Tensor, mask: Tensor, shift_mean: bool = True, reduce: Reduce = local) -> Tensor:
    """`x` scaled to variance 1 (and mean 0 unless `shift_mean` is False) over the unmasked positions of all processes.

    The variance is the biased one (divided by n), plus 1e-8, as in lm-human-preferences (`whiten`, utils/core.py at
    cbfd210).

    Example: masked_whiten([1., 3., 9.], [True, True, False]) -> [-1., 1., 0.].
    """
    mean = masked_mean(x.double(), mask, reduce)
    variance = masked_mean((x.double() - mean) ** 2, mask, reduce)
    whitened = (x - mean) * torch.rsqrt(variance + 1e-8)
    whitened = whitened if shift_mean else whitened + mean
    return whitened.masked_fill(~mask, 0.0).to(x.dtype)


def per_token_kl(logps: Tensor, ref_logps: Tensor, mask: Tensor, estimator: str = "k1") -> Tensor:
    """Estimates of KL(policy || reference) at each token that the policy sampled, (B, T), in nats.

    With d = logps - ref_logps, k1 = d is unbiased and may be negative; as a penalty in the reward it gives the gradient
    of the reverse KL (arXiv 2510.01555). k3 = exp(-d) - 1 + d is never negative (joschu.net/blog/kl-approx.html).

    Args:
        logps, ref_logps: (B, T) log-probabilities in nats. estimator: "k1" or "k3".

    Example: logps = log 0.5, ref_logps = log 0.25 -> k1 = log 2 = 0.693, k3 = 0.5 - 1 + 0.693 = 0.193.
    """
    difference = (logps - ref_logps).masked_fill(~mask, 0.0)
    if estimator == "k1":
        return difference
    return torch.expm1(-difference) + difference


def last_token(mask: Tensor) -> Tensor:
    """(B,) index of the last True in each row, where the completion ends; 0 for a row without one.

    Example: [[True, True, False], [True, False, True]] -> [1, 2].
    """
    positions = torch.arange(mask.size(1), device=mask.device).expand_as(mask)
    return positions.masked_fill(~mask, 0).amax(dim=1)


def ended(ids: Tensor, mask: Tensor, end_ids: list[int]) -> Tensor:
    """(B,) whether each completion ended by itself: its last token is an end token. False for an empty row.

    Args:
        ids: (B, T) tokens of the completions. end_ids: the end tokens of the policy.
    Example: ids [[5, 2, 0], [5, 6, 7]], mask [[True, True, False], [True, True, True]], end_ids [2] -> [True, False].
    """
    last = ids.gather(1, last_token(mask)[:, None])[:, 0]
    return torch.isin(last, torch.tensor(end_ids, device=last.device)) & mask.any(dim=1)


def shaped_rewards(scores: Tensor, kl: Tensor, mask: Tensor, beta: float) -> Tensor:
    """Rewards per token, (B, T): -beta * KL at each token, and the score at the last one (Ziegler et al. 2019, eq. 2).

    If the completion ended by itself, its last token is the end token: the policy is rewarded for ending there.

    Args:
        scores: (B,) of the completions. kl: (B, T) per token. beta: weight of the KL, in units of the score per nat.
    Example: score 1, kl [0.2, 0.1, 0], mask [True, True, False], beta 0.5 -> [-0.1, 0.95, 0].
    """
    at_end = torch.arange(mask.size(1), device=mask.device) == last_token(mask)[:, None]
    return (torch.where(at_end, scores[:, None], 0.0) - beta * kl).masked_fill(~mask, 0.0)


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimates and returns, each (B, T) (arXiv 1506.02438, eq. 16).

    Backwards over the unmasked tokens of a row: delta_t = r_t + gamma * V_{t+1} - V_t, with V = 0 after the last token,
    and A_t = delta_t + gamma * lam * A_{t+1}. The returns are A + V.

    Args:
        rewards: (B, T) per token. values: (B, T), V of the state before each token. gamma: discount. lam: 1 counts
            all later rewards, 0 the next reward and the critic's value of the state after it.
    Example: rewards [0, 1], values [0.5, 0.5], gamma = lam = 1 -> advantages [0.5, 0.5], returns [1, 1].
    """
    advantages = torch.zeros_like(rewards)
    advantage, following = rewards.new_zeros(len(rewards)), rewards.new_zeros(len(rewards))  # `following` is V_{t+1}
    for t in reversed(range(rewards.size(1))):
        chosen = mask[:, t]
        delta = rewards[:, t] + gamma * following - values[:, t]
        advantage = torch.where(chosen, delta + gamma * lam * advantage, advantage)
        following = torch.where(chosen, values[:, t], following)
        advantages[:, t] = advantage.masked_fill(~chosen, 0.0)
    return advantages, (advantages + values).masked_fill(~mask, 0.0)


def value_losses(values: Tensor, old_values: Tensor, returns: Tensor, cliprange: float | None) -> tuple[Tensor, Tensor]:
    """Losses of the critic per token, 0.5 * (V - R)^2, and whether clipping decided the loss, each (B, T); not masked.

    With a `cliprange`, V gains nothing by moving further than that from its value at the rollout: the loss is the
    larger of the losses of V and of V clipped to old +- cliprange (openai/baselines, ppo2/model.py at ea25b9e; N+
    detail 8).

    Example: V 2, old 1, R 3, cliprange 0.2 -> max((2 - 3)^2, (1.2 - 3)^2) / 2 = 1.62, clipped.
    """
    losses = (values - returns) ** 2
    if cliprange is None:
        return 0.5 * losses, torch.zeros_like(losses, dtype=torch.bool)
    near = torch.clamp(values, old_values - cliprange, old_values + cliprange)
    near_losses = (near - returns) ** 2
    return 0.5 * torch.maximum(losses, near_losses), near_losses > losses


def policy_losses(ratio: Tensor, advantages: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """Clipped losses of the policy per token (arXiv 1707.06347, eq. 7), and whether clipping decided the loss, each
    (B, T); not masked.

    PPOTrainer only reports it. It trains on TRL's loss, and a test checks that both agree.

    Args:
        ratio: (B, T), probability now / at the rollout. low, high: it is clipped to 1 - low and 1 + high.

    Example: ratio 1.5, advantage 1, low = high = 0.2 -> -min(1.5, 1.2) = -1.2, clipped.
    """
    plain, clipped = -advantages * ratio, -advantages * torch.clamp(ratio, 1 - low, 1 + high)
    return torch.maximum(plain, clipped), clipped > plain


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor, reduce: Reduce = local) -> Tensor:
    """1 - Var(returns - values) / Var(returns) over the unmasked positions: 1 for a perfect critic, 0 for a constant.

    0 if the returns do not vary, since there is nothing to explain.
    """
    mean = masked_mean(returns, mask, reduce)
    variance = masked_mean((returns - mean) ** 2, mask, reduce)
    error = returns - values
    unexplained = masked_mean((error - masked_mean(error, mask, reduce)) ** 2, mask, reduce)
    return torch.where(variance > 1e-8, 1 - unexplained / variance.clamp(min=1e-8), torch.zeros_like(variance))
