"""Converts one problem at a time, a question with its right answer, to `prompt` and `answer`, and checks the answer."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from fourstage.data import formats
from fourstage.verifiers.text import final_part

# Columns with the question or the answer, in one data set or another: `prompt`, `answer` and `derivation` replace them.
_ASKING = (*formats.ASKING_COLUMNS, "problem", "options", "choices", "labels")
_ANSWERED = (*formats.ANSWERED_COLUMNS, "answer", "correct", "number")


class ProblemArguments(Protocol):
    """The training arguments that concern problems, as GRPOConfig has them."""

    unverifiable: str
    system_prompt: str | None


def problem_row(row: Mapping, system_prompt: str | None = None) -> dict | str | None:
    """`{"prompt": [...], "answer": str}`: turns that end with the user's, the final answer, and columns for rewards.

    Reads rows of GSM8K (`#### 72` ends the answer), SVAMP, MAWPS, ASDiv (`number`), MATH (`problem`, `answer` or the
    box in `solution`), AQuA (`options`, `correct`), ARC and MMLU (`choices`), Countdown (`nums`, `target`), and any row
    with a prompt (`formats.prompt_row`) and an `answer`. The steps that lead to the answer become `derivation`.

    Example: {"question": "2 + 2?", "answer": "2 and 2 are 4.\\n#### 4"} ->
        {"prompt": [{"role": "user", "content": "2 + 2?"}], "answer": "4", "derivation": "2 and 2 are 4."}
    Returns:
        The row; or as a text the reason why it is left out, or None where its prompt is empty.
    Raises:
        ValueError: for columns without a prompt (they are named), or an answer that is not text or a finite number.
    """
    problem = formats.prompt_row({**_other_columns(row), "prompt": _question(row)})
    if problem is None:
        return None
    if "number" in row and row["number"] is None and "formula" in row:
        return "without one number for an answer"
    if system_prompt:
        problem["prompt"] = [{"role": "system", "content": system_prompt}, *problem["prompt"]]
    answer, derivation = _answer(row)
    if answer is not None or derivation is not None or "answer" in row:
        problem["answer"] = answer
    if derivation is not None:
        problem["derivation"] = derivation
    return problem


def gold_check(functions: Sequence[Callable], unverifiable: str) -> Callable[[Mapping], str | None]:
    """A check that the verifiers accept a problem's own right answer, its gold: with one that they reject, they would
    reward nonsense, or nothing.

    Args:
        functions: reward functions. Those of fourstage that require columns of the data check the gold.
        unverifiable: what to do with a row whose gold fails: "error" or "drop".
    Returns:
        A function that takes a row and returns the reason to leave it out, or None.
    Raises:
        ValueError: by that function, for a row without a column that a verifier requires; with "error" also for a gold
            that is missing, cannot be read, or is wrong to its verifier.
    """
    ours = [f for f in functions if inspect.isfunction(f) and f.__module__.startswith("fourstage.")]
    verifiers = [(function, _required_columns(function)) for function in ours]

    def check(row: Mapping) -> str | None:
        for function, columns in verifiers:
            missing = [name for name in columns if name not in row]
            if missing:
                raise ValueError(
                    f"reward function {function.__name__} needs the column {missing[0]!r}, found {sorted(row)}; choose "
                    "data that has it, or other --reward_funcs"
                )
            gold = row.get("answer") if "answer" in columns else row.get("solution", row.get("answer"))
            if not columns or (gold is None and "answer" not in columns):
                continue
            reward = None if gold is None else function([gold], **{name: [row[name]] for name in columns})[0]
            if reward != 1.0:
                return _reject(function.__name__, gold, reward, unverifiable)
        return None

    return check


def _reject(name: str, gold: object, reward: float | None, unverifiable: str) -> str:
    """The reason to leave a row out, or a ValueError with it, if `unverifiable` is "error"."""
    why = "cannot be read by" if reward is None else "is wrong to"
    if unverifiable == "error":
        raise ValueError(
            f"the right answer {str(gold)[:80]!r} {why} its own verifier {name}; mend the row, choose other "
            "--reward_funcs, or drop such rows with --unverifiable drop"
        )
    return f"not verifiable by {name}"


def _required_columns(function: Callable) -> list[str]:
    """Columns of the data that a reward function cannot do without."""
    from_trl = ("completions", "prompts", "completion_ids")
    return [
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.default is parameter.empty and parameter.kind != parameter.VAR_KEYWORD and name not in from_trl
    ]


def _other_columns(row: Mapping) -> dict:
    return {name: value for name, value in row.items() if name not in _ASKING + _ANSWERED}


def _question(row: Mapping) -> list[dict] | str:
    """The question, as one text or as turns."""
    if row.get("nums") is not None and row.get("target") is not None and row.get("prompt") is None:
        numbers = ", ".join(str(n) for n in row["nums"])
        return (
            f"Use each of the numbers {numbers} exactly once, with + - * / and parentheses, to make {row['target']}. "
            "Answer with the expression."
        )
    if row.get("problem") is not None:
        row = {**row, "question": row["problem"]}
    converted = formats.prompt_row(row)
    turns = [] if converted is None else converted["prompt"]
    options = row.get("options") or _labelled_choices(row)
    if turns and options:
        last = turns[-1]
        turns = [*turns[:-1], {**last, "content": "\n".join([last["content"], *map(str, options)])}]
    return turns


def _labelled_choices(row: Mapping) -> list[str]:
    """Choices with their letters, as in "A) seven"."""
    choices = row.get("choices") or []
    labels = row.get("labels") or "ABCDEFGHIJ"[: len(choices)]
    return [f"{label}) {choice}" for label, choice in zip(labels, choices, strict=True)]


def _answer(row: Mapping) -> tuple[str | None, str | None]:
    """(final answer, the steps that lead to it), each None where the row has none."""
    answer = row.get("correct") if row.get("options") else row.get("answer")
    if row.get("number") is not None and "formula" in row:
        answer = row["number"]
    if row.get("choices") and isinstance(answer, int) and not row.get("labels"):
        answer = "ABCDEFGHIJ"[answer]
    if isinstance(answer, str) and "####" in answer:
        derivation, _, answer = answer.rpartition("####")
        return answer.strip(), derivation.strip()
    if row.get("problem") is not None and isinstance(row.get("solution"), str):
        boxed, is_marked = final_part(row["solution"])
        if answer is None and is_marked:
            answer = boxed.strip()
        return answer, row["solution"]
    if isinstance(answer, bool) or not isinstance(answer, str | int | float | None):
        raise ValueError(f"column 'answer' holds {type(answer).__name__}, expected text or a number")
    if isinstance(answer, float) and not math.isfinite(answer):
        raise ValueError(f"column 'answer' holds {answer}, expected a finite number")
    return (None if answer is None else str(answer)), row.get("derivation")
