r"""Reading a number as people and models write it, exactly, or not at all.

A text is cut into runs of mathematics between words, stops and line ends. A run that is nothing but one number, once
all up to its last = is dropped, is read. One with more in it, such as 10-3, 5x or 3\sqrt{2}, is not a number, and no
part of it is taken for one.
"""

import re
from fractions import Fraction
from typing import NamedTuple

from fourstage.verifiers.plain import final_part, plain

DIGITS = 100  # of a number in all
EXPONENT = 100  # of ten, either way, in 1.2e5

# A digit begins it, so that no text is scanned twice; `lump` says what of it is a number.
NUMBER = r"(?<![\w.])\.\d+|\d(?:[\d,.:\u2009]*\d)?(?:[eE][+-]?\d{1,3}(?!\w))?"
_LUMP = re.compile(r"(\d{1,3}(?:,\d{3})+|\d{1,3}(?:\u2009\d{3})+|\d*)(\.\d+)?(?:[eE]([+-]?\d{1,3}))?")
_TOKEN = re.compile(
    rf"(?P<number>{NUMBER})|(?P<word>[A-Za-z](?:['-]?[A-Za-z0-9])*)|(?P<sign>-)|(?P<operator>[+*/^])|(?P<equals>=)"
    r"|(?P<bracket>[()\[\]{}])|(?P<space>[ \t\u2009%]+)|(?P<end>[^\\_<>!\u0370-\u03ff\u221a\u221e\u00b1\u2264\u2265])"
    r"|(?P<bad>\\[A-Za-z]*|.)",
    re.S,
)
_TEN_TO_THE = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_SPOKEN = [
    (r"(\d) ?dollars? and (\d{1,2}) ?cents?(?![a-z])", lambda m: f"{m[1]}.{m[2]:>02} dollars"),
    (rf"(?<=\d)[ -]?({'|'.join(_TEN_TO_THE)})s?(?![a-z])", lambda m: f"e{_TEN_TO_THE[m[1].lower()]} "),
    (r"(?<=\d) and (?=\d{1,100}/\d)", " "),  # 2 and 1/2
    (r"(?<![a-z])(?:negative|minus) (?=[\d.])", "-"),
]
_ORDINAL = re.compile(r"(?:st|nd|rd|th)(?![A-Za-z])")
_UNITS = re.compile(r"[mgshlL]|[mcdk]m|k?g|mg|lbs?|oz|[md][lL]|cl|ft|in|yd|mi|hrs?|min|sec|[ap]m|[mk]ph|pts")
_ALONE = re.compile(r"[mgshlL]")  # single letters that are a unit, not a variable
_FUNCTIONS = re.compile(r"pi|sqrt|log|ln|exp|sin|cos|tan|inf|infinity", re.I)


class Token(NamedTuple):
    """A piece of a text: what it is, its text, where it starts and ends."""

    kind: str
    text: str
    start: int
    end: int


def final_number(text: str) -> Fraction | None:
    r"""The number that a text ends with as its final answer; None where that is not one number.

    It is looked for where `plain.final_part` says. There, a marked part must hold one number only, with units or words
    at most; in other text the last number counts, whatever it says of itself. Percent, currencies and units do not
    count: 50% is 50. A fraction that comes out whole, such as 48/2, is a division left undone, and no number.

    Example: "#### 1,250" -> 1250; r"\boxed{-\frac{3}{4}}" -> -3/4; "so 2 1/2 cups." -> 5/2; "10-3" -> None.
    """
    part, marked = final_part(text)
    return number_in(part, marked)


def number_in(text: str, alone: bool) -> Fraction | None:
    """The last number of a text, or, if `alone`, the only one; None where there is none, or it is part of more."""
    found, text = None, plain(text)
    for pattern, replacement in _SPOKEN:
        text = re.sub(pattern, replacement, text, flags=re.I)
    for run in _runs(text, alone):
        if alone and (found is not None or not _is_answer(run)):
            return None
        found = run
    return None if found is None else _value(found)


def lump(text: str) -> Fraction | None:
    """The value of digits, separators and exponent; None where they are no number, such as 1,23, 2:30 or 1.2.3.

    Thousands are separated by commas or thin spaces; three digits each, at most three before the first.
    """
    parts = _LUMP.fullmatch(text)
    if not parts or len(text) > 2 * DIGITS or sum(c.isdigit() for c in text) > DIGITS:
        return None
    if parts[3] and abs(int(parts[3])) > EXPONENT:
        return None
    return Fraction(text.replace(",", "").replace("\u2009", ""))


def _runs(text: str, alone: bool) -> list[list[Token]]:
    """The runs of mathematics that hold a number, or, if `alone`, anything that is mathematics."""
    runs, run = [], []
    for token in _tokens(text, alone):
        if token.kind == "break":
            runs.append(run)
            run = []
        else:
            run.append(token)
    wanted = {"number", "bad"} if alone else {"number"}
    return [run for run in [*runs, run] if wanted & {token.kind for token in run}]


def _tokens(text: str, alone: bool) -> list[Token]:
    """All tokens but spaces, their kinds: number, bad, sign, operator, equals, bracket and break."""
    tokens: list[Token] = []
    for match in _TOKEN.finditer(text):
        kind, last = match.lastgroup, tokens[-1] if tokens else None
        after_number = last is not None and last.kind == "number" and last.end == match.start()
        if kind == "word":
            if after_number and _ORDINAL.match(match[0]):
                tokens.pop()  # 6th is no amount
            kind = _word_kind(match[0], after_number, alone)
        elif match[0] == "[" and alone:
            kind = "bad"  # an interval
        elif match[0] == "!":
            kind = "bad" if alone and after_number else "break"
        elif kind == "bad" and match[0].startswith("\\approx"):
            kind = "equals"
        elif kind == "end":
            kind = "break"
        if kind != "space":
            tokens.append(Token(kind, match[0], match.start(), match.end()))
    return tokens


def _word_kind(word: str, after_number: bool, alone: bool) -> str:
    """operator for x, bad for what may be mathematics, else break. A word that follows a number at once is its unit."""
    if word in ("x", "X"):
        return "operator"
    if _FUNCTIONS.fullmatch(word):
        return "bad"
    if after_number:
        unit = word.partition("-")[0]
        known = _UNITS.fullmatch(unit) or _ORDINAL.match(word) or len(unit) > 3
        return "break" if known and word.isalpha() else "bad"
    if alone and (any(c.isdigit() for c in word) or (len(word) == 1 and not _ALONE.fullmatch(word))):
        return "bad"
    return "break"


def _is_answer(run: list[Token]) -> bool:
    """Whether what stands before the last = is a name, as in x = 5, or a sum, as in 48/2 = 24, not an equation."""
    equals = max((at for at, token in enumerate(run) if token.kind == "equals"), default=0)
    left = [token for token in run[:equals] if token.kind not in ("bracket", "equals")]
    if any(token.kind == "number" for token in left):
        between = [left[at : at + 2] for at, token in enumerate(left) if token.text in ("x", "X")]
        return all(t.kind != "bad" for t in left) and all(len(b) == 2 and b[1].kind == "number" for b in between)
    return all(token.kind == "bad" or token.text in ("x", "X") for token in left)


def _value(run: list[Token]) -> Fraction | None:
    """The number that a run is; None where it is more than one number."""
    equals = max((at for at, token in enumerate(run) if token.kind == "equals"), default=-1)
    run, after_equals = run[equals + 1 :], equals >= 0
    negative, run = _signed(run, after_equals)
    tokens = [token for token in run if token.kind != "bracket"]
    if tokens and tokens[-1].kind == "sign":  # a dash, as in 5-year or "5 - as asked"
        tokens.pop()
    shape = "".join("n" if t.kind == "number" else "-" if t.kind == "sign" else t.text for t in tokens)
    values = [lump(token.text) for token in tokens if token.kind == "number"]
    if None in values:
        return None
    value = _shaped(shape, values, tokens)
    return -value if negative and value is not None else value


def _signed(run: list[Token], after_equals: bool) -> tuple[bool, list[Token]]:
    """(whether the run begins with a minus sign, the rest). Elsewhere than after = or a bracket it has no space after
    it: else it is a dash."""
    at = next((at for at, token in enumerate(run) if token.kind != "bracket"), len(run))
    if at + 1 >= len(run) or run[at].text not in ("-", "+"):
        return False, run
    close = run[at].end == run[at + 1].start or at > 0 or after_equals
    return run[at].text == "-" and close, run[:at] + run[at + 1 :]


def _shaped(shape: str, values: list[Fraction], tokens: list[Token]) -> Fraction | None:
    """n; n/n, without spaces; n n/n, a mixed number; n*10^n."""
    if shape == "n":
        return values[0]
    if shape in ("n/n", "nn/n"):
        *whole, above, below = values
        touching = tokens[-3].end == tokens[-2].start and tokens[-2].end == tokens[-1].start
        if not touching or below == 0 or any(v.denominator != 1 for v in values):
            return None
        value = above / below
        if value.denominator == 1 or (whole and value > 1):
            return None
        return sum(whole, value)
    if shape in ("n*n^n", "n*n^-n", "nxn^n", "nxn^-n") and values[1] == 10:
        power = values[2] if "-" not in shape else -values[2]
        return values[0] * Fraction(10) ** power if power.denominator == 1 and abs(power) <= EXPONENT else None
    return None
