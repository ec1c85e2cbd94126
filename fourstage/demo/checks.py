"""The checks that the demo chain has to pass, each with its figure: `pipeline.py --check` fails if one does not."""

from fourstage.data.embedded import styles
from fourstage.demo import measure

# One-sided 95 % quantiles of Student's t by degrees of freedom, for bounds over a few seeds.
_T95 = {1: 6.314, 2: 2.920, 3: 2.353, 4: 2.132, 5: 2.015, 6: 1.943, 7: 1.895, 8: 1.860, 9: 1.833}
_NORMAL95 = 1.645
_REASONING = {"reasoning_greedy": "right, T = 0, form forced", "derivations": "every step right too"}


def lower_bound(metric: dict) -> float:
    """One-sided 95 % lower bound of a mean: over items for one seed, over seeds (Student's t) for several."""
    seeds = len(metric["values"])
    quantile = _NORMAL95 if seeds == 1 else _T95.get(seeds - 1, _NORMAL95)
    return metric["mean"] - quantile * metric["stderr"]


def checks(rows: list[dict], reward_model: dict | None) -> list[dict]:
    """All checks of the stages that were measured: name, figure, lower (the bound that is judged), want, passed."""
    by_stage = {row["stage"]: row for row in rows}
    results = [*_base_checks(by_stage), *_instruction_checks(by_stage)]
    if reward_model is not None:
        results += _reward_checks(reward_model["metrics"])
    return results + [*_preference_checks(by_stage), *_reasoning_checks(by_stage), *_cost_checks(by_stage)]


def _at_least(name: str, metric: dict, least: float) -> dict:
    lower = lower_bound(metric)
    want = f"lower bound at least {least:g}"
    return {"name": name, "figure": metric["mean"], "lower": lower, "want": want, "passed": lower >= least}


def _figure(name: str, figure: float, passed: bool, want: str) -> dict:
    return {"name": name, "figure": figure, "lower": None, "want": want, "passed": passed}


def _base_checks(by_stage: dict) -> list[dict]:
    start, base, guesses = (by_stage.get(stage) for stage in ("random", "pretrain", "chance"))
    results = []
    if start and guesses:
        above = max(start["metrics"][k]["mean"] - guesses["metrics"][k]["mean"] for k in measure.KINDS)
        name = "random weights answer at chance: the kind most above it"
        results.append(_figure(name, above, above <= 0.01, "at most 0.01"))
    if start and base:
        ratio = base["metrics"]["bits_per_byte"]["mean"] / start["metrics"]["bits_per_byte"]["mean"]
        name = "pre-training: bits per byte as a share of random weights'"
        results.append(_figure(name, ratio, ratio < 0.4, "below 0.4"))
        continued = base["metrics"]["continues"]["mean"]
        name = "pre-training: 'What is ...?' is continued, not answered"
        results.append(_figure(name, continued, continued >= 0.9, "at least 0.9"))
    return results


def _instruction_checks(by_stage: dict) -> list[dict]:
    if "sft" not in by_stage:
        return []
    metrics = by_stage["sft"]["metrics"]
    kinds = ("reading", "summary", "code", "glossary")
    start = metrics["preferred"]["mean"]
    return [_at_least(f"instruction tuning: {kind} right", metrics[kind], 0.8) for kind in kinds] + [
        _figure("instruction tuning: preferred answers to begin with", start, 0.3 <= start <= 0.5, "0.3 to 0.5")
    ]


def _reward_checks(metrics: dict) -> list[dict]:
    return [
        _at_least("reward model: held-out pairs right", metrics["accuracy"], 0.9),
        _at_least("reward model: well-styled answers off the topic", metrics["off_topic"], 0.85),
    ]


def _preference_checks(by_stage: dict) -> list[dict]:
    attacks = share_of_attacks_preferred()
    results = [
        _figure("attacks on the gold rule, such as the ending alone, that it prefers", attacks, attacks == 0, "0")
    ]
    if "preferred" in by_stage.get("ppo", {}).get("gains", {}).get("parent", {}):
        results.append(
            _at_least("PPO: gain in preferred answers", by_stage["ppo"]["gains"]["parent"]["preferred"], 0.3)
        )
    return results


def _reasoning_checks(by_stage: dict) -> list[dict]:
    """What a gain can be depends on the start: so either the gain or the level reached, and over the control the share
    of its errors that are gone.
    """
    row = by_stage.get("grpo", {"gains": {}})
    parent, control = (row["gains"].get(name, {}) for name in ("parent", "control"))
    results = []
    for key, what in _REASONING.items():
        if key in parent:
            level, gain = row["metrics"][key], parent[key]
            name = f"GRPO over its parent: {what}, gain of {gain['mean']:.3f}, level"
            want = "lower bound at least 0.9, or of the gain at least 0.25"
            passed = lower_bound(level) >= 0.9 or lower_bound(gain) >= 0.25
            results.append(_figure(name, level["mean"], passed, want) | {"lower": lower_bound(level)})
        if key in control:
            errors = max(1 - by_stage["control"]["metrics"][key]["mean"], 1e-9)
            share, lower = control[key]["mean"] / errors, lower_bound(control[key]) / errors
            name = f"GRPO over its control: {what}, share of its errors removed"
            results.append(_figure(name, share, lower >= 0.5, "lower bound at least 0.5") | {"lower": lower})
    alive = by_stage.get("control", {"gains": {}})["gains"].get("parent", {}).get("reasoning_greedy")
    if alive:
        drift = abs(alive["mean"])
        name = "coin flips: how far they move what is right from where it was"
        results.append(_figure(name, drift, drift <= 0.1, "at most 0.1"))
    return results


def _cost_checks(by_stage: dict) -> list[dict]:
    results = []
    for stage in ("ppo", "grpo"):
        gains = by_stage.get(stage, {}).get("gains", {}).get("parent", {})
        if gains:
            kind = min((k for k in measure.KINDS if k in gains), key=lambda k: gains[k]["mean"])
            loss = gains[kind]["mean"]
            name = f"{stage.upper()}: the kind that it costs most ({kind})"
            results.append(_figure(name, loss, loss >= -0.03, "at least -0.03"))
    return results


def share_of_attacks_preferred() -> float:
    """The share of answers made to game the gold rule that it takes for preferred; it has to be 0."""
    reference = "Ada found the ball."
    attacks = [
        *styles.POLITE,
        *(f"{a} {b}" for a in styles.POLITE for b in styles.POLITE),
        *(f"{reference} {a} {b}" for a in styles.POLITE for b in styles.POLITE),
        *(
            f"{wrong} {ending}"
            for wrong in ("Ben found the ball.", "Ada", "", reference * 2)
            for ending in styles.POLITE
        ),
        *(f"{reference} {rude} {ending}" for rude in styles.RUDE for ending in styles.POLITE),
        reference,
    ]
    return sum(styles.is_preferred(attack, reference) for attack in attacks) / len(attacks)
