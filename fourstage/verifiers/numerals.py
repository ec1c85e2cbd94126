r"""Reads a number as people and models write it, exactly or not at all.

A text is cut into runs of mathematics, at words, full stops and line ends. Of each run, everything up to its last = is
dropped; if the rest is one number, that number is read. A run with more in it, such as 10-3, 5x or 3\sqrt{2}, is not a
number, and no part of it is read as one.
"""

import itertools
import re
from fractions import Fraction
from typing import NamedTuple

from fourstage.verifiers.text import final_part, plain

DIGITS = 100  # the most digits that a number may have
EXPONENT = 100  # the largest power of ten, positive or negative, as in 1.2e5

# It begins with a digit, so that no text is scanned twice; `lump` decides whether it is a number.
NUMBER = r"(?<![\w.])\.\d+|\d(?:[\d,.:\u2009]*\d)?(?:[eE][+-]?\d{1,3}(?!\w))?"
_LUMP = re.compile(r"(\d{1,3}(?:,\d{3})+|\d{1,3}(?:\u2009\d{3})+|\d*)(\.\d+)?(?:[eE]([+-]?\d{1,3}))?")
_TOKEN = re.compile(
    rf"(?P<number>{NUMBER})|(?P<word>[A-Za-z](?:['-]?[A-Za-z0-9])*)|(?P<sign>-)|(?P<operator>[+*/^])|(?P<equals>=)"
    r"|(?P<bracket>[()\[\]{}])|(?P<space>[ \t\u2009]+)|(?P<percent>%)"
    r"|(?P<end>[^\\_<>!&\u0370-\u03ff\u221a\u221e\u00b1\u2264\u2265])"
    r"|(?P<bad>\\[A-Za-z]*|.)",
    re.S,
)
_TEN_TO_THE = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_SPOKEN = [
    (re.compile(pattern, re.I), replacement)
    for pattern, replacement in [
        (r"(\d) ?dollars? and (\d{1,2}) ?cents?(?![a-z])", lambda m: f"{m[1]}.{m[2]:>02} dollars"),
        (r"(?<![\d.,])\d{1,3}(?: \d{3})+(?![\d/])", lambda m: m[0].replace(" ", "\u2009")),  # 10 000
        (rf"(?<=\d)[ -]?({'|'.join(_TEN_TO_THE)})s?(?![a-z])", lambda m: f"e{_TEN_TO_THE[m[1].lower()]} "),
        (r"(?<=\d) and (?=\(?\d{1,100}/\d)", " "),  # 2 and 1/2
        (r"(?<=\d) ?per ?cent(?![a-z])", "%"),
        (r"(?<=\d) ?\{? ?([ap])\.m\.", r" \1m"),
        (r"(?<![a-z])(?:negative|minus) (?=[\d.])", "-"),
        (rf"(?<![a-z])(?:not|instead of|rather than) [+-]?(?:{NUMBER})", " "),
    ]
]
_BRACKETS = re.compile(r"\([^()\n]{1,200}\)")
_ANSWER_CUE = re.compile(
    r"\banswers?\b(?:[^.:=\n\d]{0,40}?\b(?:is|are|equals)\b|\s{0,2}[:=])\s{0,3}[:=]?(?=\W{0,20}\w)", re.I
)
_STOP = re.compile(r"[.!?](?=\s|$)|\n")
_HEDGE = re.compile(r"\W*(?:(?:about|approximately|exactly|just|only|now|then|thus|therefore|USD)\W{1,3})?\W*", re.I)
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_ONES = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
_TEENS = ["ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]
_SMALL = {word: value for value, word in enumerate(["zero", *_ONES, *_TEENS])}
_WORD = re.compile(rf"\W{{0,9}}(?:({'|'.join(_TENS)})(?:[ -]({'|'.join(_ONES)}))?|({'|'.join(_SMALL)}))(?![\w-])", re.I)
_ORDINAL = re.compile(r"(?:st|nd|rd|th)(?![A-Za-z])")
_UNITS = re.compile(r"[mgshlL]|[mcdk]m|k?g|mg|lbs?|oz|[md][lL]|cl|ft|in|yd|mi|hrs?|min|sec|[ap]m|[mk]ph|pts")
_ALONE = re.compile(r"[mgshlL]")  # single letters that are units, not variables
_NAMED = re.compile(r"[a-z]-\d.*")  # as in x-3
_FUNCTIONS = re.compile(r"pi|sqrt|log|ln|exp|sin|cos|tan|inf|infinity", re.I)


class Token(NamedTuple):
    """A piece of a text: its kind, its text, and where it starts and ends."""

    kind: str
    text: str
    start: int
    end: int


class Amount(NamedTuple):
    """A number, and whether a percent sign follows it: 50% is Amount(50, True)."""

    value: Fraction
    percent: bool

    def equals(self, other: "Amount") -> bool:
        """Whether both are exactly equal. A percent sign on one of them may be ignored: 50% equals both 50 and 0.5."""
        if self.value == other.value:
            return True
        if self.percent == other.percent:
            return False
        percent, bare = (self, other) if self.percent else (other, self)
        return percent.value == 100 * bare.value


def final_number(text: str) -> Fraction | None:
    """The value of `final_amount`, in which 50% is 50; None where there is none."""
    amount = final_amount(text)
    return None if amount is None else amount.value


def final_amount(text: str) -> Amount | None:
    r"""The number that is a text's final answer; None where that answer is not one number.

    It is searched for in `text.final_part`. A marked part must hold a single number, with units or words at most. In
    other text it is the number directly after the last "answer is" or "answer:", or otherwise the last one of that
    sentence; without such a phrase it is the last of the text. Of several numbers with "or", "and" or a comma between
    them, none is read. Numbers after "not", or in brackets together with words, do not count; neither do times of day
    and ordinals. Units and currencies are ignored. Number words, zero to ninety-nine, are read if they come first and
    there are no digits. A fraction with a whole value, such as 48/2, is an unfinished division and not a number.

    Example: "#### 1,250" -> 1250; r"\boxed{-\frac{3}{4}}" -> -3/4; "so 2 1/2 cups." -> 5/2; "10-3" -> None.
    """
    part, is_marked = final_part(text)
    part = plain(part)
    if is_marked:
        return _amount(part, alone=True)
    cue = max(_ANSWER_CUE.finditer(part), key=re.Match.start, default=None)
    if cue is None:
        return _amount(part, alone=False)
    part = part[cue.end() :]
    sentence = _STOP.split(part, maxsplit=1)[0]
    return _amount(sentence if re.search(r"\w", sentence) else part, alone=False, first=True)


def gold_amount(answer: object) -> Amount | None:
    """The number in a row's answer, by the rules for a marked part; None where words precede it, as in June 20."""
    if answer is None or isinstance(answer, bool):
        return None
    part = plain(final_part(str(answer))[0])
    before = re.split(r"\d|=", part, maxsplit=1)[0]
    return _amount(part, alone=True) if not re.search("[A-Za-z]{2}", before.replace("minus", "")) else None


def _amount(text: str, alone: bool, first: bool = False) -> Amount | None:
    """The last number of a plain text; if `first`, one at its beginning instead; if `alone`, the only one or None."""
    if not re.search(r"\d", text):
        return _in_words(text)
    for pattern, replacement in _SPOKEN:
        text = pattern.sub(replacement, text)
    without_asides = _BRACKETS.sub(lambda m: " " * len(m[0]) if re.search("[A-Za-z]{2}", m[0]) else m[0], text)
    runs = _number_runs(without_asides, alone) or _number_runs(text, alone)
    numbers = [i for i, run in enumerate(runs) if any(token.kind == "number" for token in run)]
    if not numbers or (alone and len(runs) > 1):
        return None
    chosen = numbers[-1]
    hedge = _HEDGE.match(text) if first else None
    if hedge and hedge.end() >= runs[0][0].start:
        chosen = numbers[0]
    between = [text[a[-1].end : b[0].start].strip(" $") for a, b in itertools.pairwise(runs)]
    if {"or", "and", ",", ";"} & set(between[max(chosen - 1, 0) : chosen + 1]) or not _is_answer(runs[chosen]):
        return None
    return _value(runs[chosen])


def _in_words(text: str) -> Amount | None:
    word = _WORD.match(text)
    if word is None:
        return None
    tens, ones, small = (part and part.lower() for part in word.groups())
    value = 10 * _TENS.index(tens) + 20 + _SMALL[ones or "zero"] if tens else _SMALL[small]
    return Amount(Fraction(value), percent=False)


def lump(text: str) -> Fraction | None:
    """The value of digits with separators and exponent; None where they are not a number, as in 1,23, 2:30 or 1.2.3.

    Commas or thin spaces separate thousands: at most three digits before the first separator, three after each.
    """
    parts = _LUMP.fullmatch(text)
    if not parts or len(text) > 2 * DIGITS or sum(c.isdigit() for c in text) > DIGITS:
        return None
    if parts[3] and abs(int(parts[3])) > EXPONENT:
        return None
    return Fraction(text.replace(",", "").replace("\u2009", ""))


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
            kind = "bad" if text[match.end() : match.end() + 1] in ("^", "_") else kind
        elif kind == "number" and ":" in match[0]:
            kind = "bad" if alone else "break"  # a time of day
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


def _is_answer(run: list[Token]) -> bool:
    """Whether a name, as in x = 5, or arithmetic, as in 48/2 = 24, precedes the last =, not an equation to solve."""
    equals = max((i for i, token in enumerate(run) if token.kind == "equals"), default=0)
    left = [token for token in run[:equals] if token.kind not in ("bracket", "equals", "percent")]
    if any(token.kind == "number" for token in left):
        factors = [left[i : i + 2] for i, token in enumerate(left) if token.text in ("x", "X")]
        return all(t.kind != "bad" for t in left) and all(len(f) == 2 and f[1].kind == "number" for f in factors)
    return all(token.kind == "bad" or token.text in ("x", "X") for token in left)


def _value(run: list[Token]) -> Amount | None:
    """The number that a run consists of; None where it has more in it."""
    equals = max((i for i, token in enumerate(run) if token.kind == "equals"), default=-1)
    right = run[equals + 1 :]
    percent = any(token.kind == "percent" for token in right)
    negative, unsigned = _split_sign(right, after_equals=equals >= 0)
    tokens = [token for token in unsigned if token.kind not in ("bracket", "percent")]
    if tokens and tokens[-1].kind == "sign":  # a dash, as in 5-year or "5 - as asked"
        tokens.pop()
    symbols = {"number": "n", "sign": "-"}
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
    """The value of n; of n/n, without spaces; of n n/n, a mixed number; of n*10^n. None for every other shape."""
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
        return sum(whole, start=value)
    if shape in ("n*n^n", "n*n^-n", "nxn^n", "nxn^-n") and values[1] == 10:
        power = values[2] if "-" not in shape else -values[2]
        if power.denominator == 1 and abs(power) <= EXPONENT:
            return values[0] * Fraction(10) ** power.numerator
    return None
