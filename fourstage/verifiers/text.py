r"""The text of a completion in plain characters, and the part of it that holds the final answer."""

import re
import unicodedata
from collections.abc import Sequence

Completions = Sequence[str | list[dict]]  # as TRL hands them over: texts, or lists of turns
TAIL = 4096  # the number of last characters of a completion that are searched for its final answer

_BOX = re.compile(r"\\(?:boxed|fbox)\s{0,3}\{|\\.|[{}]", re.S)
_ANSWER_TAG = re.compile(r"<answer>(.*?)</answer>", re.S | re.I)


def text_of(completion: str | list[dict]) -> str:
    """The text of a completion: TRL hands over text or a list of turns, and a turn's content may be a list of parts."""
    if isinstance(completion, str):
        return completion
    return "".join(_content(turn.get("content")) for turn in completion)


def _content(content: object) -> str:
    if isinstance(content, list):
        return "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    return "" if content is None else str(content)


# Where the final answer stands


def final_part(text: str) -> tuple[str, bool]:
    r"""(the part of a text that holds its final answer, whether the writer marked that part as the answer).

    Only the text after the last `</think>` counts, and of it the last 4,096 characters; after an unclosed `<think>`
    nothing counts. A mark is `####` or `\boxed{...}`, whichever comes last, otherwise `<answer>...</answer>`. The part
    marked by `####` is the first line after it with a digit, or, if no line has one, the first that is not blank.
    Without a mark, the part is all of the text that counts.

    Example: r"</think> So \boxed{\frac{1}{2}}." -> (r"\frac{1}{2}", True); "It is 7." -> ("It is 7.", False).
    """
    text = _after_thinking(text)
    if len(text) > TAIL:
        text = text[-TAIL:].lstrip("0123456789.,")  # never the second half of a number
    hashes = text.rfind("####")
    box, boxed = _last_box(text)
    if max(hashes, box) >= 0:
        return (boxed if box > hashes else _first_line(text[hashes + 4 :])), True
    tagged = _last_tagged(text)
    return (text, False) if tagged is None else (tagged, True)


def _after_thinking(text: str) -> str:
    close = text.rfind("</think>")
    if text.rfind("<think>") > close:
        return ""
    return text[close + len("</think>") :] if close >= 0 else text


def _first_line(text: str) -> str:
    """The first line with a digit, or, if no line has one, the first that is not blank."""
    lines = [line for line in text.splitlines() if line.strip()]
    return next((line for line in lines if any(c.isdecimal() for c in line)), lines[0] if lines else "")


def _last_box(text: str) -> tuple[int, str]:
    r"""(where the last closed `\boxed{` starts, what it holds); (-1, "") where there is none. Reads the text once."""
    start, content = -1, ""
    open_braces: list[re.Match] = []
    for token in _BOX.finditer(text) if "boxed" in text or "fbox" in text else ():
        if token[0].endswith("{") and token[0] != "\\{":
            open_braces.append(token)
        elif token[0] == "}" and open_braces:
            brace = open_braces.pop()
            if brace[0] != "{" and brace.start() > start:
                start, content = brace.start(), text[brace.end() : token.start()]
    return start, content


def _last_tagged(text: str) -> str | None:
    start = text.lower().rfind("<answer>")
    tagged = _ANSWER_TAG.match(text, start) if start >= 0 else None
    return tagged[1] if tagged else None


# Plain characters

_UNICODE = str.maketrans(
    dict.fromkeys("\u2010\u2011\u2012\u2013\u2212\ufe63", "-")  # hyphens, the en dash, the minus sign
    | dict.fromkeys("\u00d7\u2715\u2716\u00b7\u22c5\u2219\u2217", "*")
    | dict.fromkeys("\u00a0\u2007\u2009\u202f", "\u2009")  # spaces that may stand within a number
    | {"\u00f7": " / ", "\u2044": "/", "\u2215": "/", "\u2248": "\\approx ", "\u00b0": " ", "\u2019": "'"}
)
_SUPERSCRIPTS = str.maketrans(
    "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079\u207a\u207b", "0123456789+-"
)
_SUPERSCRIPT = re.compile("[\u2070\u00b9\u00b2\u00b3\u2074-\u207b]+")
_VULGAR = re.compile("(\\d?)([\u00bc-\u00be\u2150-\u215e])")  # such as one half, in one sign
_NOT_ASCII = re.compile("[^\x00-\x7f\u2009]")

_ARGUMENT = r"\s{0,3}(?:\{\s{0,3}([+-]?\d[\d,]{0,99})\s{0,3}\}|(\d))"
_UNIT = r"mm|cm|dm|km|m|in|ft|yd|mi|inch(?:es)?|feet|foot|(?:yard|mile|unit|meter|metre|(?:centi|kilo)met(?:er|re))s?"
_REWRITINGS = [
    (re.compile(pattern, re.M), replacement)
    for pattern, replacement in [
        (r"\{,\}|,[ ]?\\![ ]?", ","),  # LaTeX: spaces, signs, fonts
        (r"\\!|\\(?:left|right)(?![A-Za-z])", ""),
        (r"\\[,:;> ]", "\u2009"),
        (r"\\([%$#&])", r"\1"),
        (r"\\\\", "\n"),
        (r"\\[()\[\]]|\\q?quad(?![A-Za-z])|\\displaystyle(?![A-Za-z])", " "),
        (r"\\(?:text(?:bf|it|rm)?|math(?:bf|it|rm)|operatorname|mbox)(?![A-Za-z])", ""),
        (r"\^\s?(?:\\circ(?![A-Za-z])|\{\s?\\circ\s?\})|\\degree(?![A-Za-z])", " "),
        (r"\\(?:times|cdot)(?![A-Za-z])", "*"),
        (r"\\div(?![A-Za-z])", " / "),
        (rf"(?:(\d)[ \u2009]{{0,3}})?\\[cdt]?frac{_ARGUMENT}{_ARGUMENT}", lambda m: _frac_as_division(m)),
        (rf"(?<![A-Za-z])({_UNIT})(\}}?)\s?\^\s?(?:[23]|\{{[23]\}})", r"\1\2 "),  # square centimetres
        (r"-\s?[$€£¥₹]", "-"),  # currencies and markup
        (r"[$€£¥₹`]", " "),
        (r"</?[A-Za-z][\w-]{0,19}>", " "),
        (r"^[ \t]{0,8}[-*>\u2022][ \t]", " "),
        (r"(?<![\d)])\*\*+|\*\*+(?![\d(])", " "),
        (r"(?<![\w*)])\*(?=\S)([^*\n]{1,80})(?<=\S)\*(?![\w*(])", r"\1"),
        (r"(?<![\w})])_+(?=\S)|(?<!_)_+(?![\w{])", " "),
    ]
]


def plain(text: str) -> str:
    r"""The text in ASCII where a sign has an equivalent there, without LaTeX's fonts and spaces and without markup.

    Invisible signs (direction marks, joiners) are removed; decimal digits of any script become 0 to 9; thin and
    no-break spaces become U+2009. `\frac{1}{2}` becomes (1/2), `3\text{ cm}^2` 3{ cm}, `$5` 5.
    """
    if not text.isascii():
        text = _ascii(text)
    for pattern, replacement in _REWRITINGS:
        text = pattern.sub(replacement, text)
    return text


def _ascii(text: str) -> str:
    text = _VULGAR.sub(lambda m: f"{m[1]} {_vulgar(m)}" if m[1] else _vulgar(m), text, count=100)
    text = _VULGAR.sub("^", text)  # so many are not an answer, and writing them out would make the text long
    text = _SUPERSCRIPT.sub(lambda m: f"^{{{m[0].translate(_SUPERSCRIPTS)}}}", text.translate(_UNICODE))
    return _NOT_ASCII.sub(lambda m: _ascii_sign(m[0]), text)


def _vulgar(match: re.Match) -> str:
    return "(" + unicodedata.normalize("NFKC", match[2]).replace("\u2044", "/") + ")"


def _ascii_sign(sign: str) -> str:
    if sign.isdecimal():
        return str(unicodedata.decimal(sign))
    if "\uff01" <= sign <= "\uff5e":  # the wide forms of ASCII's signs
        return chr(ord(sign) - 0xFEE0)
    replacements = {"Cf": "", "Zs": " "}  # by Unicode's category: invisible signs and spaces
    return replacements.get(unicodedata.category(sign), sign)


def _frac_as_division(match: re.Match) -> str:
    before, numerator, denominator = match[1], match[2] or match[3], match[4] or match[5]
    return f"{before} ({numerator}/{denominator})" if before else f"({numerator}/{denominator})"
