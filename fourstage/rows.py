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
    if "messages" in row or "conversations" in row:
        turns = [_turn(turn) for turn in row.get("messages") or row.get("conversations") or []]
        first = next((i for i, turn in enumerate(turns) if turn["role"] == "assistant"), len(turns))
        return turns[:first], turns[first:]
    if "prompt" in row and "completion" in row:
        return _as_turns(row["prompt"], "user"), _as_turns(row["completion"], "assistant")
    if "instruction" in row and "output" in row:
        parts = [part for part in (row["instruction"], row.get("input")) if part and part.strip()]
        return _as_turns("\n\n".join(parts), "user"), _as_turns(row["output"], "assistant")
    if "question" in row and "answer" in row:
        return _as_turns(row["question"], "user"), _as_turns(row["answer"], "assistant")
    raise ValueError(
        f"columns {sorted(row)} are no known format; want messages, conversations, prompt + completion, "
        "instruction + output, or question + answer"
    )


def _as_turns(content: str | list | None, role: str) -> list[dict]:
    if isinstance(content, list):
        return [_turn(turn) for turn in content]
    return [_turn({"role": role, "content": content or ""})]


def _turn(turn: Mapping) -> dict:
    """One turn as `{"role", "content"}`, from that or from ShareGPT's `{"from", "value"}`."""
    role = turn.get("role") or _SHAREGPT_ROLES.get(turn.get("from"), turn.get("from"))
    content = turn["content"] if "content" in turn else turn.get("value")
    if role not in _ROLES:
        raise ValueError(f"role {role!r} is unknown; want one of {', '.join(_ROLES)}, or ShareGPT's human and gpt")
    if not isinstance(content, str):
        raise ValueError(f"the {role}'s turn holds {type(content).__name__}, want text")
    return {"role": role, "content": content}
