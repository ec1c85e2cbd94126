"""Rounds of learning from a person's choices: a folder for each, and whether its reward models found a taste."""

import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from scipy.stats import binomtest

from fourstage.atomic import write_atomically
from fourstage.data.formats import preference_row
from fourstage.data.picks import standing
from fourstage.prefer.record import read_choices

FOLDS = 5
LEAST = 20  # choices; of fewer a coin is too often as right as the person
LEVEL = 0.05  # how often a coin may pass for a taste
STAGES = ("reward", "ppo")


@dataclass(frozen=True)
class Round:
    """One round: the folder and its pairs, which are the choices that a reward model learns from, in their order."""

    folder: Path
    pairs: list[dict]

    @property
    def choices(self) -> Path:
        """The file of choices as it was when the round began."""
        return self.folder / "choices.jsonl"

    def fold(self, number: int) -> Path:
        return self.folder / f"fold-{number}"

    def folds(self) -> range:
        return range(1, FOLDS + 1)


def open_round(prefer: Path, choices: Path) -> Round:
    """The round of these choices in the folder `prefer`: the last one if it has the same choices, else a new one.

    So the same command goes on with what was cut off, and more choices never touch an earlier round.
    Raises:
        ValueError: for a file that holds no choices, or fewer than LEAST pairs for a reward model.
    """
    rows = read_choices(choices)
    content = "".join(json.dumps(row) + "\n" for row in rows)
    pairs = [pair for row in standing(rows) if isinstance(pair := preference_row(row), dict)]
    if len(pairs) < LEAST:
        raise ValueError(
            f"pairs={choices} has {len(pairs)} pairs for a reward model (ties, skips and repeats teach none), at least "
            f"{LEAST} are needed and 100 are better; make more with `fourstage prefer MODEL --output {choices}`"
        )
    numbers = [int(name) for path in prefer.glob("round-*") if (name := path.name.removeprefix("round-")).isdigit()]
    last = Round(prefer / f"round-{max(numbers, default=1)}", pairs)
    if last.choices.is_file() and last.choices.read_text(encoding="utf-8") != content:
        last = Round(prefer / f"round-{max(numbers) + 1}", pairs)
    if not last.choices.is_file():
        for number in last.folds():
            _write_fold(last, number)
        write_atomically(last.choices, content)
    return last


def _write_fold(of: Round, number: int) -> None:
    """The pairs of all other folds to learn from, and those of this one to be asked about."""
    folder = of.fold(number) / "choices"
    folder.mkdir(parents=True, exist_ok=True)
    places = fold_of(of.pairs)
    for name, held_out in (("train", False), ("test", True)):
        rows = [row for row, fold in zip(of.pairs, places, strict=True) if (fold == number) == held_out]
        text = "".join(json.dumps({k: row[k] for k in ("prompt", "chosen", "rejected")}) + "\n" for row in rows)
        write_atomically(folder / f"{name}.jsonl", text)


def fold_of(pairs: Sequence[Mapping]) -> list[int]:
    """The fold of each pair, from 1 to FOLDS: about as many prompts in each, and all pairs of a prompt in the same."""
    prompts = list(dict.fromkeys(json.dumps(row["prompt"]) for row in pairs))
    random.Random(0).shuffle(prompts)
    places = {prompt: 1 + i % FOLDS for i, prompt in enumerate(prompts)}
    return [places[json.dumps(row["prompt"])] for row in pairs]


def held_out_agreement(chosen: Sequence[float], rejected: Sequence[float]) -> dict:
    """Whether scores of pairs that a reward model has not seen agree with the person more often than a coin.

    Returns:
        `right` of `pairs` (equal scores are wrong), `share`, `stderr`, `p` (how likely a coin is right as often: one
        side of the exact binomial test) and `better`, whether that is below LEVEL.
    Example: 9 of 10 right -> p = (10 + 1) / 2^10 = 0.0107, better.
    """
    right, pairs = sum(a > b for a, b in zip(chosen, rejected, strict=True)), len(chosen)
    share = right / pairs
    p = float(binomtest(right, pairs, 0.5, alternative="greater").pvalue)
    stderr = math.sqrt(share * (1 - share) / pairs)
    return {"right": right, "pairs": pairs, "share": share, "stderr": stderr, "p": p, "better": p < LEVEL}


def describe_agreement(found: Mapping) -> str:
    """The agreement in one line."""
    verdict = "better than a coin" if found["better"] else "no better than a coin"
    return (
        f"reward models agree with {found['right']} of {found['pairs']} choices that they had not seen "
        f"({100 * found['share']:.0f} %): {verdict} (p = {found['p']:.2g}, less than {LEVEL} wanted)"
    )
