"""How a reward function is called: fourstage's own with what they are made for, everybody else's as TRL calls them."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

_WRAPPER = "fourstage.rl.rewards"  # its `checked` stands around the functions of a run


def original(function: Callable) -> Callable:
    """The function within `functools.partial` and within the wrapper of a run."""
    if isinstance(function, functools.partial):
        return original(function.func)
    within = getattr(function, "__wrapped__", None)
    return original(within) if within is not None and _module(function) == _WRAPPER else function


def is_ours(function: Callable) -> bool:
    """Whether a reward function is one of fourstage's, also with some of its options set by `functools.partial`."""
    return _module(original(function)).startswith("fourstage.")


def _module(function: Callable) -> str:
    # Not __module__, which a decorator of somebody else's copies from ours.
    return getattr(function, "__globals__", {}).get("__name__", "")


def call_reward(
    function: Callable, completions: Sequence, columns: Mapping[str, Any], opening: str = "", prompts: Any = None
) -> Any:
    """The rewards of `completions`, by a function as TRL calls it.

    One of fourstage's gets of `columns` only those that it requires, or that are None without data: its options, such
    as the `limit` of `length`, never come from a column of that name. And it gets completions as whole texts: with the
    `opening` that the chat template has written before them, or with that at the end of a plain prompt, and with the
    thoughts that a parser took out.

    Example: call_reward(think_format, ["2 and 2</think> 4"], {"tokens": [9]}, opening="<think>") -> [1.0].
    """
    if not is_ours(function):
        given = {} if prompts is None else {"prompts": prompts}
        return function(completions=completions, **given, **columns)
    fixed = function.keywords if isinstance(function, functools.partial) else {}
    parameters = inspect.signature(function).parameters
    taken = {name for name, one in parameters.items() if one.default in (one.empty, None) and name not in fixed}
    given = {name: value for name, value in columns.items() if name in taken}
    if "prompts" in taken and parameters["prompts"].default is inspect.Parameter.empty:
        given["prompts"] = prompts
    openings = [_opening(prompt, opening) for prompt in prompts or [None] * len(completions)]
    texts = [_whole(completion, own) for completion, own in zip(completions, openings, strict=True)]
    return function(completions=texts, **given)


def _opening(prompt: str | list | None, opening: str) -> str:
    if isinstance(prompt, str):  # not written by a template
        return "<think>" if prompt.rstrip().endswith("<think>") else ""
    return opening


def _whole(completion: str | list[dict], opening: str) -> str | list[dict]:
    """A completion with what stands before it, and its thoughts in their tags where they are a field of the turn."""
    if isinstance(completion, str):
        return opening + completion
    turns = [_with_thoughts(turn) for turn in completion]
    first = turns[0].get("content") if turns else None
    if opening and isinstance(first, str) and turns[0] is completion[0]:
        turns[0] = {**turns[0], "content": opening + first}
    return turns


def _with_thoughts(turn: dict) -> dict:
    thoughts, answer = turn.get("reasoning_content") or turn.get("thinking"), turn.get("content") or ""
    if not isinstance(thoughts, str) or not isinstance(answer, str):
        return turn
    return {**turn, "content": f"<think>{thoughts}</think>{answer}" if answer else f"<think>{thoughts}"}
