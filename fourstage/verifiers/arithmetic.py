"""Evaluates arithmetic with + - * / and parentheses exactly, and checks the equations of a derivation.

Nothing is executed.
"""

import itertools
import re
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import NamedTuple

from fourstage.verifiers.digits import NUMBER, lump
from fourstage.verifiers.text import plain

LENGTH = 500  # the most characters that an expression may have
DEPTH = 20  # the most parentheses within one another
NUMBERS = 50  # the most numbers that an expression may have
DERIVATION = 8192  # the number of first characters of a derivation that are read
EQUATIONS = 100  # the number of different equations of a derivation that are read

_PRECEDENCE = {"+": 1, "-": 1, "*": 2, "/": 2}
_TOKEN = re.compile(rf"(?P<number>{NUMBER})|(?P<sign>[-+*/()=%])|(?P<times>[xX](?![A-Za-z]))|(?P<space>[ \t\u2009]+)")
_TAG = re.compile(r"(?<!<)</?[a-z]{1,20}>")  # an end tag ends the equation before it
_ANNOTATION = re.compile(r"<<([^<>\n]{1,200})>>")
_NUMBERED = re.compile(r"^[ \t]{0,8}\(?\d{1,2}\)(?=[ \t])", re.M)

# 4 cats + 3 cats, if an equals sign follows
_WITH_UNITS = re.compile(
    rf"(?<![\w.,:\u2009])(?:{NUMBER}) [A-Za-z]{{2,20}}(?: ?[-+*/x] ?(?:{NUMBER})(?: [A-Za-z]{{2,20}})?){{1,20}}(?= ?=)"
    rf"|(?<![\w.,:\u2009])(?:{NUMBER})(?: ?[-+*x] ?(?:{NUMBER})){{1,20}} [A-Za-z]{{2,20}}(?= ?=)"
)

# Runs of arithmetic stand between words. A word of arithmetic (half of, 3 times 4) or other mathematics spoils a run.
_PIECE = re.compile(
    rf"{NUMBER}|(?P<word>[A-Za-z][A-Za-z'-]*)|(?P<arrow>=>|[!<>]=|->|=/=)|[-+*/()=% \t\u2009]"
    r"|(?P<spoils>\\[A-Za-z]*|[\^_!\[\]{}<>\u0370-\u03ff\u221a\u221e\u00b1])|(?P<end>.)",
    re.S,
)
_SPOILING = re.compile(
    r"of|times|plus|minus|over|by|per|mod|twice|double|triple|half|third|quarter|divided|multiplied|squared|cubed|log",
    re.I,
)


class Expression(NamedTuple):
    """Arithmetic: its exact value (None where it divides by zero), its numbers, and its operators, such as "+*"."""

    value: Fraction | None
    numbers: tuple[Fraction, ...]
    operators: str


class Equation(NamedTuple):
    """Two sides of an equals sign, at least one of which has an operator."""

    left: Expression
    right: Expression

    @property
    def holds(self) -> bool:
        """Whether both sides have the same value; never where one divides by zero."""
        return self.left.value is not None and self.left.value == self.right.value

    @property
    def key(self) -> tuple:
        """What equal steps have in common: it is the same for 2*3=6, 3*2=6 and 6=3*2."""
        sides = [(sorted(side.numbers), sorted(side.operators)) for side in self]
        return self.holds, str(sorted(sides))


def expression(text: str) -> Expression | None:
    r"""Reads plain numbers with + - * / (also x; `text.plain` turns \times and the like into *) and parentheses.

    None for anything else: signs before parentheses, powers, products without a sign, such as "-(2)" or "2(3)"; and
    for over 500 characters, 50 numbers or 20 parentheses within one another. A number that stands first or after an
    operator or ( may have a minus sign.

    Example: "(25 + 2) * 3" -> Expression(81, (25, 2, 3), "+*"); "5 / (3 - 3)" -> value None.
    """
    tokens = _expression_tokens(text) if len(text) <= LENGTH else None
    if not tokens:
        return None
    try:
        value = evaluate(tokens)
    except ZeroDivisionError:
        value = None
    except ValueError:
        return None
    numbers = tuple(token for token in tokens if isinstance(token, Fraction))
    return Expression(value, numbers, "".join(t for t in tokens if isinstance(t, str) and t in _PRECEDENCE))


def _expression_tokens(text: str) -> list[Fraction | str] | None:
    """Numbers with their signs, operators and parentheses; None for a text with anything else in it."""
    tokens: list[Fraction | str] = []
    negative, position = False, 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None or match[0] == "=":
            return None
        position = match.end()
        last = tokens[-1] if tokens else None
        follows_operand = isinstance(last, Fraction) or last == ")"
        if match["number"]:
            value = lump(match[0])
            if value is None or text[position : position + 1].isalpha() and text[position] not in "xX":
                return None
            tokens.append(-value if negative else value)
            negative = False
        elif match[0] == "%":
            if not isinstance(last, Fraction):
                return None
            tokens[-1] = last / 100
        elif match[0] == "-" and not follows_operand and text[position : position + 1] in tuple("0123456789."):
            negative = True
        elif not match["space"]:
            tokens.append("*" if match["times"] else match[0])
    return tokens


def evaluate(tokens: Sequence[Fraction | str]) -> Fraction:
    """The value of numbers, operators and parentheses in the usual order (Dijkstra's shunting yard).

    Raises:
        ValueError: if they do not form an expression, or one beyond the limits of this file.
        ZeroDivisionError: if the expression divides by zero.
    """
    values: list[Fraction] = []
    operators: list[str] = []
    expects_number = True
    if sum(isinstance(token, Fraction) for token in tokens) > NUMBERS:
        raise ValueError(f"more than {NUMBERS} numbers")
    for token in tokens:
        starts_operand = isinstance(token, Fraction) or token == "("
        if starts_operand != expects_number:
            raise ValueError(f"{token} is out of place")
        if isinstance(token, Fraction):
            values.append(token)
            expects_number = False
        elif token == "(":
            operators.append(token)
            if operators.count("(") > DEPTH:
                raise ValueError(f"more than {DEPTH} parentheses deep")
        else:
            rank = _PRECEDENCE.get(token, 0)
            while operators and operators[-1] != "(" and _PRECEDENCE[operators[-1]] >= rank:
                _apply(operators.pop(), values)
            if token != ")":
                operators.append(token)
                expects_number = True
            elif not operators:
                raise ValueError("a ( is missing")
            else:
                operators.pop()
    if expects_number or "(" in operators:
        raise ValueError("the expression is incomplete")
    while operators:
        _apply(operators.pop(), values)
    return values[0]


def _apply(operator: str, values: list[Fraction]) -> None:
    right, left = values.pop(), values.pop()
    if operator == "+":
        values.append(left + right)
    elif operator == "-":
        values.append(left - right)
    else:
        values.append(left * right if operator == "*" else left / right)


# The equations of a derivation


def equations(text: str) -> list[Equation]:
    """The different equations of a derivation that can be checked, in the order in which each first occurs.

    "a = b = c" has two: a = b and b = c. The annotations of GSM8K, <<48/2=24>>, are read, and so is the text without
    them. A percent sign divides by 100 or is ignored, whichever makes the equation hold. Equations that are not checked
    have letters, powers, roots or words in a side, or no operator in either. The first 8,192 characters are read, and
    the first 100 equations.

    One unit, as in 4 cats + 3 cats = 7 cats, does not count.

    Example: "6*2=<<6*2=12>>12, then 12 - 5 = 8" -> [6*2=12, 12-5=8], of which the first holds.
    """
    by_key: dict[tuple, Equation] = {}
    lines = _NUMBERED.sub(" ", plain(_TAG.sub("\n", text[:DERIVATION]))).splitlines()
    for line in dict.fromkeys(line for line in lines if "=" in line):
        for part in [*_ANNOTATION.findall(line), _ANNOTATION.sub(" ", line)]:
            for equation in _equations(part):
                by_key.setdefault(equation.key, equation)
            if len(by_key) >= EQUATIONS:
                return list(by_key.values())[:EQUATIONS]
    return list(by_key.values())


def _equations(text: str) -> Iterator[Equation]:
    for run in _arithmetic_runs(_WITH_UNITS.sub(_without_units, text)):
        if "=" not in run:
            continue
        exact = _pairs(run)
        loose = _pairs(run.replace("%", "")) if "%" in run else exact
        yield from (first if first.holds else second for first, second in zip(exact, loose, strict=False))


def _without_units(match: re.Match) -> str:
    """A sum without its unit, if it has the same throughout; a product may have several."""
    words = {word.lower().rstrip("s") for word in re.findall("[A-Za-z]{2,}", match[0])}
    if len(words) > 1 and re.search("[-+/]", match[0]) or any(map(_SPOILING.fullmatch, words)):
        return match[0]
    return re.sub("[A-Za-z]{2,}", "", match[0])


def _pairs(run: str) -> list[Equation]:
    """An equation for each two neighbouring sides that can be checked."""
    texts = run.split("=")
    sides = {text: _side(text) for text in set(texts)}  # a model may repeat itself: each text is read once
    pairs = [(sides[left], sides[right]) for left, right in itertools.pairwise(texts)]
    return [Equation(left, right) for left, right in pairs if left and right and left.operators + right.operators]


def _arithmetic_runs(text: str) -> Iterator[str]:
    """Stretches of arithmetic. Mathematics that cannot be read becomes a question mark, with which no side is read."""
    run = ""
    for piece in _PIECE.finditer(text):
        word = piece["word"]
        if word and (_SPOILING.fullmatch(word) or text[piece.end() : piece.end() + 1] in ("(", "^", "_")):
            run += "?"
        elif word in ("x", "X"):
            run += "x"
        elif word and run[-1:].isdecimal():
            run += "?"
        elif word or piece["arrow"] or piece["end"]:
            yield run
            run = ""
        else:
            run += "?" if piece["spoils"] else piece[0]
    yield run


def _side(text: str) -> Expression | None:
    """A side of an equation, without a parenthesis that encloses more than this side."""
    text = text.strip()
    surplus = text.count("(") - text.count(")")
    if surplus > 0 and text.startswith("(" * surplus):
        text = text[surplus:]
    elif surplus < 0 and text.endswith(")" * -surplus):
        text = text[:surplus]
    return expression(text) if text else None
