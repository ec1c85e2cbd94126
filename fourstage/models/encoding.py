"""Tokenizers as every stage uses them: opened by name, and a conversation in the ids of its chat template."""

from os import PathLike
from typing import Any, cast

from transformers import AutoTokenizer, BatchEncoding, PreTrainedTokenizerBase


def open_tokenizer(name: str | PathLike, **options: Any) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or Hub id; `options` are those of AutoTokenizer.from_pretrained."""
    return cast(PreTrainedTokenizerBase, AutoTokenizer.from_pretrained(name, **options))  # or it raises


def conversation_ids(
    tokenizer: PreTrainedTokenizerBase, turns: list[dict], add_generation_prompt: bool = False
) -> list[int]:
    """Token ids of `turns`; with `add_generation_prompt` up to where the assistant's answer begins."""
    encoded = tokenizer.apply_chat_template(turns, add_generation_prompt=add_generation_prompt, return_dict=True)
    return cast(BatchEncoding, encoded)["input_ids"]  # the one of five return types that `return_dict` asks for
