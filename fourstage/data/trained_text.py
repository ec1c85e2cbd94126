"""What an assistant said and a model is not trained on, since the chat template does not write it."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, cast

from datasets import Dataset
from transformers import BatchEncoding, PreTrainedTokenizerBase
from trl.chat_template_utils import has_generation_markers
from trl.data_utils import common_prefix_length

from fourstage.data.sources import Rows
from fourstage.models.encoding import conversation_ids

_PLAIN_ROWS, _STREAM_CHECKED = 100, 1_000


def tell_untrained(tokenizer: PreTrainedTokenizerBase, rows: Rows, name: str) -> Counter[str]:
    """Prints what `untrained_parts` finds in the rows of `load_conversations`, and returns how many rows lack which.

    Of a data set it looks at every row with thoughts or calls of tools and at the first 100 others, of a stream at the
    first 1,000. Templates drop the thoughts of earlier turns, as a rule: such rows still teach their answers.
    """
    checked = _worth_a_look(rows) if isinstance(rows, Dataset) else rows.take(_STREAM_CHECKED)
    lacking = Counter(part for row in checked for part in untrained_parts(tokenizer, row))
    if lacking:
        found = ", ".join(f"{part} in {count:,} rows" for part, count in lacking.items())
        print(f"{name}: not trained on, as the chat template leaves them out: {found}", flush=True)
    return lacking


def _worth_a_look(rows: Dataset) -> Iterator[dict]:
    yield from islice(cast("Iterator[dict]", iter(rows)), _PLAIN_ROWS)
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

    `row` has `prompt` and `completion` as turns. White space does not count: templates trim it.
    Example: for Qwen3's template and two turns with <think>, ["thoughts"], since it keeps those of the last turn only.
    """
    trained = _squashed(tokenizer.decode(_trained_ids(tokenizer, row)))
    missing = []
    for part, text in _parts(row["completion"]):
        written = tokenizer.decode(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        if part not in missing and _squashed(written) not in trained:
            missing.append(part)
    return missing


def _trained_ids(tokenizer: PreTrainedTokenizerBase, row: Mapping) -> list[int]:
    """The ids that SFTTrainer (TRL 1.16) makes labels of."""
    tools = json.loads(row["tools"]) if isinstance(row.get("tools"), str) else row.get("tools")
    options: dict[str, Any] = {"tools": tools, **(row.get("chat_template_kwargs") or {})}
    asked = conversation_ids(tokenizer, row["prompt"], add_generation_prompt=True, **options)
    marked = has_generation_markers(tokenizer.get_chat_template(tools=tools))
    whole = tokenizer.apply_chat_template(
        row["prompt"] + row["completion"], return_dict=True, return_assistant_tokens_mask=marked, **options
    )
    ids = cast(BatchEncoding, whole)["input_ids"]
    mask = cast(BatchEncoding, whole)["assistant_masks"] if marked else [1] * len(ids)
    first = common_prefix_length(asked, ids)
    return [i for i, kept in zip(ids[first:], mask[first:], strict=True) if kept]


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
