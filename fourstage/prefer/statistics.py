"""What a file of choices tells: about the models, about the people who chose, and about its use for a reward model."""

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from statistics import fmean, median
from typing import Any

from scipy.stats import binomtest
from sklearn.metrics import cohen_kappa_score

from fourstage.data.formats import preference_row
from fourstage.data.picks import CHOICES, standing
from fourstage.prefer.record import read_choices
from fourstage.speaking import visible

_SIDES, _TIES = ("left", "right"), ("both_good", "both_bad")
_SWAPPED = {"left": "right", "right": "left"}
_WORDS = {"both_good": "both good", "both_bad": "both bad", "skip": "skipped"}
_LONGEST = 60  # characters of a name that are printed


def run_statistics(arguments: argparse.Namespace) -> int:
    """Prints the statistics of the file `stats`; scores it with `reward_model` and writes `export` where asked for."""
    path = arguments.stats
    rows = read_choices(path)
    if not rows:
        raise ValueError(f"{path} holds no choices yet; make some with `fourstage prefer MODEL --output {path}`")
    if arguments.export:
        _check_new(arguments.export)
    print(describe(statistics(rows)))
    if arguments.reward_model:
        from fourstage.prefer.scored import describe_scored, score

        print(describe_scored(score(arguments.reward_model, path)))
    if arguments.export:
        print(f"{arguments.export}: {export(rows, arguments.export):,} pairs of prompt, chosen and rejected")
    return 0


def statistics(rows: Iterable[Mapping]) -> dict:
    """The numbers, of the choices that stand. Repeated pairs count for steadiness and pace alone.

    Args:
        rows: all lines of a file of choices, as `read_choices` gives them.
    Returns:
        `choices` (by kind, and `undone`, `repeated`), `seconds` (median), `people`, `models`, `one_model`, `position`,
        `agreement`, `steady`, `ready` and `left_out`; shares are from 0 to 1, and None where nothing was counted.
    """
    rows = list(rows)
    stand = standing(rows)
    first = [row for row in stand if row["repeat_of"] is None]
    made = sum(row["choice"] != "undo" for row in rows)
    kinds = Counter(row["choice"] for row in first)
    reasons = Counter(reason for reason in map(_ready, stand) if isinstance(reason, str))
    matches, one_model = _matches(first)
    return {
        "choices": {kind: kinds[kind] for kind in CHOICES if kind != "undo"}
        | {"undone": made - len(stand), "repeated": len(stand) - len(first)},
        "seconds": _pace(stand),
        "people": _people(stand),
        "models": matches,
        "one_model": one_model,
        "position": _position(first),
        "agreement": _agreement(first),
        "steady": _steady(stand),
        "ready": len(stand) - reasons.total(),
        "left_out": dict(reasons),
    }


def _ready(row: Mapping) -> dict | str:
    """The pair that a reward model learns from, or why it is none, in words that follow "are"."""
    try:
        return preference_row(row)
    except ValueError:
        return "unreadable"


def _pace(rows: Iterable[Mapping]) -> float | None:
    seconds = [row["seconds"] for row in rows if row["seconds"] is not None]
    return median(seconds) if seconds else None


def _people(rows: Sequence[Mapping]) -> dict[str, dict]:
    by_person: dict[str, list[Mapping]] = defaultdict(list)
    for row in rows:
        by_person[row["person"]].append(row)
    return {
        person: {"choices": len(own), "seconds": _pace(own), **_position([r for r in own if r["repeat_of"] is None])}
        for person, own in by_person.items()
    }


def _position(rows: Iterable[Mapping]) -> dict:
    """How often left was the better side, and how likely a share so far from a half is if the sides do not matter.

    Example: 9 of 10 -> {"left": 9, "sides": 10, "p": 0.021}; p = 2 (10 + 1) / 2^10.
    """
    sides = [row["choice"] for row in rows if row["choice"] in _SIDES]
    left = sides.count("left")
    return {"left": left, "sides": len(sides), "p": float(binomtest(left, len(sides)).pvalue) if sides else None}


def _matches(rows: Iterable[Mapping]) -> tuple[list[dict], int]:
    """(for any two models what was chosen between them, how many choices were between two answers of one model).

    A model is known by the hash of its weights, or by its name where there is none. The interval is Wilson's, of 95 %,
    for the share of choices of a side that the first of the two won.
    """
    names: dict[str, str] = {}
    found: dict[tuple[str, str], Counter] = {}
    one_model = 0
    for row in rows:
        keys = _models(row, names)
        if keys is None or keys[0] == keys[1]:
            one_model += keys is not None
            continue
        pair = keys if keys in found or keys[::-1] not in found else keys[::-1]
        counts = found.setdefault(pair, Counter())
        counts[keys[_SIDES.index(row["choice"])] if row["choice"] in _SIDES else row["choice"]] += 1
    return [_match(pair, counts, names) for pair, counts in found.items()], one_model


def _models(row: Mapping, names: dict[str, str]) -> tuple[str, str] | None:
    """What the models of the left and right answer are known by, noting their `names`; None where it is not said."""
    models = row["models"]
    if not isinstance(models, list) or len(models) != 2:
        return None
    keys = []
    for model in models:
        if not isinstance(model, Mapping) or not isinstance(model.get("name"), str):
            return None
        weights = model.get("weights")
        keys.append(weights if isinstance(weights, str) else f"name {model['name']}")
        names.setdefault(keys[-1], model["name"])
    return keys[0], keys[1]


def _match(pair: tuple[str, str], counts: Counter, names: Mapping[str, str]) -> dict:
    shared = Counter(names.values())
    shown = [names[key] if shared[names[key]] == 1 else f"{names[key]} ({key[:8]})" for key in pair]
    wins = [counts[key] for key in pair]
    match: dict = {"models": shown, "wins": wins, **{kind: counts[kind] for kind in (*_TIES, "skip")}}
    if not any(wins):
        return match | {"share": None, "low": None, "high": None}
    interval = binomtest(wins[0], sum(wins)).proportion_ci(0.95, method="wilson")
    return match | {"share": wins[0] / sum(wins), "low": float(interval.low), "high": float(interval.high)}


def _agreement(rows: Iterable[Mapping]) -> dict:
    """Cohen's kappa of any two people on the pairs that both chose about, skips aside, and its mean.

    It is None where both always chose the same: chance alone would then agree as often.
    Example: alike on 3 of 4 pairs, one of them 2 left and 2 right, the other 3 and 1 -> (3/4 - 1/2) / (1 - 1/2) = 0.5.
    """
    chosen: dict[str, dict[str, str]] = defaultdict(dict)
    for row in rows:
        if row["choice"] != "skip":
            chosen[row["person"]][row["pair"]] = row["choice"]
    several = Counter(pair for own in chosen.values() for pair in own)
    people: list[dict[str, Any]] = []
    for (one, first), (other, second) in combinations(chosen.items(), 2):
        shared = [pair for pair in first if pair in second]
        if shared:
            both = [[own[pair] for pair in shared] for own in (first, second)]
            alike = sum(a == b for a, b in zip(*both, strict=True))
            kappa = float(cohen_kappa_score(*both)) if len({*both[0], *both[1]}) > 1 else None
            people.append({"people": [one, other], "pairs": len(shared), "alike": alike, "kappa": kappa})
    kappas = [each["kappa"] for each in people if each["kappa"] is not None]
    shared_pairs = sum(count > 1 for count in several.values())
    return {"pairs": shared_pairs, "kappa": fmean(kappas) if kappas else None, "between": people}


def _steady(rows: Iterable[Mapping]) -> dict:
    """How often a person chose alike about a pair and its repeat, in which left and right have changed places."""
    by_pair = {(row["person"], row["pair"]): row["choice"] for row in rows}
    repeats = [
        (by_pair[row["person"], row["repeat_of"]], row["choice"])
        for row in rows
        if (row["person"], row["repeat_of"]) in by_pair
    ]
    judged = [both for both in repeats if "skip" not in both]
    return {"alike": sum(_SWAPPED.get(first, first) == again for first, again in judged), "repeats": len(judged)}


def describe(found: Mapping) -> str:
    """The statistics in lines for the terminal; what stands in names is harmless there."""
    counts = found["choices"]
    kinds = [f"{counts[kind]:,} {_WORDS.get(kind, kind)}" for kind in CHOICES if counts.get(kind)]
    total = sum(counts[kind] for kind in CHOICES if kind != "undo")
    lines = [f"{total:,} choices" + (f": {', '.join(kinds)}" if kinds else "") + _pace_words(found["seconds"])]
    lines += [f"  {counts['repeated']:,} more about repeated pairs"] if counts["repeated"] else []
    lines += [f"  {counts['undone']:,} more were undone"] if counts["undone"] else []
    if len(found["people"]) > 1:
        lines += [_person_line(name, own) for name, own in found["people"].items()]
    lines += [line for match in found["models"] for line in _match_lines(match)]
    lines += [f"{found['one_model']:,} choices between two answers of one model"] if found["one_model"] else []
    lines += [_position_line(found["position"]), *_agreement_lines(found["agreement"])]
    steady = found["steady"]
    if steady["repeats"]:
        lines.append(
            f"steady: {_share(steady['alike'], steady['repeats'])} repeated pairs, sides swapped, were chosen alike"
        )
    reasons = [f"{count:,} {reason}" for reason, count in found["left_out"].items()]
    return "\n".join([*lines, f"ready for a reward model: {found['ready']:,}" + _left_out_words(reasons)])


def _pace_words(seconds: float | None) -> str:
    return "" if seconds is None else f"; median {seconds:.1f} s"


def _left_out_words(reasons: list[str]) -> str:
    return f" (left out: {', '.join(reasons)})" if reasons else ""


def _share(part: int, whole: int) -> str:
    """Example: "3 of 4 (75.0%)"."""
    return f"{part:,} of {whole:,} ({part / whole:.1%})"


def shown(name: str) -> str:
    """A name from a file, on one line that a terminal may show."""
    text = visible(" ".join(name.split()))
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _person_line(name: str, own: Mapping) -> str:
    left = f", left {_share(own['left'], own['sides'])}" if own["sides"] else ""
    return f"  {shown(name)}: {own['choices']:,} choices{_pace_words(own['seconds'])}{left}"


def _match_lines(match: Mapping) -> list[str]:
    names = [shown(name) for name in match["models"]]
    aside = f"{match['both_good']:,} both good, {match['both_bad']:,} both bad, {match['skip']:,} skipped"
    if match["share"] is None:
        return [f"{names[0]} and {names[1]}: no choice of a side; {aside}"]
    low, high = match["low"], match["high"]
    shares = [(match["share"], low, high), (1 - match["share"], 1 - high, 1 - low)]
    sides = sum(match["wins"])
    lines = [
        f"  {name} wins {_share(won, sides)}, 95% interval {share[1]:.1%} to {share[2]:.1%}"
        for name, won, share in zip(names, match["wins"], shares, strict=True)
    ]
    return [f"{names[0]} against {names[1]}: {sides:,} choices of a side; beside them {aside}", *lines]


def _position_line(position: Mapping) -> str:
    if not position["sides"]:
        return "position: no choice of a side yet"
    p = position["p"]
    words = "less than 0.001" if p < 0.001 else f"{p:.3f}"
    leans = ": a lean to one side" if p < 0.05 else ""
    return f"position: left {_share(position['left'], position['sides'])}, p = {words} if sides do not matter{leans}"


def _agreement_lines(agreement: Mapping) -> list[str]:
    between = agreement["between"]
    if not between:
        return []
    alike, of = (sum(each[key] for each in between) for key in ("alike", "pairs"))
    line = f"agreement: two people chose alike in {_share(alike, of)}, on {agreement['pairs']:,} shared pairs; "
    undefined = sum(each["kappa"] is None for each in between)
    if agreement["kappa"] is None:
        return [f"{line}Cohen's kappa is undefined, as all of these choices are the same"]
    kind = (
        "Cohen's kappa" if len(between) == 1 else f"mean Cohen's kappa of {len(between) - undefined:,} pairs of people"
    )
    left = f" (undefined for {undefined:,} more, who all chose the same)" if undefined else ""
    return [f"{line}{kind} {agreement['kappa']:.2f}{left}"]


def export(rows: Iterable[Mapping], path: Path) -> int:
    """Writes the pairs that a reward model learns from, prompt, chosen and rejected alone, as lines of JSON.

    Returns:
        How many they are.
    Raises:
        ValueError: where there are none, and for a file that is there or cannot be written.
    """
    _check_new(path)
    pairs = [pair for pair in map(_ready, standing(rows)) if isinstance(pair, dict)]
    if not pairs:
        raise ValueError(f"export={path}: no choice is ready for a reward model, so there is nothing to write")
    lines = [json.dumps({name: pair[name] for name in ("prompt", "chosen", "rejected")}) + "\n" for pair in pairs]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write("".join(lines))
    except OSError as error:
        raise ValueError(f"export={path} cannot be written ({error.strerror}); name another with --export") from None
    return len(pairs)


def _check_new(path: Path) -> None:
    if path.exists() or path.is_symlink():
        raise ValueError(f"export={path} is there already and is not overwritten; name another with --export")
