"""The file of a person's choices: one line of JSON for each, ties, skips and undone choices included.

Every line has all of FIELDS, so that it can be read by any reader of JSON lines. A choice that was undone keeps its
line; a line with the choice "undo" and the same pair and person follows it.
"""

from collections.abc import Iterable, Mapping

from datasets import Dataset, IterableDataset

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
    "models",  # of the left and of the right answer: {"name", "weights"}, a hash
    "sampling",  # {"temperature", "max_new_tokens"}
    "blind",  # whether the names of the models were hidden at the choice
    "repeat_of",  # the pair that this one repeats with its sides swapped; None for most
)
CHOICES = ("left", "right", "both_good", "both_bad", "skip", "undo")
_TELLING = {"pair", "choice", "person", "chosen", "rejected"}


def are_picks(columns: Iterable[str]) -> bool:
    """Whether rows with these columns are a person's choices."""
    return {*columns} >= _TELLING


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
    if row["chosen"] is None or row["rejected"] is None:
        return {"skip": "skipped", "undo": "undone"}.get(row["choice"], "ties")
    return None


def without_undone(data: Dataset | IterableDataset, name: str) -> Dataset:
    """The rows of a file of choices that stand; prints how many lines do not."""
    rows = list(data.select_columns(["person", "pair", "choice"]))
    places = {id(row): place for place, row in enumerate(rows)}
    kept = sorted(places[id(row)] for row in standing(rows))
    if len(kept) < len(rows):
        print(f"{name}: {len(rows) - len(kept):,} of {len(rows):,} lines are choices that were undone, and left out")
    if isinstance(data, IterableDataset):  # small, whatever was asked: people made it
        return Dataset.from_list([row for place, row in enumerate(data) if place in {*kept}])
    return data.select(kept)
