"""One row at a time: the row formats people have, brought into the one format that a stage trains on."""

from collections.abc import Callable, Mapping

Convert = Callable[[Mapping], dict | None]
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
            prompt = _as_turns(row[asked], "user")
            if asked == "instruction":
                parts = [turn["content"] for part in (row[asked], row.get("input")) for turn in _as_turns(part, "user")]
                prompt = _as_turns("\n\n".join(part for part in parts if part.strip()), "user")
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
