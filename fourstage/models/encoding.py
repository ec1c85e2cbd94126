"""Conversations written by a tokenizer's chat template: as token ids, whether it takes them, and how it ends them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import groupby
from operator import itemgetter
from typing import Any, cast

from transformers import BatchEncoding, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from fourstage.errors import one_line
from fourstage.models.deadline import TemplateTimeoutError
from fourstage.models.turns import written

_CHARACTERS = 2_000_000  # tokenized at once: enough for all cores, and little beside a model
_IDS_ALONE = {"return_attention_mask": False, "return_token_type_ids": False}
_CITY = {"type": "object", "properties": {"city": {"type": "string", "description": "b"}}, "required": ["city"]}
_TOOL = {"type": "function", "function": {"name": "toolQz", "description": "a", "parameters": _CITY}}
_CALL = {"type": "function", "function": {"name": "callQz", "arguments": {"city": "a"}}}


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


def encode_chats(
    tokenizer: PreTrainedTokenizerBase, chats: Sequence[list[dict]], settings: Sequence[dict], **options: Any
) -> list[dict[str, list[int]]]:
    """`input_ids` of many conversations, as `conversation_ids` gives those of one, in a fraction of the time.

    Args:
        settings: of each conversation, as `template_settings` returns them. Runs of equal ones are tokenized at once.
        options: for all, such as `add_generation_prompt`, or `return_assistant_tokens_mask` for `assistant_masks` too.
    """
    encoded: list[dict[str, list[int]]] = []
    for shared, group in groupby(zip(chats, settings, strict=True), key=itemgetter(1)):
        turns: Any = [chat for chat, _ in group]
        batch = cast(
            Mapping,
            tokenizer.apply_chat_template(turns, return_dict=True, tokenizer_kwargs=_IDS_ALONE, **shared, **options),
        )
        names = [name for name in ("input_ids", "assistant_masks") if name in batch]
        encoded += [dict(zip(names, row, strict=True)) for row in zip(*(batch[name] for name in names), strict=True)]
    return encoded


def encode_texts(
    tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], split_special_tokens: bool | None = None
) -> Iterator[list[int]]:
    """The ids of each text, as `tokenizer(text)` gives them: many texts at a time, without all that is not ids.

    Args:
        split_special_tokens: as in a call of the tokenizer; by default the tokenizer's own.
    """
    splits = tokenizer.split_special_tokens if split_special_tokens is None else split_special_tokens
    for some in _by_size(texts):
        if isinstance(tokenizer, PreTrainedTokenizerFast):
            backend = tokenizer.backend_tokenizer
            backend.no_truncation()
            backend.no_padding()
            backend.encode_special_tokens = splits
            yield from (encoding.ids for encoding in backend.encode_batch_fast(some))
        else:
            yield from tokenizer(some, split_special_tokens=splits, verbose=False)["input_ids"]


def _by_size(texts: Iterable[str]) -> Iterator[list[str]]:
    some, size = [], 0
    for text in texts:
        some.append(text)
        size += len(text)
        if size >= _CHARACTERS:
            yield some
            some, size = [], 0
    if some:
        yield some


def template_refusal(
    tokenizer: PreTrainedTokenizerBase,
    turns: Sequence[Mapping],
    tools: object = None,
    add_generation_prompt: bool = False,
) -> str | None:
    """Why a conversation cannot be written with the chat template; None where it can.

    The reason is in the template's words, or it is what the template would leave out without a word.
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
    for number, (role, calls, thoughts, content) in enumerate(shape):
        turn = {"role": role, "content": f"Qz{number}." if content else ""}
        turns.append(
            turn | ({"tool_calls": [_CALL]} if calls else {}) | ({"reasoning_content": "b"} if thoughts else {})
        )
    options: dict = {"tools": [_TOOL] if tools else None, "add_generation_prompt": add_generation_prompt}
    try:
        text = cast(str, tokenizer.apply_chat_template(turns, chat_template=template, tokenize=False, **options))
    except TemplateTimeoutError:
        raise
    except Exception as error:  # a template may fail with any exception of its engine
        return one_line(error, longest=200) or type(error).__name__
    if tools and "toolQz" not in text:
        return "it leaves tools out"
    if any(turn.get("tool_calls") for turn in turns) and "callQz" not in text:
        return "it leaves tool calls out"
    return next((f"it leaves the {turn['role']}'s turn out" for turn in turns if turn["content"] not in text), None)


def generation_opening(tokenizer: PreTrainedTokenizerBase, **options: Any) -> str:
    """What of an answer the chat template has written before the model begins: "<think>", or nothing.

    `options` go to the chat template, as in `conversation_ids`.
    Example: "<think>" for the templates of DeepSeek-R1 and Qwen3.5, "" for that of Qwen3.
    """
    if not tokenizer.chat_template:
        return ""
    turns = [{"role": "user", "content": "a"}]
    text = cast(str, tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False, **options))
    return "<think>" if text.rstrip().endswith("<think>") else ""


def turn_end(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The id of the token with which the chat template closes the assistant's turn; None where no token does.

    Of several in a row, as in Command R's, it is the last.
    Example: <|im_end|> for a template of the ChatML kind, whatever the tokenizer's end token is.
    """
    if not tokenizer.chat_template:
        return None
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "Qz7"}]
    after = (written(tokenizer, tokenizer.get_chat_template(), turns) or "").rpartition("Qz7")[2].lstrip()
    names = {token.content: i for i, token in tokenizer.added_tokens_decoder.items() if token.content.strip()}
    last = None
    while closing := max((name for name in names if after.startswith(name)), key=len, default=None):
        last, after = names[closing], after.removeprefix(closing)
    return last
