"""Converts one row at a time, from the formats people have to the one that a stage trains on."""

import math
from collections.abc import Callable, Mapping

from trl import extract_prompt

from fourstage.data.beside import MEDIA, OPENING, SETTINGS, opened, settings_of
from fourstage.data.picks import FIELDS, are_picks, left_out
from fourstage.data.turns import as_turns, check_not_learnt, holds_nothing, is_masked, turn

# A text is the reason why a row is left out; None means that the row is empty.
Convert = Callable[[Mapping], dict | str | None]

# Columns with a question or an answer to it: `prompt` replaces them. The others are kept for the reward functions.
_CONVERSATIONS = ("messages", "conversations")
_OTHER_ANSWERS = ("rejected_messages", "rejected_response")
ASKING_COLUMNS = ("prompt", *_CONVERSATIONS, *OPENING, *SETTINGS, *MEDIA, "instruction", "input", "question")
ANSWERED_COLUMNS = ("chosen", "rejected", *_OTHER_ANSWERS, "margin", "completion", "output")
_PAIRS = (("prompt", "completion"), ("instruction", "output"), ("question", "answer"))


def text_row(row: Mapping, field: str = "text") -> dict | None:
    """`{"text": str}`, or None where the text is empty or only white space.

    Raises:
        ValueError: naming the columns of a row without `field`, or the type of a field that is not text.
    """
    if field not in row:
        raise ValueError(f"no column {field!r}, found {sorted(row)}; name the text column with --dataset_text_field")
    text = row[field]
    if text is not None and not isinstance(text, str):
        raise ValueError(f"column {field!r} holds {type(text).__name__}, expected text")
    return {"text": text} if text and text.strip() else None


def conversation_row(row: Mapping) -> dict | str | None:
    """`{"prompt": [...], "completion": [...]}`: the turns before the first trained answer, and the turns from it on.

    Only assistant turns of the completion are trained on: all assistant turns of `messages` that no `weight`, `train`
    or `loss` masks, but of a `prompt`/`completion` row none that stands in the prompt. The columns `system` and
    `history` come before. `tools` (as JSON text) and `chat_template_kwargs` are there where the row has them.

    Example: {"instruction": "Add.", "input": "1 2", "output": "3"} ->
        {"prompt": [{"role": "user", "content": "Add.\\n\\n1 2"}],
         "completion": [{"role": "assistant", "content": "3"}]}
    Returns:
        None where an answer is empty, so that the model does not learn to say nothing; as a text the reason why another
        row is left out.
    Raises:
        ValueError: for columns that fit no known format (they are named), an unknown role, or a row without an answer.
    """
    prompt, completion = _turns(row)
    if not completion and prompt and prompt[-1]["role"] == "assistant":
        return "without an answer that is marked to be learnt"
    prompt = opened(row, prompt)
    answers = [turn for turn in completion if turn["role"] == "assistant"]
    if not answers or completion[-1]["role"] != "assistant":
        raise ValueError("the last turn must be the assistant's; otherwise there is nothing to learn")
    if not prompt and completion[0]["role"] == "assistant":
        raise ValueError("the first turn is the assistant's; a system or user turn must come before it")
    settings = settings_of(row)
    return {"prompt": prompt, "completion": completion, **settings} if all(map(_says_something, answers)) else None


def conversation_columns(row: Mapping) -> tuple[str, ...] | None:
    """The columns that `conversation_row` reads; None where it knows no format."""
    columns = _answered_columns(row)
    return columns and (*columns, *OPENING, *SETTINGS)


def preference_row(row: Mapping) -> dict | str:
    """`{"prompt", "chosen", "rejected"}` as turns, with `margin` (0.0 by default) and `kind` (None by default).

    The answers are texts or turns that follow a `prompt`, `instruction` (+ `input`), `question` or `messages`. They may
    also be two whole conversations, `chosen` and `rejected` or `messages` and `rejected_messages`: their common first
    turns become the prompt, which a prompt column may repeat. `system`, `history`, `tools` and `chat_template_kwargs`
    as in `conversation_row`. A person's choices (`picks`) are rows too; of these, ties are left out.

    Example: {"prompt": "Hi", "chosen": "Hello!", "rejected": "What?"} ->
        {"prompt": [{"role": "user", "content": "Hi"}], "chosen": [{"role": "assistant", "content": "Hello!"}],
         "rejected": [{"role": "assistant", "content": "What?"}], "margin": 0.0, "kind": None}
    Returns:
        The row, or as a text the reason why it is left out: equal answers teach nothing, and an empty chosen answer
        would teach the model to prefer silence. An empty rejected answer is kept.
    Raises:
        ValueError: for columns that fit no known format (they are named), or an invalid turn, margin or kind.
    """
    if are_picks(row) and (reason := left_out(row)):
        return reason
    prompt, chosen, rejected = _preference_turns(row)
    for name, turns in (("chosen", chosen), ("rejected", rejected)):
        if not turns or turns[-1]["role"] != "assistant":
            raise ValueError(f"the last turn of {name} must be the assistant's, since the answers are compared")
    if not prompt:
        raise ValueError("chosen and rejected begin with different turns; both must answer the same prompt")
    if not all(_says_something(turn) for turn in chosen if turn["role"] == "assistant"):
        return "without a chosen answer"
    if chosen == rejected:
        return "equal in chosen and rejected"
    prompt = opened(row, prompt)
    pair = {"prompt": prompt, "chosen": chosen, "rejected": rejected, "margin": _margin(row), "kind": _kind(row)}
    return {**pair, **settings_of(row)}


def preference_columns(row: Mapping) -> tuple[str, ...] | None:
    """The columns that `preference_row` reads; None where it knows no format."""
    columns = _compared_columns(row)
    notes = FIELDS if are_picks(row) else ()
    return columns and (*columns, "margin", "kind", *OPENING, *SETTINGS, *notes)


def prompt_row(row: Mapping) -> dict | None:
    """`{"prompt": [...]}`, turns that end with the user's, and every column that a reward function may need.

    Reads the rows of every other stage. The prompt is in `prompt`, `instruction` + `input` or `question`, or it is the
    turns of `messages` or `conversations` before the first answer, after `system` and `history`. Answers are dropped,
    except the column `answer`.

    Example: {"question": "2 + 2?", "answer": "4"} -> {"prompt": [{"role": "user", "content": "2 + 2?"}], "answer": "4"}
    Returns:
        The row, or None where its prompt is empty.
    Raises:
        ValueError: for columns without a prompt (they are named), a prompt that does not end with the user's turn, or
            tools or settings of the template, which a rollout does not take from a row.
    """
    prompt = _prompt(row)
    if not prompt or not _says_something(prompt[-1]):
        return None
    if prompt[-1]["role"] != "user":
        raise ValueError(f"the prompt ends with the {prompt[-1]['role']}'s turn; it must end with the user's")
    settings = settings_of(row)
    if settings:
        raise ValueError(
            f"the row has {next(iter(settings))}, and a rollout asks every prompt without; remove the column, or leave "
            "such rows out with --unreadable drop"
        )
    other_columns = {name: value for name, value in row.items() if name not in ASKING_COLUMNS + ANSWERED_COLUMNS}
    return {"prompt": opened(row, prompt), **other_columns}


def prompt_columns(row: Mapping) -> tuple[str, ...] | None:
    """The columns that `prompt_row` uses, those for rewards among them; None where it finds no prompt."""
    columns = _asked_columns(row)
    return columns and (*columns, *OPENING, *ANSWERED_COLUMNS, *(row.keys() - set(ASKING_COLUMNS)))


def _answered_columns(row: Mapping) -> tuple[str, ...] | None:
    """The columns with the conversation of a row."""
    for column in _CONVERSATIONS:
        if row.get(column) is not None:
            return (column,)
    for question, answer in _PAIRS:
        # In a file with rows of several formats, every row has the columns of all; those of other formats hold None.
        if question in row and answer in row and not (row[question] is None and row[answer] is None):
            return (*_question_columns(question), answer)
    return None


def _compared_columns(row: Mapping) -> tuple[str, ...] | None:
    """The columns with a prompt, where there is one, and two answers to it."""
    conversation = next((name for name in _CONVERSATIONS if row.get(name) is not None), None)
    other = next((name for name in _OTHER_ANSWERS if not holds_nothing(row.get(name))), None)
    if conversation and other:
        return (conversation, other)
    if "chosen" not in row or "rejected" not in row:
        return None
    question = next((name for name in ("prompt", "instruction", "question") if row.get(name) is not None), None)
    if question:
        return (*_question_columns(question), "chosen", "rejected")
    follows = conversation and [turn["role"] for turn in as_turns(row["chosen"], "assistant")[:1]] == ["assistant"]
    return (conversation, "chosen", "rejected") if follows else ("chosen", "rejected")


def _asked_columns(row: Mapping) -> tuple[str, ...] | None:
    """The columns with the prompt of a row of any stage."""
    compared = _compared_columns(row)
    both_answers = row.get("chosen") is not None and row.get("rejected") is not None
    if compared and row.get("prompt") is None and (both_answers or "chosen" not in compared):
        return compared
    for column in ("prompt", "question", "instruction", *_CONVERSATIONS):
        if row.get(column) is not None:
            return _question_columns(column)
    return None


def _question_columns(column: str) -> tuple[str, ...]:
    return (column, "input") if column == "instruction" else (column,)


def _turns(row: Mapping) -> tuple[list[dict], list[dict]]:
    """(the turns before the first trained answer, the turns from it on)."""
    columns = _answered_columns(row)
    if columns is None:
        raise ValueError(
            f"columns {_filled_columns(row)} fit no known format; expected messages, conversations, prompt + "
            "completion, instruction + output, or question + answer"
        )
    question, answer = columns[0], columns[-1]
    if question == answer:
        turns = as_turns(row[answer], None)
        return _at_first_learnt(turns, _masked(row[answer], turns))
    check_not_learnt(row[question], question)
    prompt, turns = _question_turns(row, question), as_turns(row[answer], "assistant")
    masked = _masked(row[answer], turns)
    before, learnt = _at_first_learnt(turns, masked) if masked else ([], turns)
    return [*prompt, *before], learnt


def _masked(given: object, turns: list[dict]) -> set[int]:
    """Which answers are marked as not to be learnt; `given` are the same turns as in the file."""
    if not isinstance(given, list) or max(map(len, given), default=0) <= 2:
        return set()
    return {i for i, each in enumerate(given) if is_masked(each) and turns[i]["role"] == "assistant"}


def _at_first_learnt(turns: list[dict], masked: set[int]) -> tuple[list[dict], list[dict]]:
    """Turns divided before the first answer that is to be learnt."""
    first = next((i for i, turn in enumerate(turns) if turn["role"] == "assistant" and i not in masked), len(turns))
    later = [i for i in masked if i > first]
    if later:
        raise ValueError(
            f"turn {min(later) + 1} is marked as not to be learnt, after one that is; only answers before the first "
            "learnt one can be left out of the loss"
        )
    return turns[:first], turns[first:]


def _prompt(row: Mapping) -> list[dict]:
    columns = _asked_columns(row)
    if columns is None:
        raise ValueError(
            f"columns {_filled_columns(row)} hold no prompt; expected prompt, messages, conversations, instruction or "
            "question"
        )
    if columns[-1] in ("rejected", *_OTHER_ANSWERS):
        return _preference_turns(row)[0]
    return _turns(row)[0] if columns[0] in _CONVERSATIONS else _question_turns(row, columns[0])


def _preference_turns(row: Mapping) -> tuple[list[dict], list[dict], list[dict]]:
    """(prompt, chosen, rejected); the prompt is empty where two whole conversations have no first turn in common."""
    columns = _compared_columns(row)
    if columns is None:
        raise _no_pair(row)
    for column in columns[-2:]:
        if isinstance(row[column], list) and any(map(_is_masked_answer, row[column][-1:])):
            raise ValueError(f"the last turn of {column} is marked as not to be learnt; a reward model learns from it")
    if columns[-1] not in ("chosen", "rejected"):
        return _from_conversation(row, *columns)
    chosen, rejected = (as_turns(row[side], "assistant") for side in ("chosen", "rejected"))
    question = columns[0] if len(columns) > 2 else None
    prompt = [] if question is None else _question_turns(row, question)
    turns_given = question is not None and isinstance(row[question], list)
    repeats_prompt = not turns_given or chosen[: len(prompt)] == rejected[: len(prompt)] == prompt
    if repeats_prompt and all(side and side[0]["role"] != "assistant" for side in (chosen, rejected)):
        return _divided(chosen, rejected)
    if question is None:
        raise _no_pair(row)
    return prompt, chosen, rejected


def _from_conversation(row: Mapping, conversation: str, other: str) -> tuple[list[dict], list[dict], list[dict]]:
    """A conversation with the chosen answer, and another one, or only its last answer, with the rejected."""
    chosen = as_turns(row[conversation], None)
    whole = other == "rejected_messages"
    rejected = as_turns(row[other], None) if whole else [*chosen[:-1], *as_turns(row[other], "assistant")]
    return _divided(chosen, rejected)


def _divided(chosen: list[dict], rejected: list[dict]) -> tuple[list[dict], list[dict], list[dict]]:
    parts = extract_prompt({"chosen": chosen, "rejected": rejected})
    return list(parts["prompt"]), list(parts["chosen"]), list(parts["rejected"])


def _no_pair(row: Mapping) -> ValueError:
    return ValueError(
        f"columns {_filled_columns(row)} fit no known format; expected chosen + rejected, with prompt, instruction or "
        "question, or as whole conversations that begin alike, or messages + rejected_messages"
    )


def _is_masked_answer(given: object) -> bool:
    return isinstance(given, Mapping) and len(given) > 2 and is_masked(given) and turn(given)["role"] == "assistant"


def _says_something(turn: Mapping) -> bool:
    """Whether a turn has words or calls a tool."""
    return bool((turn["content"] or "").strip() or turn.get("tool_calls"))


def _margin(row: Mapping) -> float:
    margin = 0.0 if row.get("margin") is None else row["margin"]
    if isinstance(margin, bool) or not isinstance(margin, int | float) or not math.isfinite(margin):
        raise ValueError(f"column 'margin' holds {margin!r}, expected a number: by how much chosen is better")
    return float(margin)


def _kind(row: Mapping) -> str | None:
    kind = row.get("kind") or None
    if kind is not None and not (isinstance(kind, str) and len(kind) <= 40):
        raise ValueError(
            f"column 'kind' holds {str(kind)[:60]!r}, expected a text of at most 40 characters; shorten or rename it"
        )
    return kind


def _instruction(row: Mapping) -> list[dict]:
    """Alpaca's instruction and input as one turn of the user."""
    parts = [turn["content"] for key in ("instruction", "input") for turn in as_turns(row.get(key), "user")]
    return as_turns("\n\n".join(part for part in parts if part.strip()), "user")


def _question_turns(row: Mapping, column: str) -> list[dict]:
    """The prompt that a row has in `column`: text becomes the user's turn."""
    return _instruction(row) if column == "instruction" else as_turns(row[column], "user")


def _filled_columns(row: Mapping) -> list[str]:
    return sorted(name for name, value in row.items() if value is not None)
