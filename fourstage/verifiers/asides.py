r"""What stands in a sentence beside its answer: numbers that it denies, compares with, or only mentions."""

import re

from fourstage.verifiers.arithmetic import expression
from fourstage.verifiers.digits import NUMBER, lump

_N = rf"[+-]?(?:{NUMBER})"
_DENIAL = r"not|\w{1,9}n't|never|neither|cannot be|instead of|rather than|other than|unlike|except|anything but|besides"
_OTHER_TONGUES = (
    r"[\u4e0d\u975e][\u662f\u80fd\u5230\u7b49\u4e8e]{0,3}|\bn'(?:est|\u00e9tait) pas|\bnicht|\bno (?:es|son)"
)
_COMPARED = r"more|less|fewer|greater|larger|smaller|higher|lower"
_DENIED = re.compile(
    rf"(?<![a-z])(?:{_DENIAL})(?: (?:be|exactly|just|only|equal to|the))?(?: an?)?"
    rf"[ {{}}]{{1,4}}{_N}(?:(?:, (?:or |nor )?| or | nor ){_N}){{0,9}}"
    rf"|(?:{_OTHER_TONGUES}) ?{_N}"
    rf"|(?:n't|\bnot|\bcannot) (?:think|believe|say|sure|certain|know|tell|determine|clear)\b[^.\d\n]{{0,20}}{_N}"
    rf"|(?:(?<![\d.,:\u2009])(?:{NUMBER}) ?(?:times )?)?(?<!no )(?<!not )\b(?:{_COMPARED}) than (?:the |her |his )?{_N}"
    rf"|(?:^\W{{0,9}}|\b(?:is|are|was|has|have|just|well) )(?:over|under|above|below) {_N}"
    rf"|(?<![\d.,:\u2009]){_N} (?:is|was|would be) (?:wrong|incorrect|not\b|impossible|too [a-z]+)",
    re.I,
)
_BRACKETS = re.compile(r"\((?!(?:or )?(?:maybe|perhaps|possibly)\b)[^()\n]{1,200}\)")
_WORKED = re.compile(rf"(?<![\d.,:\u2009])({NUMBER}) ?[a-z]{{0,15}} ?\(([^()=\n]{{3,80}})\)")
_LABELLED = re.compile(
    r"\b(?:day|step|question|problem|figure|table|example|part|equation|chapter|grade|room|line|row|level|round|stage)"
    r" \d{1,4}\b(?![.,]\d)|\b(?:in|since|by|until|before|after) (?:19|20)\d\d\b(?! [a-z])"
    r"|(?:(?<=\d)|(?<=each)) {1,3}of (?:the|his|her|their|these|those) {1,3}\d{1,9}\b(?![.,]\d)",
    re.I,
)
_DURATION = re.compile(
    r"\b(?:in|after|within|during|over|every|per|each|for)(?: (?:the|only|just|about|another))?"
    rf"(?: (?:first|last|next))? (?:{NUMBER})[ -](?:second|minute|hour|day|week|month|year)s?\b",
    re.I,
)
# A clause at the end of a sentence that only explains or judges the number before it. One with an equation does more.
_CLAUSE = re.compile(
    r", (?:as|because|since) [^,\n]*$|,? (?:because|since|if|when|while|assuming|given that|in order to)\b[^,=\n]*$"
    r"|,? (?:after|before|by|without) [a-z]{2,20}ing\b[^,=\n]*$"
    r"|, (?:which|and (?:this|that)) (?:is|are|was)"
    r" (?:enough|more|less|fewer|under|over|within|about|only|just|the same|half|twice)\b.*$"
    rf"|, (?:(?:{NUMBER}) of (?:which|whom|them|these|those)|of which|including|excluding|up from|down from"
    r"|compared (?:to|with))\b[^,\n]*$",
    re.I | re.S,
)
_ADJUNCT = re.compile(
    r"\b(?:needs?|takes?|requires?|must|ha[sv]e to)\b[^,\d\n]{0,60}\d[^,\n]{0,60}?( to [a-z]{2,}\b[^,=\n]*)$"
    r"|\bthere (?:are|is|were|will be|would be) (?:now |only |about )?\d[^,=\n]{0,60}?"
    r"( (?:for|in|on|of|from|with|among|at) [^,=\n]*)$",
    re.I,
)
_REASON = re.compile(r"[,;:]? (?:because|since|as|, which)\b.*$", re.I | re.S)

# Whole sentences after the answer
_REMARK = re.compile(
    r"\W{0,9}(?:let me know|feel free|i hope|hope (?:this|that)"
    r"|if you (?:have any|need|want|would like|'d like)\b|please|thank|have a (?:nice|great|good)|do you|would you"
    r"|(?:so )?(?:we can|you can|i can|we|i have|i've|i|you|let's|let us|let me|to)? ?(?:double[- ]?|re-?)?"
    r"(?:check(?:ed|ing)?|verif\w{1,8}|confirm(?:ed)?)\b"
    r"|i(?:'m| am) (?:\d+%|sure|confident|certain|not|about)|confidence|verification|proof\b|note\b|remember\b"
    r"|(?:that|this|it)(?: is|'s) (?:enough|more than|less than|fewer than|because|why)\b)",
    re.I,
)
_SECOND_THOUGHT = re.compile(
    r"\b(?:wait|actually|instead|wrong|mistake|incorrect|no,|oops|so (?:the|it|she|he|they))\b", re.I
)


def without_denied(text: str) -> str:
    """The text with blanks for what follows "not", "isn't" or "more than"."""
    return _DENIED.sub(_blank, text)


def without_brackets(text: str) -> str:
    """The text with blanks for what stands among words, as an equation or as the sum before its result, in brackets."""
    text = _WORKED.sub(_without_work, text)
    return _BRACKETS.sub(lambda match: _blank(match) if re.search("[A-Za-z]{2}|=", match[0]) else match[0], text)


def _without_work(match: re.Match) -> str:
    """18 (9 x 2) without its bracket."""
    work = expression(match[2])
    if work is None or not work.operators or work.value != lump(match[1]):
        return match[0]
    return match[0][: match.start(2) - 1 - match.start()].ljust(len(match[0]))


def main_clause(text: str) -> str:
    """A sentence without durations, numbered days and steps, and the clause at its end that explains or judges."""
    clause = _CLAUSE.search(text) or _ADJUNCT.search(text)
    if clause:
        start = clause.start(clause.lastindex or 0)
        text = text[:start] if re.search(r"\d", text[:start]) else text
    return _LABELLED.sub(_blank, _DURATION.sub(_blank, text))


def without_reason(text: str) -> str:
    """The text up to "because", "since" or ", which"."""
    return _REASON.sub("", text)


def is_remark(sentence: str) -> bool:
    """Whether a sentence checks the answer or takes leave, and has no second thoughts."""
    return bool(_REMARK.match(sentence)) and not _SECOND_THOUGHT.search(sentence)


def _blank(match: re.Match) -> str:
    return " " * len(match[0])
