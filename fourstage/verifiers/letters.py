"""Finds the letter that a text chooses as its answer to a question with choices."""

import re

from fourstage.verifiers.asides import is_remark, without_reason
from fourstage.verifiers.text import final_part, plain

LETTERS = "ABCDEFGHIJ"

# The words A and I are no letters, and neither is a variable. A small letter follows the word A, unless by these verbs.
_LETTER = r"(?<![A-Za-z0-9'_-])([A-J])(?![A-Za-z0-9'_-])(?! ?[+=*^<>])"
_VERBS = (
    r"is|because|since|and|or|nor|as|would|must|seems|looks|fits|works|matches|gives|makes|has|can|cannot|can't|does"
    r"|doesn't|isn't|will|over|but|rather|instead"
)
_WORD = re.compile(rf"(?<![A-Za-z0-9'_-])(?:A {{1,3}}(?!(?:{_VERBS})\b)[a-z]|I[ ,]{{1,3}}[a-z])")

# What announces the answer
_NEAR = r"[^A-Za-z0-9\n]{0,8}"
_SMALL = (
    r"([a-j])(?=\s{0,3}(?:\)|[.,]?\s{0,3}$|is (?:correct|right)|,? ?(?:because|'?cause|cuz|since)\b))(?![A-Za-z0-9'_-])"
)
_FILLER = (
    r"is|be|must|should|would|will|was|has|have|the|correct|right|best|final|letter|option|choice|answer|therefore"
    r"|clearly|definitely|for|with|but|rather|probably|likely|then|thus|to|as|indeed|simply|actually"
    r"|es|est|ist|lautet|la|le|die|der|donc|alors|also|daher|quindi|entonces|opci.n|lettre|letra|buchstabe"
    r"|correcta?|correcte|corretta|richtige?|juste|bonne"
)
_CUE = re.compile(
    r"(?:\b(?i:answers?|ans|choose|chose|pick|picked|select|selected|go(?:ing)? with|went with|opt for"
    r"|settle on|vote for|(?:correct|right|best|final|my) (?:option|choice|one|letter)"
    r"|respuesta|r.ponse|antwort|risposta|resposta)\b"
    r"|\u7b54\u6848|\u9009\u62e9?|\u9078|\u041e\u0442\u0432\u0435\u0442)[\u662f\u4e3a\u70ba\u9879]?"
    rf"{_NEAR}(?:(?i:{_FILLER})\b{_NEAR}){{0,5}}(?:{_LETTER}|{_SMALL})",
    re.M,
)
_MENTIONED = re.compile(rf"\b(?i:option|choice){_NEAR}(?:(?i:{_FILLER})\b{_NEAR}){{0,5}}(?:{_LETTER}|{_SMALL})", re.M)
_IS_RIGHT = re.compile(r"[)\]}]{0,2} (?:is|must be|seems) (?:the )?(?:clearly )?(?i:correct|right|answer|best)")
_CALLED_RIGHT = re.compile(
    rf"{_LETTER}[)\].]? (?:(?:is|(?:must|would|should|has to) be|seems|looks) (?:the |my )?"
    r"(?:(?:clearly|definitely|most|likely|probably) ){0,2}(?i:correct|right|true|answer|final answer|best|only|one\b)"
    r"|(?:fits|works|matches)\b(?! not)|is better\b|it is\b"
    r"|as the (?:correct |right )?answer)"
)
_ENDING = re.compile(
    r"(?:\b(?i:is|(?<!could )(?<!might )(?<!may )be|makes it|it's|that's|chose|so|leaves|leaving"
    r"|(?:leaves|leaving|left) (?:us )?with|thus|therefore|hence"
    r"|conclude|matches|say|says|probably|likely|correct|solution|guess|with|i\.e\.|namely)"
    rf"|[\u662f\u2192]|->|=>),?:?\s{{0,3}}(?:(?:only|just|option|choice|answer) )?"
    rf"[(\[]?{_LETTER}(?: then)?[)\].!\s]{{0,5}}$"
)
_MADE_RIGHT = re.compile(rf"\bmak(?:es|ing) [(]?{_LETTER}[)]? (?:the )?(?:correct|right|best|only|answer)\b")
_EXPLAINED = re.compile(
    rf"\b(?i:it|that|this)(?:'s| is| must be| has to be| should be) [(\[]?{_LETTER}[)\]]?,? (?:because|since|as|for)\b"
)

# What takes letters back
_LIST = rf"[(]?{_LETTER}[)]?(?:(?:,? [(]?{_LETTER}[)]?){{0,8}},? (?:and|or|nor) [(]?{_LETTER}[)]?)?"
_REFUSED = (
    r"(?:is|are|was|isn't|aren't|can't be|cannot be|seems|looks) ?(?:(?:also|clearly|both|obviously) )?"
    r"(?:not\b|n't|wrong|incorrect|false|too [a-z]+|out\b|impossible|eliminated|ruled out)"
    r"|doesn't|does not|can't|cannot|isn't|fails?\b"
)
_DENIED = re.compile(
    r",? ?(?:and )?\b(?i:not|never|neither|nor|cannot|instead of|rather than|except|anything but|everything but"
    r"|rules? out|reject|eliminat\w+|exclud\w+|discard|over|\w+n't)"
    r" (?:(?:be|the|choose|pick|select|option|choice|answer|say|think|it is|it's|go with) ){0,4}"
    rf"{_LIST}|{_LIST},? (?:{_REFUSED})|[\u4e0d\u975e][\u662f\u9009\u80fd\u4f1a]{{0,2}} ?{_LETTER}"
)
_OTHER = re.compile(
    r"[)\]}]{0,2}(?:\s?[,;/&]\s?|,? ?[(\[]?(?:or|and|nor) |,? [(](?=[A-J][)])|(?<![)\]}.:]) (?=[A-J](?:[\s,.]|$)))"
    rf"(?:(?:or|and|maybe|perhaps|possibly|even|option|choice|also) ){{0,3}}[(\[]{{0,2}}{_LETTER}"
    rf"|(?:[^.\n]{{0,60}}?\b|[)\]]?[.!?] )(?i:or|maybe|perhaps|possibly|could be|might be)\b[^.\n]{{0,20}}?{_LETTER}"
)
_CLAUSE_BEGINS = re.compile(r" (?:is|are|was|were|has|have|does|would|gives|and [A-J] (?:are|is))\b")
_ALTERNATIVE_BEFORE = re.compile(
    rf"{_LETTER}[)\]]?(?:,|/| ?&|,? (?:or|and|nor|maybe|perhaps)\b[^.\n]{{0,15}}) ?[(\[]?$"
)

_WITHDRAWN = re.compile(
    r"(?:^|[.!?\n])\W{0,9}(?i:wait|oops|scratch that|correction|my mistake|no, wait|hold on)\b ?[,.!:;-]"
    r"(?:\W{0,3}(?i:no|actually)\b[,.!:;]?)?"
)

# Options and their labels
_LABELLED = re.compile(r"\s{0,8}(?:[(\[{]([A-Ja-j])[)\]}]|([A-Ja-j])[)\]}]{1,2}|([A-Ja-j])[.:](?=\s|$))")
_MARKS = r"\s.\"'\u2713\u2714\u2705\u201c\u201d"
_ALONE = re.compile(rf"[(\[{{{_MARKS}]{{0,9}}([A-Ja-j])[)\]}},:!?\u3002{_MARKS}]{{0,9}}")
_FIRST = re.compile(r"\s{0,8}([A-J]) ?(?:,? (?:because|since|as)\b|[-\u2014,:;] )")
_BRACKETED = re.compile(r"\(([A-J])\)")
_OPTION = re.compile(
    r"(?:^|(?<=[\s.;,]))[(]?([A-J])[):](?=\s)|(?:^|(?<=[.;,!?] ))([A-J])\.(?=\s)|^([A-J]) [-\u2014](?=\s)", re.M
)
_VERDICT = r"(?:[-\u2014:(]\s?|^\W*)"
_YES = re.compile(rf"(?:{_VERDICT}(?:yes|correct|right|true)\b|[\u2713\u2714\u2705])\W*$", re.I)
_NO = re.compile(
    rf"(?:{_VERDICT}(?:no|not?\b[^.\n]{{0,40}}|wrong|incorrect|false|too [a-z]+)|[\u2717\u2718\u274c])\W*$", re.I
)


def final_letter(text: str) -> str | None:
    r"""The letter, A to J, that a text chooses; None where it chooses none, or two at once.

    In a marked part (`text.final_part`) it is the letter at the beginning, as in "B) 12", or the only one that stands
    alone. In other text it is the one after the last "answer is", "answer:", "option", "choose" or the like, in a few
    languages. Without these it is in the last line that is not blank: the letter before "is correct", or the one after
    "is" or "so" at the end of the line; then the letter with which the text begins, if it stands alone or an
    explanation follows; then the one that begins the last line, if it is not the last of a list of options, or the only
    one in parentheses; then the only option that is said to be right while others are said to be wrong. The words A and
    I, letters in words and letters that are denied ("not B", "B is too small") do not count.

    Example: "The answer is (B)." -> "B"; "#### C" -> "C"; "A dog barks." -> None; "A or B" -> None.
    """
    part, is_marked = final_part(text)
    part = _WORD.sub(lambda word: " " + word[0][1:], plain(part))
    if is_marked:
        return _marked_letter(part)
    withdrawn = max(_WITHDRAWN.finditer(part), key=re.Match.end, default=None)
    if withdrawn and re.search(_LETTER, part[withdrawn.end() :]):
        part = part[withdrawn.end() :]
    judged = _judged_option(part)
    kept = _DENIED.sub(" ", part)
    cued = _cued_letter(kept)
    if cued is not None:
        return cued or None
    lines = [line for line in kept.splitlines() if line.strip()]
    while len(lines) > 1 and is_remark(lines[-1]):
        lines.pop()
    if not lines:
        return judged
    concluded = _concluded_letter(lines[-1].rstrip())
    if concluded is not None:
        return concluded or None
    return judged or _first_letter(lines) or _last_letter(lines)


def _named(match: re.Match) -> str:
    """The letter that a match holds in one of its groups."""
    return next(group for group in match.groups() if group).upper()


def _marked_letter(part: str) -> str | None:
    part = _DENIED.sub(" ", part)
    alone = _ALONE.fullmatch(part)
    if alone:
        return alone[1].upper()
    label = _LABELLED.match(part)
    if label:
        rest = part[label.end() :]
        others = {_named(match) for match in _OPTION.finditer(rest)} | {
            _named(m) for m in [_OTHER.match(part, label.end())] if m
        }
        return None if others - {_named(label)} else _named(label)
    cued = _cued_letter(part)
    if cued is not None:
        return cued or None
    letters = set(re.findall(_LETTER, part))
    return letters.pop() if len(letters) == 1 else None


def _cued_letter(part: str) -> str | None:
    """The letter after the last cue; "" where a second letter follows it, None where there is no cue.

    An option that is only named, and not called right, counts if no letter is called the answer.
    """
    named = list(_MENTIONED.finditer(part))
    cues = [*_CUE.finditer(part), *(match for match in named if _IS_RIGHT.match(part, match.end()))]
    cue = max(cues or named, key=re.Match.end, default=None)
    if cue is None:
        return None
    return "" if _has_rival(part, cue.end(), _named(cue)) else _named(cue)


def _has_rival(part: str, end: int, letter: str) -> bool:
    """Whether another letter follows as an alternative, and not as the subject of a clause of its own."""
    other = _OTHER.match(part, end)
    if other is None or _named(other) == letter:
        return False
    return not (_CLAUSE_BEGINS.match(part, other.end()) and {",", ";"} & {*other[0]})


def _concluded_letter(line: str) -> str | None:
    """The letter that a line calls right or ends with; "" where there are two, None where there is none."""
    called = [
        *_CALLED_RIGHT.finditer(line),
        *_ENDING.finditer(line),
        *_EXPLAINED.finditer(line),
        *_MADE_RIGHT.finditer(line),
    ]
    if not called:
        return None
    letters = {match[1] for match in called}
    before = [(match[1], _ALTERNATIVE_BEFORE.search(line, 0, match.start(1))) for match in called]
    alternatives = any(other and other[1] != letter for letter, other in before)
    return letters.pop() if len(letters) == 1 and not alternatives else ""


def _first_letter(lines: list[str]) -> str | None:
    """The letter that a text begins with, alone in its line or before an explanation."""
    alone = _ALONE.fullmatch(lines[0])
    if alone and len(lines) > 1 and not (_ALONE.fullmatch(lines[1])):
        return alone[1].upper()
    first = _FIRST.match(lines[0])
    others = first and {_named(option) for option in _OPTION.finditer(lines[0], first.end(1) + 1)} - {first[1]}
    if first and not others and not _has_rival(lines[0], first.end(1), first[1]):
        return first[1]
    return None


def _last_letter(lines: list[str]) -> str | None:
    """The letter of the last line: alone, as its label, or the only one in parentheses; None at the end of a list."""
    line = lines[-1]
    alone = _ALONE.fullmatch(line)
    if alone:
        above = _ALONE.fullmatch(lines[-2]) if len(lines) > 1 else None
        return alone[1].upper() if above is None or above[1] == alone[1] else None
    label = _LABELLED.match(line)
    if label:
        letter = _named(label)
        others = {_named(option) for option in _OPTION.finditer(without_reason(line), label.end() - 1)} - {letter}
        before = [_named(match) for match in map(_LABELLED.match, lines[:-1]) if match]
        return None if others or _has_rival(line, label.end(), letter) or (before and letter not in before) else letter
    bracketed = set(_BRACKETED.findall(line))
    options = list(_OPTION.finditer(line))
    if not bracketed and len(options) == 1 and re.search(r"[.!?:]\s{1,3}$", line[: options[0].start()]):
        return _named(options[0])  # a sentence, and then "H) 2.0 atm"
    return bracketed.pop() if len(bracketed) == 1 else None


def _judged_option(part: str) -> str | None:
    """The only option that is called right, where others are called wrong: "A) 10 - no. B) 20 - yes."."""
    options = list(_OPTION.finditer(part))
    ends = [option.start() for option in options[1:]] + [len(part)]
    texts = [(_named(option), part[option.end() : end]) for option, end in zip(options, ends, strict=False)]
    right = {letter for letter, text in texts if _YES.search(text)}
    wrong = [letter for letter, text in texts if _NO.search(text)]
    return right.pop() if len(right) == 1 and wrong and len(wrong) == len(texts) - 1 else None
