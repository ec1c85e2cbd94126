r"""Finds the number that a text gives as its answer."""

import re
from fractions import Fraction

from fourstage.verifiers.amounts import Amount, amount, holds_number
from fourstage.verifiers.asides import is_remark, main_clause, without_brackets, without_denied, without_reason
from fourstage.verifiers.spoken import comma_decimals, spelt_out, words_as_digits
from fourstage.verifiers.text import final_part, plain

_ANSWER_CUE = re.compile(
    r"\banswers?\b(?:[^.:=\n\d]{0,40}?\b(?:is|are|be|was|equals|comes (?:out )?to)\b|\s{0,2}[:=])\s{0,3}[:=]?"
    r"(?=\W{0,20}\w)|\banswer[ \t]{1,3}(?=-?\d)|^[ \t]{0,9}(?:A|Ans)[ \t]?:(?=\W{0,20}\w)",
    re.I | re.M,
)
_UNKNOWN = re.compile(r"\b(?:un(?:known|clear|determined)|not|no|none|cannot|can't|impossible|wrong|incorrect)\b", re.I)
_UNDECIDED = re.compile(
    r"\b(?:can(?:no|')t|can not|could not|couldn't|impossible to|unable to|not possible to|no way to)"
    r" (?:\w+ ){0,2}(?:determined?|calculated?|found|find|know|known|answered?|solved?|computed?|tell|say|said)\b"
    r"|\b(?:not enough|insufficient|missing|too little) information\b",
    re.I,
)
_NONE_LEFT = re.compile(
    r"\b(?:no|zero) (?:\w+ ){1,3}(?:(?:is|are|was|were|will be) )?(?:left|remain(?:s|ing|ed)?)\b"
    r"|\b(?:none|nothing)(?: of (?:it|them|the \w+))?(?: (?:is|are|was|were|will be))? (?:left|remain(?:s|ing|ed)?)\b",
    re.I,
)
_THAT_IS = re.compile(r"\b(?:i\.e\.|that is,)(?=\s)", re.I)
_ABBREVIATION = re.compile(r"\b(?:ca|approx|e\.g|vs|mr|mrs|ms|dr|incl|resp|avg|rs)\.(?=\s)", re.I)
_STOP = re.compile(r"[.!?](?=\s|$)|\n")
_HEDGE = re.compile(
    r"\W*(?:(?:about|approximately|approx|around|roughly|exactly|just|only|now|then|thus|therefore|USD|equal to|up to"
    r"|at (?:least|most)|a total of|still|likely|probably|clearly|simply|the number)\W{1,3}){0,3}\W*",
    re.I,
)
_WITHDRAWN = re.compile(
    r"(?:^|[.!?\n])\W{0,9}(?:wait|oops|no|scratch that|correction|my mistake)\b ?[,.!:;-]"
    r"|(?<!if )(?<!whether )(?:\bi made an? (?:mistake|error)\b|\bactually,? (?:it|the answer|that)\b"
    r"|\b(?:that|this|it)(?: is|'s| was) (?:wrong|incorrect|not right)\b)",
    re.I,
)
_SECOND_GUESS = re.compile(
    r"[\s.!]{0,5}(?:or|maybe|perhaps|possibly|alternatively|it could (?:also )?be)\b[^.\n]*\d", re.I
)
_EXPLANATION = re.compile(r"\W{0,9}(?:explanation|reasoning|justification|rationale|check)\b\W{0,3}[:\n]", re.I)
_CONCLUDING = re.compile(
    r"\W{0,9}(?:so|thus|therefore|hence|in total|altogether|in all|that leaves|this leaves|there (?:are|is) now)\b",
    re.I,
)
_OUT_OF = re.compile(r"(?<![\d.,/])(\d{1,9})[ {]{1,3}out of[ }]{1,3}(?:the |every |a total of )?(\d{1,9})(?![\d/])")
_IN = re.compile(r"(?<![\d.,/])(\d{1,9}) in (\d{1,9})(?![\d/])")
_CHANCE = re.compile(r"\b(?:probability|chance|fraction|odds|likelihood|share|proportion)\b", re.I)
_BOLD = re.compile(r"(?<![\w)*])\*\*(?=\S)([^*\n]{1,80})(?<=\S)\*\*(?![\w(*])(?! ?[-+*/=])")
# $3k and 3k people, but not 3k as 3 times k
_MONEY = re.compile(r"([$\u20ac\u00a3\u00a5\u20b9] ?\d[\d,]*(?:\.\d+)?) ?(k|mn?|bn?)(?![\w$])", re.I)
_THOUSANDS = re.compile(r"(?<![\w$({=+*/^.,-])(?<!= )(\d[\d,]*(?:\.\d+)?)k(?![\w$^)}+*/=-])(?! ?[-+*/=])")
_DECIMAL_THOUSANDS = re.compile(r"(\d\.\d+)k(?![\w^])")
_EUROS = re.compile(r"(?<![\d.,])(\u20ac ?\d{1,3}|\d{1,3}(?=,\d\d ?\u20ac)),(\d\d)(?!\d)")
_MATRIX = re.compile(r"\\begin\{([a-zA-Z]?matrix|cases|array)\}.*?\\end\{\1\}", re.S)
_SCALES = {"k": "thousand", "m": "million", "b": "billion"}
_LABEL = re.compile(r"\A\s{0,9}[(\[]?[A-J][).:\]]{1,2}\s(?=\s*\S)")
_SIGN = re.compile(r"^\s*([->])\s+(?=[\d.$\\])")
_PLAIN = re.compile(r" {0,9}-?[0-9]{1,20}(?:\.[0-9]{1,20})?\.? {0,9}")  # needs no more than a glance


def final_number(text: str) -> Fraction | None:
    """The value of `final_amount`, in which 50% is 50; None where there is none."""
    found = final_amount(text)
    return None if found is None else found.value


def final_amount(text: str, decimal_comma: bool = False) -> Amount | None:
    r"""The number that is a text's final answer; None where that answer is not one number.

    It is searched for in `text.final_part`. A marked part must hold a single number, with units or words at most. In
    other text it is the number after the last "answer is" or "answer:", at once or in what follows. Without such a
    phrase it is in the last sentence with a number that is no remark, such as "You can check this": the last one there,
    or the result of the last equation, or the only one in bold. Of several numbers with "or", "and" or a comma between
    them, none is read. What does not count: numbers after "not" or "more than", those in brackets together with words,
    "because ..." and "after 5 days" at the end of a sentence, times of day and ordinals. Units and currencies are
    ignored. Number words are read in an answer without digits, and directly after "answer is". A fraction with a whole
    value, such as 48/2, is an unfinished division and not a number. With `decimal_comma`, 1.234,5 is 1234.5.

    Example: "#### 1,250" -> 1250; r"\boxed{-\frac{3}{4}}" -> -3/4; "so 2 1/2 cups." -> 5/2; "10-3" -> None.
    """
    part, is_marked = final_part(text)
    part = part if decimal_comma else _EUROS.sub(r"\1.\2", part)
    part = _MONEY.sub(lambda m: f"{m[1]} {_SCALES[m[2][0].lower()]}", part)
    if is_marked:
        return _of_marked(_signed(_DECIMAL_THOUSANDS.sub(r"\1 thousand", part), decimal_comma))
    part = _THAT_IS.sub("or", _THOUSANDS.sub(r"\1 thousand", part))
    bold = _only_bold(part)
    part = _readable(part, decimal_comma)
    persons = re.search(r"^[ \t]{0,9}B[ \t]?:", part, re.M)  # then A is one too, and no answer
    cues = [cue for cue in _ANSWER_CUE.finditer(part) if not (persons and cue[0].strip(" \t:") == "A")]
    if bold and not _ANSWER_CUE.search(part.rstrip().rpartition("\n")[2]):
        cues = []  # the last line says it in bold: an "answer" in the lines before it is of another step
    ends = [cue.start() for cue in cues[1:]] + [len(part)]
    for cue, end in list(zip(cues, ends, strict=False))[:-4:-1]:
        said = part[cue.end() : end]
        if _has_number(said):
            return _after_cue(said)
        if _UNKNOWN.search(said):
            return None
    return (_of_marked(_signed(bold, decimal_comma)) if bold else None) or _of_prose(part)


def gold_amount(answer: object, decimal_comma: bool = False) -> Amount | None:
    """The number in a row's answer, by the rules for a marked part; None where words precede it, as in June 20."""
    if answer is None or isinstance(answer, bool):
        return None
    part = _signed(final_part(str(answer))[0], decimal_comma and isinstance(answer, str))
    before = re.split(r"\d|=", part, maxsplit=1)[0]
    if not re.search(r"\d", part) or re.search("[A-Za-z]{2}", before.replace("minus", "")):
        return None
    return _of_marked(part)


def _readable(part: str, decimal_comma: bool) -> str:
    text = plain(_MATRIX.sub(r"\\matrix ", part))
    return comma_decimals(text) if decimal_comma else text


def _signed(part: str, decimal_comma: bool) -> str:
    """A marked part in plain characters: a sign that begins it is no mark of a list, which `plain` would drop."""
    return _readable(_SIGN.sub(r"\1", part), decimal_comma)


def _has_number(text: str) -> bool:
    return bool(re.search(r"\d", text) or re.search(r"\d", words_as_digits(text)))


# Marked answers


def _of_marked(part: str) -> Amount | None:
    if _PLAIN.fullmatch(part):
        return Amount(Fraction(part.strip(" .")), percent=False)
    part = _LABEL.sub("", part, count=1)
    text = spelt_out(part if re.search(r"\d", part) else words_as_digits(part))
    text = _OUT_OF.sub(r"\1/\2", text)
    found = _alone(text) or _alone(without_reason(text))
    if found:
        return found
    cue = max(_ANSWER_CUE.finditer(text), key=re.Match.start, default=None)
    return _alone(text[cue.end() :]) if cue else None


def _alone(text: str) -> Amount | None:
    """The only number of a text, in brackets with words if it is nowhere else."""
    text = without_denied(text)
    bare = without_brackets(text)
    return amount(bare if holds_number(bare) else text, alone=True)


def _only_bold(part: str) -> str | None:
    """What stands in bold in the last line, if it has a digit and nothing else there is bold or after it."""
    bolds = [bold for bold in _BOLD.finditer(part) if any(c.isdecimal() for c in bold[1])]
    if not bolds:
        return None
    last = bolds[-1]
    start = part.rfind("\n", 0, last.start()) + 1
    follows = re.search(r"[.!?]\s[^\n]*\d|\n", part[last.end() :].rstrip())
    return None if follows or (len(bolds) > 1 and bolds[-2].end() > start) else last[1]


# Prose


def _after_cue(said: str) -> Amount | None:
    """The number in what follows "answer is": in the same sentence, or else in the next ones."""
    said = _ABBREVIATION.sub(" ", said)
    sentence = _STOP.split(said.lstrip(" \t\n*:"), maxsplit=1)[0]
    rest = said[said.find(sentence) + len(sentence) :]
    withdrawn = _WITHDRAWN.search(rest)
    if withdrawn and re.search(r"\d", rest[withdrawn.end() :]):
        return _of_prose(rest[withdrawn.end() :])
    if not _has_number(without_denied(sentence)):
        return _of_prose(rest)
    return None if _SECOND_GUESS.match(rest) else _of_sentence(_begun_in_digits(sentence), first=True)


def _begun_in_digits(sentence: str) -> str:
    """The sentence in digits if it has none, or begins with words: "twenty (20) apples" is "20 apples"."""
    if not re.search(r"\d", sentence):
        return words_as_digits(sentence)
    words = re.match(r"(\W*)([A-Za-z][A-Za-z -]*)", sentence)
    digits = words_as_digits(words[2]) if words else ""
    if not words or not re.match(r"\W*\d", digits):
        return sentence
    return words[1] + digits + re.sub(r"^\W{0,3}\(\$?\d[\d.,]*%?\)", "", sentence[words.end() :])


def _of_prose(text: str) -> Amount | None:
    """The number of the last sentence that has one and is no remark; number words only count if there are no digits."""
    if not re.search(r"\d", text):
        text = _NONE_LEFT.sub("0 left", words_as_digits(text))
    first, _, rest = text.strip().partition("\n")
    if _EXPLANATION.match(rest) and re.search(r"\d", first):
        text = first
    remark = None
    for sentence in reversed(_STOP.split(_ABBREVIATION.sub(" ", text))):
        if _CONCLUDING.match(sentence) and not re.search(r"\d", sentence):
            sentence = words_as_digits(sentence)
        if not re.search(r"\d", sentence) or not holds_number(without_denied(spelt_out(sentence))):
            continue
        if not is_remark(sentence):
            return None if _UNDECIDED.search(sentence) else _of_sentence(sentence)
        remark = remark or sentence
    return _of_sentence(remark) if remark else None


def _of_sentence(sentence: str, first: bool = False) -> Amount | None:
    """The number of a sentence, without what stands beside its main clause if another number stands in that."""
    if _CHANCE.search(sentence):
        sentence = _IN.sub(r"\1/\2", _OUT_OF.sub(r"\1/\2", sentence))
    text = without_denied(spelt_out(_OUT_OF.sub(r"\1 out of those", sentence)))
    readings = map(without_brackets, (main_clause(text), text))
    reading = next((part for part in readings if holds_number(part)), text)
    hedge = _HEDGE.match(reading) if first else None
    return amount(reading, alone=False, first=hedge.end() if hedge else -1)
