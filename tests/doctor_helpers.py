"""Rows of every kind in which nothing is wrong, and a look at them with the doctor: what tests of the doctor share."""

import json

from fourstage.doctor.encoding import look
from fourstage.doctor.subject import open_data, open_recipe
from fourstage.plan.recipe import read_settings

_WORDS = ["the", "old", "man", "saw", "a", "red", "kite", "over", "green", "river", "while", "nobody", "slept"]


def sentence(i, length):
    """Words that differ from row to row."""
    return " ".join(_WORDS[(i * k + k) % len(_WORDS)] for k in range(1, length + 1)) + f" {i}"


def healthy_rows(kind, count=60):
    """Rows of a kind in which nothing is wrong, as a data file has them."""
    asked = [f"What of {sentence(i, 3 + i % 5)}?" for i in range(count)]
    if kind == "text":
        return [{"text": f"{sentence(i, 8 + i % 20)}."} for i in range(count)]
    if kind == "conversations":
        return [{"prompt": ask, "completion": f"It is {i} of {i % 7}."} for i, ask in enumerate(asked)]
    if kind == "pairs":
        sides = [(f"Good {i} it is.", f"Bad {i} it is, as I said.")[:: 1 if i % 2 else -1] for i in range(count)]
        return [{"prompt": ask, "chosen": a, "rejected": b} for ask, (a, b) in zip(asked, sides, strict=True)]
    if kind == "problems":
        return [{"question": f"What is {i} + {i % 7}?", "answer": str(i + i % 7)} for i in range(count)]
    return [{"prompt": ask} for ask in asked]


def write_rows(file, rows):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def recipe(stage, *flags):
    """The subject of a recipe with these flags, its first rows encoded."""
    return look(open_recipe(stage, read_settings(stage, list(map(str, flags)))))


def data(stage, file, *flags):
    """The subject of a file of rows alone."""
    return look(open_data(file, read_settings(stage, ["--dataset_name", file, *map(str, flags)])))


def lines(findings, *levels):
    """The findings of these levels, by default those that say that something is wrong, as (level, text)."""
    levels = levels or ("warning", "FAIL")
    return [(each.level, f"{each.reason}; {each.fix}") for each in findings if each.level in levels]


def only(findings):
    """The one finding that says that something is wrong."""
    (found,) = lines(findings)
    return found
