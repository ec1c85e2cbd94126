r"""Reading a number as people and models write it, exactly, or not at all.

A text is cut into runs of mathematics between words, stops and line ends. A run that is nothing but one number, once
all up to its last = is dropped, is read. One with more in it, such as 10-3, 5x or 3\sqrt{2}, is not a number, and no
part of it is taken for one.
"""

import itertools
import re
from fractions import Fraction
from typing import NamedTuple

from fourstage.verifiers.text import final_part, plain

DIGITS = 100  # of a number in all
EXPONENT = 100  # of ten, either way, in 1.2e5

# A digit begins it, so that no text is scanned twice; `lump` says what of it is a number.
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
_SAID = re.compile(
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
_ALONE = re.compile(r"[mgshlL]")  # single letters that are a unit, not a variable
_NAMED = re.compile(r"[a-z]-\d.*")  # as in x-3
_FUNCTIONS = re.compile(r"pi|sqrt|log|ln|exp|sin|cos|tan|inf|infinity", re.I)


class Token(NamedTuple):
    """A piece of a text: what it is, its text, where it starts and ends."""

    kind: str
    text: str
    start: int
    end: int


class Amount(NamedTuple):
    """A number that was read, and whether a percent sign follows it: 50% is Amount(50, True)."""

    value: Fraction
    percent: bool

    def equals(self, other: "Amount") -> bool:
        """Exactly; a percent sign on one side only may count or not: 50% equals 50 and 0.5, but 0.5 is not 50."""
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
    r"""The number that a text ends with as its final answer; None where that is not one number.

    It is looked for where `plain.final_part` says. A marked part must hold one number only, with units or words at
    most. In other text it is the number right after the last "answer is" or "answer:", or the last of that sentence;
    else the last of all. Of several with "or", "and" or a comma between them none is read. What stands after "not", or
    among words in brackets, does not count, nor do units, currencies, times of day and ordinals. Words, zero to
    ninety-nine, count where there are no digits and they come first. A fraction that comes out whole, such as 48/2, is
    a division left undone, and no number.

    Example: "#### 1,250" -> 1250; r"\boxed{-\frac{3}{4}}" -> -3/4; "so 2 1/2 cups." -> 5/2; "10-3" -> None.
    """
    part, marked = final_part(text)
    part = plain(part)
    if marked:
        return _amount(part, alone=True)
    said = None
    for said in _SAID.finditer(part):  # noqa: B007 (the last one)
        pass
    if said is None:
        return _amount(part, alone=False)
    part = part[said.end() :]
    sentence = _STOP.split(part, maxsplit=1)[0]
    return _amount(sentence if re.search(r"\w", sentence) else part, alone=False, first=True)


def gold_amount(answer: object) -> Amount | None:
    """The number that a row's answer is, by the rules for marked text; None where words stand before it (June 20)."""
    if answer is None or isinstance(answer, bool):
        return None
    part = plain(final_part(str(answer))[0])
    before = re.split(r"\d|=", part, maxsplit=1)[0]
    return _amount(part, alone=True) if not re.search("[A-Za-z]{2}", before.replace("minus", "")) else None


def _amount(text: str, alone: bool, first: bool = False) -> Amount | None:
    """The last number of a plain text, the first if it begins with it, or, if `alone`, the only one."""
    if not re.search(r"\d", text):
        return _in_words(text)
    for pattern, replacement in _SPOKEN:
        text = pattern.sub(replacement, text)
    without_asides = _BRACKETS.sub(lambda m: " " * len(m[0]) if re.search("[A-Za-z]{2}", m[0]) else m[0], text)
    runs = _runs(without_asides, alone) or _runs(text, alone)
    numbers = [at for at, run in enumerate(runs) if any(token.kind == "number" for token in run)]
    if not numbers or (alone and len(runs) > 1):
        return None
    chosen = numbers[-1]
    if first and _HEDGE.match(text).end() >= runs[0][0].start:
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
    return Amount(Fraction(10 * _TENS.index(tens) + 20 + _SMALL[ones or "zero"] if tens else _SMALL[small]), False)


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
    """The runs that hold a number or other mathematics."""
    runs, run = [], []
    for token in _tokens(text, alone):
        if token.kind == "break":
            runs.append(run)
            run = []
        else:
            run.append(token)
    return [run for run in [*runs, run] if {"number", "bad"} & {token.kind for token in run}]


def _tokens(text: str, alone: bool) -> list[Token]:
    """All tokens but spaces, their kinds: number, percent, bad, sign, operator, equals, bracket and break."""
    tokens: list[Token] = []
    for match in _TOKEN.finditer(text):
        kind, last = match.lastgroup, tokens[-1] if tokens else None
        after_number = last is not None and last.kind == "number" and last.end == match.start()
        if kind == "word":
            if after_number and _ORDINAL.match(match[0]):
                tokens.pop()  # 6th is no amount
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
    """operator for x, bad for what may be mathematics, else break. A word that follows a number at once is its unit."""
    if word in ("x", "X"):
        return "operator"
    if _FUNCTIONS.fullmatch(word):
        return "bad"
    if after_number:
        unit = word.partition("-")[0]
        known = _UNITS.fullmatch(unit) or _ORDINAL.match(word) or len(unit) > 3
        return "break" if known and word.isalpha() else "bad"
    if len(word) == 1 and not _ALONE.fullmatch(word) and (alone or word.islower() and word != "a"):
        return "bad"
    return "bad" if _NAMED.fullmatch(word) or (alone and any(c.isdigit() for c in word)) else "break"


def _is_answer(run: list[Token]) -> bool:
    """Whether what stands before the last = is a name, as in x = 5, or a sum, as in 48/2 = 24, not an equation."""
    equals = max((at for at, token in enumerate(run) if token.kind == "equals"), default=0)
    left = [token for token in run[:equals] if token.kind not in ("bracket", "equals", "percent")]
    if any(token.kind == "number" for token in left):
        between = [left[at : at + 2] for at, token in enumerate(left) if token.text in ("x", "X")]
        return all(t.kind != "bad" for t in left) and all(len(b) == 2 and b[1].kind == "number" for b in between)
    return all(token.kind == "bad" or token.text in ("x", "X") for token in left)


def _value(run: list[Token]) -> Amount | None:
    """The number that a run is; None where it is more than one number."""
    equals = max((at for at, token in enumerate(run) if token.kind == "equals"), default=-1)
    run, after_equals = run[equals + 1 :], equals >= 0
    percent = any(token.kind == "percent" for token in run)
    negative, run = _signed(run, after_equals)
    tokens = [token for token in run if token.kind not in ("bracket", "percent")]
    if tokens and tokens[-1].kind == "sign":  # a dash, as in 5-year or "5 - as asked"
        tokens.pop()
    shape = "".join("n" if t.kind == "number" else "-" if t.kind == "sign" else t.text for t in tokens)
    values = [lump(token.text) for token in tokens if token.kind == "number"]
    if None in values:
        return None
    value = _shaped(shape, values, tokens)
    return None if value is None else Amount(-value if negative else value, percent)


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
