"""PPO's mathematics against arithmetic by hand and loops in NumPy."""

import math

import numpy as np
import pytest
import torch

from fourstage.ppo import functional as F

T, X = True, False


def random_case(seed, rows=5, width=7):
    """Values, and a mask with completions of several lengths, a gap (text of a tool), and an empty row."""
    rng = torch.Generator().manual_seed(seed)
    mask = torch.zeros(rows, width, dtype=torch.bool)
    for row, length in enumerate([width, 1, 4, 5, 0]):
        mask[row, :length] = True
    mask[3, 1:3] = False
    return [torch.randn(rows, width, generator=rng) for _ in range(3)], mask


def test_masked_mean():
    assert F.masked_mean(torch.tensor([1.0, 2.0, 9.0]), torch.tensor([T, T, X])) == 1.5
    assert F.masked_mean(torch.tensor([1.0, math.nan]), torch.tensor([T, X])) == 1.0
    assert F.masked_mean(torch.tensor([5.0]), torch.tensor([X])) == 0.0


def test_masked_whiten_by_hand():
    x, mask = torch.tensor([1.0, 3.0, 99.0]), torch.tensor([T, T, X])
    torch.testing.assert_close(F.masked_whiten(x, mask), torch.tensor([-1.0, 1.0, 0.0]))
    torch.testing.assert_close(F.masked_whiten(x, mask, shift_mean=False), torch.tensor([1.0, 3.0, 0.0]))


@pytest.mark.parametrize("shift_mean", [True, False])
def test_masked_whiten_equals_numpy_on_the_real_tokens(shift_mean):
    (x, _, _), mask = random_case(0)
    x = x.masked_fill(~mask, 1e6)  # what padding holds must not matter
    real = x[mask].numpy().astype(np.float64)
    expected = (real - real.mean()) / np.sqrt(real.var() + 1e-8) + (0 if shift_mean else real.mean())
    whitened = F.masked_whiten(x, mask, shift_mean)
    np.testing.assert_allclose(whitened[mask].numpy(), expected, rtol=1e-5, atol=1e-6)
    assert (whitened[~mask] == 0).all()


def test_masked_whiten_over_two_processes_equals_one():
    """Each process whitens its half with sums over both; the other's sums are played by `reduce`."""
    (x, _, _), mask = random_case(1)
    halves = [(x[:2], mask[:2]), (x[2:], mask[2:])]
    together = F.masked_whiten(x, mask)
    mean = x[mask].double().mean()
    sums = {}
    for i, (part, m) in enumerate(halves):
        sums[i] = [
            torch.stack([part.double()[m].sum(), m.sum().double()]),
            torch.stack([((part.double() - mean)[m] ** 2).sum(), m.sum().double()]),
        ]
    for i, (part, m) in enumerate(halves):
        others = iter(sums[1 - i])
        whitened = F.masked_whiten(part, m, reduce=lambda s, others=others: s + next(others))
        torch.testing.assert_close(whitened, together[:2] if i == 0 else together[2:], rtol=1e-5, atol=1e-6)


def test_kl_estimators_by_hand():
    logps, ref = torch.tensor([[math.log(0.5), math.log(0.1)]]), torch.tensor([[math.log(0.25), 7.0]])
    mask = torch.tensor([[T, X]])
    torch.testing.assert_close(F.per_token_kl(logps, ref, mask, "k1"), torch.tensor([[math.log(2), 0.0]]))
    torch.testing.assert_close(F.per_token_kl(logps, ref, mask, "k3"), torch.tensor([[0.5 - 1 + math.log(2), 0.0]]))


def test_both_estimators_have_the_mean_of_the_divergence():
    """Weighted by the policy's probabilities they are the exact divergence of two distributions."""
    policy = torch.tensor([[0.7, 0.2, 0.1]])
    reference = torch.tensor([[0.3, 0.3, 0.4]])
    exact = (policy * (policy / reference).log()).sum()
    for estimator in ("k1", "k3"):
        kl = F.per_token_kl(policy.log(), reference.log(), torch.ones(1, 3, dtype=torch.bool), estimator)
        torch.testing.assert_close((policy * kl).sum(), exact)


def test_last_token():
    mask = torch.tensor([[T, T, X], [T, X, T], [T, X, X], [X, X, X]])
    assert F.last_token(mask).tolist() == [1, 2, 0, 0]


def test_ended():
    ids = torch.tensor([[5, 2, 0], [5, 6, 7], [3, 2, 5], [2, 2, 2]])
    mask = torch.tensor([[T, T, X], [T, T, T], [T, T, T], [X, X, X]])
    assert F.ended(ids, mask, [2, 3]).tolist() == [True, False, False, False]
    assert F.ended(ids, mask, [7]).tolist() == [False, True, False, False]


def test_shaped_rewards_put_the_score_on_the_end_token_and_the_penalty_on_all():
    kl = torch.tensor([[0.2, 0.1, 5.0], [0.2, 0.1, -0.4], [1.0, 1.0, 1.0]])
    mask = torch.tensor([[T, T, X], [T, T, T], [X, X, X]])
    rewards = F.shaped_rewards(torch.tensor([1.0, 2.0, 3.0]), kl, mask, beta=0.5)
    torch.testing.assert_close(rewards, torch.tensor([[-0.1, 0.95, 0.0], [-0.1, -0.05, 2.2], [0.0, 0.0, 0.0]]))


def test_gae_by_hand():
    ones = torch.ones(1, 2, dtype=torch.bool)
    rewards, values = torch.tensor([[0.0, 1.0]]), torch.tensor([[0.5, 0.25]])
    # delta_1 = 1 - 0.25 = 0.75, delta_0 = 0 + 0.9 * 0.25 - 0.5 = -0.275; A_0 = -0.275 + 0.9 * 0.8 * 0.75
    advantages, returns = F.gae(rewards, values, ones, gamma=0.9, lam=0.8)
    torch.testing.assert_close(advantages, torch.tensor([[0.265, 0.75]]))
    torch.testing.assert_close(returns, torch.tensor([[0.765, 1.0]]))


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.8), (1.0, 1.0), (0.99, 0.0)])
def test_gae_equals_a_loop_over_the_real_tokens_alone(gamma, lam):
    (rewards, values, _), mask = random_case(2)
    rewards, values = rewards.masked_fill(~mask, 1e6), values.masked_fill(~mask, -1e6)
    advantages, returns = F.gae(rewards, values, mask, gamma, lam)
    for row in range(len(mask)):
        r, v = rewards[row][mask[row]].tolist(), values[row][mask[row]].tolist()
        expected = []
        for t in range(len(r)):  # the definition: a discounted sum of all later errors
            deltas = [r[k] + gamma * (v[k + 1] if k + 1 < len(v) else 0.0) - v[k] for k in range(t, len(r))]
            expected.append(sum((gamma * lam) ** k * delta for k, delta in enumerate(deltas)))
        np.testing.assert_allclose(advantages[row][mask[row]].numpy(), expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(returns[row][mask[row]].numpy(), np.add(expected, v), rtol=1e-4, atol=1e-5)
    assert (advantages[~mask] == 0).all() and (returns[~mask] == 0).all()


def test_gae_with_lambda_one_is_the_return_less_the_value():
    (rewards, values, _), mask = random_case(3)
    rewards = rewards.masked_fill(~mask, 0.0)
    to_go = rewards.flip(1).cumsum(1).flip(1)
    advantages, _ = F.gae(rewards, values, mask, gamma=1.0, lam=1.0)
    torch.testing.assert_close(advantages, (to_go - values).masked_fill(~mask, 0.0))


def test_value_losses_by_hand():
    value, old, target = torch.tensor([2.0, 1.1, 0.0]), torch.tensor([1.0, 1.0, 1.0]), torch.tensor([3.0, 3.0, 0.0])
    losses, clipped = F.value_losses(value, old, target, 0.2)
    # clipped to 1.2: 1.8^2 > 1^2; 1.1 is within; clipped to 0.8: 0.8^2 > 0
    torch.testing.assert_close(losses, torch.tensor([1.8**2, 1.9**2, 0.8**2]) / 2)
    assert clipped.tolist() == [True, False, True]
    losses, clipped = F.value_losses(value, old, target, None)
    torch.testing.assert_close(losses, torch.tensor([1.0, 1.9**2, 0.0]) / 2)
    assert not clipped.any()


def test_a_clipped_value_gets_no_gradient():
    value = torch.tensor([2.0, 1.1], requires_grad=True)
    losses, _ = F.value_losses(value, torch.tensor([1.0, 1.0]), torch.tensor([3.0, 3.0]), 0.2)
    losses.sum().backward()
    torch.testing.assert_close(value.grad, torch.tensor([0.0, -1.9]))


def test_policy_losses_by_hand():
    ratio, advantages = torch.tensor([1.5, 0.5, 1.1, 0.5]), torch.tensor([1.0, -1.0, 2.0, 1.0])
    losses, clipped = F.policy_losses(ratio, advantages, 0.2, 0.2)
    torch.testing.assert_close(losses, torch.tensor([-1.2, 0.8, -2.2, -0.5]))
    assert clipped.tolist() == [True, True, False, False]


def test_explained_variance():
    returns, mask = torch.tensor([1.0, 2.0, 3.0, 50.0]), torch.tensor([T, T, T, X])
    assert F.explained_variance(returns, returns, mask) == 1.0
    assert F.explained_variance(torch.full((4,), 2.0), returns, mask) == pytest.approx(0.0)
    # errors 0, 0.5, -0.5: variance (0 + 0.25 + 0.25) / 3 of 2 / 3
    values = torch.tensor([1.0, 1.5, 3.5, 0.0])
    assert F.explained_variance(values, returns, mask) == pytest.approx(1 - 0.25, rel=1e-5)
    assert F.explained_variance(values, torch.ones(4), mask) == 0.0
