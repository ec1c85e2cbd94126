r"""Verifiable rewards: pure functions with TRL's signature, that never execute what a model wrote.

Each takes `completions`, texts or conversations, and columns of the data as keyword lists, and returns one number a
completion. None is for a row that cannot be scored, because it has no right answer or one that cannot be read; what a
model writes is never None, at worst 0.0. docs/verifiers.md has one table of what each accepts.

They need nothing else of fourstage, and only the standard library (`math`: math-verify, in a process of its own).
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction

from fourstage.verifiers.arithmetic import equations, expression
from fourstage.verifiers.latex import math
from fourstage.verifiers.letters import final_letter
from fourstage.verifiers.numerals import final_amount, gold_amount, lump
from fourstage.verifiers.text import TAIL, final_part, plain, text_of

__all__ = ["exact", "number", "math", "choice", "countdown", "think_format", "length", "steps"]

_OPERATION = re.compile(r"(?:[-+*/]|\bx) ?[\d(]")
_ANSWER_IS = re.compile(r"^\W*(?:so |thus,? |therefore,? )?(?:the )?(?:final |correct )?answer(?: is|:)\W{0,3}", re.I)


def exact(completions: list, answer: list, **kwargs) -> list[float | None]:
    """1.0 where the completion, or its final part, is the row's `answer`, apart from case, white space and markup.

    The final part is what `plain.final_part` says, without "The answer is" before it. Both are compared in Unicode's
    NFKC form, without a final full stop or quotes and asterisks around them. None where a row has no answer.

    Example: "Paris. " against "paris" -> 1.0; "Paris, France" against it -> 0.0.
    """
    return [
        None if wanted is None else float(_normal(str(wanted)) in _readings(text_of(completion)))
        for completion, wanted in zip(completions, answer, strict=True)
    ]


def _readings(text: str) -> set[str]:
    part = final_part(text)[0]
    return {_normal(text[: TAIL + 1]), _normal(part), _normal(_ANSWER_IS.sub("", part, count=1))}


def _normal(text: str) -> str:
    words = " ".join(unicodedata.normalize("NFKC", text).lower().split())
    return words.strip("*_`\"' ").removesuffix(".").strip("*_`\"' ")


def number(completions: list, answer: list, **kwargs) -> list[float | None]:
    r"""1.0 where the completion's final number is the row's `answer`, exactly: they are compared as fractions.

    `numerals.final_amount` says which number of a text is final, and how it may be written. There is no tolerance:
    0.333 is not 1/3. Units do not count. 50% is 50, and 0.5 too. None where `answer` is not one number, with words at
    most after it.

    Example: answer "72": "#### 72", "It is $72.00." -> 1.0; "72 or 73", "70 + 2" -> 0.0. Answer "2:30" -> None.
    """
    rewards: list[float | None] = []
    for completion, wanted in zip(completions, answer, strict=True):
        gold = gold_amount(wanted)
        found = None if gold is None else final_amount(text_of(completion))
        rewards.append(None if gold is None else float(found is not None and found.equals(gold)))
    return rewards


def choice(completions: list, answer: list, **kwargs) -> list[float | None]:
    r"""1.0 where the letter that the completion chooses, A to E, is the row's `answer`: see `letters.final_letter`.

    Two letters at once are wrong. None where `answer` is not one of the letters.

    Example: answer "B": "The answer is (B).", "B) 12", r"\boxed{\text{B}}" -> 1.0; "A or B", "A bird" -> 0.0.
    """
    rewards: list[float | None] = []
    for completion, wanted in zip(completions, answer, strict=True):
        gold = str(wanted).strip(" ().").upper()
        rewards.append(None if gold not in tuple("ABCDE") else float(final_letter(text_of(completion)) == gold))
    return rewards


def countdown(completions: list, nums: list, target: list, **kwargs) -> list[float | None]:
    r"""1.0 where the completion's final expression has the value `target` and uses each of `nums` exactly once.

    The expression stands where `plain.final_part` says, of it in the last line or sentence with an operator; words
    before it and "= value" after it, if true, are allowed. It has + - * / (also x, ÷, \times, \div, \frac{a}{b}),
    parentheses and the numbers as given, no signs or powers: see `arithmetic.expression` for its limits. Values are
    exact fractions; what divides by zero is wrong. None where `nums` or `target` is missing or not of numbers.

    Example: nums [25, 2, 60], target 87: "(25 + 2) + 60 = 87" -> 1.0; "25 + 62", "87", "25 * 2 + 60" -> 0.0.
    """
    rewards: list[float | None] = []
    for completion, given, wanted in zip(completions, nums, target, strict=True):
        numbers = [_fraction(value) for value in given] if isinstance(given, Sequence) and given else [None]
        goal = _fraction(wanted)
        rewards.append(None if goal is None or None in numbers else _makes(text_of(completion), numbers, goal))
    return rewards


def _fraction(value: object) -> Fraction | None:
    if value is None or isinstance(value, bool):
        return None
    text = str(value).strip()
    size = lump(text.removeprefix("-"))
    return -size if size is not None and text.startswith("-") else size


def _makes(text: str, numbers: list[Fraction], goal: Fraction) -> float:
    said = [s for s in re.split(r"\n|[.](?=\s)", plain(final_part(text)[0])) if _OPERATION.search(s)]
    line = re.sub(r"^[A-Za-z ,'\"]*", "", said[-1].rpartition(":")[2]).rstrip(" .\t") if said else ""
    sides = [expression(_round(side)) for side in line.split("=")]
    if None in sides or any(side.operators for side in sides[1:]):
        return 0.0
    right = all(side.value == goal for side in sides) and Counter(sides[0].numbers) == Counter(numbers)
    return float(right)


def _round(text: str) -> str:
    """The same with [ ] and { } as parentheses."""
    return text.translate(str.maketrans("[]{}", "()()"))


def think_format(completions: list, prompts: list | None = None, **kwargs) -> list[float]:
    """1.0 for `<think>reasoning</think>answer`: each tag once, the first at the start, neither part blank.

    Where a row's prompt ends with `<think>`, as some chat templates make it, the completion must not repeat it. White
    space at the start is allowed. Else as trl.rewards.think_format_reward, which also takes blank parts and more tags.

    Example: "<think>2 + 2 = 4</think> 4" -> 1.0; "<think></think> 4", "2 + 2 = 4</think> 4" -> 0.0.
    """
    opened = [text_of(prompt).rstrip().endswith("<think>") for prompt in prompts or [""] * len(completions)]
    return [
        _thinks(("<think>" if begun else "") + text_of(completion))
        for completion, begun in zip(completions, opened, strict=True)
    ]


def _thinks(text: str) -> float:
    text = text.lstrip()
    reasoning, close, rest = text.removeprefix("<think>").partition("</think>")
    tags = text.count("<think>"), text.count("</think>")
    return float(text.startswith("<think>") and tags == (1, 1) and bool(reasoning.strip()) and bool(rest.strip()))


def length(
    completions: list,
    limit: int = 400,
    margin: int = 100,
    completion_ids: list | None = None,
    tokens: bool = False,
    **kwargs,
) -> list[float]:
    """0.0 up to `limit - margin` characters, falling to -1.0 at `limit` and beyond (DAPO, arXiv 2503.14476, eq. 13).

    With `tokens` it counts those of `completion_ids`, which TRL hands over, as trl.rewards' own
    get_soft_overlong_punishment(limit, margin) does.

    Example: limit 400, margin 100: 300 characters -> 0.0, 350 -> -0.5, 500 -> -1.0.
    Raises:
        ValueError: for a margin below 1, or tokens without completion_ids.
    """
    if margin < 1:
        raise ValueError(f"margin={margin} must be at least 1: over so many characters the penalty grows")
    if tokens and completion_ids is None:
        raise ValueError("tokens=True needs completion_ids, a list of token ids for each completion")
    sizes = [len(ids) for ids in completion_ids] if tokens else [len(text_of(c)) for c in completions]
    return [-min(max(size - (limit - margin), 0) / margin, 1.0) for size in sizes]


def steps(completions: list, derivation: list | None = None, **kwargs) -> list[float]:
    """The share of a completion's checkable steps, such as 48 / 2 = 24, that are right; 0.0 where it has none.

    `arithmetic.equations` says what a step is. Steps that are equal count once, 2*3=6 and 3*2=6 among them. Rounded
    results are wrong.

    Where the row has a `derivation` with right steps of its own, it is instead found / (asked + wrong): how many of
    its steps the completion has, in their order (others may stand between), by how many there are and how many of the
    completion's steps are wrong.

    Example: "4 + 5 = 9. 9 - 2 = 8." -> 0.5; with derivation "4 + 5 = 9. 9 - 2 = 7." -> 1 / (2 + 1).
    """
    golds = [gold if isinstance(gold, str) else "" for gold in derivation or [""] * len(completions)]
    asked = {gold: [step.key for step in equations(gold) if step.holds] for gold in set(golds)}
    return [_steps(text_of(c), asked[gold]) for c, gold in zip(completions, golds, strict=True)]


def _steps(text: str, asked: list) -> float:
    found = equations(text)
    right = [step.key for step in found if step.holds]
    if asked:
        return _in_order(asked, right) / (len(asked) + len(found) - len(right))
    return len(right) / len(found) if found else 0.0


def _in_order(wanted: list, found: list) -> int:
    """How many of `wanted` are in `found` in the same order: their longest common subsequence."""
    best = [0] * (len(found) + 1)
    for item in wanted:
        before = best
        best = [0]
        for at, other in enumerate(found):
            best.append(before[at] + 1 if item == other else max(best[at], before[at + 1]))
    return best[-1]
