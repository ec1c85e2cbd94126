r"""Whether two answers in LaTeX are the same mathematics. Runs in the worker of latex_worker.py only.

math-verify reads and compares them. It is more lenient than a reward may be, so the guards of this file stand around
it: they refuse false equations (0 = 7 for 7), a list for a tuple, (3)(5) read as a sum, and numbers that are equal only
because both are tiny.
"""

import re
from collections.abc import Iterator
from typing import Any

import sympy
from math_verify import LatexExtractionConfig, parse, verify
from sympy.core.function import AppliedUndef

CLOSE = 2e-6  # the largest relative difference of equal numbers: 0.333333 is 1/3
NOTHING = 1e-60  # what is smaller may be a zero that was not simplified

_CONFIG = (LatexExtractionConfig(),)
_OR_AND = re.compile(r"\\text\s?\{\s*,?\s*(or|and)\s*\}")
_RELATION = re.compile(r"[<>]|\\(?:leq?|geq?|lt|gt|leqslant|geqslant|neq?)(?![A-Za-z])")
_COMMON = (
    r"\frac{1}{2}",
    "7",
    "-0.5",
    r"x^{2}+2x-1=0",
    "y=2x+3",
    r"2\sqrt{3}+\sqrt[3]{x}",
    r"\frac{\pi}{6}",
    "(1,2)",
    "(0,1]",
    "[0,1)",
    r"\{1,2\}",
    "1,2,3",
    "x>3",
    r"-1\le x\le 4",
    r"(-\infty,2)\cup(3,\infty)",
    r"\begin{pmatrix}1&2\\3&4\end{pmatrix}",
    r"\text{even}",
    r"\sin(2x)+\cos^2 x",
    r"\log_2 x",
    r"e^{-x}",
    "3+4i",
    r"30^\circ",
    r"50\%",
    r"n!",
    r"\binom{5}{2}",
    r"f(x)=\frac{x+1}{x-2}",
    "3:4",
    r"2\cdot10^{3}",
    r"(x+1)(x-2)^{2}",
    r"|x|",
    r"a_{n}",
    r"\pm 2",
)
# What may stand left of an = for the right to be an answer: x, x_1, AB, |AB|, f(2), \sin A, area, (x, y), a:b.
_FUNCTIONS = r"(?:sin|cos|tan|sec|csc|cot|det|angle|arg|deg|dim)"
_INDEX = r"(?:\s?(?:_\s?(?:\w|\\[A-Za-z]+|\{[^{}]*\})|'|\^\s?\{\s?(?:-1|\(\d\)|\\prime)\s?\}|\^\\prime))*"
_ACCENT = r"\\(?:vec|hat|bar|tilde|overrightarrow|overline|mathbf|mathcal|boldsymbol|mathrm|text|operatorname)"
_NO_NAME = (
    rf"(?!(?:{_FUNCTIONS[3:-1]}|frac|sqrt|log|ln|lg|exp|max|min|gcd|lcm|binom|arc\w+|sinh|cosh|tanh|begin)(?![A-Za-z]))"
)
_LETTER = rf"(?:{_ACCENT}\s?\{{[^{{}}]*\}}|\\{_NO_NAME}[A-Za-z]+|[A-Za-z]){_INDEX}"
_CAPITALS = r"(?:(?:m\s?)?\\(?:angle|triangle|widehat)\s?)?[A-Z]{2,5}|\|[A-Z]{2}\||\[[A-Z]{3,6}\]"
_RATIO = r"\\frac\s?\{\s?d?\s?[A-Za-z]{1,2}\s?\}\s?\{\s?d?\s?[A-Za-z]{1,2}\s?\}"
_NAME = re.compile(
    rf"\s*(?:(?:{_LETTER}|{_CAPITALS}|[A-Za-z]{{3,}}(?:\s[A-Za-z]+)*|{_RATIO})\s?(?:\((?:[^()=]|\([^()=]*\))*\))?"
    rf"|\\{_FUNCTIONS}\s?\(?\s?(?:{_LETTER}|\\?[A-Za-z]{{1,5}})\s?\)?|\\{_FUNCTIONS}[^=+]*\\circ[^=+]*"
    rf"|\(?\s?{_LETTER}(?:\s?[,:]\s?{_LETTER})+\s?\)?|(?:{_CAPITALS})\s?:\s?[A-Z]{{1,5}}"
    r"|\\(?:int|i+nt|oint|sum|lim|prod)(?![A-Za-z]).*)\s*",
    re.S,
)


def read(text: str) -> tuple[str, list] | None:
    """A right answer as text and as math-verify reads it; of an equation that is always true, its right side.

    None where math-verify cannot read it.
    """
    text = _with_signs(text)
    sides = _split(text, "=")
    if len(sides) > 1 and not _NAME.fullmatch(sides[0]) and len(_split(text, ",;")) == 1 and _is_true(sides):
        text = sides[-1]
    parsed = _parsed(text)
    return (text, parsed) if parsed else None


def warm_up() -> None:
    """Reads and compares what is common: the parser learns its grammar as it goes, which the children inherit."""
    for text in _COMMON:
        gold = read(text)
        for answer in (text, "1", "x+1"):
            same(gold, answer)


def same(gold: tuple[str, list] | None, answer: str) -> bool:
    """Whether an answer is the right one."""
    if gold is None:
        return False
    try:
        return _same(*gold, _with_signs(answer))
    except Exception:  # SymPy raises errors of any kind; what cannot be compared is not equal
        return False


def _same(gold: str, gold_parsed: list, answer: str) -> bool:
    if _is_tuple(gold) and _kind(answer) == "list":
        answer = _as_tuple(answer)
    if not re.search(r"(?<![<>!\\:])=", gold):
        values = [_value(part) for part in _split(answer, ",;")]
        if None in values:
            return False
        answer = ",".join(value for value in values if value is not None)
    if _is_tuple(gold) != _is_tuple(answer) and {_kind(gold), _kind(answer)} & {"list", "set"}:
        return False
    if _letter(gold) != _letter(answer) or (_is_clock(gold) and _is_clock(answer)):
        return False
    parsed = _parsed(answer)
    if not parsed or (_repeats(parsed[0]) and not isinstance(gold_parsed[0], sympy.Set)):
        return False
    equal = verify(gold_parsed, parsed, allow_set_relation_comp=True, timeout_seconds=None)
    return (
        equal and ("%" in gold + answer or _are_close(gold_parsed[0], parsed[0])) and _agree(gold_parsed[0], parsed[0])
    )


# Reading


def _parsed(text: str) -> list:
    """As math-verify reads it; inequalities that are joined by "or" or "and" as one set of numbers."""
    pieces = _OR_AND.split(text)
    sets = [_as_set(piece) for piece in pieces[::2]] if len(pieces) > 1 else [None]
    if None not in sets and len(set(pieces[1::2])) == 1:
        return [(sympy.Union if pieces[1] == "or" else sympy.Intersection)(*sets)]
    return _parse(text)


def _parse(text: str) -> list:
    return parse(f"${text}$", _CONFIG, parsing_timeout=0)  # 0: without math-verify's own time limit


def _as_set(text: str) -> sympy.Set | None:
    parsed = _parse(text.strip(" ,;"))
    try:
        return parsed[0].as_set()
    except (AttributeError, IndexError, NotImplementedError, ValueError):
        return None


def _with_signs(text: str) -> str:
    """With a comma for "and" and "or", unless they join relations, and with a sign for each product in brackets.

    Without it math-verify reads (3)(5) and 3(5) as mixed numbers.
    """
    pieces = _OR_AND.split(text)
    if not all(_RELATION.search(piece) for piece in pieces[::2]):
        text = ",".join(piece.strip(" ,;") for piece in pieces[::2])
    text = ",".join(_without_plus_minus(part) for part in _split(text, ",")) if r"\pm" in text else text
    text = re.sub(r"\\left(?=[(\[|])|\\right(?=[)\]|])", "", text)
    text = re.sub(r"(?<![\w^{.\\])(\d+(?:\.\d+)?)\s*(?=\([^(),]*\))", r"\1 \\cdot ", text)
    return re.sub(r"(\([^(),]*\))\s*(?=\([^(),]*\)|\d|\\frac)", r"\1 \\cdot ", text)


def _without_plus_minus(text: str) -> str:
    """Both values of what has a plus-minus sign, as a list."""
    return ",".join(dict.fromkeys(text.replace(r"\pm", plus).replace(r"\mp", minus) for plus, minus in ("+-", "-+")))


def _split(text: str, separators: str) -> list[str]:
    """The parts between separators that stand in no brackets; 3 >= 2 has no =, and 1,234 is one part."""
    parts, depth, start = [], 0, 0
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))(?![^()]*\))", "", text) if "," in separators else text
    for i, sign in enumerate(text):
        depth += (sign in "([{") - (sign in ")]}")
        if depth <= 0 and sign in separators and text[i - 1 : i] not in ("<", ">", "!", ":", "\\"):
            parts.append(text[start:i])
            start = i + 1
    return [*parts, text[start:]]


# Equations


def _value(text: str) -> str | None:
    """What an answer, such as x = 7 or 3 + 4 = 7, says to be the value; None where it is a false or other equation."""
    sides = _split(text, "=")
    if len(sides) == 1 or _NAME.fullmatch(sides[0]):
        return sides[-1]
    if len(sides) == 2 and re.fullmatch(rf"\s*{_LETTER}\s*", sides[1]):
        return sides[0]  # 7 = x
    if _is_true(sides) or (len(sides) > 2 and not _is_numeric(sides[0]) and _is_true(sides[1:])):
        return sides[-1]  # also of x + y = 3 + 4 = 7
    return None


def _is_true(sides: list[str]) -> bool:
    """Whether all sides of an equation are equal, whatever its variables are."""
    parsed = [_parsed(side) for side in sides]
    return all(
        bool(one and other) and verify(one, other, timeout_seconds=None) and _are_close(one[0], other[0])
        for one, other in zip(parsed, parsed[1:], strict=False)
    )


def _is_numeric(text: str) -> bool:
    parsed = _parsed(text)
    return isinstance(parsed[0], sympy.Basic) and not parsed[0].atoms(sympy.Symbol, AppliedUndef) if parsed else False


# Kinds


def _kind(text: str) -> str:
    """ "set" for {1, 2}, "brackets" for (1, 2) and intervals, "list" for 1, 2, "one" for the rest."""
    if len(_split(text, ",;")) > 1:
        return "list"
    text = _split(text, "=")[-1].strip()
    if re.fullmatch(r"\\\{.*\\\}", text) and len(_split(text[2:-2], ",;")) > 1:
        return "set"
    return "brackets" if re.fullmatch(r"[(\[].*[)\]]", text) and len(_split(text[1:-1], ",;")) > 1 else "one"


def _is_tuple(text: str) -> bool:
    return _kind(text) == "brackets"


def _as_tuple(text: str) -> str:
    """(2, 3) for x = 2, y = 3, where the names are in their order; any other list as it is."""
    pairs = [_split(part, "=") for part in _split(text, ",;")]
    names = [pair[0].strip() for pair in pairs]
    if any(len(pair) != 2 for pair in pairs) or sorted(set(names)) != names:
        return text
    return f"({','.join(pair[1] for pair in pairs)})"


def _letter(text: str) -> str:
    """The letter that an answer consists of, as a, (A) or \text{A}; nothing for another answer."""
    alone = re.fullmatch(r"(?:\\(?:text|mathrm|textbf|mathbf)\s?\{)?\s?\(?\s?([A-Za-z])\s?\)?\s?\}?", text.strip())
    return alone[1] if alone else ""


def _is_clock(text: str) -> bool:
    return bool(re.fullmatch(r"\s*\d{1,2}:[0-5]\d\s*", text))


def _repeats(parsed: Any) -> bool:
    """Whether a list or set names one of its elements twice."""
    return isinstance(parsed, sympy.FiniteSet) and len(getattr(parsed, "_unsorted_args", parsed.args)) > len(parsed)


# Magnitudes


def _are_close(one: Any, other: Any) -> bool:
    """Whether the numbers of two equal answers are so relative to their size too; math-verify rounds to 6 decimals."""
    if one == other or isinstance(one, sympy.Symbol) or isinstance(other, sympy.Symbol):
        return True
    sizes = [sorted(_sizes(expression)) for expression in (one, other)]
    if len(sizes[0]) != len(sizes[1]):
        return True  # they are not comparable so; math-verify has compared them
    return all(
        max(abs(a - b) for a, b in zip(one, other, strict=True)) <= max(CLOSE * max(map(abs, (*one, *other))), NOTHING)
        for one, other in zip(*sizes, strict=True)
    )


def _agree(one: Any, other: Any) -> bool:
    """Whether two equal equations are so for another reason than that neither has a solution, as x^2 = -1."""
    equations = [x for x in (one, other) if isinstance(x, sympy.Equality) and isinstance(x.rhs, sympy.Expr)]
    if len(equations) < 2 or one == other:
        return True
    ratio = sympy.simplify((one.lhs - one.rhs) / (other.lhs - other.rhs))
    return bool(ratio.is_number) or bool(sympy.solve(one, one.free_symbols))


def _sizes(expression: Any) -> Iterator[tuple[sympy.Float, sympy.Float]]:
    """The values of an answer's parts at one point, (real, imaginary); nothing for relations and what has no value."""
    if isinstance(expression, sympy.Equality):
        yield from _sizes(expression.rhs) if isinstance(expression.lhs, sympy.Symbol) else ()
    elif isinstance(expression, sympy.MatrixBase):
        for element in expression.flat():
            yield from _sizes(element)
    elif isinstance(expression, sympy.FiniteSet | sympy.Tuple | sympy.Interval | sympy.Union):
        for element in expression.args:
            yield from _sizes(element)
    elif isinstance(expression, sympy.Expr):
        names = sorted(expression.free_symbols, key=str)
        point = {name: sympy.Rational(7 + 2 * i, 5 + i) for i, name in enumerate(names)}
        value = expression.subs(point).doit().evalf(30).as_real_imag()
        if all(part.is_Number and part.is_finite for part in value):
            yield value
