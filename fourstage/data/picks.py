"""The file of a person's choices: one line of JSON for each, ties, skips and undone choices included.

Every line has all of FIELDS, so that it can be read by any reader of JSON lines. A choice that was undone keeps its
line; a line with the choice "undo" and the same pair and person follows it.
"""

import json
from collections.abc import Iterable, Mapping
from typing import cast

from datasets import Dataset

from fourstage.data.as_written import Rows

FIELDS = (
    "pair",  # which pair was shown, a text
    "choice",  # one of CHOICES
    "prompt",  # turns
    "chosen",  # one turn in a list; None unless the choice is left or right, or a better answer is there
    "rejected",  # likewise
    "left",  # the answer that was shown there, a text
    "right",
    "better",  # the answer that the person typed; None without one
    "comment",  # None without one
    "person",  # a name
    "seconds",  # from when the pair appeared to the choice
    "time",  # of the choice, UTC, ISO 8601
    "models",  # two: of the left and of the right answer, each {"name", "weights"}, a hash
    "sampling",  # {"temperature", "max_new_tokens"}
    "blind",  # whether the names of the models were hidden at the choice
    "repeat_of",  # the pair that this one repeats with its sides swapped; None for most
)
CHOICES = ("left", "right", "both_good", "both_bad", "skip", "undo")
_TELLING = {"pair", "choice", "person", "prompt", "chosen", "rejected"}
_TEXTS = ("pair", "choice", "person")
_TEXTS_OR_NONE = ("left", "right", "better", "comment", "time", "repeat_of")


def are_picks(columns: Iterable[str]) -> bool:
    """Whether rows with these columns are a person's choices."""
    return {*columns} >= _TELLING


def problem_of(row: object) -> str | None:
    """Why a line of the file is not a choice; None if it is one. Of `models` and `sampling` it asks nothing.

    Example: {"pair": 7, ...} -> "its pair is 7, which must be a text".
    """
    if not isinstance(row, dict):
        return f"it is {type(row).__name__}, which must be an object"
    missing = [name for name in FIELDS if name not in row]
    if missing:
        return f"it has no {missing[0]}"
    kinds: list[tuple[Iterable[str], type | tuple, str]] = [
        (_TEXTS, str, "a text"),
        (_TEXTS_OR_NONE, (str, type(None)), "a text or null"),
        (("seconds",), (int, float, type(None)), "a number or null"),
    ]
    for names, kind, allowed in kinds:
        for name in names:
            if not isinstance(row[name], kind) or isinstance(row[name], bool):
                return f"its {name} is {str(row[name])[:60]!r}, which must be {allowed}"
    if row["choice"] not in CHOICES:
        return f"its choice is {row['choice'][:60]!r}, which must be one of {', '.join(CHOICES)}"
    odd = [name for name in ("prompt", "chosen", "rejected") if not _are_turns(row[name], name == "prompt")]
    return f"its {odd[0]} is {str(row[odd[0]])[:60]!r}, which must be turns" if odd else None


def _are_turns(value: object, needed: bool) -> bool:
    if value is None:
        return not needed
    return isinstance(value, list) and all(
        isinstance(turn, dict) and isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str)
        for turn in value
    )


def standing(rows: Iterable[Mapping]) -> list[Mapping]:
    """The choices that were not undone, the last one of each person about each pair, in the order of the pairs.

    Example: left about pair 1, undo, right about pair 1 -> right about pair 1.
    """
    last: dict[tuple, Mapping] = {}
    for row in rows:
        key = (row["person"], row["pair"])
        if row["choice"] == "undo":
            last.pop(key, None)
        else:
            last[key] = row
    return list(last.values())


def left_out(row: Mapping) -> str | None:
    """Why a reward model does not learn from a choice that stands, in words that follow "are"; None if it does.

    A pair that repeats another tells how steady the person is: learnt from, it would count twice.
    """
    if row.get("repeat_of") is not None:
        return "repeated pairs"
    if not row["chosen"] or not row["rejected"]:
        return {"skip": "skipped", "undo": "undone"}.get(row["choice"], "ties")
    return None


def rows_for(stage: str, data: Rows, name: str) -> Rows:
    """The rows of a file of choices that a stage has a use for; prints how many it leaves out.

    A reward model gets the choices that stand; PPO and GRPO get each prompt once, whatever was chosen, and no other
    column, so that no reward function is handed a person's name.
    Raises:
        ValueError: for a stage that learns from texts, and where every choice was undone.
    """
    if stage in ("ppo", "grpo"):
        return _prompts(data, name)
    if stage != "reward":
        raise ValueError(
            f"{name} holds a person's choices between answers, which {stage} does not learn from; train a reward model "
            "on it (recipes/reward.py), ask its prompts (recipes/ppo.py), or choose other data"
        )
    return _without_undone(data, name)


def _without_undone(data: Rows, name: str) -> Rows:
    rows = list(data.select_columns(["person", "pair", "choice"]))
    places = {id(row): place for place, row in enumerate(rows)}
    kept = [places[id(row)] for row in standing(cast(list[Mapping], rows))]
    undone = sum(row["choice"] != "undo" for row in rows) - len(kept)
    if rows and not kept:
        raise ValueError(f"{name}: every choice in it was undone, so there is nothing to train on; choose other data")
    if undone:
        print(f"{name}: {undone:,} of {len(kept) + undone:,} choices were undone or made again and are left out")
    return _at(data, kept)


def _prompts(data: Rows, name: str) -> Rows:
    """Each prompt once: several people, and the same person again, answered about many of them."""
    prompts = data.select_columns(["prompt"])
    first: dict[str, int] = {}
    total = 0
    for total, row in enumerate(prompts, start=1):
        first.setdefault(json.dumps(row, sort_keys=True, default=str), total - 1)
    if len(first) < total:
        print(f"{name}: {total:,} lines of a person's choices, {len(first):,} different prompts, each taken once")
    return _at(prompts, first.values())


def _at(data: Rows, places: Iterable[int]) -> Rows:
    """The rows at these places, in the order of the data."""
    kept = {*places}
    if isinstance(data, Dataset):
        return data.select(sorted(kept))
    return data.filter(lambda _, place: place in kept, with_indices=True)
