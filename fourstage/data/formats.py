"""One row at a time: the row formats people have, brought into the one format that a stage trains on."""

import math
from collections.abc import Callable, Mapping

from trl import extract_prompt

Convert = Callable[[Mapping], dict | str | None]  # a text is the reason why a row is left out, None means empty
_SHAREGPT_ROLES = {"human": "user", "gpt": "assistant"}
_ROLES = ("system", "user", "assistant")


def text_row(row: Mapping, field: str = "text") -> dict | None:
    """`{"text": str}`, or None where the text is empty or only white space."""
    if field not in row:
        raise ValueError(f"no column {field!r}, found {sorted(row)}; name the text column with --dataset_text_field")
    text = row[field]
    if text is not None and not isinstance(text, str):
        raise ValueError(f"column {field!r} holds {type(text).__name__}, want text")
    return {"text": text} if text and text.strip() else None


def conversation_row(row: Mapping) -> dict | None:
    """`{"prompt": [...], "completion": [...]}`: the turns before the first trained answer, and the turns from it on.

    Loss falls on assistant turns of the completion only. So every assistant turn of `messages` is trained on, and of
    `prompt`/`completion` rows those of the completion, whatever the prompt holds.

    Example: {"instruction": "Add.", "input": "1 2", "output": "3"} ->
        {"prompt": [{"role": "user", "content": "Add.\\n\\n1 2"}],
         "completion": [{"role": "assistant", "content": "3"}]}
    Returns:
        None where an answer is empty: a model must not learn to say nothing.
    Raises:
        ValueError: naming the columns found if they fit no known format, an unknown role, or a row with no answer.
    """
    prompt, completion = _turns(row)
    answers = [turn["content"] for turn in completion if turn["role"] == "assistant"]
    if not answers or completion[-1]["role"] != "assistant":
        raise ValueError("the last turn must be the assistant's, there is nothing to learn otherwise")
    if not prompt and completion[0]["role"] == "assistant":
        raise ValueError("the first turn is the assistant's; a system or user turn must come before it")
    return {"prompt": prompt, "completion": completion} if all(answer.strip() for answer in answers) else None


def preference_row(row: Mapping) -> dict | str:
    """`{"prompt", "chosen", "rejected"}` as turns, `margin` (0.0 where there is none) and `kind` (None likewise).

    The answers may be text or turns after a `prompt`, `instruction` (+ `input`) or `question`; or two whole
    conversations that begin alike, whose common turns become the prompt (a prompt column then says them again).

    Example: {"prompt": "Hi", "chosen": "Hello!", "rejected": "What?"} ->
        {"prompt": [{"role": "user", "content": "Hi"}], "chosen": [{"role": "assistant", "content": "Hello!"}],
         "rejected": [{"role": "assistant", "content": "What?"}], "margin": 0.0, "kind": None}
    Returns:
        Instead the reason why the row is left out: equal answers teach nothing, and of an empty chosen one a model
        would learn to prefer silence. An empty rejected answer is kept.
    Raises:
        ValueError: naming the columns found if they fit no known format, or what is wrong with a turn, margin or kind.
    """
    prompt, chosen, rejected = _preference_turns(row)
    for name, turns in (("chosen", chosen), ("rejected", rejected)):
        if not turns or turns[-1]["role"] != "assistant":
            raise ValueError(f"the last turn of {name} must be the assistant's, it is what is compared")
    if not prompt:
        raise ValueError("chosen and rejected begin with different turns; both must answer the same prompt")
    if not all(turn["content"].strip() for turn in chosen if turn["role"] == "assistant"):
        return "without a chosen answer"
    if chosen == rejected:
        return "equal in chosen and rejected"
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, "margin": _margin(row), "kind": _kind(row)}


# Columns that say what to answer, or one answer to it: `prompt` takes their place. Others are kept for the rewards.
ASKING_COLUMNS = ("prompt", "messages", "conversations", "system", "instruction", "input", "question")
ANSWERED_COLUMNS = ("chosen", "rejected", "margin", "completion", "output")


def prompt_row(row: Mapping) -> dict | None:
    """`{"prompt": [...]}`, turns that end with the user's, and every column that may be for a reward function.

    Reads the rows of every other stage: what is asked in `prompt`, `instruction` + `input` or `question`, or the turns
    before the first answer of `messages` or `conversations`. Their answers are left away, `answer` is kept.

    Example: {"question": "2 + 2?", "answer": "4"} -> {"prompt": [{"role": "user", "content": "2 + 2?"}], "answer": "4"}
    Returns:
        None where nothing is asked.
    Raises:
        ValueError: naming the columns found if none asks anything, or a prompt that does not end with the user's turn.
    """
    prompt = _asked(row)
    if not prompt or not prompt[-1]["content"].strip():
        return None
    if prompt[-1]["role"] != "user":
        raise ValueError(f"the prompt ends with the {prompt[-1]['role']}'s turn; it must end with the user's")
    kept = {name: value for name, value in row.items() if name not in ASKING_COLUMNS + ANSWERED_COLUMNS}
    return {"prompt": prompt, **kept}


def _asked(row: Mapping) -> list[dict]:
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
        f"columns {sorted(key for key, value in row.items() if value is not None)} ask nothing; want prompt, messages, "
        "conversations, instruction or question"
    )


def _preference_turns(row: Mapping) -> tuple[list[dict], list[dict], list[dict]]:
    asked = next((key for key in ("prompt", "instruction", "question") if row.get(key) is not None), None)
    if "chosen" in row and "rejected" in row:
        chosen, rejected = sides = [_as_turns(row[side], "assistant") for side in ("chosen", "rejected")]
        prompt = _instruction(row) if asked == "instruction" else _as_turns(row[asked], "user") if asked else []
        said_again = not isinstance(row.get(asked), list) or all(side[: len(prompt)] == prompt for side in sides)
        if said_again and all(side and side[0]["role"] != "assistant" for side in sides):
            parts = extract_prompt({"chosen": chosen, "rejected": rejected})
            return parts["prompt"], parts["chosen"], parts["rejected"]
        if asked:
            return prompt, chosen, rejected
    raise ValueError(
        f"columns {sorted(key for key, value in row.items() if value is not None)} are no known format; want chosen + "
        "rejected, with prompt, instruction or question, or as whole conversations that begin alike"
    )


def _margin(row: Mapping) -> float:
    margin = 0.0 if row.get("margin") is None else row["margin"]
    if isinstance(margin, bool) or not isinstance(margin, int | float) or not math.isfinite(margin):
        raise ValueError(f"column 'margin' holds {margin!r}, want a number: by how much chosen is better")
    return float(margin)


def _kind(row: Mapping) -> str | None:
    kind = row.get("kind") or None
    if kind is not None and not (isinstance(kind, str) and len(kind) <= 40):
        raise ValueError(f"column 'kind' holds {str(kind)[:60]!r}, want a text of at most 40 characters, or rename it")
    return kind


def _instruction(row: Mapping) -> list[dict]:
    """Alpaca's instruction and input as one user's turn."""
    parts = [turn["content"] for key in ("instruction", "input") for turn in _as_turns(row.get(key), "user")]
    return _as_turns("\n\n".join(part for part in parts if part.strip()), "user")


def _turns(row: Mapping) -> tuple[list[dict], list[dict]]:
    for column in ("messages", "conversations"):
        if row.get(column) is not None:
            turns = _as_turns(row[column], None)
            if isinstance(row.get("system"), str) and row["system"].strip():  # ShareGPT files may have it apart
                turns = [_turn({"role": "system", "content": row["system"]}), *turns]
            first = next((i for i, turn in enumerate(turns) if turn["role"] == "assistant"), len(turns))
            return turns[:first], turns[first:]
    for asked, answered in (("prompt", "completion"), ("instruction", "output"), ("question", "answer")):
        # Where rows of several formats share a file, the columns of the others are there and hold nothing.
        if asked in row and answered in row and not (row[asked] is None and row[answered] is None):
            prompt = _instruction(row) if asked == "instruction" else _as_turns(row[asked], "user")
            return prompt, _as_turns(row[answered], "assistant")
    raise ValueError(
        f"columns {sorted(key for key, value in row.items() if value is not None)} are no known format; want "
        "messages, conversations, prompt + completion, instruction + output, or question + answer"
    )


def _as_turns(content: str | list | None, role: str | None) -> list[dict]:
    """Turns as they are, or one text as the turn of `role`."""
    if isinstance(content, list):
        return [_turn(turn) for turn in content]
    if role is None:
        raise ValueError(f"the turns are {type(content).__name__}, want a list of turns")
    return [_turn({"role": role, "content": "" if content is None else content})]


def _turn(turn: Mapping) -> dict:
    """One turn as `{"role", "content"}`, from that or from ShareGPT's `{"from", "value"}`."""
    if not isinstance(turn, Mapping):
        raise ValueError(f"a turn is {type(turn).__name__}, want a mapping with role and content, or from and value")
    role = turn.get("role") or _SHAREGPT_ROLES.get(turn.get("from"), turn.get("from"))
    content = turn.get("value") if turn.get("content") is None else turn["content"]
    if role not in _ROLES:
        raise ValueError(f"role {role!r} is unknown; want one of {', '.join(_ROLES)}, or ShareGPT's human and gpt")
    if not isinstance(content, str):
        raise ValueError(f"the {role}'s turn holds {type(content).__name__}, want text")
    return {"role": role, "content": content}
