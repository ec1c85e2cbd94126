r"""Rewrites numbers in the spellings of speech and of other countries, such as "six hundred" or 1'000, in plain digits.

What is not a number, such as 6 ft 2 in or "six seven", becomes two numbers side by side, which nobody reads as one.
"""

import re

from fourstage.verifiers.digits import NUMBER

_UNREADABLE = " 0 0 "

_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_SMALL = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
_SMALL += ["thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]
_BELOW_HUNDRED = {word: i for i, word in enumerate(_SMALL)} | {word: 10 * i + 20 for i, word in enumerate(_TENS)}
_TEN_TO_THE = {"hundred": 2, "thousand": 3, "lakh": 5, "million": 6, "crore": 7, "billion": 9, "trillion": 12}
_PARTS = ["half", "third", "quarter", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth"]
_PARTS_OF_ONE = {part: i + 2 for i, part in enumerate(_PARTS)} | {"fourth": 4, "halve": 2}

_BELOW = "|".join(sorted(_BELOW_HUNDRED, key=len, reverse=True))
_SCALE = "|".join(_TEN_TO_THE)
_ITEM = rf"(?:(?:{_BELOW})(?![a-z])|(?:{_SCALE})s?(?![a-z])(?: and(?= (?:{_BELOW})(?![a-z])))?)"
_DIGIT = "|".join(_SMALL[:10])
_IN_WORDS = re.compile(
    rf"(?<![\w'-])(?:an? (?=(?:{_SCALE})(?![a-z])))?{_ITEM}(?:[ -]{_ITEM}){{0,12}}"
    rf"(?: point((?: (?:{_DIGIT})(?![a-z])){{1,12}}))?(?!['\w])",
    re.I,
)
_PART = re.compile(
    rf"(?<![\w'-])(an?|{'|'.join(_SMALL[1:])})[ -]({'|'.join(_PARTS_OF_ONE)})s?(?![\w'])(?! (?:a|an|of a) dozen)", re.I
)
# "one" is often no number: no one, this one, one of them. Here it is.
_COUNTED = re.compile(r"(?:^\W{0,9}|\b(?:is|are|has|have|gets?|leaves|equals|exactly|only|just) )$", re.I)
_PRONOUN = re.compile(r"\W{1,3}(?:of|who|that|which|by|another|more|day|person|way)\b", re.I)

_LONG = r"hours?|hrs?|h|days?|weeks?|months?|years?|minutes?|mins?|miles?|yards?|yd|feet|foot|ft|'|km|m|lbs?|pounds?|kg"
_SHORT = r"hours?|hrs?|days?|weeks?|months?|minutes?|mins?|seconds?|secs?|s|yards?|feet|foot|ft|inch(?:es)?|in|m|cm|mm"
_SHORT += r"|ounces?|oz|g|grams?|\""
_SPELLINGS = [
    (re.compile(pattern, re.I), replacement)
    for pattern, replacement in [
        (r"<<[^<>\n]{0,200}>>", ""),  # GSM8K's annotations
        (r"\\?\b(?:max|min|lcm|gcd|hcf|c|p)\s?\([^()\n]{1,60}\)\s?(?==)", " "),
        (r"(?<![\d'_,.])\d{1,3}(?:'\d{3}){1,30}(?![\d'])", lambda m: m[0].replace("'", "")),
        (r"(?<![\w,.])\d{1,3}(?:_\d{3}){1,30}(?!\w)", lambda m: m[0].replace("_", "")),
        (r"(?<![\d,.])\d{1,2}(?:,\d\d){1,30},\d{3}(?![\d,])", lambda m: m[0].replace(",", "")),  # lakhs and crores
        (r"(?<![\d,.])\d{1,3}(?:\.\d{3}){2,30}(?:,\d{1,9})?(?![\d,.]\d|\d)", lambda m: _swapped(m[0])),
        (r"(?<![\d,.])\d{1,3}\.\d{3},\d\d?(?![\d,.]\d|\d)", lambda m: _swapped(m[0])),
        (r"(?<![\d,.])(\d{1,3}),(\d\d?)(?= ?(?:kg|g|km|cm|mm|m|ml|l|liters?|litres?|%)(?![a-z]))", r"\1.\2"),
        (r"(?<=[\d)])(?:,|,? or|,? which is| is)? (?:about|approximately|roughly|around) (?=[\d.])", " \\\\approx "),
        (r"(\d) ?dollars? and (\d{1,2}) ?cents?(?![a-z])", lambda m: f"{m[1]}.{m[2]:>02} dollars"),
        (r"(?<![\d.,])\d{1,3}(?: \d{3}){1,30}(?![\d/])", lambda m: m[0].replace(" ", "\u2009")),  # 10 000
        (rf"(?<=\d)[ -]?({_SCALE})s?(?![a-z])", lambda m: f"e{_TEN_TO_THE[m[1].lower()]} "),
        (r"(?<=\d)(?: and| &)? (?:an?|one) half(?![\w-])", " 1/2"),
        (r"(?<=\d)(?: and| &)? (?:an?|one) quarter(?![\w-])", " 1/4"),
        (r"(?<=\d) and three[ -](?:quarter|fourth)s(?![\w-])", " 3/4"),
        (r"(?<=\d) and (?=\(?\d{1,100}/\d)", " "),  # 2 and 1/2
        (r"(?<![\d.,=])(?<!= )(\d{1,6}(?:\.5)?) dozens?(?![a-z])", lambda m: f"{12 * float(m[1]):.0f}"),
        (r"(?<=\d) ?per ?cent(?![a-z])", "%"),
        (r"(?<=\d) ?\{? ?([ap])\.m\.", r" \1m"),
        (r"\d ?(?:h|hrs?|hours?) ?\d\d?(?!\d)(?! ?[a-z])", _UNREADABLE),
        (r"\b(?:quarter|half|\d\d?) past \d", _UNREADABLE),
        (rf"\d ?(?:{_LONG})(?![a-z])[,]?(?: and)? ?\d[\d.]{{0,20}} ?(?:{_SHORT})(?![a-z])", _UNREADABLE),  # 6 ft 2 in
        (r"\d' ?\d{1,2}(?!\d)\"?", _UNREADABLE),
        (r"(?<![a-z])(?:negative|minus) (?=[(]?[\d.])", "-"),
        (r"(?<=[\w}])(?: ?\})? ?/ ?(?=(?:[a-z]{4,20}|day|kg|km|lb|cup|box|bag|hr?|min|s|mi|gal)(?![a-z]))", " per "),
        (r"(?<=[\d%]) (?:times|multiplied by|percent of|of)(?= \d)", " * "),
        (r"(?<=%) of (?=(?:the )?\d)", " * "),
        (r"(?<=\d)(?:,? which)?(?: is|,) (?:half|twice|double|triple|thrice)\b[^,.=\n]*$", ""),
        (r"\b(?:half|twice|double|triple|thrice|third|quarter)(?: of)?(?: the)? (?=\d)", " 2 * "),  # or another formula
        (r"(?<=\d) plus (?=\d)", " + "),
        (r"(?<=\d) minus (?=\d)", " - "),
        (r"(?<=\d) (?:divided by|over) (?=\d)", " / "),
        (r"(?<=\d) (squared|cubed)(?![a-z])", " ^ 2"),
        (r"(?<=\d) (?:or|and) (?:more|fewer|less|over|under|above|below|higher|lower|greater|up)\b", " ^ 0"),
        (  # 3 apples + 4 apples = 7 apples
            r"(?<=\d)(?: ?\{)?(?: ?(?!pi|sqrt|log|ln|sin|cos|tan)[a-z]{2,15}){1,2}\}?"
            r"(?= ?[+*/=] ?[({]?-?\d| - [({]?\d)",
            "",
        ),
    ]
]


def spelt_out(text: str) -> str:
    """A plain text with its spellings of numbers that have digits rewritten."""
    for pattern, replacement in _SPELLINGS:
        text = pattern.sub(replacement, text)
    return text


def _swapped(text: str) -> str:
    return text.translate(str.maketrans(",.", ".,"))


def comma_decimals(text: str) -> str:
    """A plain text in which 1.234,5 is written 1,234.5, and so is every number."""
    return re.sub(NUMBER, lambda match: _swapped(match[0]), text)


def words_as_digits(text: str) -> str:
    r"""A text with its number words as digits: "twenty-five thousand" is 25000, "two thirds" (2/3), "a dozen" 12.

    Words that do not form one number, as in "six seven", become two numbers side by side.
    """
    text = re.sub(r"(?<![\w-])half (?:a )?dozen(?![a-z])", "6", text, flags=re.I)
    text = re.sub(r"(?<![\w-])(?:a|one) dozen and a half(?![a-z])", "18", text, flags=re.I)
    text = re.sub(r"(?<![\w-])(?:a|one) dozen(?! and|[a-z])", "12", text, flags=re.I)
    text = re.sub(rf"({_BELOW}) and (?:a|one) half(?![\w-])", r"\1 1/2", text, flags=re.I)
    text = _PART.sub(lambda m: f"({_BELOW_HUNDRED.get(m[1].lower(), 1)}/{_PARTS_OF_ONE[m[2].lower()]})", text)
    text = re.sub(r"^(\W{0,9})half(?![\w-])(?! (?:of|as|the|past|a))", r"\1 1/2", text, flags=re.I)
    return _IN_WORDS.sub(lambda match: _digits(match, text), text)


def _digits(match: re.Match, text: str) -> str:
    words, decimals = re.split("[ -]", match[0].lower().partition(" point ")[0]), match[1]
    if words == ["one"] and not decimals:
        before, after = text[max(match.start() - 12, 0) : match.start()], text[match.end() : match.end() + 12]
        if not _COUNTED.search(before) or _PRONOUN.match(after):
            return match[0]
    value = _whole(words)
    if value is None:
        return _UNREADABLE
    if decimals is None:
        return str(value)
    return f"{value}.{''.join(str(_BELOW_HUNDRED[word]) for word in decimals.lower().split())}"


def _whole(words: list[str]) -> int | None:
    """The value of number words in their usual order; None for another order, such as "six seven" or "two one"."""
    total, group, room, largest = 0, 0, 1000, 10**15
    for word in words:
        if word in _BELOW_HUNDRED:
            value = _BELOW_HUNDRED[word]
            if value >= room or (value == 0 and len(words) > 1):
                return None
            group, room = group + value, 10 if value >= 20 else 0
        elif word.removesuffix("s") in _TEN_TO_THE:
            scale = 10 ** _TEN_TO_THE[word.removesuffix("s")]
            if scale == 100 and 0 < group < 100:
                group, room = 100 * group, 100
            elif scale > 100 and group and scale < largest:
                total, group, room, largest = total + scale * group, 0, 1000, scale
            else:
                return None
        elif word in ("a", "an"):
            group = 1
    return total + group
