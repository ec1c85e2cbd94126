"""What the numbers of a training run say about its health: pure functions over its logs.

The limits lie beyond what 674 runs logged (docs/watching.md has the table), and each sign has to show
in several logs, so that an unlucky batch says nothing.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

PATIENCE = 5  # logs in a row
_SHORT = 3  # for what is far outside
_WINDOW = 16  # earlier logs that a new one is compared with
_AGAIN = 10  # a sign that was told is told again after so many times as many steps

Logs = Sequence[dict]


@dataclass(frozen=True)
class Settings:
    """What the signs have to know of a run.

    Args:
        learning_rate: the peak. limit: max_completion_length, None where nothing is sampled. vocabulary: tokens the
            model can write, 0 for one that scores.
    """

    learning_rate: float
    limit: int | None = None
    vocabulary: int = 0


@dataclass(frozen=True)
class Sign:
    """One sign at one step. `grave`: the weights themselves go wrong, so --stop_on_divergence stops there."""

    kind: str
    step: int
    message: str
    grave: bool

    def as_record(self) -> dict:
        return {"kind": self.kind, "step": self.step, "grave": self.grave, "message": self.message}


def signs_in(history: Iterable[dict], settings: Settings) -> list[Sign]:
    """The signs of a whole log history (`trainer_state.json`), as the run told them: each kind once, and again after
    ten times as many steps."""
    watch = Watch(settings)
    return [sign for log in history for sign in watch.read(log)]


class Watch:
    """Reads a run's logs one by one."""

    def __init__(self, settings: Settings):
        self.settings, self.logs, self._quiet_until = settings, [], {}

    def read(self, log: dict) -> list[Sign]:
        """The new signs at this log; logs of evaluations and the last summary bring none."""
        if "loss" not in log or "learning_rate" not in log:
            return []
        self.logs.append(log)
        found, step = [], int(log.get("step", len(self.logs)))
        for kind, (rule, grave) in _RULES.items():
            if step >= self._quiet_until.get(kind, 0) and (message := rule(self.logs, self.settings)):
                self._quiet_until[kind] = _AGAIN * max(step, 1)
                found.append(Sign(kind, step, message, grave))
        return found


def _column(logs: Logs, key: str) -> list[float]:
    return [float(log.get(key, math.nan)) for log in logs]


def _last(logs: Logs, key: str, count: int) -> list[float]:
    """The last `count` values, where the newest log has one; logs without it, between two rollouts, are passed over.

    Empty where there are not as many yet, or one of them is not finite.
    """
    if key not in logs[-1]:
        return []
    values = [float(log[key]) for log in islice((log for log in reversed(logs) if key in log), count)][::-1]
    return values if len(values) == count and all(map(math.isfinite, values)) else []


def _first(logs: Logs, key: str) -> list[float]:
    values = _column(logs[:_SHORT], key)
    return values if all(map(math.isfinite, values)) else []


def _lower(settings: Settings) -> str:
    return f"lower learning_rate (now {settings.learning_rate:g})"


def loss_spike(logs: Logs, settings: Settings) -> str | None:
    """A loss far above the median of those before it, by their own spread; losses of PPO and GRPO lie around zero."""
    before = _column(logs[-_WINDOW - 1 : -1], "loss")
    if "reward" in logs[-1] or not before:
        return None
    loss, middle = logs[-1]["loss"], statistics.median(before)
    spread = statistics.median(abs(x - middle) for x in before)
    is_high = loss > middle + max(10 * spread, 0.3) and loss > 2.5 * middle
    if len(before) < PATIENCE:  # too few to know their spread
        is_high = loss > 3 * max(before) + 1
    if is_high:
        return (
            f"the loss jumped to {loss:.3g}; the median of the {len(before)} logs before is {middle:.3g}. If it does "
            f"not come back within some logs, {_lower(settings)}, or lengthen warmup_steps; if it recurs at the same "
            "place, look at the rows there"
        )
    return None


def loss_diverged(logs: Logs, settings: Settings) -> str | None:
    """A loss that stays above where the run began, or far above that of a guess."""
    losses, first = _last(logs, "loss", _SHORT), max(_column(logs[:_SHORT], "loss"))
    if "reward" in logs[-1]:
        return None
    if len(logs) >= 2 * _SHORT and losses and min(losses) > max(1.5 * first, first + 0.5):
        return f"the loss is {losses[-1]:.3g} and began at {first:.3g}: training harms the model; {_lower(settings)}"
    # A reward model guesses between two; margins between its pairs may double that loss, and more.
    guess = math.log(settings.vocabulary or 2)
    among, times, count = (f"{settings.vocabulary} tokens", 2, _SHORT) if settings.vocabulary else ("two", 15, 2)
    losses = _last(logs, "loss", count)
    if losses and min(losses) > times * guess:
        return (
            f"the loss is {losses[-1]:.3g}; guessing among {among} costs {guess:.3g}: training broke the model; "
            f"{_lower(settings)}"
        )
    return None


def no_gradient(logs: Logs, settings: Settings) -> str | None:
    """Nothing moves the weights any more; where all rewards are alike, that is told instead."""
    norms = _last(logs, "grad_norm", _SHORT)
    alike = [log.get("reward_std", 1) == 0 for log in logs[-PATIENCE:]]
    if norms and max(norms) == 0 and not any(alike):
        return (
            f"the gradient is 0 in {_SHORT} logs in a row: the model has stopped learning, as one does whose weights "
            f"have grown too large; {_lower(settings)}"
        )
    return None


def constant_reward(logs: Logs, settings: Settings) -> str | None:
    """Every completion of every log earned the same."""
    spreads, rewards = _last(logs, "reward_std", PATIENCE), _last(logs, "reward", PATIENCE)
    if spreads and rewards and max(spreads) == 0 and min(rewards) == max(rewards):
        return (
            f"every completion earned {rewards[-1]:.3g} in {PATIENCE} logs in a row, so nothing is learned: the reward "
            "tells no answer from another. Look at completions.jsonl: the task may be too hard or too easy for this "
            "model, or its answers are not in the form that the reward reads (recipes/sft.py teaches it)"
        )
    return None


def no_spread(logs: Logs, settings: Settings) -> str | None:
    """GRPO compares the completions of a prompt, and those of each were all alike."""
    shares = _last(logs, "frac_reward_zero_std", PATIENCE)
    if shares and min(shares) == 1 and not constant_reward(logs, settings):
        return (
            f"all completions of a prompt earned the same in {PATIENCE} logs in a row (mean reward "
            f"{logs[-1]['reward']:.3g}), so nothing is learned. If that is the lowest reward, the task is too hard for "
            "this model, or its answers are not in the form that the reward reads (look at completions.jsonl): tune it "
            "on solved examples first (recipes/sft.py), choose easier problems, or raise num_generations. If it is "
            "the highest, choose harder problems"
        )
    return None


def reward_fell(logs: Logs, settings: Settings) -> str | None:
    """Training for a reward lowered it, by more than the completions differed at the start."""
    last, first, spreads = _last(logs, "reward", PATIENCE), _first(logs, "reward"), _first(logs, "reward_std")
    if not (last and first and spreads) or len(logs) < PATIENCE + _SHORT:
        return None
    start, now, spread = statistics.fmean(first), statistics.fmean(last), statistics.fmean(spreads)
    if now < start - spread and spread > 0:
        return (
            f"the reward fell: {now:.3g} over {PATIENCE} logs, {start:.3g} at the start. Unless the problems grow "
            f"harder on purpose, {_lower(settings)} or raise beta"
        )
    return None


def kl_runaway(logs: Logs, settings: Settings) -> str | None:
    """The policy left its reference: by more than half a nat a token, and by more than 10 in a completion.

    The latter is for answers of a few tokens, which a right policy may turn upside down.
    """
    lengths, sums = _last(logs, "completions/mean_length", _SHORT), _last(logs, "objective/kl", _SHORT)
    if means := _last(logs, "kl", _SHORT):  # GRPO's is of a token, PPO's of a completion
        sums = [mean * length for mean, length in zip(means, lengths, strict=False)]
    if lengths and sums and all(total > max(10, length / 2) for total, length in zip(sums, lengths, strict=True)):
        return (
            f"the KL divergence from the model it started as is {sums[-1]:.3g} nats in a completion of "
            f"{lengths[-1]:.0f} tokens: the policy no longer writes that model's language; raise beta or "
            f"{_lower(settings)}"
        )
    return None


def entropy_collapse(logs: Logs, settings: Settings) -> str | None:
    """The policy became nearly certain of every token. Tuned on examples, the entropy falls rightly."""
    last, start = _last(logs, "entropy", PATIENCE), statistics.fmean(_column(logs[:PATIENCE], "entropy"))
    if last and "reward" in logs[-1] and max(last) < 0.1 * start:
        return (
            f"the entropy of the policy is {last[-1]:.3g} nats a token, it was {start:.3g}: the policy repeats itself "
            f"and finds nothing new; {_lower(settings)}, raise beta, temperature or epsilon_high, or stop here"
        )
    return None


def entropy_explosion(logs: Logs, settings: Settings) -> str | None:
    """The policy became uncertain of every token: its text turns to noise."""
    last, start = _last(logs, "entropy", _SHORT), float(logs[0].get("entropy", math.nan))
    if last and "reward" in logs[-1] and min(last) > max(3 * start, start + 1):
        return (
            f"the entropy of the policy is {last[-1]:.3g} nats a token, it was {start:.3g}: its text turns to noise; "
            f"{_lower(settings)} or raise beta"
        )
    return None


def all_cut(logs: Logs, settings: Settings) -> str | None:
    """No completion ends by itself."""
    shares = _last(logs, "completions/clipped_ratio", PATIENCE)
    if shares and min(shares) == 1:
        return (
            f"all completions reached max_completion_length={settings.limit} in {PATIENCE} logs in a row: they are cut "
            "off before they end. Raise it; or the model never learned to stop (recipes/sft.py teaches it; in PPO also "
            "missing_eos_penalty)"
        )
    return None


def steps_clipped(logs: Logs, settings: Settings) -> str | None:
    """Much of the update lies beyond the clip range: the policy moves further than PPO and GRPO allow."""
    key = "policy/clipfrac_avg" if "policy/clipfrac_avg" in logs[-1] else "clip_ratio/region_mean"
    shares = _last(logs, key, _SHORT)
    if shares and min(shares) > 0.3:
        return (
            f"{shares[-1]:.0%} of the tokens are clipped: the policy moves too far between two rollouts; "
            f"{_lower(settings)} or num_iterations"
        )
    return None


def value_loss(logs: Logs, settings: Settings) -> str | None:
    """The critic is wrong by ten times as much as scores differ, or more: its loss is a square."""
    losses = _last(logs, "loss/value_avg", _SHORT)
    spread = max((float(log.get("reward_std", 0)) for log in logs[-_WINDOW:]), default=0.0)
    if losses and min(losses) > 100 * max(spread**2, 0.01):
        return (
            f"the critic's loss is {losses[-1]:.3g}, and scores differ by {spread:.2g}: its values mislead the policy; "
            "lower value_learning_rate, or bound the scores with reward_clip_range"
        )
    return None


_RULES: dict[str, tuple[Callable[[Logs, Settings], str | None], bool]] = {
    "loss_spike": (loss_spike, False),
    "loss_diverged": (loss_diverged, True),
    "no_gradient": (no_gradient, True),
    "constant_reward": (constant_reward, False),
    "no_spread": (no_spread, False),
    "reward_fell": (reward_fell, False),
    "kl_runaway": (kl_runaway, True),
    "entropy_collapse": (entropy_collapse, True),
    "entropy_explosion": (entropy_explosion, True),
    "all_cut": (all_cut, False),
    "steps_clipped": (steps_clipped, True),
    "value_loss": (value_loss, True),
}
