"""Rows as token ids with what is trained on, made by the recipes' own functions."""

import copy
from collections.abc import Sequence
from typing import Any, cast

import pyarrow as pa
from datasets import Dataset

from fourstage.data.encoded import encode_conversations, encode_pairs
from fourstage.data.lengths import prompt_ids
from fourstage.data.packed import Wrapping
from fourstage.doctor.reading import Encoded, Row
from fourstage.doctor.subject import Subject, attempt
from fourstage.models.markers import Markers
from fourstage.models.tokenizer import mark_generation

ENCODED = 2_000  # rows that are tokenized
_ANY_LENGTH = 1_000_000_000


def look(subject: Subject) -> Subject:
    """The same subject with the first rows to train on as ids; what fails on the way is a finding."""
    if subject.train is not None and subject.kind in ("recipe", "data"):
        chosen = subject.train.rows[:ENCODED]
        found = attempt(subject.found, "labels", lambda: encode(subject, chosen))
        subject.encoded, subject.looked_at = found or [], 0 if found is None else len(chosen)
    return subject


def encode(subject: Subject, rows: Sequence[Row]) -> list[Encoded]:
    """The rows as ids, whatever their length; left out are conversations of which nothing would be trained.

    Raises:
        ValueError: for a row that the chat template refuses for its words, and a template that cannot be marked.
    """
    if subject.tokenizer is None or not rows or (subject.stage != "pretrain" and not subject.chats):
        return []
    return {
        "pretrain": _texts,
        "sft": _conversations,
        "reward": _pairs,
        "ppo": _prompts,
        "grpo": _prompts,
    }[subject.stage](subject, rows)


def table(rows: Sequence[Row]) -> Dataset:
    """Converted rows as data, with a column `place`: where in `rows` each is."""
    names = dict.fromkeys(name for row in rows for name in row.row)
    return Dataset.from_list(
        [{**{name: row.row.get(name) for name in names}, "place": place} for place, row in enumerate(rows)]
    )


def any_length(training: Any) -> Any:
    """The settings with room for every row."""
    args = copy.copy(training)
    args.max_length, args.overlong = _ANY_LENGTH, "drop"
    return args


def encoded_conversations(subject: Subject, rows: Sequence[Row]) -> Dataset:
    """What sft.py makes of rows, with their `place`."""
    tokenizer = subject.tokenizer
    assert tokenizer is not None, "only a subject with a tokenizer encodes"
    own = tokenizer.chat_template
    try:
        if subject.training.assistant_only_loss:
            mark_generation(tokenizer)
        return cast(Dataset, encode_conversations(tokenizer, table(rows), any_length(subject.training), "train"))
    finally:
        tokenizer.chat_template = own


def _conversations(subject: Subject, rows: Sequence[Row]) -> list[Encoded]:
    data = encoded_conversations(subject, rows)
    return [
        Encoded(rows[place], ids, [label != -100 for label in labels])
        for place, ids, labels in zip(data["place"], data["input_ids"], data["labels"], strict=True)
    ]


def _pairs(subject: Subject, rows: Sequence[Row]) -> list[Encoded]:
    tokenizer = subject.tokenizer
    assert tokenizer is not None, "only a subject with a tokenizer encodes"
    data = cast(Dataset, encode_pairs(tokenizer, table(rows), any_length(subject.training), "train"))
    return [
        Encoded(rows[place], ids, [False] * (len(ids) - 1) + [True], side)  # the score is read at the last token
        for place, *sides in zip(data["place"], data["chosen_ids"], data["rejected_ids"], strict=True)
        for side, ids in zip(("chosen", "rejected"), sides, strict=True)
    ]


def _prompts(subject: Subject, rows: Sequence[Row]) -> list[Encoded]:
    tokenizer = subject.tokenizer
    assert tokenizer is not None, "only a subject with a tokenizer encodes"
    ids = prompt_ids(tokenizer, [row.row["prompt"] for row in rows])
    return [Encoded(row, each, [False] * len(each)) for row, each in zip(rows, ids, strict=True)]


def _texts(subject: Subject, rows: Sequence[Row]) -> list[Encoded]:
    """Each document with what packing puts around it, before it is cut into rows."""
    tokenizer = subject.tokenizer
    assert tokenizer is not None and subject.settings is not None, "only a recipe encodes"
    markers = None if subject.settings.model.keep_markers else Markers(tokenizer)
    wrap = Wrapping(tokenizer, _ANY_LENGTH, markers)
    encoded = []
    for row in rows:
        ids = wrap(pa.table({"text": [row.row["text"]]}))["input_ids"].to_pylist()[0]
        encoded.append(Encoded(row, ids, [True] * len(ids)))
    return encoded
