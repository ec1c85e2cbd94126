"""Converts one problem at a time, a question with its right answer, to `prompt` and `answer`, and checks the answer."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime, time
from decimal import Decimal
from typing import Protocol

from fourstage.data import formats
from fourstage.data.choices import COLUMNS, choices_of, question_of, right_letter
from fourstage.data.programs import program_row
from fourstage.verifiers.calls import is_ours, original
from fourstage.verifiers.text import final_part

_EXACT = 2**53  # whole numbers up to this one are exact as floats

# Columns with the question or the answer, beside those of `formats`: `prompt` and `answer` replace them.
_REPLACED = {"problem", "answer", "number"}
# Where a right answer stands, the first that a row has, and within which mapping.
_GOLDS = ("answer", "final_answer", "expected_answer", "reward_model.ground_truth", "extra_info.answer", "ground_truth")
_PLACES = [(place, *place.split(".")) for place in _GOLDS]


class ProblemArguments(Protocol):
    """The training arguments that concern problems, as GRPOConfig has them."""

    unverifiable: str
    system_prompt: str | None


def problem_row(row: Mapping, system_prompt: str | None = None) -> dict | str | None:
    """`{"prompt": [...], "answer": str}`: turns that end with the user's, the final answer, and columns for rewards.

    Reads the rows of the sets that docs/data.md lists, as they are published: GSM8K (`#### 72` ends the answer), MATH
    (`problem`, `answer` or the box in `solution`), multiple choice (`choices.choices_of`), Countdown (`nums`,
    `target`), programs with tests, which have no `answer` (`programs.program_row`), and any row with a prompt
    (`formats.prompt_row`) and a right answer (`golds_of`). The steps that lead to the answer become `derivation`.

    Example: {"question": "2 + 2?", "answer": "2 and 2 are 4.\\n#### 4"} ->
        {"prompt": [{"role": "user", "content": "2 + 2?"}], "answer": "4", "derivation": "2 and 2 are 4."}
    Returns:
        The row; or as a text the reason why it is left out, or None where its prompt is empty.
    Raises:
        ValueError: for columns without a prompt (they are named), or an answer that is not text or a finite number.
    """
    program = program_row(row)
    if program:
        return {**program, "prompt": _with_system(program["prompt"], system_prompt)} if system_prompt else program
    row = question_of(_with_countdown(row))
    choices = choices_of(row)
    asked = formats.prompt_row({**row, "prompt": _countdown_question(row)} if _is_countdown(row) else row)
    if asked is None:
        return None
    replaced = {*_REPLACED, *COLUMNS} if choices else _REPLACED
    problem = {name: value for name, value in asked.items() if name not in replaced}
    if choices:
        *before, last = problem["prompt"]
        problem["prompt"] = [*before, {**last, "content": "\n".join([last["content"], *choices.listed])}]
    if "number" in row and row["number"] is None and "formula" in row:
        return "without one number for an answer"
    if system_prompt:
        problem["prompt"] = _with_system(problem["prompt"], system_prompt)
    answer, derivation = (right_letter(row, choices), row.get("derivation")) if choices else _answer(row)
    if answer is not None or derivation is not None or choices or "answer" in row:
        problem["answer"] = answer
    if derivation is not None:
        problem["derivation"] = derivation
    return problem


def golds_of(row: Mapping) -> dict[str, object]:
    """The right answers of a row by where they stand, that which counts first; a box or `####` in `solution` is last.

    Example: {"solution": r"So \\boxed{2}.", "final_answer": "2"} -> {"final_answer": "2", "solution": "2"}.
    """
    found = {}
    if "formula" in row and row.get("number") is not None:  # ASDiv, whose `answer` has a unit
        found["number"] = row["number"]
    for place, column, *keys in _PLACES:
        value = row.get(column)
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        if value is not None and value != "":
            found[place] = value
    if isinstance(row.get("solution"), str) and row.get("nums") is None:
        part, is_marked = final_part(row["solution"])
        if is_marked or (row.get("problem") is None and "prompt" in row):  # TRL's sets: the solution is the answer
            found["solution"] = part.strip()
    return found


def _with_system(prompt: list[dict], text: str) -> list[dict]:
    """The prompt with a system turn before it, or with the text before what its own system turn says."""
    if prompt[0]["role"] != "system":
        return [{"role": "system", "content": text}, *prompt]
    return [{**prompt[0], "content": f"{text}\n\n{prompt[0]['content']}"}, *prompt[1:]]


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
    ours = [function for function in functions if is_ours(function)]
    verifiers = [(one, getattr(original(one), "__name__", ""), *_columns(one)) for one in ours]

    def check(row: Mapping) -> str | None:
        for function, name, columns, others in verifiers:
            missing = [column for column in columns if column not in row]
            if missing:
                raise ValueError(
                    f"reward function {name} needs the column {missing[0]!r}, found {sorted(row)}; choose "
                    "data that has it, or other --reward_funcs"
                )
            gold = row.get("answer") if "answer" in columns else row.get("solution", row.get("answer"))
            if not columns or (gold is None and "answer" not in columns):
                continue
            given = {column: [row[column]] for column in (*columns, *others) if column in row}
            reward = None if gold is None else function([gold], **given)[0]
            if reward != 1.0:
                return _reject(name, gold, reward, unverifiable)
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


def _columns(function: Callable) -> tuple[list[str], list[str]]:
    """Columns of the data that a reward function cannot do without, and those that it takes where there are any."""
    parameters = inspect.signature(function).parameters
    from_trl = ("completions", "prompts", "completion_ids")
    named = {n: one for n, one in parameters.items() if one.kind != one.VAR_KEYWORD and n not in from_trl}
    required = [name for name, one in named.items() if one.default is one.empty]
    return required, [name for name, one in named.items() if one.default is None]


def _with_countdown(row: Mapping) -> Mapping:
    """The row with `nums` and `target`, where its right answer is a mapping of numbers and a target, as in TinyZero."""
    held = row.get("reward_model")
    truth = held.get("ground_truth") if isinstance(held, Mapping) else row.get("ground_truth")
    if not isinstance(truth, Mapping) or not {"numbers", "target"} <= truth.keys():
        return row
    others = {name: value for name, value in row.items() if name not in ("reward_model", "ground_truth")}
    return {"nums": truth["numbers"], "target": truth["target"]} | others


def _is_countdown(row: Mapping) -> bool:
    return row.get("nums") is not None and row.get("target") is not None and row.get("prompt") is None


def _countdown_question(row: Mapping) -> str:
    numbers = ", ".join(str(n) for n in row["nums"])
    return (
        f"Use each of the numbers {numbers} exactly once, with + - * / and parentheses, to make {row['target']}. "
        "Answer with the expression."
    )


def _answer(row: Mapping) -> tuple[str | None, str | None]:
    """(final answer, the steps that lead to it), each None where the row has none."""
    golds = golds_of(row)
    place, answer = next(iter(golds.items()), ("answer", None))
    steps = row.get("solution") if row.get("problem") is not None or place == "solution" else None
    if isinstance(answer, str) and "####" in answer:
        derivation, _, answer = answer.rpartition("####")
        return answer.strip(), derivation.strip()
    if not isinstance(steps, str) or steps.strip() == answer:
        steps = row.get("derivation")
    return (None if answer is None else _as_text(answer, place)), steps


def _as_text(answer: object, place: str) -> str:
    """An answer as it is written: 72.0 is 72, and true is true."""
    if isinstance(answer, str):
        return answer
    if isinstance(answer, bool):
        return str(answer).lower()
    if isinstance(answer, float):
        if not math.isfinite(answer):
            raise ValueError(f"column {place!r} holds {answer}, expected a finite number")
        if abs(answer) >= _EXACT and answer.is_integer():
            raise ValueError(
                f"column {place!r} holds {answer}, a whole number that is no longer exact; write it as text, in quotes"
            )
        return str(int(answer)) if answer.is_integer() else str(answer)
    if isinstance(answer, datetime):
        is_day = answer.time() == time.min and answer.tzinfo is None
        return answer.date().isoformat() if is_day else answer.isoformat(" ")
    if isinstance(answer, int | Decimal | date | time):
        return str(answer)
    raise ValueError(f"column {place!r} holds {type(answer).__name__}, {str(answer)[:80]}; expected text or a number")
