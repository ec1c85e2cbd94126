"""Turns as data have them, in the form that a tokenizer's chat template takes."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

from transformers import PreTrainedTokenizerBase

from fourstage.models.deadline import TemplateTimeoutError, deadline
from fourstage.models.markers import Markers

_TAGGED = re.compile(r"\s*<think>(.*?)</think>\s*(.*)", re.S)
_THOUGHTS = ("reasoning_content", "thinking", "reasoning")  # what templates call the thoughts of a turn


def adapt_template(tokenizer: PreTrainedTokenizerBase, keep_markers: bool = False) -> None:
    """Lets `tokenizer.apply_chat_template`, which TRL's trainers call too, take turns as data have them.

    `tool_calls` may be JSON text. Thoughts in `reasoning_content` go under the name that the template knows; where it
    knows none they stand before the content, as `<think>`. A special token spelt out in a message is plain text, not
    the token, unless `keep_markers`. A template that does not end is stopped (`deadline`). Nothing of this is saved
    with the tokenizer.

    Example: with <|eos|> for an end token, "Write <|eos|>." takes several tokens, none of which ends the turn.
    """
    adapted = cast(Any, tokenizer)  # a method of one object is exchanged, which types do not foresee
    adapted.apply_chat_template = AdaptedTemplate(tokenizer, keep_markers, Markers(tokenizer))


@dataclass(eq=False)
class AdaptedTemplate:
    """`apply_chat_template` of one tokenizer, after `adapt_template`."""

    tokenizer: PreTrainedTokenizerBase
    keep_markers: bool
    markers: Markers

    def __call__(self, conversation: Any, tools: list | None = None, **options: Any) -> Any:
        tokenizer, own = self.tokenizer, type(self.tokenizer).apply_chat_template
        template = options.pop("chat_template", None) or tokenizer.get_chat_template(tools=tools)
        batched = bool(conversation) and isinstance(conversation[0], list | tuple)
        chats = [
            [self._adapted(turn, template) for turn in chat] for chat in (conversation if batched else [conversation])
        ]
        if not self.keep_markers and options.get("tokenize", True) and self.markers.found_in([*chats, tools]):
            tokenizer, chats, tools = self.markers.reader, self.markers.broken(chats), self.markers.broken(tools)
        with deadline(len(chats)):
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
        with deadline():
            return cast(str, own(tokenizer, turns, chat_template=template, tokenize=False))
    except (TemplateTimeoutError, MemoryError):
        raise
    except Exception:  # a template may fail with any exception of its engine
        return None


def template_settings(row: Mapping) -> dict[str, Any]:
    """What a row of data gives to `conversation_ids`: its `tools`, from JSON text, and its `chat_template_kwargs`.

    Example: {"tools": None, "chat_template_kwargs": {"enable_thinking": False}} -> {"enable_thinking": False}
    """
    tools = {"tools": json.loads(row["tools"])} if row.get("tools") else {}
    return {**tools, **(row.get("chat_template_kwargs") or {})}
