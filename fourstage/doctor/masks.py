"""Rows token by token, with what is trained on: for every kind of row, readable without colour."""

import io
import textwrap
from collections.abc import Iterator
from contextlib import redirect_stdout
from itertools import groupby
from typing import Any

from transformers import PreTrainedTokenizerBase

from fourstage.doctor.encoding import encode
from fourstage.doctor.subject import Subject
from fourstage.printing import visible

LEGEND = "mask: + is trained on, - is read only; | stands between tokens"
_WIDTH = 110


def masked_rows(subject: Subject, count: int) -> list[dict[str, Any]]:
    """The first rows to train on: `at`, `side` of a pair, `tokens` as (text, whether trained on), and a `note`.

    Raises:
        ValueError: if there is no tokenizer to read them.
    """
    if subject.tokenizer is None or subject.train is None:
        raise ValueError("show_mask needs a tokenizer and rows; name a model with --model_name_or_path")
    with redirect_stdout(io.StringIO()):
        rows = encode(subject, subject.train.rows[:count])
    return [
        {
            "at": row.row.at,
            "side": row.side,
            "tokens": list(zip(_texts(subject.tokenizer, row.ids), row.trained, strict=True)),
            "note": _note(subject),
        }
        for row in rows
    ]


def shown(rows: list[dict[str, Any]]) -> Iterator[str]:
    """The lines of `masked_rows`; what a terminal would obey is written out.

    Example: a run of tokens that are read, "- <|user|>|Hi|<|assistant|>", and of those trained on, "+ Hello|<|eos|>".
    """
    yield LEGEND
    for row in rows:
        tokens = row["tokens"]
        trained = sum(is_trained for _, is_trained in tokens)
        side = f", {row['side']}" if row["side"] else ""
        yield f"{visible(row['at'])}{side}: {len(tokens):,} tokens, {trained:,} trained on{row['note']}"
        for is_trained, run in groupby(tokens, key=lambda token: token[1]):
            text = "|".join(text for text, _ in run)
            for line in textwrap.wrap(text, _WIDTH, drop_whitespace=False, replace_whitespace=False):
                yield f"  {'+' if is_trained else '-'} {line}"


def _note(subject: Subject) -> str:
    if subject.stage == "reward":
        return "; its score is read at the last token"
    if subject.stage in ("ppo", "grpo"):
        return f"; then up to {subject.training.max_completion_length:,} tokens that the policy draws, all trained on"
    return ""


def _texts(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[str]:
    """What each token stands for, on one line; a part of a character as its bytes."""
    texts = []
    for i in ids:
        text = str(tokenizer.decode([i]))
        text = str(tokenizer.convert_ids_to_tokens(i)) if "\ufffd" in text else text
        text = text.replace("\\", "\\\\").replace("\n", "\\n").replace("\t", "\\t")
        texts.append(visible(text if i in tokenizer.added_tokens_decoder else text.replace("|", "\\|")))
    return texts
