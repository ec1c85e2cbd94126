"""The signs of divergence: limits by hand, and the logs of a real run, well and broken on purpose."""

import math

import pytest

from fourstage.artifact.signs import Settings, signs_in

SETTINGS = Settings(learning_rate=0.01, limit=8, vocabulary=1024)
SFT = {"loss": 2.0, "grad_norm": 1.0, "learning_rate": 0.01}
GRPO = SFT | {
    "loss": 0.0,
    "reward": 0.4,
    "reward_std": 0.5,
    "frac_reward_zero_std": 0.5,
    "completions/clipped_ratio": 0.1,
    "completions/mean_length": 40.0,
    "clip_ratio/region_mean": 0.01,
    "entropy": 1.0,
    "kl": 0.1,
}
PPO = {key: value for key, value in GRPO.items() if key not in ("kl", "frac_reward_zero_std")} | {
    "objective/kl": 5.0,
    "loss/value_avg": 0.5,
    "policy/clipfrac_avg": 0.03,
}


def logs(healthy, *changes):
    """Logs of the steps 1, 2, ...: each is the healthy one with these changes."""
    return [healthy | change | {"step": i} for i, change in enumerate(changes, start=1)]


def kinds(history, settings=SETTINGS):
    return [(sign.kind, sign.step) for sign in signs_in(history, settings)]


def uneven(step):
    """Losses of single batches, in an order that repeats after 5: 1.2, 2.4, 1.6, 2.8, 2.0."""
    return {"loss": 2.0 + 0.4 * (step * 3 % 5 - 2)}


@pytest.mark.parametrize("healthy", [SFT, GRPO, PPO])
def test_a_healthy_run_is_left_alone(healthy):
    assert kinds(logs(healthy, *[{}] * 40)) == []


# Six logs on, each of these is outside; the number of logs it takes is the second part.
@pytest.mark.parametrize(
    ("kind", "after", "healthy", "change"),
    [
        ("loss_diverged", 3, SFT, {"loss": 3.1}),  # 1.5 x 2.0 is 3.0; the median is not left 2.5 times behind
        ("no_gradient", 3, SFT, {"grad_norm": 0.0}),
        ("constant_reward", 5, GRPO, {"reward_std": 0.0, "frac_reward_zero_std": 1.0}),
        ("no_spread", 5, GRPO, {"frac_reward_zero_std": 1.0}),
        ("all_cut", 5, GRPO, {"completions/clipped_ratio": 1.0}),
        ("all_cut", 5, PPO, {"completions/clipped_ratio": 1.0}),
        ("reward_fell", 5, GRPO, {"reward": -0.11}),  # 0.4 - 0.5 is -0.1
        ("entropy_collapse", 5, GRPO, {"entropy": 0.09}),  # a tenth of 1.0 is 0.1
        ("entropy_explosion", 3, GRPO, {"entropy": 3.1}),
        ("kl_runaway", 3, GRPO, {"kl": 0.51}),  # x 40 tokens: 20.4, and half of 40 is 20
        ("kl_runaway", 3, PPO, {"objective/kl": 20.4}),
        ("steps_clipped", 3, GRPO, {"clip_ratio/region_mean": 0.31}),
        ("steps_clipped", 3, PPO, {"policy/clipfrac_avg": 0.31}),
        ("value_loss", 3, PPO, {"loss/value_avg": 25.1}),  # 100 x 0.5^2 is 25
    ],
)
def test_each_sign_takes_some_logs_beyond_its_limit(kind, after, healthy, change):
    assert kinds(logs(healthy, *[{}] * 6, *[change] * after)) == [(kind, 6 + after)]
    assert kinds(logs(healthy, *[{}] * 6, *[change] * (after - 1), *[{}] * 6)) == []


@pytest.mark.parametrize(
    ("healthy", "change"),
    [
        (SFT, {"loss": 2.9}),
        (GRPO, {"reward": -0.09}),
        (GRPO, {"entropy": 0.11}),
        (GRPO, {"entropy": 2.9}),
        (GRPO, {"kl": 0.49}),
        (GRPO, {"kl": 3.0, "completions/mean_length": 3.0}),  # 9 nats, for an answer of one word
        (PPO, {"objective/kl": 19.6}),
        (PPO, {"loss/value_avg": 24.9}),
        (PPO, {"loss/value_avg": 90.0, "reward_std": 1.0}),
    ],
)
def test_inside_its_limit_nothing_is_told(healthy, change):
    assert kinds(logs(healthy, *[{}] * 6, *[change] * 12)) == []


def test_a_spike_is_measured_by_the_spread_of_the_losses_before():
    steady = [{"loss": 2.0}] * 8
    noisy = [uneven(i) for i in range(15)]  # median 2.0, median deviation 0.4: ten times that is 4
    assert kinds(logs(SFT, *steady, {"loss": 5.1}, *steady)) == [("loss_spike", 9)]
    assert kinds(logs(SFT, *steady, {"loss": 4.9}, *steady)) == []  # less than 2.5 times
    assert kinds(logs(SFT, *noisy, {"loss": 5.9})) == []
    assert kinds(logs(SFT, *noisy, {"loss": 6.3})) == [("loss_spike", 16)]
    small = [{"loss": 0.05}] * 8
    assert kinds(logs(SFT, *small, {"loss": 0.3}, *small)) == []  # five times as much, and no harm
    assert kinds(logs(SFT, {"loss": 2.0}, {"loss": 7.1})) == [("loss_spike", 2)]  # three times as much, and 1
    assert kinds(logs(SFT, {"loss": 9.0}, {"loss": 8.0}, {"loss": 7.0})) == []  # falling from where it began


def test_a_model_worse_than_a_guess_is_told_though_it_began_so():
    guess = math.log(1024)
    assert kinds(logs(SFT, *[{"loss": 2.1 * guess}] * 3)) == [("loss_diverged", 3)]
    assert kinds(logs(SFT, *[{"loss": 1.9 * guess}] * 9)) == []
    scorer = Settings(0.01)
    assert kinds(logs(SFT, *[{"loss": 10.5}] * 2), scorer) == [("loss_diverged", 2)]  # 15 x ln 2 is 10.4
    assert kinds(logs(SFT, *[{"loss": 10.3}] * 9), scorer) == []


def test_a_sign_is_told_once_and_again_after_ten_times_as_many_steps():
    cut = logs(GRPO, *[{"completions/clipped_ratio": 1.0}] * 600)
    assert kinds(cut) == [("all_cut", 5), ("all_cut", 50), ("all_cut", 500)]


def test_logs_between_two_rollouts_are_passed_over():
    inside = {key: PPO[key] for key in ("loss", "grad_norm", "learning_rate", "entropy")}
    history = []
    for i in range(8):
        history += [PPO | {"objective/kl": 30.0, "step": 2 * i + 1}, inside | {"step": 2 * i + 2}]
    assert kinds(history) == [("kl_runaway", 5)]


def test_evaluations_and_the_summary_are_not_logs_of_training():
    evaluation = {"eval_loss": 900.0, "eval_reward": 0.0, "step": 4}
    summary = {"train_loss": 900.0, "step": 4}
    assert kinds([*logs(SFT, *[{}] * 4), *[evaluation, summary] * 9]) == []


def test_what_was_told_is_the_same_however_the_run_was_cut():
    history = logs(SFT, *[{}] * 6, *[{"loss": 9.0}] * 20)
    assert signs_in(history[:9], SETTINGS) == signs_in(history, SETTINGS)[:2]
