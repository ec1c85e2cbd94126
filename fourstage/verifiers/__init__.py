r"""Verifiable rewards: pure functions with TRL's signature, which never execute what a model wrote.

Each takes `completions`, which are texts or conversations, and columns of the data as lists, by keyword. It returns one
number for each completion, or None for a row that cannot be scored, because its right answer is missing or unreadable.
Whatever a model writes scores at least 0.0 (`length`: -1.0), never None; only `math` gives None for an answer that
takes too long to compare. docs/verifiers.md shows what each accepts.

They need nothing else of fourstage, and only the standard library (`math` also math-verify, in a process of its own).
"""

import re
import unicodedata
from collections.abc import Sequence
from fractions import Fraction

from fourstage.verifiers.arithmetic import equations
from fourstage.verifiers.digits import lump
from fourstage.verifiers.latex import math
from fourstage.verifiers.letters import LETTERS, final_letter
from fourstage.verifiers.numerals import final_amount, gold_amount
from fourstage.verifiers.solutions import makes
from fourstage.verifiers.text import TAIL, Completions, final_part, text_of, visible

__all__ = ["exact", "number", "math", "choice", "countdown", "think_format", "length", "steps"]

_FONT = re.compile(r"\\(?:text[a-z]{0,6}|math(?:rm|bf|it|sf|tt)|mbox|operatorname|emph) ?\{([^{}]{0,4096})\}")
_FENCE = re.compile(r"^\s*```\w{0,20}\n(.*?)\n?```\s*$", re.S)
_QUOTES = str.maketrans("\u2018\u2019\u201c\u201d\u201e\u00ab\u00bb", '\'\'"""""')
_MARKUP = "*_`\"'$ "
_ANSWER_PREFIX = re.compile(
    r"^\W*(?:so |thus,? |therefore,? )?(?:the )?(?:final |correct )?answer(?: is|:)\W{0,3}", re.I
)


def exact(completions: Completions, answer: Sequence[object], **kwargs: object) -> list[float | None]:
    """1.0 where the completion, or its final part, is the row's `answer`, apart from case, white space and markup.

    The final part is that of `text.final_part`, without "The answer is" before it. Both texts are compared in Unicode's
    NFKC form, without a full stop at the end or quotes and asterisks around them. None where a row has no answer.

    Example: "Paris. " against "paris" -> 1.0; "Paris, France" against it -> 0.0.
    """
    return [
        None if gold is None else float(_normal(str(gold)) in _readings(text_of(completion)))
        for completion, gold in zip(completions, answer, strict=True)
    ]


def _readings(text: str) -> set[str]:
    """What of a completion may be its answer: all of it, its final part, or that part without "The answer is"."""
    part = final_part(text)[0]
    return {_normal(text[: TAIL + 1]), _normal(part), _normal(_ANSWER_PREFIX.sub("", part, count=1))}


def _normal(text: str) -> str:
    for _ in range(3):  # as deep as \\textbf{\\text{Rome}}, and one more
        text = _FONT.sub(r"\1", text)
    text = _FENCE.sub(r"\1", text.translate(_QUOTES)).replace("\\ ", " ")
    words = " ".join(unicodedata.normalize("NFKC", text).lower().split())
    return words.strip(_MARKUP).removesuffix(".").strip(_MARKUP)


def number(
    completions: Completions, answer: Sequence[object], decimal_comma: bool = False, **kwargs: object
) -> list[float | None]:
    r"""1.0 where the completion's final number equals the row's `answer` exactly: they are compared as fractions.

    `numerals.final_amount` documents which number of a text is final, and how it may be written. There is no tolerance:
    0.333 is not 1/3. Units are ignored. 50% equals both 50 and 0.5. None where `answer` is not a single number, which
    words may follow but not precede. `decimal_comma` reads 1.234,5 as 1234.5 in both.

    Example: answer "72": "#### 72", "It is $72.00." -> 1.0; "72 or 73", "70 + 2" -> 0.0. Answer "2:30" -> None.
    """
    rewards: list[float | None] = []
    for completion, right in zip(completions, answer, strict=True):
        gold = gold_amount(right, decimal_comma)
        if gold is None:
            rewards.append(None)
        else:
            amount = final_amount(text_of(completion), decimal_comma)
            rewards.append(float(amount is not None and amount.equals(gold)))
    return rewards


def choice(completions: Completions, answer: Sequence[object], **kwargs: object) -> list[float | None]:
    r"""1.0 where the letter that the completion chooses, A to J, is the row's `answer`: see `letters.final_letter`.

    Two letters at once are wrong. None where `answer` is not one of the letters.

    Example: answer "B": "The answer is (B).", "B) 12", r"\boxed{\text{B}}" -> 1.0; "A or B", "A bird" -> 0.0.
    """
    rewards: list[float | None] = []
    for completion, right in zip(completions, answer, strict=True):
        gold = str(right).strip(" ().").upper()
        rewards.append(None if gold not in tuple(LETTERS) else float(final_letter(text_of(completion)) == gold))
    return rewards


def countdown(
    completions: Completions, nums: Sequence[object], target: Sequence[object], **kwargs: object
) -> list[float | None]:
    r"""1.0 where the completion's final expression has the value `target` and uses each of `nums` exactly once.

    The expression is in the last line or sentence of `text.final_part` that has an operator. Words may stand on both
    sides, and so may "= value" if that is true; `solutions.makes` documents the rest. It consists of + - * / (also x,
    ÷, \times, \div, \frac{a}{b}), parentheses and the numbers as given, without signs or powers;
    `arithmetic.expression` documents its limits. Values are exact fractions; a division by zero is wrong. None where
    `nums` or `target` is missing or not made of numbers.

    Example: nums [25, 2, 60], target 87: "(25 + 2) + 60 = 87" -> 1.0; "25 + 62", "87", "25 * 2 + 60" -> 0.0.
    """
    rewards: list[float | None] = []
    for completion, row_numbers, row_target in zip(completions, nums, target, strict=True):
        numbers = _all_fractions(row_numbers)
        goal = _as_fraction(row_target)
        if numbers is None or goal is None:
            rewards.append(None)
        else:
            rewards.append(float(makes(text_of(completion), numbers, goal)))
    return rewards


def _all_fractions(values: object) -> list[Fraction] | None:
    """The values of a list of numbers; None where it is empty or not a list of numbers."""
    if not isinstance(values, Sequence) or isinstance(values, str | bytes) or not values:
        return None
    fractions = [fraction for fraction in map(_as_fraction, values) if fraction is not None]
    return fractions if len(fractions) == len(values) else None


def _as_fraction(value: object) -> Fraction | None:
    if value is None or isinstance(value, bool):
        return None
    text = str(value).strip()
    size = lump(text.removeprefix("-"))
    return -size if size is not None and text.startswith("-") else size


def think_format(completions: Completions, prompts: Completions | None = None, **kwargs: object) -> list[float]:
    """1.0 for `<think>reasoning</think>answer`: each tag once, the first at the start, neither part blank.

    Where a row's prompt already ends with `<think>`, as by some chat templates, the completion must not repeat it.
    White space at the start is allowed. trl.rewards.think_format_reward also accepts blank parts and further tags.

    Example: "<think>2 + 2 = 4</think> 4" -> 1.0; "<think></think> 4", "2 + 2 = 4</think> 4" -> 0.0.
    """
    openings = [
        "<think>" if text_of(prompt).rstrip().endswith("<think>") else ""
        for prompt in prompts or [""] * len(completions)
    ]
    return [_thinks(opening + text_of(c)) for c, opening in zip(completions, openings, strict=True)]


def _thinks(text: str) -> float:
    text = text.lstrip()
    reasoning, close, rest = text.removeprefix("<think>").partition("</think>")
    tags = text.count("<think>"), text.count("</think>")
    return float(text.startswith("<think>") and tags == (1, 1) and visible(reasoning) and visible(rest))


def length(
    completions: Completions,
    limit: int = 400,
    margin: int = 100,
    completion_ids: Sequence[Sequence[int]] | None = None,
    tokens: bool = False,
    **kwargs: object,
) -> list[float]:
    """0.0 up to `limit - margin` characters, falling to -1.0 at `limit` and beyond (DAPO, arXiv 2503.14476, eq. 13).

    With `tokens=True` it counts the tokens of `completion_ids`, which TRL hands over, instead of characters, as
    get_soft_overlong_punishment(limit, margin) of trl.rewards does.

    Example: limit 400, margin 100: 300 characters -> 0.0, 350 -> -0.5, 500 -> -1.0.
    Raises:
        ValueError: for a margin below 1, or tokens without completion_ids.
    """
    if margin < 1:
        raise ValueError(
            f"margin={margin} must be at least 1; it is the number of characters over which the penalty grows"
        )
    if not tokens:
        sizes = [len(text_of(completion)) for completion in completions]
    elif completion_ids is None:
        raise ValueError("tokens=True needs completion_ids, a list of token ids for each completion")
    else:
        sizes = [len(ids) for ids in completion_ids]
    return [-min(max(size - (limit - margin), 0) / margin, 1.0) for size in sizes]


def steps(completions: Completions, derivation: Sequence[object] | None = None, **kwargs: object) -> list[float]:
    """The share of a completion's checkable steps, such as 48 / 2 = 24, that are right; 0.0 where it has none.

    `arithmetic.equations` documents what a step is. Equal steps, such as 2*3=6 and 3*2=6, count once. Rounded results
    are wrong.

    If the row has a `derivation` with right steps, the reward is instead matched / (gold + wrong): the number of its
    steps that the completion has in the same order (other steps may stand between them), divided by the number of its
    steps plus the number of wrong steps in the completion.

    Example: "4 + 5 = 9. 9 - 2 = 8." -> 0.5; with derivation "4 + 5 = 9. 9 - 2 = 7." -> 1 / (2 + 1).
    """
    golds = [gold if isinstance(gold, str) else "" for gold in derivation or [""] * len(completions)]
    gold_steps = {gold: [step.key for step in equations(gold) if step.holds] for gold in set(golds)}
    return [_share_of_steps(text_of(c), gold_steps[gold]) for c, gold in zip(completions, golds, strict=True)]


def _share_of_steps(text: str, gold_steps: list) -> float:
    steps = equations(text)
    right = [step.key for step in steps if step.holds]
    if gold_steps:
        return _matches_in_order(gold_steps, right) / (len(gold_steps) + len(steps) - len(right))
    return len(right) / len(steps) if steps else 0.0


def _matches_in_order(first: list, second: list) -> int:
    """How many items both lists have in the same order: the length of their longest common subsequence."""
    longest = [0] * (len(second) + 1)
    for item in first:
        previous = longest
        longest = [0]
        for i, other in enumerate(second):
            longest.append(previous[i] + 1 if item == other else max(longest[i], previous[i + 1]))
    return longest[-1]
