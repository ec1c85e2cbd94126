"""Token ids of a conversation, as the tokenizer's chat template writes it."""

from typing import cast

from transformers import BatchEncoding, PreTrainedTokenizerBase


def conversation_ids(
    tokenizer: PreTrainedTokenizerBase, turns: list[dict], add_generation_prompt: bool = False
) -> list[int]:
    """Token ids of `turns`; with `add_generation_prompt` up to where the assistant's answer begins."""
    encoded = tokenizer.apply_chat_template(turns, add_generation_prompt=add_generation_prompt, return_dict=True)
    return cast(BatchEncoding, encoded)["input_ids"]  # the one of five return types that `return_dict` asks for
