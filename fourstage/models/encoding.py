"""Conversations written by a tokenizer's chat template: as token ids, whether it takes them, and how it ends them."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, cast

from transformers import BatchEncoding, PreTrainedTokenizerBase

from fourstage.errors import one_line
from fourstage.models.turns import written

_TOOLS: list = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]
_CALL = {"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}


def conversation_ids(
    tokenizer: PreTrainedTokenizerBase,
    turns: list[dict],
    add_generation_prompt: bool = False,
    tools: list | None = None,
    **options: Any,
) -> list[int]:
    """Token ids of `turns`; with `add_generation_prompt` up to where the assistant's answer begins.

    Args:
        tools: functions that the assistant may call, as JSON schemas.
        options: go to the chat template, such as `enable_thinking` of some models.
    """
    encoded = tokenizer.apply_chat_template(
        turns, add_generation_prompt=add_generation_prompt, tools=tools, return_dict=True, **options
    )
    return cast(BatchEncoding, encoded)["input_ids"]  # the one of five return types that `return_dict` asks for


def template_refusal(
    tokenizer: PreTrainedTokenizerBase,
    turns: Sequence[Mapping],
    tools: object = None,
    add_generation_prompt: bool = False,
) -> str | None:
    """Why the chat template refuses a conversation, in the words of the template; None where it takes it.

    Templates refuse by role and order, seldom by content, so each sequence of roles is tried once, with other words.
    Example: for Gemma's template and turns that begin with the system's: "System role not supported".
    """
    shape = tuple(
        (turn["role"], bool(turn.get("tool_calls")), bool(turn.get("reasoning_content")), bool(turn.get("content")))
        for turn in turns
    )
    template = tokenizer.get_chat_template(tools=[] if tools else None)
    return _refusal_of_shape(tokenizer, template, shape, bool(tools), add_generation_prompt)


@lru_cache(maxsize=4096)
def _refusal_of_shape(
    tokenizer: PreTrainedTokenizerBase, template: str, shape: tuple, tools: bool, add_generation_prompt: bool
) -> str | None:
    turns: list = []
    for role, calls, thoughts, content in shape:
        turn = {"role": role, "content": "a" if content else ""}
        turns.append(
            turn | ({"tool_calls": [_CALL]} if calls else {}) | ({"reasoning_content": "b"} if thoughts else {})
        )
    try:
        tokenizer.apply_chat_template(
            turns,
            tools=_TOOLS if tools else None,
            chat_template=template,
            add_generation_prompt=add_generation_prompt,
            tokenize=False,
        )
    except Exception as error:  # a template may fail with any exception of its engine
        return one_line(error, longest=200) or type(error).__name__
    return None


def generation_opening(tokenizer: PreTrainedTokenizerBase) -> str:
    """What of an answer the chat template has written before the model begins: "<think>", or nothing.

    Example: "<think>" for the templates of DeepSeek-R1 and Qwen3.5, "" for that of Qwen3.
    """
    if not tokenizer.chat_template:
        return ""
    turns = [{"role": "user", "content": "a"}]
    text = cast(str, tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False))
    return "<think>" if text.rstrip().endswith("<think>") else ""


def turn_end(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The id of the token with which the chat template closes the assistant's turn; None where no token does.

    Example: <|im_end|> for a template of the ChatML kind, whatever the tokenizer's end token is.
    """
    if not tokenizer.chat_template:
        return None
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "Qz7"}]
    after = (written(tokenizer, tokenizer.get_chat_template(), turns) or "").rpartition("Qz7")[2].lstrip()
    closing = [
        (len(token.content), i)
        for i, token in tokenizer.added_tokens_decoder.items()
        if after.startswith(token.content)
    ]
    return max(closing)[1] if closing else None
