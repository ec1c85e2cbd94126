"""Counts the tokens of a row as its trainer reads it, and drops or refuses rows that are too long."""

from collections.abc import Callable, Mapping

from datasets import Dataset, IterableDataset
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from trl.data_utils import is_conversational

from fourstage.data.sources import Rows
from fourstage.errors import one_line
from fourstage.models.encoding import conversation_ids
from fourstage.models.turns import template_settings


def drop_overlong(
    data: Rows,
    count_tokens: Callable[[dict], int],
    max_length: int,
    overlong: str,
    name: str,
    fix: str = "raise --max_length",
) -> Rows:
    """Drops the rows of more than `max_length` tokens, so that no end token is ever cut off; prints how many.

    Args:
        count_tokens: the tokens of a row, by one of the functions below.
        overlong: "drop", or "error" to refuse data with such a row.
        name: of the rows, for messages: "train" or "held-out".
        fix: what to do about rows that are too long, for messages.
    Raises:
        ValueError: if `overlong` is "error", for the first row that is too long; otherwise if all rows are too long.
    """

    def fits(row: dict, index: int) -> bool:
        try:
            tokens = count_tokens(row)
        except TemplateError as error:  # for its words: its roles were tried when it was read
            start = str(next(iter(row.values())))[:200]
            raise ValueError(
                f"{name} row {index + 1}, {start!r}: the chat template refuses it: {one_line(error)}; take it out of "
                "the data"
            ) from None
        if tokens > max_length and overlong == "error":
            raise ValueError(
                f"{name} row {index + 1} has {tokens:,} tokens, but at most {max_length:,} are allowed; "
                f"{fix}, or drop such rows with --overlong drop"
            )
        return tokens <= max_length

    if isinstance(data, IterableDataset):
        return data.filter(fits, with_indices=True)
    short: Dataset = data.filter(fits, with_indices=True)
    if not len(short):
        raise ValueError(f"all {len(data):,} {name} rows have more than {max_length:,} tokens; {fix}")
    print(f"{name}: {len(data) - len(short):,} of {len(data):,} rows dropped, longer than {max_length:,} tokens")
    return short


def conversation_tokens(tokenizer: PreTrainedTokenizerBase, row: Mapping) -> int:
    """Tokens of a row of `load_conversations`, as the chat template writes it."""
    return _row_tokens(tokenizer, row, "completion")


def pair_tokens(tokenizer: PreTrainedTokenizerBase, row: Mapping) -> int:
    """Tokens of the longer side of a pair, with its prompt."""
    return max(_row_tokens(tokenizer, row, side) for side in ("chosen", "rejected"))


def _row_tokens(tokenizer: PreTrainedTokenizerBase, row: Mapping, answer: str) -> int:
    """Tokens of a row's prompt and one of its answers, with its tools and settings of the template, as TRL reads it."""
    return len(conversation_ids(tokenizer, row["prompt"] + row[answer], **template_settings(row)))


def prompt_tokens(tokenizer: PreTrainedTokenizerBase, row: Mapping) -> int:
    """Tokens of a row's `prompt`, as `prompt_ids` gives them."""
    return len(prompt_ids(tokenizer, row["prompt"]))


def prompt_ids(
    tokenizer: PreTrainedTokenizerBase, prompt: str | list[dict], template_options: dict | None = None
) -> list[int]:
    """Ids of a prompt as the policy reads it: of a text, or of turns and the generation prompt of the chat template."""
    if isinstance(prompt, str) or not is_conversational({"prompt": prompt}):
        return tokenizer(text=prompt)["input_ids"]
    return conversation_ids(tokenizer, prompt, add_generation_prompt=True, **(template_options or {}))
