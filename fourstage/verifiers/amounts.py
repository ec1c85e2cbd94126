r"""Reads a number as people and models write it, exactly or not at all.

A text is cut into runs of mathematics, at words, full stops and line ends. Of each run, everything up to its last = is
dropped; if the rest is one number, that number is read. A run with more in it, such as 10-3, 5x or 3\sqrt{2}, is not a
number, and no part of it is read as one. Where in a text the answer stands is the matter of numerals.py.
"""

import itertools
import re
from fractions import Fraction
from typing import NamedTuple

from fourstage.verifiers.arithmetic import expression
from fourstage.verifiers.digits import DIGITS, EXPONENT, NUMBER, lump

_TOKEN = re.compile(
    rf"(?P<number>{NUMBER})|(?P<word>[A-Za-z](?:['-]?[A-Za-z0-9])*)|(?P<arrow>=+>|->)|(?P<relation>[<>!]=|=<)|(?P<sign>-)"
    r"|(?P<operator>[+*/^])|(?P<equals>==?|\\approx(?![A-Za-z]))|(?P<bracket>[()\[\]{}])|(?P<space>[ \t\u2009]+)"
    r"|(?P<percent>%)|(?P<end>[^\\_<>!&\u0370-\u03ff\u221a\u221e\u00b1\u2264\u2265\u2260])|(?P<bad>\\[A-Za-z]*|.)",
    re.S,
)
_ORDINAL = re.compile(r"(?:st|nd|rd|th)(?![A-Za-z])")
_UNITS = re.compile(r"[mgshlL]|[mcdk]m|k?g|mg|lbs?|oz|[md][lL]|cl|ft|in|yd|mi|hrs?|min|sec|[ap]m|[mk]ph|pts")
_ALONE = re.compile(r"[mgshlL]")  # single letters that are units, not variables
_NAMED = re.compile(r"[a-z]-\d.*")  # as in x-3
_FUNCTIONS = re.compile(r"pi|sqrt|log|ln|exp|sin|cos|tan|inf|infinity", re.I)
# What may precede an equals sign without being an equation to solve: a name, or mathematics without variables.
_NAME = re.compile(r"(?![xX][^_])[A-Za-z](?:_\{?\w{1,3}\}?|'{1,2})? ?(?:\( ?[\w,. ]{1,12}\))? ?")
_CLOSED = re.compile(
    r"\\(?:sqrt|frac|[dt]frac|binom|log|ln|lg|sin|cos|tan|pi|[lr]floor|[lr]ceil)|sqrt|log|ln|sin|cos|tan|pi|[!_\u221a]|\["
)
# Between two numbers: they are a list, alternatives or a range. A word or two may be a unit of the first.
_LISTING = re.compile(
    r"[\s\"'}(\])%$]*(?:[,;/&~\u2026]|\.{2,3}|[,;]? ?(?:(?:and|or|nor|to|through|till|versus|vs)\b|and/or)"
    r"(?: (?:maybe|perhaps|possibly|about|even|else))*)[\s\"'{\[($+]*"
)
_ALTERNATIVE = re.compile(
    r"(?:[\s\"'}\])%$]*[A-Za-z]{1,20}){1,2},? ?(?:and|or|to) ?[\s\"'{\[($+]*"
    r"|[^.\n]{0,40}\bbut (?:at (?:most|least)|less than|no more than|under|below) "
    r"|[^.\n]{0,40}\b(?:or|could be|might be|maybe|perhaps)\b[^.\d\n]{0,30}"
)
_INTRODUCTION = re.compile(
    r"(?:^|[^\w])(?:in|after|for|with|by|on|within|at|per|during|of|from|since|until|if|out of|step|day|year)"
    r"(?: (?:the|all|each|every|these|those))? $",
    re.I,
)

_CONCLUSION = re.compile(
    r"[,;:=\n]|\b(?:so|thus|therefore|hence|then|and|or|but|leav\w+|left with|is|was|equals?|mak\w+|giv\w+|totals?"
    r"|has|have|gets?|becomes?|that|which|yields?|obtains?)\b",
    re.I,
)


class Token(NamedTuple):
    """A piece of a text: its kind, its text, and where it starts and ends."""

    kind: str
    text: str
    start: int
    end: int


class Amount(NamedTuple):
    """A number, whether a percent sign follows it, and its rounded value if that is given too.

    50% is Amount(50, True), and 2/3 = 0.67 rounded is Amount(2/3, False, 0.67).
    """

    value: Fraction
    percent: bool
    rounded: Fraction | None = None

    def equals(self, other: "Amount") -> bool:
        """Whether both are exactly equal. A percent sign on one of them may be ignored: 50% equals both 50 and 0.5."""
        if other.value in (self.value, self.rounded):
            return True
        if self.percent == other.percent:
            return False
        percent, bare = (self, other) if self.percent else (other, self)
        return percent.value == 100 * bare.value


def amount(text: str, alone: bool, first: int = -1) -> Amount | None:
    r"""The last number of a plain text; None where it is part of a list, a range or other mathematics.

    If `alone`, it must be the only one. If it begins at `first` or before, the first number is taken instead.

    Example: "She has 70 + 2 = 72 apples" -> 72; "72 or 73", "70 + 2" -> None.
    """
    runs = _number_runs(text, alone)
    numbers = [i for i, run in enumerate(runs) if any(token.kind == "number" for token in run)]
    if not numbers:
        return None
    if alone and len(runs) > 1:
        restated = len(runs) == len(numbers) == 2 and _says_again(text, *runs)
        return _value(runs[1], text) if restated else None
    begun = runs[numbers[0]]
    chosen = _result(text, runs, numbers)
    if first >= runs[0][0].start and not (_value(begun, text) is None and _is_arithmetic(begun)):
        chosen = numbers[0]
    neighbours = [pair for pair in itertools.pairwise(runs) if any(run is runs[chosen] for run in pair)]
    return None if any(_is_list(text, *pair) for pair in neighbours) else _value(runs[chosen], text)


def holds_number(text: str) -> bool:
    """Whether a plain text has a number that may be an amount, unlike a time of day or an ordinal."""
    return any(token.kind == "number" for token in _text_tokens(text, alone=False))


def _is_arithmetic(run: list[Token]) -> bool:
    kinds = {token.kind for token in run}
    return bool({"operator", "sign"} & kinds) and "bad" not in kinds


def _says_again(text: str, before: list[Token], after: list[Token]) -> bool:
    """Whether the second of two runs with "or" between them is the first in other words: 60% or 0.6, 5 * 4 or 20."""
    if not re.search(r"\bor\b", text[before[-1].end : after[0].start]):
        return False
    one, other = _value(before, text), _value(after, text)
    if one is not None or other is None:
        return one is not None and other is not None and one.equals(other)
    work = expression(text[before[0].start : before[-1].end])
    if work is not None:
        return work.value == other.value
    return any(token.kind == "number" for side in _sides(after)[:-1] for token in side)


def _is_list(text: str, before: list[Token], after: list[Token]) -> bool:
    """Whether two neighbouring runs are a list, alternatives or a range, by what stands between them."""
    between = re.sub(r"[{}\s]+", " ", text[before[-1].end : after[0].start])
    if len(between) > 80:
        return False
    if between.strip() == "," and _INTRODUCTION.search(text[max(before[0].start - 20, 0) : before[0].start]):
        return False
    if _says_again(text, before, after):
        return False
    if re.fullmatch(r"[\s$,]*and[\s$]*", between) and len(_sides(after)) > 1 and _value(before, text) is None:
        return False  # 3x = 21 and x = 7
    return bool(_LISTING.fullmatch(between) or _ALTERNATIVE.fullmatch(between))


def _result(text: str, runs: list[list[Token]], numbers: list[int]) -> int:
    """Which of the runs with numbers is the result: the last, or an equation before it that nothing concludes from.

    Example: of "so he has 20 * 4 = 80 dollars after 7 days" it is 20 * 4 = 80.
    """
    for i in reversed(numbers[-4:]):
        later = text[runs[i][-1].end : runs[numbers[-1]][0].start] if i != numbers[-1] else ""
        if _CONCLUSION.search(later):
            break
        if any(t.kind == "equals" for t in runs[i]) and runs[i][-1].kind != "equals":
            return i
    return numbers[-1]


def _number_runs(text: str, alone: bool) -> list[list[Token]]:
    """The runs that hold a number or other mathematics."""
    runs: list[list[Token]] = []
    run: list[Token] = []
    for token in _text_tokens(text, alone):
        if token.kind == "break":
            runs.append(run)
            run = []
        else:
            run.append(token)
    return [run for run in [*runs, run] if {"number", "bad"} & {token.kind for token in run}]


def _text_tokens(text: str, alone: bool) -> list[Token]:
    """All tokens except spaces, of the kinds number, percent, bad, sign, operator, equals, bracket and break."""
    tokens: list[Token] = []
    for match in _TOKEN.finditer(text):
        kind = match.lastgroup
        assert kind is not None  # all that _TOKEN matches is in one of its groups
        last = tokens[-1] if tokens else None
        after_number = last is not None and last.kind == "number" and last.end == match.start()
        if kind == "word":
            if after_number and _ORDINAL.match(match[0]):
                tokens.pop()  # 6th is not an amount
            kind = _word_kind(match[0], after_number, alone)
            after, before = text[match.end() : match.end() + 1], text[match.start() - 1 : match.start()]
            is_variable = match[0] == "a" and (before in tuple("(-+*/^=") or after in tuple(")+-*/="))
            kind = "bad" if after in ("^", "_") or is_variable else kind
        elif kind == "number" and ":" in match[0]:
            kind = "bad" if alone else "break"  # a time of day
        elif match[0] == "[" and alone:
            kind = "bad"  # an interval
        elif match[0] == "!":
            kind = "bad" if alone and after_number else "break"
        elif kind == "relation":
            kind = "bad"
        elif kind in ("end", "arrow"):
            kind = "break"
        if kind != "space":
            tokens.append(Token(kind, match[0], match.start(), match.end()))
    return tokens


def _word_kind(word: str, after_number: bool, alone: bool) -> str:
    """operator for x, bad for what may be mathematics, otherwise break. A word directly after a number is its unit."""
    if word in ("x", "X"):
        return "operator"
    if _FUNCTIONS.fullmatch(word):
        return "bad"
    if after_number:
        unit = word.partition("-")[0]
        is_unit = _UNITS.fullmatch(unit) or _ORDINAL.match(word) or len(unit) > 3
        return "break" if is_unit and word.isalpha() else "bad"
    if len(word) == 1 and not _ALONE.fullmatch(word) and (alone or word.islower() and word != "a"):
        return "bad"
    return "bad" if _NAMED.fullmatch(word) or (alone and any(c.isdigit() for c in word)) else "break"


def _is_answer(left: list[Token], text: str) -> bool:
    """Whether a name, as in x = 5, or arithmetic, as in 48/2 = 24, precedes the last =, not an equation to solve."""
    tokens = [token for token in left if token.kind not in ("bracket", "equals", "percent")]
    if not any(token.kind == "number" for token in tokens):
        return all(token.kind == "bad" or token.text in ("x", "X") for token in tokens)
    if _NAME.fullmatch(text[left[0].start : left[-1].end]):
        return True
    factors = [tokens[i : i + 2] for i, token in enumerate(tokens) if token.text in ("x", "X")]
    closed = all(t.kind != "bad" or _CLOSED.fullmatch(t.text) for t in tokens)
    return closed and all(len(f) == 2 and f[1].kind == "number" for f in factors)


def _value(run: list[Token], text: str) -> Amount | None:
    """The number that a run consists of; None where it has more in it."""
    *left, right = _sides(run)
    if not left:
        return _plain_value(right, after_equals=False)
    value = _plain_value(right, after_equals=True)
    if value is None and (_is_name(right) or _adds_up(left[-1], right, text)):  # 10 = b, or 11 = 5 + 6
        return _plain_value(left[-1], after_equals=len(left) > 1)
    if value is None or not all(_is_answer(side, text) for side in left if side):
        return None
    exact = _plain_value(left[-1], after_equals=len(left) > 1)
    about = run[run.index(right[0]) - 1].text.startswith("\\")
    if exact is not None and (about or 100 % value.value.denominator == 0 < exact.value.denominator % 100):
        return _with_rounding(exact, value) or (None if about else value)
    return value


def _sides(run: list[Token]) -> list[list[Token]]:
    """The run, cut at its equals signs."""
    sides: list[list[Token]] = [[]]
    for token in run:
        if token.kind == "equals":
            sides.append([])
        else:
            sides[-1].append(token)
    return sides


def _is_name(side: list[Token]) -> bool:
    named = [token for token in side if token.kind != "bracket"]
    return len(named) == 1 and len(named[0].text) == 1 and named[0].text.isalpha()


def _adds_up(number: list[Token], sum_of_it: list[Token], text: str) -> bool:
    """Whether a side is one number and the side after it is arithmetic with its value."""
    amount = _plain_value(number, after_equals=True)
    result = expression(text[sum_of_it[0].start : sum_of_it[-1].end]) if amount and sum_of_it else None
    return amount is not None and result is not None and result.value == amount.value


def _with_rounding(exact: Amount, rounded: Amount) -> Amount | None:
    """Both values if the second is the first rounded, else None."""
    if exact.percent != rounded.percent:
        return rounded
    decimals = next((k for k in range(DIGITS) if 10**k % rounded.value.denominator == 0), 0)
    near = abs(exact.value - rounded.value) <= Fraction(1, 10**decimals)
    return exact._replace(rounded=rounded.value) if near else None


def _plain_value(right: list[Token], after_equals: bool) -> Amount | None:
    """The number that a side consists of, apart from brackets and a percent sign."""
    percent = any(token.kind == "percent" for token in right)
    negative, unsigned = _split_sign(right, after_equals)
    tokens = [token for token in unsigned if token.kind not in ("bracket", "percent")]
    while tokens and tokens[-1].kind == "sign":  # a dash, as in 5-year or "5 - as asked"
        tokens.pop()
    symbols = {"number": "n", "sign": "-", "bad": "?"}
    shape = "".join(symbols.get(token.kind, token.text) for token in tokens)
    numbers = [token.text for token in tokens if token.kind == "number"]
    values = [value for value in map(lump, numbers) if value is not None]
    if len(values) < len(numbers):
        return None
    value = _value_of_shape(shape, values, tokens)
    return None if value is None else Amount(-value if negative else value, percent)


def _split_sign(run: list[Token], after_equals: bool) -> tuple[bool, list[Token]]:
    """(whether the run begins with a minus sign, the run without its sign).

    A minus sign that does not follow = or a bracket, but has a space after it, is a dash.
    """
    first = next((i for i, token in enumerate(run) if token.kind != "bracket"), len(run))
    if first + 1 >= len(run) or run[first].text not in ("-", "+"):
        return False, run
    is_sign = run[first].end == run[first + 1].start or first > 0 or after_equals
    return run[first].text == "-" and is_sign, run[:first] + run[first + 1 :]


def _value_of_shape(shape: str, values: list[Fraction], tokens: list[Token]) -> Fraction | None:
    """The value of n; of n/n; of n n/n, a mixed number; of n*10^n and 10^n. None for other shapes."""
    if shape == "n":
        return values[0]
    if shape in ("n/n", "nn/n"):
        *whole, above, below = values
        if below == 0 or any(v.denominator != 1 for v in values):
            return None
        value = above / below
        if value.denominator == 1 or (whole and value > 1):
            return None
        return sum(whole, start=value)
    power_of_ten = re.fullmatch(r"(n[*x])?n\^(-?)n", shape)
    if power_of_ten and values[-2] == 10 and values[-1].denominator == 1 and values[-1] <= EXPONENT:
        power = Fraction(10) ** (-values[-1].numerator if power_of_ten[2] else values[-1].numerator)
        return values[0] * power if power_of_ten[1] else power
    return None
