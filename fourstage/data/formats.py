"""Converts one row at a time, from the formats people have to the one that a stage trains on."""

import math
from collections.abc import Callable, Mapping

from trl import extract_prompt

# A text is the reason why a row is left out; None means that the row is empty.
Convert = Callable[[Mapping], dict | str | None]
_SHAREGPT_ROLES = {"human": "user", "gpt": "assistant"}
_ROLES = ("system", "user", "assistant")


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


def conversation_row(row: Mapping) -> dict | None:
    """`{"prompt": [...], "completion": [...]}`: the turns before the first trained answer, and the turns from it on.

    Only assistant turns of the completion are trained on: all assistant turns of `messages`, but of a
    `prompt`/`completion` row none that stands in the prompt.

    Example: {"instruction": "Add.", "input": "1 2", "output": "3"} ->
        {"prompt": [{"role": "user", "content": "Add.\\n\\n1 2"}],
         "completion": [{"role": "assistant", "content": "3"}]}
    Returns:
        None where an answer is empty, so that the model does not learn to say nothing.
    Raises:
        ValueError: for columns that fit no known format (they are named), an unknown role, or a row without an answer.
    """
    prompt, completion = _turns(row)
    answers = [turn["content"] for turn in completion if turn["role"] == "assistant"]
    if not answers or completion[-1]["role"] != "assistant":
        raise ValueError("the last turn must be the assistant's; otherwise there is nothing to learn")
    if not prompt and completion[0]["role"] == "assistant":
        raise ValueError("the first turn is the assistant's; a system or user turn must come before it")
    return {"prompt": prompt, "completion": completion} if all(answer.strip() for answer in answers) else None


def preference_row(row: Mapping) -> dict | str:
    """`{"prompt", "chosen", "rejected"}` as turns, with `margin` (0.0 by default) and `kind` (None by default).

    The answers are texts or turns that follow a `prompt`, `instruction` (+ `input`) or `question`. They may also be two
    whole conversations: their common first turns become the prompt, which a prompt column may repeat.

    Example: {"prompt": "Hi", "chosen": "Hello!", "rejected": "What?"} ->
        {"prompt": [{"role": "user", "content": "Hi"}], "chosen": [{"role": "assistant", "content": "Hello!"}],
         "rejected": [{"role": "assistant", "content": "What?"}], "margin": 0.0, "kind": None}
    Returns:
        The row, or as a text the reason why it is left out: equal answers teach nothing, and an empty chosen answer
        would teach the model to prefer silence. An empty rejected answer is kept.
    Raises:
        ValueError: for columns that fit no known format (they are named), or an invalid turn, margin or kind.
    """
    prompt, chosen, rejected = _preference_turns(row)
    for name, turns in (("chosen", chosen), ("rejected", rejected)):
        if not turns or turns[-1]["role"] != "assistant":
            raise ValueError(f"the last turn of {name} must be the assistant's, since the answers are compared")
    if not prompt:
        raise ValueError("chosen and rejected begin with different turns; both must answer the same prompt")
    if not all(turn["content"].strip() for turn in chosen if turn["role"] == "assistant"):
        return "without a chosen answer"
    if chosen == rejected:
        return "equal in chosen and rejected"
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, "margin": _margin(row), "kind": _kind(row)}


# Columns with a question or an answer to it: `prompt` replaces them. The others are kept for the reward functions.
ASKING_COLUMNS = ("prompt", "messages", "conversations", "system", "instruction", "input", "question")
ANSWERED_COLUMNS = ("chosen", "rejected", "margin", "completion", "output")


def prompt_row(row: Mapping) -> dict | None:
    """`{"prompt": [...]}`, turns that end with the user's, and every column that a reward function may need.

    Reads the rows of every other stage. The prompt is in `prompt`, `instruction` + `input` or `question`, or it is the
    turns of `messages` or `conversations` before the first answer. Answers are dropped, except the column `answer`.

    Example: {"question": "2 + 2?", "answer": "4"} -> {"prompt": [{"role": "user", "content": "2 + 2?"}], "answer": "4"}
    Returns:
        The row, or None where its prompt is empty.
    Raises:
        ValueError: for columns without a prompt (they are named), or a prompt that does not end with the user's turn.
    """
    prompt = _prompt(row)
    if not prompt or not prompt[-1]["content"].strip():
        return None
    if prompt[-1]["role"] != "user":
        raise ValueError(f"the prompt ends with the {prompt[-1]['role']}'s turn; it must end with the user's")
    other_columns = {name: value for name, value in row.items() if name not in ASKING_COLUMNS + ANSWERED_COLUMNS}
    return {"prompt": prompt, **other_columns}


def _prompt(row: Mapping) -> list[dict]:
    if row.get("prompt") is None and row.get("chosen") is not None and row.get("rejected") is not None:
        return _preference_turns(row)[0]
    for column in ("prompt", "question"):
        if row.get(column) is not None:
            return _as_turns(row[column], "user")
    if row.get("instruction") is not None:
        return _instruction(row)
    if any(row.get(column) is not None for column in ("messages", "conversations")):
        return _turns(row)[0]
    raise ValueError(
        f"columns {_filled_columns(row)} hold no prompt; expected prompt, messages, conversations, instruction or "
        "question"
    )


def _preference_turns(row: Mapping) -> tuple[list[dict], list[dict], list[dict]]:
    """(prompt, chosen, rejected); the prompt is empty where two whole conversations have no first turn in common."""
    column = next((key for key in ("prompt", "instruction", "question") if row.get(key) is not None), None)
    if "chosen" in row and "rejected" in row:
        chosen, rejected = (_as_turns(row[side], "assistant") for side in ("chosen", "rejected"))
        prompt = [] if column is None else _question_turns(row, column)
        turns_given = column is not None and isinstance(row[column], list)
        repeats_prompt = not turns_given or chosen[: len(prompt)] == rejected[: len(prompt)] == prompt
        if repeats_prompt and all(side and side[0]["role"] != "assistant" for side in (chosen, rejected)):
            parts = extract_prompt({"chosen": chosen, "rejected": rejected})
            return list(parts["prompt"]), list(parts["chosen"]), list(parts["rejected"])
        if column is not None:
            return prompt, chosen, rejected
    raise ValueError(
        f"columns {_filled_columns(row)} fit no known format; expected chosen + rejected, with prompt, instruction or "
        "question, or as whole conversations that begin alike"
    )


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
    parts = [turn["content"] for key in ("instruction", "input") for turn in _as_turns(row.get(key), "user")]
    return _as_turns("\n\n".join(part for part in parts if part.strip()), "user")


def _question_turns(row: Mapping, column: str) -> list[dict]:
    """The prompt that a row has in `column`: text becomes the user's turn."""
    return _instruction(row) if column == "instruction" else _as_turns(row[column], "user")


def _turns(row: Mapping) -> tuple[list[dict], list[dict]]:
    """(the turns before the first trained answer, the turns from it on)."""
    for column in ("messages", "conversations"):
        if row.get(column) is not None:
            turns = _as_turns(row[column], None)
            if isinstance(row.get("system"), str) and row["system"].strip():  # ShareGPT files may have a column for it
                turns = [_turn({"role": "system", "content": row["system"]}), *turns]
            first = next((i for i, turn in enumerate(turns) if turn["role"] == "assistant"), len(turns))
            return turns[:first], turns[first:]
    for question, answer in (("prompt", "completion"), ("instruction", "output"), ("question", "answer")):
        # In a file with rows of several formats, every row has the columns of all; those of other formats hold None.
        if question in row and answer in row and not (row[question] is None and row[answer] is None):
            return _question_turns(row, question), _as_turns(row[answer], "assistant")
    raise ValueError(
        f"columns {_filled_columns(row)} fit no known format; expected messages, conversations, prompt + completion, "
        "instruction + output, or question + answer"
    )


def _filled_columns(row: Mapping) -> list[str]:
    return sorted(name for name, value in row.items() if value is not None)


def _as_turns(content: str | list | None, role: str | None) -> list[dict]:
    """A list of turns as it is, or a text as one turn of `role`; without a role, text is an error."""
    if isinstance(content, list):
        return [_turn(turn) for turn in content]
    if role is None:
        raise ValueError(f"the turns are {type(content).__name__}, expected a list of turns")
    return [_turn({"role": role, "content": "" if content is None else content})]


def _turn(turn: Mapping) -> dict:
    """One turn as `{"role", "content"}`, converted where it is ShareGPT's `{"from", "value"}`."""
    if not isinstance(turn, Mapping):
        raise ValueError(
            f"a turn is {type(turn).__name__}, expected a mapping with role and content, or from and value"
        )
    role = turn.get("role") or _SHAREGPT_ROLES.get(turn.get("from"), turn.get("from"))
    content = turn.get("value") if turn.get("content") is None else turn["content"]
    if role not in _ROLES:
        raise ValueError(f"role {role!r} is unknown; expected one of {', '.join(_ROLES)}, or ShareGPT's human and gpt")
    if not isinstance(content, str):
        raise ValueError(f"the {role}'s turn holds {type(content).__name__}, expected text")
    return {"role": role, "content": content}
