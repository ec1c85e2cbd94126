"""Turns as data have them, in the form that a tokenizer's chat template takes."""

import json
import re
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, cast

from tokenizers import AddedToken, normalizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

# A code point that is no character, and so in no text: with it inside, a marker is not taken for the token.
_BREAK = "\ufdd0"
# Tags that answers are made of: they stay what the tokenizer makes of them, even where it calls them special.
_CONTENT_TAG = re.compile(r"</?(think|thinking|tool_call|tool_response|answer)>|\[/?THINK\]|\u25c1/?think\u25b7")
_TAGGED = re.compile(r"\s*<think>(.*?)</think>\s*(.*)", re.S)
_THOUGHTS = ("reasoning_content", "thinking", "reasoning")  # what templates call the thoughts of a turn


def adapt_template(tokenizer: PreTrainedTokenizerBase, keep_markers: bool = False) -> None:
    """Lets `tokenizer.apply_chat_template`, which TRL's trainers call too, take turns as data have them.

    `tool_calls` may be JSON text. Thoughts in `reasoning_content` go under the name that the template knows; where it
    knows none they stand before the content, as `<think>`. A special token spelt out in a message is plain text, not
    the token, unless `keep_markers`. Nothing of this is saved with the tokenizer.

    Example: with <|eos|> for an end token, "Write <|eos|>." takes several tokens, none of which ends the turn.
    """
    adapted = cast(Any, tokenizer)  # a method of one object is exchanged, which types do not foresee
    adapted.apply_chat_template = AdaptedTemplate(tokenizer, keep_markers)


@dataclass(eq=False)
class AdaptedTemplate:
    """`apply_chat_template` of one tokenizer, after `adapt_template`."""

    tokenizer: PreTrainedTokenizerBase
    keep_markers: bool

    def __getstate__(self) -> dict:
        """Without what is made when first needed, so that copies and hashes of the tokenizer stay the same."""
        return {"tokenizer": self.tokenizer, "keep_markers": self.keep_markers}

    def __call__(self, conversation: Any, tools: list | None = None, **options: Any) -> Any:
        tokenizer, own = self.tokenizer, type(self.tokenizer).apply_chat_template
        template = options.pop("chat_template", None) or tokenizer.get_chat_template(tools=tools)
        batched = bool(conversation) and isinstance(conversation[0], list | tuple)
        chats = [
            [self._adapted(turn, template) for turn in chat] for chat in (conversation if batched else [conversation])
        ]
        if (
            self._markers
            and options.get("tokenize", True)
            and any(self._holds_marker(chat) for chat in (*chats, tools))
        ):
            tokenizer = self._reads_broken_markers
            chats, tools = self._broken(chats), self._broken(tools)
        return own(tokenizer, chats if batched else chats[0], tools=tools, chat_template=template, **options)

    def _adapted(self, turn: Mapping, template: str) -> dict:
        """The turn with its calls as mappings and its thoughts where the template looks for them."""
        adapted = dict(turn)
        if adapted.get("tool_calls"):
            adapted["tool_calls"] = _calls(adapted["tool_calls"], _writes_json(self.tokenizer, template))
        thoughts = adapted.pop("reasoning_content", None)
        tagged = _TAGGED.match(adapted["content"]) if isinstance(adapted.get("content"), str) else None
        if thoughts is None and tagged and turn["role"] == "assistant" and _wants_field(self.tokenizer, template):
            thoughts, adapted["content"] = tagged[1].strip(), tagged[2]
        if thoughts:
            name = _thoughts_name(self.tokenizer, template)
            if name:
                adapted[name] = thoughts
            else:
                adapted["content"] = f"<think>\n{thoughts.strip()}\n</think>\n\n{adapted.get('content') or ''}"
        return adapted

    @cached_property
    def _markers(self) -> re.Pattern | None:
        """Finds special tokens in a text. None where they are to be kept, and for tokenizers written in Python."""
        if self.keep_markers or not isinstance(self.tokenizer, PreTrainedTokenizerFast):
            return None
        names = [token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special]
        names = [name for name in names if len(name) > 1 and name.strip() and not _CONTENT_TAG.fullmatch(name)]
        return re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True)))) if names else None

    def _holds_marker(self, value: Any) -> bool:
        if isinstance(value, str):
            return self._markers is not None and self._markers.search(value) is not None
        parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
        return any(map(self._holds_marker, parts))

    def _broken(self, value: Any) -> Any:
        """The same value with every marker in its texts broken after the first sign."""
        if isinstance(value, str):
            assert self._markers is not None
            return self._markers.sub(lambda match: f"{match[0][0]}{_BREAK}{match[0][1:]}", value.replace(_BREAK, ""))
        if isinstance(value, Mapping):
            return {key: self._broken(part) for key, part in value.items()}
        return [self._broken(part) for part in value] if isinstance(value, list) else value

    @cached_property
    def _reads_broken_markers(self) -> PreTrainedTokenizerBase:
        """A copy of the tokenizer that drops the breaks, once it has looked for special tokens."""
        twin = cast(PreTrainedTokenizerFast, deepcopy(self.tokenizer))
        backend = twin.backend_tokenizer
        own = [backend.normalizer] if backend.normalizer else []
        backend.normalizer = normalizers.Sequence([normalizers.Replace(_BREAK, ""), *own])
        # A token with `normalized` is looked for after the breaks are gone.
        late = [token for token in twin.added_tokens_decoder.values() if token.special and token.normalized]
        backend.add_special_tokens([_unnormalized(token) for token in late])
        return twin


def _unnormalized(token: AddedToken) -> AddedToken:
    kept = {"single_word": token.single_word, "lstrip": token.lstrip, "rstrip": token.rstrip}
    return AddedToken(token.content, normalized=False, special=True, **kept)


def _calls(calls: str | list, as_json: bool) -> list[dict]:
    """Tool calls as {"type", "function": {"name", "arguments"}}; arguments are a mapping, or JSON if `as_json`."""
    listed = json.loads(calls) if isinstance(calls, str) else calls
    return [_call(call, as_json) for call in listed]


def _call(call: Mapping, as_json: bool) -> dict:
    function = dict(call.get("function") or call)
    arguments = function.get("arguments") or {}
    if as_json:
        arguments = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    elif isinstance(arguments, str):
        arguments = _mapping(arguments)
    rest = {key: value for key, value in call.items() if key not in ("function", "name", "arguments")}
    return {"type": "function", **rest, "function": {"name": function.get("name"), "arguments": arguments}}


def _mapping(arguments: str) -> dict | str:
    """What the JSON text holds; the text itself where a model wrote arguments that are not JSON."""
    try:
        return json.loads(arguments)
    except ValueError:
        return arguments


@lru_cache
def _thoughts_name(tokenizer: PreTrainedTokenizerBase, template: str) -> str | None:
    """The field in which a template looks for the thoughts of a turn; None where it has none."""
    answer = {"role": "assistant", "content": "b"}
    probes = {name: [{"role": "user", "content": "a"}, {**answer, name: "thoughtful"}] for name in _THOUGHTS}
    return next(
        (name for name, turns in probes.items() if "thoughtful" in (written(tokenizer, template, turns) or "")), None
    )


@lru_cache
def _wants_field(tokenizer: PreTrainedTokenizerBase, template: str) -> bool:
    """Whether thoughts in `<think>` have to go into the template's field: it has other tags, or asks for it."""
    name = _thoughts_name(tokenizer, template)
    if name is None:
        return False
    answers = [{name: "a", "content": "b"}, {"content": "<think>\na\n</think>\n\nb"}]
    asked = {"role": "user", "content": "c"}
    own, other = (written(tokenizer, template, [asked, {"role": "assistant", **answer}]) or "" for answer in answers)
    return "<think>" not in own or other.count("<think>") > own.count("<think>")


@lru_cache
def _writes_json(tokenizer: PreTrainedTokenizerBase, template: str) -> bool:
    """Whether a template wants the arguments of a call as JSON text: it fails on a mapping, and not on a text."""
    asked, answer = {"role": "user", "content": "a"}, {"role": "assistant", "content": ""}
    calls = [{"type": "function", "function": {"name": "f", "arguments": given}} for given in ({"a": 1}, '{"a": 1}')]
    turns = [[asked, {**answer, "tool_calls": [call]}] for call in calls]
    mapping, text = (written(tokenizer, template, probe) for probe in turns)
    return mapping is None and text is not None


def written(tokenizer: PreTrainedTokenizerBase, template: str, turns: list[dict]) -> str | None:
    """The text of turns, as they are; None where the template refuses them."""
    own = type(tokenizer).apply_chat_template
    try:
        return cast(str, own(tokenizer, turns, chat_template=template, tokenize=False))
    except Exception:  # a template may fail with any exception of its engine
        return None
