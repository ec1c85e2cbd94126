"""One problem at a time: questions whose right answer is known, brought to `prompt` and `answer`, and checked."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence

from fourstage.data import formats
from fourstage.verifiers.text import final_part

# What a problem asks or answers with, in one data set or another: `prompt`, `answer` and `derivation` take its place.
_ASKING = (*formats.ASKING_COLUMNS, "problem", "options", "choices", "labels")
_ANSWERED = (*formats.ANSWERED_COLUMNS, "answer", "correct", "number")


def problem_row(row: Mapping, system_prompt: str | None = None) -> dict | str | None:
    """`{"prompt": [...], "answer": str}`: turns that end with the user's, the final answer, and columns for rewards.

    Reads rows of GSM8K (`#### 72` ends the answer), SVAMP, MAWPS, ASDiv (`number`), MATH (`problem`, `answer` or the
    box in `solution`), AQuA (`options`, `correct`), ARC and MMLU (`choices`), Countdown (`nums`, `target`), and any row
    that asks something (`formats.prompt_row`) with its `answer`. What leads to the answer becomes `derivation`.

    Example: {"question": "2 + 2?", "answer": "2 and 2 are 4.\\n#### 4"} ->
        {"prompt": [{"role": "user", "content": "2 + 2?"}], "answer": "4", "derivation": "2 and 2 are 4."}
    Returns:
        Instead the reason why the row is left out, None where nothing is asked.
    Raises:
        ValueError: naming the columns found if none asks anything, or what is wrong with an answer.
    """
    asked = formats.prompt_row({**_others(row), "prompt": _question(row)})
    if asked is None:
        return None
    if "number" in row and row["number"] is None and "formula" in row:
        return "without one number for an answer"
    answer, derivation = _answer(row)
    system = [{"role": "system", "content": system_prompt}] if system_prompt else []
    found = {"prompt": system + asked.pop("prompt"), **asked}
    found |= {} if answer is None and derivation is None and "answer" not in row else {"answer": answer}
    return found | ({} if derivation is None else {"derivation": derivation})


def gold_check(functions: Sequence[Callable], unverifiable: str) -> Callable[[Mapping], str | None]:
    """A check of a problem's own right answer by the verifiers that are to reward it: a gold that its verifier
    rejects would reward nonsense, or nothing.

    Args:
        functions: reward functions; those of fourstage.verifiers that need `answer`, or `target`, are asked.
        unverifiable: what to do with a row that fails: "error", or "drop".
    Returns:
        A function of a row: the reason to leave it out, or None.
    Raises:
        ValueError (that function): for a column that a verifier needs and the row has not, and, with "error", for a
            gold that is missing, that cannot be read, or that its verifier calls wrong.
    """
    needed = [(f, _required(f)) for f in functions if inspect.isfunction(f) and f.__module__.startswith("fourstage.")]

    def check(row: Mapping) -> str | None:
        for function, columns in needed:
            missing = [name for name in columns if name not in row]
            if missing:
                raise ValueError(
                    f"reward function {function.__name__} needs the column {missing[0]!r}, found {sorted(row)}; choose "
                    "data that has it, or another of --reward_funcs"
                )
            gold = row.get("answer") if "answer" in columns else row.get("solution", row.get("answer"))
            if not columns or (gold is None and "answer" not in columns):
                continue
            right = None if gold is None else function([gold], **{name: [row[name]] for name in columns})[0]
            if right != 1.0:
                return _reject(function.__name__, gold, right, unverifiable)
        return None

    return check


def _reject(name: str, gold: object, right: float | None, unverifiable: str) -> str:
    why = "cannot be read by" if right is None else "is wrong to"
    if unverifiable == "error":
        raise ValueError(
            f"the right answer {str(gold)[:80]!r} {why} its own verifier {name}; mend the row, choose another of "
            "--reward_funcs, or leave such rows out with --unverifiable drop"
        )
    return f"not verifiable by {name}"


def _required(function: Callable) -> list[str]:
    """Columns of the data that a reward function cannot do without."""
    given = ("completions", "prompts", "completion_ids")
    return [
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.default is parameter.empty and parameter.kind != parameter.VAR_KEYWORD and name not in given
    ]


def _others(row: Mapping) -> dict:
    return {name: value for name, value in row.items() if name not in _ASKING + _ANSWERED}


def _question(row: Mapping) -> list[dict] | str:
    """What is asked, as one text or as turns."""
    if row.get("nums") is not None and row.get("target") is not None and row.get("prompt") is None:
        numbers = ", ".join(str(n) for n in row["nums"])
        return (
            f"Use each of the numbers {numbers} exactly once, with + - * / and parentheses, to make {row['target']}. "
            "Answer with the expression."
        )
    asked = {**row, "question": row["problem"]} if row.get("problem") is not None else dict(row)
    turns = formats.prompt_row(asked)
    turns = [] if turns is None else turns["prompt"]
    options = row.get("options") or _labelled(row)
    if turns and options:
        last = turns[-1]
        turns = [*turns[:-1], {**last, "content": "\n".join([last["content"], *map(str, options)])}]
    return turns


def _labelled(row: Mapping) -> list[str]:
    """Choices with their letters, as in "A) seven"."""
    choices = row.get("choices") or []
    labels = row.get("labels") or "ABCDEFGHIJ"[: len(choices)]
    return [f"{label}) {choice}" for label, choice in zip(labels, choices, strict=True)]


def _answer(row: Mapping) -> tuple[str | None, str | None]:
    """(final answer, what leads to it), each None where the row has none."""
    answer = row.get("correct") if row.get("options") else row.get("answer")
    if row.get("number") is not None and "formula" in row:
        answer = row["number"]
    if row.get("choices") and isinstance(answer, int) and not row.get("labels"):
        answer = "ABCDEFGHIJ"[answer]
    if isinstance(answer, str) and "####" in answer:
        derivation, _, answer = answer.rpartition("####")
        return answer.strip(), derivation.strip()
    if row.get("problem") is not None and isinstance(row.get("solution"), str):
        boxed, marked = final_part(row["solution"])
        return (answer if answer is not None else boxed.strip() if marked else None), row["solution"]
    if isinstance(answer, bool) or not isinstance(answer, str | int | float | None):
        raise ValueError(f"column 'answer' holds {type(answer).__name__}, want a text or a number")
    if isinstance(answer, float) and not math.isfinite(answer):
        raise ValueError(f"column 'answer' holds {answer}, want a finite number")
    return (None if answer is None else str(answer)), row.get("derivation")
