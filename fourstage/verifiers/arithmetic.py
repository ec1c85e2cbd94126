"""Sums with + - * / and parentheses: their exact values, and the equations of a derivation. Nothing is executed."""

import itertools
import re
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import NamedTuple

from fourstage.verifiers.numerals import NUMBER, lump
from fourstage.verifiers.text import plain

LENGTH = 500  # characters of an expression
DEPTH = 20  # parentheses within parentheses
NUMBERS = 50  # in an expression
DERIVATION = 8192  # characters of a derivation, its first
EQUATIONS = 100  # different ones of a derivation, its first

_PRECEDENCE = {"+": 1, "-": 1, "*": 2, "/": 2}
_TOKEN = re.compile(rf"(?P<number>{NUMBER})|(?P<sign>[-+*/()=%])|(?P<times>[xX](?![A-Za-z]))|(?P<space>[ \t\u2009]+)")
_TAG = re.compile(r"(?<!<)</?[a-z]{1,20}>")  # an end tag ends the equation before it
_ANNOTATION = re.compile(r"<<([^<>\n]{1,200})>>")
_NUMBERED = re.compile(r"^[ \t]{0,8}\(?\d{1,2}\)(?=[ \t])", re.M)

# Between words, a run of arithmetic; a word of it (half of, 3 times 4) or other mathematics spoils it.
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
    """A sum that was read: its exact value, None where it divides by zero; its numbers; its operators, such as "+*"."""

    value: Fraction | None
    numbers: tuple[Fraction, ...]
    operators: str


class Equation(NamedTuple):
    """Two sides with = between them, of which one at least has an operator."""

    left: Expression
    right: Expression

    @property
    def holds(self) -> bool:
        return self.left.value is not None and self.left.value == self.right.value

    @property
    def key(self) -> tuple:
        """The same for 2*3=6, 3*2=6 and 6=3*2."""
        sides = [(sorted(side.numbers), sorted(side.operators)) for side in self]
        return self.holds, str(sorted(sides))


def expression(text: str) -> Expression | None:
    r"""Reads a sum of plain numbers with + - * / (also x, and \times and the like through `plain`) and parentheses.

    No signs before parentheses, no powers, no product without a sign: "2(3)" and "-(2)" are None, as is what is over
    500 characters, 50 numbers or 20 parentheses deep. A number that follows an operator or ( may have a sign.

    Example: "(25 + 2) * 3" -> Expression(81, (25, 2, 3), "+*"); "5 / (3 - 3)" -> value None.
    """
    tokens = _tokens(text) if len(text) <= LENGTH else None
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


def _tokens(text: str) -> list[Fraction | str] | None:
    """Numbers, signed ones as one, operators and parentheses; None for anything else in the text."""
    tokens: list[Fraction | str] = []
    negative, at = False, 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None or match[0] == "=":
            return None
        at, operand_before = match.end(), bool(tokens) and tokens[-1] not in (*_PRECEDENCE, "(")
        if match["number"]:
            value = lump(match[0])
            if value is None or text[at : at + 1].isalpha() and text[at] not in "xX":
                return None
            tokens.append(-value if negative else value)
            negative = False
        elif match[0] == "%":
            if not operand_before or tokens[-1] == ")":
                return None
            tokens[-1] /= 100
        elif match[0] == "-" and not operand_before and text[at : at + 1] in tuple("0123456789."):
            negative = True
        elif not match["space"]:
            tokens.append("*" if match["times"] else match[0])
    return tokens


def evaluate(tokens: Sequence[Fraction | str]) -> Fraction:
    """The value of numbers, operators and parentheses in the usual order (Dijkstra's shunting yard).

    Raises:
        ValueError: if they are no expression, or a larger one than the limits of this file.
        ZeroDivisionError: if it divides by zero.
    """
    values: list[Fraction] = []
    waiting: list[str] = []
    wants_number = True
    if sum(isinstance(token, Fraction) for token in tokens) > NUMBERS:
        raise ValueError(f"more than {NUMBERS} numbers")
    for token in tokens:
        opens = isinstance(token, Fraction) or token == "("
        if opens != wants_number:
            raise ValueError(f"{token} out of place")
        if isinstance(token, Fraction):
            values.append(token)
            wants_number = False
        elif token == "(":
            waiting.append(token)
            if waiting.count("(") > DEPTH:
                raise ValueError(f"more than {DEPTH} parentheses deep")
        else:
            rank = _PRECEDENCE.get(token, 0)
            while waiting and waiting[-1] != "(" and _PRECEDENCE[waiting[-1]] >= rank:
                _apply(waiting.pop(), values)
            if token != ")":
                waiting.append(token)
                wants_number = True
            elif not waiting:
                raise ValueError("( missing")
            else:
                waiting.pop()
    if wants_number or "(" in waiting:
        raise ValueError("cut off")
    while waiting:
        _apply(waiting.pop(), values)
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
    """The different equations of a derivation that can be checked, in their order: each first time only.

    Of "a = b = c" these are a = b and b = c. GSM8K's annotations, <<48/2=24>>, count, and so does the text without
    them. A percent sign divides by 100 or is left out, whichever is right. Not checked: sides with letters, powers,
    roots or words in them, and two sides without an operator.
    Of the text the first 8,192 characters are read, and the first 100 equations.

    Example: "6*2=<<6*2=12>>12, then 12 - 5 = 8" -> [6*2=12, 12-5=8], of which the first holds.
    """
    found: dict[tuple, Equation] = {}
    lines = _NUMBERED.sub(" ", plain(_TAG.sub("\n", text[:DERIVATION]))).splitlines()
    for line in dict.fromkeys(line for line in lines if "=" in line):
        for part in [*_ANNOTATION.findall(line), _ANNOTATION.sub(" ", line)]:
            for equation in _equations(part):
                found.setdefault(equation.key, equation)
            if len(found) >= EQUATIONS:
                return list(found.values())[:EQUATIONS]
    return list(found.values())


def _equations(text: str) -> Iterator[Equation]:
    for run in _runs(text):
        if "=" not in run:
            continue
        exact = _pairs(run)
        loose = _pairs(run.replace("%", "")) if "%" in run else exact
        yield from (e if e.holds else other for e, other in zip(exact, loose, strict=False))


def _pairs(run: str) -> list[Equation]:
    """Each two neighbouring sides that can be checked."""
    texts = run.split("=")
    read = {text: _side(text) for text in set(texts)}  # a model that repeats itself is read once
    pairs = [(read[left], read[right]) for left, right in itertools.pairwise(texts)]
    return [Equation(left, right) for left, right in pairs if left and right and left.operators + right.operators]


def _runs(text: str) -> Iterator[str]:
    """Stretches of arithmetic; what spoils a side is in them as a letter, which no side can have."""
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
    """A side of an equation, without the parenthesis that stands around the whole equation."""
    text = text.strip()
    surplus = text.count("(") - text.count(")")
    if surplus > 0 and text.startswith("(" * surplus):
        text = text[surplus:]
    elif surplus < 0 and text.endswith(")" * -surplus):
        text = text[:surplus]
    return expression(text) if text else None
