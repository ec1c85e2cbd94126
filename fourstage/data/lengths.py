"""Counts the tokens of rows as their trainer reads them, and drops or refuses rows that are too long."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from datasets import Dataset, IterableDataset
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from trl.data_utils import is_conversational

from fourstage.data.sources import Rows
from fourstage.errors import one_line
from fourstage.models.encoding import encode_chats
from fourstage.models.turns import template_settings

Columns = Mapping[str, list]  # some rows, by the names of their columns
BATCH = 200  # rows rendered and tokenized at once


def drop_overlong(
    data: Rows,
    count_tokens: Callable[[Columns], list[int]],
    max_length: int,
    overlong: str,
    name: str,
    fix: str = "raise --max_length",
) -> Rows:
    """Drops the rows of more than `max_length` tokens, so that no end token is ever cut off; prints how many.

    Args:
        count_tokens: the tokens of each row of a batch, by one of the functions below.
        overlong: "drop", or "error" to refuse data with such a row.
        name: of the rows, for messages: "train" or "held-out".
        fix: what to do about rows that are too long, for messages.
    Raises:
        ValueError: if `overlong` is "error", for the first row that is too long; otherwise if all rows are too long.
    """

    def fit(batch: Columns, indices: list[int]) -> list[bool]:
        counts = by_rows(count_tokens, batch, indices, name)
        for index, tokens in zip(indices, counts, strict=True) if overlong == "error" else ():
            if tokens > max_length:
                raise ValueError(
                    f"{name} row {index + 1} has {tokens:,} tokens, but at most {max_length:,} are allowed; "
                    f"{fix}, or drop such rows with --overlong drop"
                )
        return [tokens <= max_length for tokens in counts]

    options: Any = {"with_indices": True, "batched": True, "batch_size": BATCH}
    if isinstance(data, IterableDataset):
        return data.filter(fit, **options)
    short: Dataset = data.filter(fit, **options)
    if not len(short):
        raise ValueError(f"all {len(data):,} {name} rows have more than {max_length:,} tokens; {fix}")
    print(f"{name}: {len(data) - len(short):,} of {len(data):,} rows dropped, longer than {max_length:,} tokens")
    return short


def by_rows(function: Callable[[Columns], list], batch: Columns, indices: Sequence[int], name: str) -> list:
    """What `function` makes of a batch. Where the chat template refuses a row for its words, the error names it."""
    try:
        return function(batch)
    except TemplateError:  # the roles were tried when the rows were read
        for row, index in zip(rows_of(batch), indices, strict=True):
            try:
                function({key: [value] for key, value in row.items()})
            except TemplateError as error:
                start = str(next(iter(row.values())))[:200]
                raise ValueError(
                    f"{name} row {index + 1}, {start!r}: the chat template refuses it: {one_line(error)}; take it out "
                    "of the data"
                ) from None
        raise


def rows_of(batch: Columns) -> list[dict]:
    """The rows of a batch."""
    return [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]


def pair_tokens(tokenizer: PreTrainedTokenizerBase, batch: Columns) -> list[int]:
    """Tokens of the longer side of each pair, with its prompt."""
    return [max(map(len, pair.values())) for pair in pair_ids(tokenizer, batch)]


def pair_ids(tokenizer: PreTrainedTokenizerBase, batch: Columns) -> list[dict[str, list[int]]]:
    """`chosen_ids` and `rejected_ids` of each pair: its prompt and an answer, with tools and template settings."""
    rows = rows_of(batch)
    settings = [template_settings(row) for row in rows]
    chosen, rejected = (
        encode_chats(tokenizer, [row["prompt"] + row[side] for row in rows], settings)
        for side in ("chosen", "rejected")
    )
    return [
        {"chosen_ids": one["input_ids"], "rejected_ids": other["input_ids"]}
        for one, other in zip(chosen, rejected, strict=True)
    ]


def prompt_tokens(tokenizer: PreTrainedTokenizerBase, batch: Columns) -> list[int]:
    """Tokens of each row's `prompt`, as `prompt_ids` gives them."""
    return [len(ids) for ids in prompt_ids(tokenizer, batch["prompt"])]


def prompt_ids(
    tokenizer: PreTrainedTokenizerBase, prompts: list, template_options: dict | None = None
) -> list[list[int]]:
    """Ids of prompts as the policy reads them: of texts, or of turns and the generation prompt of the chat template."""
    if isinstance(prompts[0], str) or not is_conversational({"prompt": prompts[0]}):
        return tokenizer(text=prompts)["input_ids"]
    settings = [template_options or {}] * len(prompts)
    return [row["input_ids"] for row in encode_chats(tokenizer, prompts, settings, add_generation_prompt=True)]
