"""What a row says about its conversation in columns of its own: how it opens, its tools, settings of the template."""

import inspect
from collections.abc import Mapping

from transformers import PreTrainedTokenizerBase

from fourstage.data.turns import as_json, check_not_learnt, holds_nothing, parsed, turn

OPENING = ("system", "system_prompt", "history")
SETTINGS = ("tools", "functions", "chat_template_kwargs")
MEDIA = ("images", "image", "audios", "audio", "videos", "video")
_SAID = frozenset((*SETTINGS, *MEDIA))
# What `chat_template_kwargs` may not hold: what becomes of the text is the trainers' to say.
_NOT_OPTIONS = {*inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters, "messages"} - {"documents"}


def opened(row: Mapping, turns: list[dict]) -> list[dict]:
    """The turns after what the columns `system` (or `system_prompt`) and `history` hold.

    Raises:
        ValueError: for columns of other types, and for two system texts that differ.
    """
    if row.keys().isdisjoint(OPENING):
        return turns
    given = {name: row[name] for name in OPENING if not holds_nothing(row.get(name))}
    if not given:
        return turns
    history = _history(given.pop("history", []))
    for name, text in given.items():
        if not isinstance(text, str):
            raise ValueError(f"column {name!r} holds {type(text).__name__}, expected text")
    texts = [{"role": "system", "content": text} for text in given.values()]
    own = [each for each in [*history[:1], *turns[:1]] if each["role"] == "system"]
    first = (texts + own)[:1]
    if any(each != first[0] for each in texts + own):
        raise ValueError(f"{' and '.join([*given, *(['the first turn'] if own else [])])} hold different system texts")
    rest = [part[1:] if part[:1] in [[each] for each in own] else part for part in (history, turns)]
    return [*first, *rest[0], *rest[1]]


def _history(history: object) -> list[dict]:
    """Earlier turns, given as turns or as pairs of a question and its answer."""
    if not isinstance(history, list):
        raise ValueError(f"column 'history' holds {type(history).__name__}, expected a list of turns or pairs")
    check_not_learnt(history, "history")
    turns = []
    for item in history:
        if isinstance(item, list) and len(item) == 2 and all(isinstance(text, str) for text in item):
            turns += [{"role": "user", "content": item[0]}, {"role": "assistant", "content": item[1]}]
        elif isinstance(item, Mapping):
            turns.append(turn(item))
        else:
            raise ValueError("column 'history' holds something else than turns or pairs of two texts")
    return turns


def settings_of(row: Mapping) -> dict:
    """`tools`, as JSON text, and `chat_template_kwargs`, each where the row has it.

    Raises:
        ValueError: for columns of other types, settings that the trainers choose, and images, sounds or films.
    """
    if row.keys().isdisjoint(_SAID):
        return {}
    given = {name: row[name] for name in row.keys() & _SAID if not holds_nothing(row[name])}
    if not given:
        return {}
    media = next((name for name in MEDIA if name in given), None)
    if media:
        raise ValueError(
            f"column {media!r} holds something; only text can be learnt, so remove it, or leave such rows out with "
            "--unreadable drop"
        )
    values = {name: parsed(value, f"column {name!r}") for name, value in given.items()}
    options = values.pop("chat_template_kwargs", {})
    if len(values) > 1:
        raise ValueError("columns 'tools' and 'functions' both hold tools; keep one of them")
    tools = next(iter(values.values()), [])
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
        raise ValueError(f"column {next(iter(values))!r} must be a list of tools, or the JSON text of one")
    reserved = isinstance(options, Mapping) and sorted(options.keys() & _NOT_OPTIONS)
    if not isinstance(options, Mapping) or reserved:
        raise ValueError(
            "column 'chat_template_kwargs' must hold settings of the chat template by name, got "
            f"{str(reserved or options)[:80]}"
        )
    return {**({"tools": as_json(tools)} if tools else {}), **({"chat_template_kwargs": options} if options else {})}
