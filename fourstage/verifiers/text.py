r"""The text of a completion in plain characters, and the part of it that holds the final answer."""

import re
import unicodedata
from collections.abc import Sequence
from fractions import Fraction

Completions = Sequence[str | list[dict]]  # as TRL hands them over: texts, or lists of turns
TAIL = 4096  # the number of last characters of a completion that are searched for its final answer

_BOX = re.compile(r"\\(?:boxed|fbox)\s{0,3}\{|\\.|[{}]", re.S)
_HASHES = re.compile(r"#{4,}(?!#)")
# A line such as "#### Step 2: add" is a heading of Markdown and marks no answer.
_HEADING = re.compile(
    r"[ \t*]{0,9}(?:step|part|case|phase|stage|method|section|problem|question|explanation|solution|check|verification"
    r"|reasoning|given|note|summary|calculat|understand)",
    re.I,
)
_TAGS = re.compile(r"<answer>(.*?)</answer>|<\|begin_of_box\|>(.*?)<\|end_of_box\|>", re.S | re.I)
_UNSEEN_TAG = re.compile(r"<\|[^<>|]{1,40}\|>|</?[A-Za-z_][\w-]{0,19}>")
_LONE_LETTER = re.compile(r"[\s*(\[]{0,5}[A-J][\s*.)\]]{0,5}")
# Between two marked parts: they are a list, or alternatives, and not a first attempt and its correction.
_JOINT = re.compile(
    r"(?:[\s$*`.,;:/&()\[\]\\]|\\text\{|\}|\\q?quad|\b(?:or|and|maybe|perhaps|possibly|also)\b|\b\w{1,3} ?=)*"
)
_ALTERNATIVE = re.compile(r"[\s$,;]{0,5}or\b[^.!?\n]*")
_OR_ELSE = re.compile(
    r"[\s$,;*)]{0,5}(?:\\text\{ ?)?\bor\b[ }]{0,3}(?:maybe |perhaps |possibly )?[$( ]{0,3}(-?\d[\d.,/]{0,20}|[A-J]\b)"
)
_WITHDRAWAL = re.compile(
    r"(?<!if )(?<!whether )(?:\b(?:that|this|which|it) (?:is|was|can't be|cannot be)"
    r" (?:wrong|incorrect|not right|not correct|a mistake)\b"
    r"|\b(?:that|this)'s (?:wrong|incorrect|not right|not correct|a mistake)\b"
    r"|\bI (?:have )?(?:made|see) an? (?:mistake|error)\b|\bscratch that\b|\bcorrection:"
    r"|\b(?:final|correct|right|real) answer\W{0,5}(?:is|should be|:)[\s$*:(]{0,9}(?=[\d-]|\\d?frac|[A-J]\b))",
    re.I,
)
# Where the model goes on with a turn or a problem that nobody gave it.
_TURN = re.compile(
    r"^[ \t]{0,9}(?:\*\*|#{1,4} ?)?(?:human|user|instruction) ?(?:\*\*)?:"
    r"|^#{2,4} ?(?:instruction|human|user|question|input) ?:?[ \t]{0,9}$"
    r"|<\|(?:im_start|im_end|endoftext|end_of_text|end|eot|eot_id|eom_id|start_header_id|begin_of_text|return|user)\|>"
    r"|</s>|<(?:end_of_turn|start_of_turn|eos|pad)>|\[INST\]",
    re.I | re.M,
)
_PROBLEM = re.compile(r"^[ \t*]*(?:q|question|problem)(?: \d{1,3})? ?[:.][ \t*]*", re.I | re.M)
_ANSWERED = re.compile(r"####|\\boxed|</answer>|answer(?: is|:)|^A:", re.I | re.M)


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
    nothing counts, nor does a next turn or problem that the model made up. A mark is `####`, `\boxed{...}` or
    `<answer>...</answer>`, and the last one counts. Several with nothing but "or", "and" or a comma between them count
    together, with commas. The part marked by `####` is the first line after it with a digit, or, if no line has one,
    the first that is not blank. Without a mark, or if the text says after it that it was wrong, the part is all of the
    text that counts, from there on.

    Example: r"</think> So \boxed{\frac{1}{2}}." -> (r"\frac{1}{2}", True); "It is 7." -> ("It is 7.", False);
    r"\boxed{2} or \boxed{3}" -> ("2, 3", True).
    """
    text = after_thinking(text)
    if len(text) > TAIL:
        text = text[-TAIL:].lstrip("0123456789.,")  # never the second half of a number
    text = _own_turn(text)
    marks = _marks(text)
    if not marks:
        return text, False
    withdrawal = _WITHDRAWAL.search(text, marks[-1][1])
    if withdrawal:
        return text[withdrawal.start() :], False
    others = _OR_ELSE.match(text, marks[-1][1])
    return ", ".join([*_last_list(text, marks), *(others.groups() if others else ())]), True


def after_thinking(text: str) -> str:
    """What stands after the last `</think>`; nothing where thoughts were begun and not ended."""
    close = text.rfind("</think>")
    if text.rfind("<think>") > close:
        return ""
    return text[close + len("</think>") :] if close >= 0 else text


def _own_turn(text: str) -> str:
    """The text up to where the next turn begins, or the next problem if this one is answered."""
    start = 0
    for turn in _TURN.finditer(text):
        if visible(text[start : turn.start()]):
            text = text[: turn.start()]
            break
        start = turn.end()
    answered = _ANSWERED.search(text)
    problem = _PROBLEM.search(text, answered.end()) if answered else None
    return text[: problem.start()] if problem else text


def visible(text: str) -> bool:
    """Whether a text holds more than tags, special tokens, white space and signs that nobody sees."""
    return any(unicodedata.category(sign)[0] not in "CZM" for sign in _UNSEEN_TAG.sub("", text))


def _marks(text: str) -> list[tuple[int, int, str]]:
    """(start, end, content) of every marked part, in the order of their starts."""
    marks = _boxes(text) if "boxed" in text or "fbox" in text else []
    if "</answer>" in text.lower() or "<|end_of_box|>" in text:
        marks += [(tag.start(), tag.end(), tag[tag.lastindex or 1]) for tag in _TAGS.finditer(text)]
    hashes = [match for match in _HASHES.finditer(text) if not _HEADING.match(text, match.end())]
    for i, match in enumerate(hashes):
        end = hashes[i + 1].start() if i + 1 < len(hashes) else len(text)
        line = _first_line(text[match.end() : end])
        marks.append((match.start(), text.index(line, match.end()) + len(line), line))
    return sorted(marks)


def _last_list(text: str, marks: list[tuple[int, int, str]]) -> list[str]:
    """The content of the last mark, after those of other content with which it forms a list."""
    start, _, content = marks[-1]
    contents = [content.strip()]
    for before, end, other in reversed(marks[:-1]):
        if end > start:  # one within the other
            continue
        between = text[end:start]
        if len(between) > TAIL // 40 or not (_JOINT.fullmatch(between) or _ALTERNATIVE.fullmatch(between)):
            break
        start = before
        if other.strip() not in contents[:8]:
            contents.insert(0, other.strip())
    return contents


def _first_line(text: str) -> str:
    """The first line with a digit; the first that is not blank if none has one or if that is a letter alone."""
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines or _LONE_LETTER.fullmatch(lines[0]):
        return lines[0] if lines else ""
    return next((line for line in lines if any(c.isdecimal() for c in line)), lines[0])


def _boxes(text: str) -> list[tuple[int, int, str]]:
    r"""(start, end, content) of every closed `\boxed{...}`. Reads the text once."""
    boxes = []
    open_braces: list[re.Match] = []
    for token in _BOX.finditer(text):
        if token[0].endswith("{") and token[0] != "\\{":
            open_braces.append(token)
        elif token[0] == "}" and open_braces:
            brace = open_braces.pop()
            if brace[0] != "{":
                boxes.append((brace.start(), token.end(), text[brace.end() : token.start()]))
    return boxes


# Plain characters

_UNICODE = str.maketrans(
    dict.fromkeys("\u2010\u2011\u2012\u2013\u2212\ufe63", "-")  # hyphens, the en dash, the minus sign
    | dict.fromkeys("\u00d7\u2715\u2716\u00b7\u22c5\u2219\u2217", "*")
    | dict.fromkeys("\u00a0\u2007\u2009\u202f", "\u2009")  # spaces that may stand within a number
    | {"\u00f7": " / ", "\u2044": "/", "\u2215": "/", "\u2248": "\\approx ", "\u00b0": "^\\circ ", "\u2019": "'"}
)
_SUPERSCRIPTS = str.maketrans(
    "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079\u207a\u207b", "0123456789+-"
)
_SUPERSCRIPT = re.compile("[\u2070\u00b9\u00b2\u00b3\u2074-\u207b]+")
_MINUS = re.compile("\u2212[ \u2009\u00a0]{1,3}(?=[\\d.\\\\])")  # unlike a hyphen, it is never a dash
_VULGAR = re.compile("(\\d?)([\u00bc-\u00be\u2150-\u215e])")  # such as one half, in one sign
_NOT_ASCII = re.compile("[^\x00-\x7f\u2009]")

_ARGUMENT = r"\s{0,3}(?:\{\s{0,3}([+-]?\d[\d,]{0,99})\s{0,3}\}|(\d))"
_UNIT = r"mm|cm|dm|km|m|in|ft|yd|mi|inch(?:es)?|feet|foot|(?:yard|mile|unit|meter|metre|(?:centi|kilo)met(?:er|re))s?"
_REWRITINGS = [
    (re.compile(pattern, re.M), replacement)
    for pattern, replacement in [
        # a sign where a dash makes no sense
        (r"((?<![\w)\]}])\$|\\[(\[]|:|\b(?:is|was|be|equals|to)) {0,2}- {1,3}(?=[\d.\\])", r"\1 -"),
        (r"\{,\}|,[ ]?\\![ ]?", ","),  # LaTeX: spaces, signs, fonts
        (r"\\!|\\(?:left|right)(?![A-Za-z])", ""),
        (r"\\[,:;> ]", "\u2009"),
        (r"\\([%$#&])", r"\1"),
        (r"\\\\", "\n"),
        (r"\\[()\[\]]|\\q?quad(?![A-Za-z])|\\displaystyle(?![A-Za-z])", " "),
        (r"\\(?:text[a-z]{0,6}|math(?:bf|it|rm|sf|tt|normal)|operatorname|mbox|emph|bm|boldsymbol)(?![A-Za-z])", ""),
        (r"\\(?:long)?(?:right|Right|Longright)arrow(?![A-Za-z])|\\(?:implies|therefore|to)(?![A-Za-z])", " ; "),
        (r"(?:\^\s?(?:\\circ(?![A-Za-z])|\{\s?\\circ\s?\})|\\degree(?![A-Za-z]))(?:\s?\{[CF]\}|\s?[CF]\b)?", " "),
        (r"\\(?:times|cdot)(?![A-Za-z])", "*"),
        (r"\\div(?![A-Za-z])", " / "),
        (r"(?<!\d)(\d{0,9})\.(\d{0,9})\\overline\s?(?:\{\s?(\d{1,9})\s?\}|(\d))", lambda m: _repeating(m)),
        (r"(?<=\d)/-(?![\d(])", " "),  # 450/-, an amount of rupees
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
    text = _MINUS.sub("\u2212", text)
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


def _repeating(match: re.Match) -> str:
    r"""0.1\overline{6} as the fraction that it is, (1/6)."""
    fixed, again = match[2], match[3] or match[4]
    period = Fraction(int(again), 10 ** len(fixed) * (10 ** len(again) - 1))
    value = Fraction(f"{match[1] or 0}.{fixed or 0}") + period
    return f"({value.numerator}/{value.denominator})" if value.denominator > 1 else str(value.numerator)
