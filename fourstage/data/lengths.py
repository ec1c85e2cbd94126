"""How many tokens a row has as its trainer reads it, and what happens to rows that are too long."""

from collections.abc import Callable, Mapping

from datasets import (
    Dataset,
)
from trl.data_utils import is_conversational

from fourstage.data.sources import Rows


def conversation_tokens(tokenizer, row: dict) -> int:
    """Tokens of a row of `load_conversations`, as the chat template writes it."""
    return len(tokenizer.apply_chat_template(row["prompt"] + row["completion"], return_dict=True)["input_ids"])


def drop_overlong(data: Rows, count_tokens: Callable[[dict], int], max_length: int, overlong: str, name: str) -> Rows:
    """Leaves out rows of more than `max_length` tokens, so that no end token is ever cut off; says how many.

    Raises:
        ValueError: with overlong="error", for the first such row; and if no row is short enough.
    """

    def fits(row: dict, index: int) -> bool:
        tokens = count_tokens(row)
        if tokens > max_length and overlong == "error":
            raise ValueError(
                f"{name} row {index + 1} has {tokens:,} tokens, max_length is {max_length:,}; "
                "raise --max_length, or leave such rows out with --overlong drop"
            )
        return tokens <= max_length

    kept = data.filter(fits, with_indices=True)
    if isinstance(data, Dataset):
        if not len(kept):
            raise ValueError(
                f"all {len(data):,} {name} rows are longer than max_length={max_length}; raise --max_length"
            )
        print(f"{name}: {len(data) - len(kept):,} of {len(data):,} rows dropped, longer than {max_length:,} tokens")
    return kept


def pair_tokens(tokenizer, row: Mapping) -> int:
    """Tokens of the longer side of a pair, with its prompt."""
    sides = [row["prompt"] + row[side] for side in ("chosen", "rejected")]
    return max(len(tokenizer.apply_chat_template(side, return_dict=True)["input_ids"]) for side in sides)


def prompt_ids(tokenizer, prompt: str | list[dict], template_options: dict | None = None) -> list[int]:
    """Ids of a prompt as the policy reads it: text, or turns by the chat template with the mark to answer."""
    if not is_conversational({"prompt": prompt}):
        return tokenizer(text=prompt)["input_ids"]
    encoded = tokenizer.apply_chat_template(
        prompt, add_generation_prompt=True, return_dict=True, **(template_options or {})
    )
    return encoded["input_ids"]


def prompt_tokens(tokenizer, row: dict) -> int:
    """Tokens of a row's `prompt`, as `prompt_ids` gives them."""
    return len(prompt_ids(tokenizer, row["prompt"]))
