"""Token ids of a conversation, as the tokenizer's chat template writes it."""

from typing import Any, cast

from transformers import BatchEncoding, PreTrainedTokenizerBase


def conversation_ids(
    tokenizer: PreTrainedTokenizerBase, turns: list[dict], add_generation_prompt: bool = False, **options: Any
) -> list[int]:
    """Token ids of `turns`; with `add_generation_prompt` up to where the assistant's answer begins.

    `options` go to the chat template, such as `enable_thinking` of some models.
    """
    encoded = tokenizer.apply_chat_template(
        turns, add_generation_prompt=add_generation_prompt, return_dict=True, **options
    )
    return cast(BatchEncoding, encoded)["input_ids"]  # the one of five return types that `return_dict` asks for
