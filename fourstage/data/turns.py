"""One turn of a conversation: from the keys that files have to the few that chat templates know, and none is lost."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

# Keys that a turn may have beside role and content; a converted turn has them only where they hold something.
EXTRA_KEYS = ("reasoning_content", "tool_calls", "name", "tool_call_id")
_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function": "tool",
    "function_response": "tool",
}
_PLAIN = frozenset(("role", "from", "content", "value"))
_THOUGHTS = ("reasoning_content", "reasoning", "thinking", "thought")
_CALLS = ("tool_calls", "function_call")
MARKS = ("weight", "train", "loss")  # by which a turn is trained on or not
# What files note about a turn and no template writes.
# fmt: off
_NOTES = frozenset((
    "id", "uuid", "message_id", "turn_id", "turn", "turn_identifier", "turn_number", "parent_id", "index", "idx",
    "timestamp", "time", "date", "created", "created_at", "create_time", "updated_at", "model", "model_name",
    "metadata", "meta", "source", "lang", "language", "country", "state", "header", "hashed_ip", "openai_id",
    "system_fingerprint", "temperature", "top_p", "toxic", "redacted", "tokens", "num_tokens", "token_count",
    "token_counter", "usage", "finish_reason", "stop_reason",
))
# fmt: on
_UNDERSTOOD = frozenset((*_PLAIN, *_THOUGHTS, *_CALLS, *MARKS, "name", "tool_call_id"))
_TEXT_PARTS = ("text", "input_text", "output_text")


def as_turns(content: Any, role: str | None) -> list[dict]:
    """A list of turns or a single one, converted; or a text as one turn of `role`. Without a role, text is an error."""
    if isinstance(content, list):
        return [turn(each) for each in content]
    if isinstance(content, Mapping):
        return [turn(content)]
    if role is None:
        raise ValueError(f"the turns are {type(content).__name__}, expected a list of turns")
    return [turn({"role": role, "content": "" if content is None else content})]


def turn(given: Mapping) -> dict:
    """One turn as `{"role", "content"}`, and those of EXTRA_KEYS that hold something.

    Reads ShareGPT's `{"from", "value"}` and its roles, thoughts under four names, calls of tools, and text in parts.
    What files note about a turn, such as `id`, is left behind; of `weight`, `train` and `loss` see `is_masked`.

    Example: {"from": "gpt", "value": "4", "thinking": "2 and 2"} ->
        {"role": "assistant", "content": "4", "reasoning_content": "2 and 2"}
    Raises:
        ValueError: for an unknown role, content that is not text, or a key that is not understood and holds something.
    """
    if not isinstance(given, dict | Mapping):  # a dict is known much sooner as one
        raise ValueError(
            f"a turn is {type(given).__name__}, expected a mapping with role and content, or from and value"
        )
    name = given.get("role") or given.get("from")
    role = _ROLES.get(name) if isinstance(name, str) else None
    if role is None:
        raise ValueError(
            f"role {name!r} is unknown; expected one of system, user, assistant and tool, or ShareGPT's human, gpt, "
            "function_call and observation"
        )
    content = given.get("value") if given.get("content") is None else given["content"]
    if len(given) == 2 and isinstance(content, str) and name != "function_call" and given.keys() <= _PLAIN:
        return {"role": role, "content": content}
    return _unusual_turn(given, role, content)


def _unusual_turn(given: Mapping, role: str, content: Any) -> dict:
    """A turn that is more than a known role and its text."""
    extras = {key: value for key, value in given.items() if key not in _PLAIN and not holds_nothing(value)}
    unknown = sorted(extras.keys() - _UNDERSTOOD - _NOTES)
    if unknown:
        raise ValueError(
            f"the {role}'s turn has the key {unknown[0]!r}, which is not understood; remove it, convert it "
            "(docs/data.md), or leave such rows out with --unreadable drop"
        )
    _check_twice(given, role)
    if "function_call" in (given.get("role"), given.get("from")):
        extras["function_call"], content = content, None
    more = _extra_keys(extras, role)
    if content is None and "tool_calls" in more:
        return {"role": role, "content": None, **more}
    return {"role": role, "content": _text(content, role), **more}


def _check_twice(given: Mapping, role: str) -> None:
    """Raises ValueError where a turn says two different things under two names of one key."""
    roles = {_ROLES.get(str(given[key])) for key in ("role", "from") if given.get(key)}
    contents = [given[key] for key in ("content", "value") if not holds_nothing(given.get(key))]
    if len(roles) > 1 or (len(contents) > 1 and contents[0] != contents[1]):
        names = "role and from" if len(roles) > 1 else "content and value"
        raise ValueError(f"the {role}'s turn has {names}, and they differ; keep one of them")


def _extra_keys(extras: Mapping, role: str) -> dict:
    """`extras` under the names of EXTRA_KEYS, checked."""
    only_answers = [key for key in (*_THOUGHTS, *_CALLS) if key in extras and role != "assistant"]
    if only_answers:
        raise ValueError(f"the {role}'s turn has the key {only_answers[0]!r}, which only the assistant's may have")
    found = {}
    thoughts = [key for key in _THOUGHTS if key in extras]
    if thoughts:
        found["reasoning_content"] = _text(extras[thoughts[0]], role, thoughts[0])
        if any(extras[key] != extras[thoughts[0]] for key in thoughts):
            raise ValueError(f"the {role}'s turn has {' and '.join(thoughts)}, and they differ; keep one of them")
    calls = [key for key in _CALLS if key in extras]
    if calls:
        found["tool_calls"] = _calls(extras[calls[0]], calls[0])
    return found | {key: _text(extras[key], role, key) for key in ("name", "tool_call_id") if key in extras}


def holds_nothing(value: Any) -> bool:
    """None, and what is as good: an empty or white text, an empty list, and a mapping of only such values."""
    if isinstance(value, Mapping):
        return all(map(holds_nothing, value.values()))
    return value is None or (isinstance(value, str) and not value.strip()) or (isinstance(value, list) and not value)


def _text(content: Any, role: str, key: str | None = None) -> str:
    """Text as it is, or its parts `{"type": "text", "text": ...}` joined."""
    if isinstance(content, str):
        return content
    where = f"the {role}'s turn" + (f" in {key!r}" if key else "")
    if isinstance(content, list) and all(isinstance(part, Mapping) for part in content):
        for part in content:
            more = sorted(name for name in part.keys() - {"type", "text", "id"} if not holds_nothing(part[name]))
            if part.get("type") not in _TEXT_PARTS or more or not isinstance(part.get("text"), str):
                kind = f"{part.get('type')!r}" + (f" with {more[0]!r}" if more else "")
                raise ValueError(f"{where} has a part of the type {kind}, which is not understood; only text is")
        return "".join(part["text"] for part in content)
    raise ValueError(f"{where} holds {type(content).__name__}, expected text")


def _calls(calls: Any, key: str) -> str:
    """Calls of tools as JSON text of a list; each has a `function` with a name, or is such a function itself."""
    listed = parsed(calls, f"the assistant's {key}")
    listed = [listed] if isinstance(listed, Mapping) else listed
    for call in listed if isinstance(listed, list) else [listed]:
        function = call.get("function") or call if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise ValueError(
                f"the assistant's {key} holds a call without a name; expected "
                '[{"type": "function", "function": {"name": ..., "arguments": ...}}]'
            )
    return as_json(listed)


def as_json(functions: list[Mapping]) -> str:
    """JSON text of calls or of tools, each `{"type": "function", "function": {...}}`, which a bare function becomes."""
    bare = [not each.get("function") and "name" in each for each in functions]
    whole = [
        {"type": "function", "function": each} if is_bare else each
        for is_bare, each in zip(bare, functions, strict=True)
    ]
    return json.dumps(whole, ensure_ascii=False)


def parsed(value: Any, where: str) -> Any:
    """What a JSON text holds; or a value of a table, without the nulls where its row lacks what another has."""
    try:
        return json.loads(value) if isinstance(value, str) else _without_nulls(value)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is text that is not JSON; {error.msg} at its character {error.pos + 1}") from None


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nulls(part) for key, part in value.items() if part is not None}
    return [_without_nulls(part) for part in value] if isinstance(value, list) else value


def is_masked(given: Any) -> bool:
    """Whether a turn, as it is in the file, is marked as one not to train on.

    Raises:
        ValueError: for a mark that is neither true nor false, or a turn of another than the assistant to train on.
    """
    marks = {key: given[key] for key in MARKS if given.get(key) is not None} if isinstance(given, Mapping) else {}
    for key, mark in marks.items():
        if mark not in (0, 1):
            raise ValueError(f"a turn has {key!r} {mark!r}; it must be 0 or 1, false or true")
        if mark and turn(given)["role"] != "assistant":
            raise ValueError(f"the {turn(given)['role']}'s turn has {key!r} {mark!r}; only the assistant's are learnt")
    return bool(marks) and not all(marks.values())


def check_not_learnt(given: Any, name: str) -> None:
    """Raises ValueError if a turn in the column `name`, of which nothing is learnt, is marked as one to learn."""
    turns = [each for each in given if isinstance(each, Mapping) and len(each) > 2] if isinstance(given, list) else []
    if any(each.get(key) for each in turns for key in MARKS):
        raise ValueError(f"a turn in {name!r} is marked as one to learn, and none there is; move it, or drop the mark")


def folded(parts: Sequence[Sequence[dict]]) -> list[list[dict]]:
    """Turns in which each text of the system stands at the beginning of the next turn of the user, after a blank line.

    Args:
        parts: turns that follow one another.
    Raises:
        ValueError: where no turn of the user follows.
    Example: [[system "Be brief.", user "Hi"]] -> [[user "Be brief.\\n\\nHi"]].
    """
    waiting: list[str] = []
    result = []
    for part in parts:
        turns = []
        for each in part:
            if each["role"] == "system":
                waiting.append(each["content"])
            elif each["role"] == "user" and waiting:
                turns.append({**each, "content": "\n\n".join([*waiting, each["content"]])})
                waiting = []
            else:
                turns.append(each)
        result.append(turns)
    if waiting:
        raise ValueError("no turn of the user follows the system's, so it cannot be folded; drop --fold_system")
    return result
