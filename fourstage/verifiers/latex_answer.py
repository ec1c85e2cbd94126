r"""Which part of a completion is its answer, and that answer in the LaTeX that math-verify reads.

The marked part is the answer, or otherwise what the last sentence with mathematics in it says. Of a sentence, the runs
of mathematics are found: formulas between dollar signs, and numbers, operators and single letters in the prose. Runs
that "and", "or" or a comma joins are one list; "not 7", "between 2 and 7" and the like answer nothing.
"""

import re

from fourstage.verifiers.numerals import final_amount
from fourstage.verifiers.text import TAIL, after_thinking, final_part

NEAR = 80  # characters between boxes that are one answer

_CUE = re.compile(
    r"\banswers?\b(?:[^.:=\n]{0,60}?\b(?:is|are|equals)\b|\s?[:=])\s?:?|^[ *]*(?:A|Ans|Solution|Result)[ *]*:(?=\s)",
    re.I | re.M,
)
_NEXT_TURN = re.compile(r"<\||^\W*(?:human|user|question|problem|q)\b", re.I | re.M)
_TEXT = re.compile(r"\\text\w*\s?\{([^{}]*)\}")
_LISTED = re.compile(
    r"\b(?:are|solutions?|answers?|roots?|values?)\b[^\n]{0,60}:\s*\n"
    r"((?:\s*(?:[-*\u2022]|\d{1,2}[.)])\s+[^\n]{1,60}(?:\n|$)){2,})\s*$",
    re.I,
)
_END_OF_PROOF = re.compile(r"\$?(?:\u220e|\bQ\.?E\.?D\b\.?|\\(?:blacksquare|square|qed)\b)[\s$]*$")
_NAMED_BOX = re.compile(r"(?<![A-Za-z])([A-Za-z](?:_\w)?)\s*=\s*\$?\s*$")
_BOX = re.compile(r"\\(?:boxed|fbox)\s{0,3}\{|\\.|[{}]", re.S)
_FORMULA = re.compile(
    r"\$\$(?P<a>.+?)\$\$|\\\[(?P<b>.+?)\\\]|\\begin\{(?P<e>[a-z]+\*?)\}(?P<f>.*?)\\end\{(?P=e)\}"
    r"|(?<!\\)\$(?P<c>[^$\n]+?)(?<!\\)\$|\\\((?P<d>.+?)\\\)",
    re.S,
)
_ZEROS = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_SCALE = re.compile(rf"(?<=\d) ?({'|'.join(_ZEROS)})s?(?![A-Za-z])", re.I)
_SUM = re.compile(r"\(?\d[\d.,%]*\)?\s?[-+*/x\u2013\u2212\u00d7\u00f7][^A-Za-z\n]*=")
_UNIT = r"(?!(?:and|or|to|is|are|than|for|by|but|so)\b)[A-Za-z]{2,15}"
_UNIT_IN_SUM = re.compile(
    rf"(?<=[\d%])(?:\s?/\s?[A-Za-z]{{1,15}}|\s+{_UNIT}(?: {_UNIT}){{0,2}}(?:/[A-Za-z]{{1,15}})?)"
    r"\s*(?=[-+*/x\u2013\u00d7\u00f7=]\s?\d|\)\s?/)"
)
# What stands between two dollar signs is no formula: "$5 and $6", "5 * $3 = $15".
_IS_MONEY = re.compile(r"(?<![\\A-Za-z{])[A-Za-z]{4,}(?![A-Za-z(}])|(?:[-=+*/(]|\d\s?x)\s*$|^\s?\d[\d,.]*[^\\{}]*\s$")
_FUNCTION = r"(?:sqrt|pi|arcsin|arccos|arctan|gcd|lcm|sin|cos|tan|cot|sec|csc|ln|log|infinity|inf)(?![A-Za-z])"
# A letter of the prose is mathematics where an operator, a bracket or a digit stands beside it.
_LETTER = (
    r"(?<![A-Za-z'\u2019])[A-Za-z](?:'{0,2}(?=[(])|(?=\s?[-+*/^=<>\u2264\u2265\u2260\u2248\u2208_]|\\(?:in|le|ge|ne|lt|gt)"
    r"|\\(?:cdot|times)|[\u2032|\x00\u00b2\u00b3\u00b9\u2070-\u209c])(?![A-Za-z']))"
    r"|(?:(?<=[-|+*/^=<>\u2264\u2265_(\d)}\x00\u221a,\u03c0])|(?<=[-+*/^=<>\u2264\u2265,] ))[A-Za-z](?![A-Za-z'])"
)
_RUN_OF = [
    r"\x00\d+\x00",  # a formula
    r"\\text\s?\{[^{}]*\}|\\[A-Za-z]+|\\[{},;:!% ]",
    r"\d+\.(?=\\)|\d+(?:[.,]\d+)*|\.\d+",
    _FUNCTION,
    _LETTER,
    r"[-+*/^=<>()\[\]{}|%!_&,;]|:(?!\s)|(?<=[\d\w]) : (?=\w)",
    r"[\u00b0-\u00b3\u00b7\u00b9\u00bc-\u00be\u00d7\u00f7\u03c0\u2026\u2032\u2070-\u209c\u2150-\u215e\u2205\u2208\u2013\u2212]",
    r"[\u221a\u221b\u221e\u2229\u222a\u2248\u2260\u2264\u2265]",  # roots, infinity, sets, relations
    r"(?<=\d) ?[xX] ?(?=\d)",
    r"\s(?=\S)",
]
_RUN = re.compile(f"(?:{'|'.join(_RUN_OF)})+")
_NO_PROSE = re.compile(rf"\\[A-Za-z]+(?:\s?\{{[A-Za-z*]+\}})?|{_FUNCTION}")
_CONTENT = re.compile(r"[\d\x00\u00bc-\u00be\u03c0\u2150-\u215e\u2205\u221e]|\\[A-Za-z]{2,}|[A-Za-z]\s?[-+*/^=<>]")
_JOINT = re.compile(
    r"\W{0,3}(?:(?:[a-z]+ ){0,2}(?:,? ?(and|or)\W|,\W?)(?:(?!so|then|thus|hence|giving|we )[a-z]+ )?"
    r"|(?:[a-z]+ )?(to|through) |[,;]"
    r"|(?:ft|feet|foot|h|hrs?|hours?|min|minutes?|lbs?|pounds?|years?|weeks?|days?|dollars?) )\W*",
    re.I,
)
_THAN = r"(?:less|more|greater|fewer|other|larger|smaller) than"
# Right before a number: it is not the answer, or one of several.
_NOT = re.compile(
    rf"\b(?:not|cannot|never|between|one of|either|neither|nor|at least|at most|{_THAN}|exceeds?|under|below|above"
    r"|except|anything but|unless|if)\b(?:\s[A-Za-z]+){0,2}\W*$|n't(?:\s[A-Za-z]+){0,2}\W*$",
    re.I,
)
_DENIED = re.compile(
    r"\W*(?:(?:is|are|was)\s+)?(?:wrong|incorrect|not|false|isn't|too (?:small|large|high|low))\b", re.I
)
_DATE = re.compile(
    r"\b(?:January|February|March|April|May|June|July|August|September|October|November|December) \d{1,2}\b"
)
_HEDGE = re.compile(
    rf"\b(?:not|between|one of|either|neither|nor|at least|at most|{_THAN}|or (?:more|less|fewer)|otherwise)\b", re.I
)
_STRUCK = re.compile(r"\b(?:not|instead of|rather than|out of)\s+[$\\(]*-?\d[\d.,/]*\d?[$\\)]*(?=\W)", re.I)
_ASIDE = re.compile(
    r"\s\([^()]*[A-Za-z]{3,}[^()]*\)|,? \b(?:since|because)\b(?!.*, (?:so|we|the|then|it|there)\b).*"
    r"|, (?:as|which|where) .*"
    r"|,? or (?:about|approximately|roughly|around)\b.*|\s(?:when|if)\s[^,=]{1,80}$",
    re.S,
)
_CONDITION = re.compile(r"\b(?:for(?: all| every| any| each)?|when|where|if|given)(?: \w{4,})?\s*$", re.I)
_SAID = re.compile(
    r"(?:\b(?:is|are|was|were|be|equals?|gives?|gets?|leaves?|leaving|total of|have|has|had|so|thus|therefore|hence"
    r"|means|needs?|takes?)(?: (?:about|only|just|then|thus|exactly|therefore))?|[=:\u2248])\s*$",
    re.I,
)
_LEAD = re.compile(
    r"^(?:(?:so|thus|hence|therefore|and|we have|we get)\b,?\s*)*"
    r"(?:(?:there (?:is|are)|it is|it's|it has|this is|they are|the (?:\w+ ){1,3}(?:is|are|has|have))\s+)?",
    re.I,
)
_STOP = re.compile(
    r"(?<!\bca)(?<!approx)(?<!\be\.g)(?<!\bi\.e)(?<!\bNo)(?<!\bvs)(?<!\bM[rs])(?<!\bMrs)(?<!\bDr)(?<!\bSt)(?<!\.)[.!?](?!\.)(?=[\s*\"')]|$)|\n|:\s*\n"
)
_REFUSAL = re.compile(
    r"\b(?:not|cannot|no|none|nothing|unknown|impossible|unsure|undefined|infinite|infinitely|wrong|never|neither)\b|n't\b"
)
_REMARK = re.compile(
    r"\W*(?:note|remember|verif\w*|proof|(?:to |let's |we can |let us )?(?:double-?)?check)\b|\s*\([A-Za-z ]{4}", re.I
)
_CLOSING = re.compile(
    r"hope|help|let me know|correct|thank|note|check|question|<\||good luck|that is|that's|this is", re.I
)


def located(text: str) -> list[str]:
    """The texts that may be the answer of a completion, the likeliest first; none where it has none."""
    text = re.sub(r"<<[^<>\n]{1,80}>>", "", text) if "<<" in text else text  # GSM8K's calculations
    part, is_marked = final_part(text)
    if not is_marked or _CUE.search(part):
        return _nonempty(_from_prose(_TEXT.sub(r"\1", part) if is_marked else part))
    tail = after_thinking(text)[-TAIL:]
    boxes = _boxes(tail)
    while boxes and not part.endswith(boxes[-1][2].strip()):
        boxes.pop()
    if not boxes:
        return _nonempty(of_part(part))
    after = _NEXT_TURN.split(tail[boxes[-1][1] :], maxsplit=1)[0]
    cue = max(_CUE.finditer(after), key=re.Match.start, default=None)
    if cue is not None and re.match(r"[\s*$\\({]*[-+]?[\d\\(]", after[cue.end() :]):
        return _nonempty(_from_prose(after))
    every = [content for _, _, content in boxes]
    return _nonempty(of_part(_joined(tail, boxes)), *([", ".join(every)] if 1 < len(every) < 10 else []))


def _nonempty(*texts: str | None) -> list[str]:
    return [text for text in texts if text and text.strip()]


def of_part(part: str, is_gold: bool = False) -> str | None:
    """The answer in a marked part; None where it says what the answer is not, or holds several apart."""
    part = re.sub(r"^\\text\w*\s?\{([^{}]*)\}$", r"\1", _without_fences(part).strip())
    if _DATE.search(part):
        return _in_words(part)
    words = re.sub(r"\\text\w*\s?\{([^{}]*)\}", r" \1 ", part)
    if not is_gold and _HEDGE.search(words) and re.search(r"\d", words):
        return None
    formulas = _FORMULA.sub("", part)
    if (
        "\\" in formulas
        or "$" in formulas.replace("\\$", "")
        or not re.search(r"[A-Za-z]{3,}", re.sub(_FUNCTION, "", formulas))
    ):
        return part if formulas.strip(" .") == part.strip(" .") else _of_sentence(part, anywhere=True) or part
    if not re.search(r"[\d\\$\u03c0\u221e]", part):
        return _in_words(part)
    return _of_sentence(part, anywhere=True)


# Boxes


def _boxes(text: str) -> list[tuple[int, int, str]]:
    r"""(start, end, content) of each closed `\boxed{...}` that stands in no other."""
    found: list[tuple[int, int, str]] = []
    braces: list[re.Match] = []
    for token in _BOX.finditer(text) if "boxed" in text or "fbox" in text else ():
        if token[0].endswith("{") and token[0] != "\\{":
            braces.append(token)
        elif token[0] == "}" and braces:
            brace = braces.pop()
            if brace[0] != "{":
                found = [box for box in found if box[0] < brace.start()]
                found.append((brace.start(), token.end(), text[brace.end() : token.start()]))
    return found


def _joined(text: str, boxes: list[tuple[int, int, str]]) -> str:
    """The content of the last box, or of the last boxes where "and", "or" or a comma joins them, with their names."""
    joined = [boxes[-1][2]]
    start = len(boxes) - 1
    for before, after in zip(boxes[-2::-1], boxes[:0:-1], strict=True):
        if not _joins(text[before[1] : after[0]]):
            break
        joined.insert(0, before[2])
        start -= 1
    names = [_NAMED_BOX.search(text[: box[0]]) for box in boxes[start:]]
    if len(joined) > 1 and all(names):
        joined = [f"{name[1]} = {content}" for name, content in zip(names, joined, strict=True) if name]
    return joined[-1] if len(set(joined)) == 1 else r" \text{ and } ".join(joined)


def _joins(gap: str) -> bool:
    """Whether what stands between two boxes makes them one list."""
    plain = re.sub(r"\\text\w*\s?\{([^{}]*)\}|\\q?quad|\\[()\[\],;! ]|\$", r" \1 ", gap).strip()
    if (
        len(gap) > NEAR
        or "\n\n" in gap
        or re.search(r"[.!?]\s|\b(?:so|thus|then|therefore|hence|wait|but|not|gives)\b", plain)
    ):
        return False
    return bool(re.fullmatch(r"[,;&\s]*", plain) or re.search(r"\b(?:and|or)\b|^[,;]|[,;]\s*(?:\S+\s*=)?$", plain))


# Prose


def _from_prose(text: str) -> str | None:
    """What follows the last "answer is" in its sentence; otherwise the last sentence that has mathematics in it."""
    text = _END_OF_PROOF.sub("", _without_fences(text))
    cue = max(_CUE.finditer(text), key=re.Match.start, default=None)
    listed = _LISTED.search(text)
    if listed and not re.search(r"(?<![\\A-Za-z])[A-Za-z]{3}", listed[1]):
        items = [re.sub(r"^\s*(?:[-*\u2022]|\d{1,2}[.)])\s+", "", line) for line in listed[1].splitlines()]
        return ", ".join(item.strip(" \t,.$") for item in items if item.strip())
    if cue is not None:
        rest = text[cue.end() :].lstrip(" *:\n")
        sentence, formulas = _sentences(rest)[0], _FORMULA.search(rest)
        clause = _in_words(re.split(r",(?! (?:or|and|maybe|perhaps)\b)| since | because ", sentence)[0])
        if re.fullmatch(r"\d+(?:/\d+)?", clause) and not re.match(r"\s*[\d$]", sentence):
            return clause  # six, since 2 times 3 is six
        answer = _of_sentence(rest if formulas and formulas.start() == 0 else sentence, from_start=True)
        if re.search(r"[\d$\\]", answer or "") or not re.search(r"[\d$\\]", rest[len(sentence) :]):
            return answer
        text = rest
    sentences = _sentences(text)
    said = [sentence for sentence in sentences if not _REMARK.match(sentence)] or sentences
    for sentence in said[:-4:-1]:
        answer = _of_sentence(sentence)
        if re.search(r"[\d\\^=<>\u221a\u03c0\u221e]", answer or ""):
            return answer
        if _REFUSAL.search(sentence) or (len(sentence.split()) <= 4 and not _CLOSING.search(sentence)):
            return answer
    return _of_sentence(said[-1])


def _sentences(text: str) -> list[str]:
    """The sentences of a text, at least one; a full stop in a formula ends none."""
    sentences, start = [], 0
    for stop in _STOP.finditer(_FORMULA.sub(lambda formula: "\x00" * len(formula[0]), text)):
        sentences.append(text[start : stop.start()])
        start = stop.end()
    return [sentence for sentence in (*sentences, text[start:]) if sentence.strip(" *\"')_")] or [""]


def _of_sentence(sentence: str, from_start: bool = False, anywhere: bool = False) -> str | None:
    """The mathematics that a sentence ends with, or begins with (`from_start`); its words where it has none.

    None where it is denied, or where several things are said (`anywhere`).
    """
    masked, formulas = _masked(sentence.strip())
    if _DATE.search(masked):
        return _in_words(sentence)
    masked = _STRUCK.sub(" ", masked)
    shorter = _ASIDE.sub("", masked)
    masked = shorter if _CONTENT.search(shorter) else masked
    if (
        masked.isascii()
        and "\x00" not in masked
        and not re.search(r"[A-Za-z]{2}", _NO_PROSE.sub(" ", masked))
        and _CONTENT.search(masked)
    ):
        return masked.strip()  # a formula without dollar signs
    runs = [
        run
        for run in map(_trimmed, _RUN.finditer(masked))
        if run[0] < run[1] and _CONTENT.search(masked[run[0] : run[1]])
    ]
    runs = [run for i, run in enumerate(runs) if i == 0 or not _is_condition(masked, run)]
    if not runs:
        return _in_words(sentence)
    groups = _grouped(masked, runs)
    if anywhere and len(groups) > 1:
        return None
    first = from_start and len(re.findall(r"\w+", masked[: runs[0][0]])) <= 2
    group = groups[0 if first else -1]
    if first and len(groups) > 1 and re.match(r"\s*(?:is|are|equals|was|becomes)\b", masked[group[-1][1] :]):
        group = groups[-1]
    if not first and not _SAID.search(masked[: group[0][0]]):  # "3 * 30 = 90 miles in 30 days"
        group = next((g for g in groups[::-1] if "=" in masked[g[0][0] : g[0][1]].strip("=")), group)
    if (
        _DENIED.match(masked, group[-1][1])
        or (_NOT.search(masked[: group[0][0]]) and not _SUM.match(masked, group[-1][0]))
        or any(joint in ("to", "through") for *_, joint in group)
    ):
        return None
    texts = [re.sub(r"\x00(\d+)\x00", lambda m: formulas[int(m[1])], masked[a:b]).strip() for a, b, _ in group]
    joints = [rf" \text{{ {joint} }} " if joint in ("and", "or") else ", " for *_, joint in group[1:]]
    return texts[0] + "".join(joint + text for joint, text in zip(joints, texts[1:], strict=True))


def _is_condition(text: str, run: tuple[int, int]) -> bool:
    """Whether a run is what "for", "if" or "at x = 2" introduces."""
    at = re.search(r"\bat\s*$", text[: run[0]]) and "=" in text[run[0] : run[1]]
    return bool(at or _CONDITION.search(text[: run[0]]))


def _masked(sentence: str) -> tuple[str, list[str]]:
    """(the sentence with a number between NULs for each formula, the formulas)."""
    formulas: list[str] = []

    def keep(match: re.Match) -> str:
        formulas.append(match[0] if match["e"] else next(match[name] for name in "abcd" if match[name]))
        return f"\x00{len(formulas) - 1}\x00"

    sentence = _read_aloud(sentence.replace("\x00", ""))
    if any(_IS_MONEY.search(match["c"] or "") for match in _FORMULA.finditer(sentence)):
        sentence = re.sub(r"(?<!\\)\$\s?(?=\d)", "", sentence)
    sentence = _FORMULA.sub(keep, sentence)
    sentence = re.sub(r"\\?\$|`|(?<!\d)\*\*+|\*\*+(?!\d)", " ", sentence)
    sentence = re.sub(r"(?<![\w*)])\*(?=\S)([^*\n]{1,80})(?<=\S)\*(?![\w*(])", r" \1 ", sentence)  # *italics*
    return _UNIT_IN_SUM.sub(" ", sentence), formulas


def _trimmed(run: re.Match) -> tuple[int, int]:
    """Where a run starts and ends without the punctuation around it."""
    text = run[0]
    bar = "|" if text.count("|") % 2 else ""  # not of |x|
    start = len(text) - len(text.lstrip(" ,;:=!)]/*&" + bar))
    text = text.rstrip(" ,;:=([/&-+*" + bar)
    text = text[:-1] if text.endswith("!") else text
    if text.count(")") > text.count("(") and "[" not in text:
        text = text.rstrip(") ")
    if text.count("(") > text.count(")") and "]" not in text and text[start : start + 1] == "(":
        start += 1
    return run.start() + start, run.start() + len(text)


def _grouped(text: str, runs: list[tuple[int, int]]) -> list[list[tuple[int, int, str]]]:
    """The runs as (start, end, what joins it to the one before), those that are joined together."""
    groups = [[(*runs[0], "")]]
    for before, run in zip(runs, runs[1:], strict=False):
        joint = _JOINT.fullmatch(text[before[1] : run[0]])
        if joint and not _SUM.match(text, run[0]):
            groups[-1].append((*run, (joint[1] or joint[2] or ",").lower()))
        else:
            groups.append([(*run, "")])
    return groups


def _in_words(sentence: str) -> str:
    """A number in words as digits; other words as they are."""
    sentence = _LEAD.sub("", sentence.strip(" \n*_\"'`.!"))
    sentence = re.sub(r"^an? (?=\w)", "", sentence)
    sentence = re.sub(r"^(yes|no)[,;.].*", r"\1", sentence, flags=re.I | re.S)
    first = re.match(r"[A-Za-z-]+", sentence)
    is_number = first and re.fullmatch(r"[A-Za-z ,'-]+", sentence) and final_amount(first[0]) is not None
    amount = final_amount(sentence) if is_number else None
    return sentence if amount is None else str(amount.value)


def _read_aloud(text: str) -> str:
    """With signs for "minus 3" and "2 million"."""
    text = re.sub(r"\b(?:minus|negative) (?=[\d.\\$(\u221a\u03c0])", "-", text, flags=re.I)
    return _SCALE.sub(lambda match: rf" \cdot 10^{{{_ZEROS[match[1].lower()]}}}", text).replace("...", "\u2026")


def _without_fences(text: str) -> str:
    text = re.sub(r"^\s*>\s", "", text, flags=re.M)  # a quotation in Markdown
    return re.sub(r"^\s*```.*$|`", "", text, flags=re.M) if "`" in text else text
