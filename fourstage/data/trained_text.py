"""What an assistant said and a model is not trained on, since the chat template does not write it."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, cast

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from fourstage.data.lengths import rows_of
from fourstage.data.sources import Rows

_PLAIN_ROWS, _STREAM_CHECKED = 100, 1_000


def tell_untrained(tokenizer: PreTrainedTokenizerBase, rows: Rows, name: str) -> Counter[str]:
    """Prints what `untrained_parts` finds in the rows of `encode_conversations`, and returns how many rows lack which.

    Of a data set it looks at every row with thoughts or calls of tools and at the first 100 others, of a stream at the
    first 1,000. Templates drop the thoughts of earlier turns, as a rule: such rows still teach their answers.
    """
    rows = rows.select_columns(["completion", "labels"])
    checked = _worth_a_look(rows) if isinstance(rows, Dataset) else rows.take(_STREAM_CHECKED)
    lacking = Counter(part for row in checked for part in untrained_parts(tokenizer, row))
    if lacking:
        found = ", ".join(f"{part} in {count:,} rows" for part, count in lacking.items())
        print(f"{name}: not trained on, as the chat template leaves them out: {found}", flush=True)
    return lacking


def _worth_a_look(rows: Dataset) -> Iterator[dict]:
    yield from rows_of(rows[:_PLAIN_ROWS])
    at = _PLAIN_ROWS
    for batch in rows.select(range(_PLAIN_ROWS, len(rows))).with_format("arrow").iter(1_000) if len(rows) > at else ():
        turns = cast(Any, batch)["completion"].combine_chunks().flatten()
        columns = {field.name: turns.field(field.name) for field in turns.type}
        special = [
            columns[key].null_count < len(turns) for key in ("reasoning_content", "tool_calls") if key in columns
        ]
        if any(special) or any("</think>" in (text or "") for text in columns["content"].to_pylist()):
            yield from cast("Iterator[dict]", iter(rows.select(range(at, at + len(batch)))))
        at += len(batch)


def untrained_parts(tokenizer: PreTrainedTokenizerBase, row: Mapping) -> list[str]:
    """Which of "thoughts", "answers" and "calls" a row's completion has, and its labels have not.

    `row` has `completion` as turns and `labels`. White space does not count: templates trim it.
    Example: for Qwen3's template and two turns with <think>, ["thoughts"], since it keeps those of the last turn only.
    """
    trained = _squashed(tokenizer.decode([label for label in row["labels"] if label != -100]))
    missing = []
    for part, text in _parts(row["completion"]):
        if part in missing or _squashed(text) in trained:
            continue
        written = tokenizer.decode(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        if _squashed(written) not in trained:  # what a vocabulary lacks, a text does not keep either
            missing.append(part)
    return missing


def _parts(turns: list[dict]) -> Iterator[tuple[str, str]]:
    for turn in (turn for turn in turns if turn["role"] == "assistant"):
        thoughts, tag, answer = (turn.get("content") or "").rpartition("</think>")
        yield "thoughts", thoughts.replace("<think>", "") + (turn.get("reasoning_content") or "")
        yield "answers", answer
        calls = turn.get("tool_calls") or []
        for call in json.loads(calls) if isinstance(calls, str) else calls:
            yield "calls", (call.get("function") or call).get("name") or ""


def _squashed(text: Any) -> str:
    return "".join(text.split())
