"""Finds the expression with which a text claims to make a number out of others."""

import re
from collections import Counter
from fractions import Fraction

from fourstage.verifiers.arithmetic import expression
from fourstage.verifiers.asides import is_remark
from fourstage.verifiers.digits import NUMBER, lump
from fourstage.verifiers.text import final_part, plain

_OPERATION = re.compile(r"(?:[-+*/]|\bx) ?[\d(]")
_WORDED_BRACKETS = re.compile(r"\([^()\n]{0,80}[A-Za-z]{2,}[^()\n]{0,120}\)")
_DECORATION = re.compile("[\u2713\u2714\u2705\U0001f389]|\\\\checkmark|!(?=\\s*$)")
_RUN = re.compile(r"(?<![\w.^])[-+]?[\d(.](?:[\d()+*/= \t\u2009.-]|,(?=\d{3})|(?<=[\d) ])[xX](?=[ \d(]))*")
_ITEM = re.compile(r"^\s*(?:\d{1,2}[.)]|step \d{1,2}:)\s(?=\s*[\d(])", re.I)
_ARROW = re.compile("=>|->|\u2192")
_DENIAL = r"(?:\b(?:not|never|no|cannot|without|instead of|rather than|or)\b|n't\b|[\u2260!<>]=?)"
_DENIED_BEFORE = re.compile(rf"{_DENIAL}\s*(?:\w+\s+){{0,2}}$|\w\([\"']?$|[^\sA-Za-z:;,.'\"?>-]\s*$", re.I)
_DENIED_AFTER = re.compile(
    rf"{_DENIAL}|\b(?:wrong|incorrect|fails?|false|if|else|unless|almost|close)\b|[=^%_\\|&]", re.I
)
_PRODUCT = re.compile(r"(?<=[\d)])(?=\()|(?<=\))(?=\d)")


def makes(text: str, numbers: list[Fraction], goal: Fraction) -> bool:
    """Whether the last expression of a text uses each of `numbers` once and has the value `goal`.

    It is looked for in the last line or sentence with an operator that is no remark. Words may stand on both sides, but
    must not deny it, and numbers after it must be the goal or the numbers used. Several sides, as in 36 = (2+4)*6 or
    (2+4)*6 = 6*6 = 36, must all have the value of the goal.

    Example: "so (2+4)*6 works", [2, 4, 6], 36 -> True; "not (2+4)*6", "(2+4)*6 = 37" -> False.
    """
    sentence = _last_with_operation(plain(final_part(text)[0]))
    sentence = _ARROW.sub(" ; ", sentence.lstrip(" ="))
    sentence = _DECORATION.sub(" ", _ITEM.sub("", _WORDED_BRACKETS.sub(" ; ", _round_brackets(sentence))))
    runs = [run for run in _RUN.finditer(sentence) if _OPERATION.search(run[0])]
    if not runs:
        return False
    before, after = sentence[: runs[-1].start()], sentence[runs[-1].end() :]
    if _DENIED_BEFORE.search(before) or _DENIED_AFTER.search(after):
        return False
    mentioned = [lump(match[0]) for match in re.finditer(NUMBER, after)]
    return all(value in (goal, *numbers) for value in mentioned) and _claims(runs[-1][0], numbers, goal)


def _last_with_operation(text: str) -> str:
    sentences = [part for part in re.split(r"\n|[.](?=\s)", text) if _OPERATION.search(part)]
    return next((part for part in reversed(sentences) if not is_remark(part)), sentences[-1] if sentences else "")


def _claims(run: str, numbers: list[Fraction], goal: Fraction) -> bool:
    """Whether every side of an equation has the value `goal`, and one is made of `numbers`."""
    texts = _PRODUCT.sub("*", run.lstrip(" \t=").rstrip(" \t.,=(")).split("=")
    sides = [expression(text) for text in texts]
    if any(side is None or side.value != goal for side in sides):
        return False
    return any(side is not None and side.operators and Counter(side.numbers) == Counter(numbers) for side in sides)


def _round_brackets(text: str) -> str:
    """The text with parentheses in place of [ ] and { }."""
    return text.translate(str.maketrans("[]{}", "()()"))
