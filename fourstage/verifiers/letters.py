"""Finds the letter that a text chooses as its answer to a question with choices."""

import re

from fourstage.verifiers.text import final_part, plain

# The word A before a small letter is an article, unless one of these follows: "A is right".
_LETTER = r"(?<![\w'-])([A-E])(?![\w'-])(?!\+)"
_ARTICLE = re.compile(r"A {1,3}(?!(?:is|because|since|and|or|as|would|must)\b)[a-z]")
_NEAR = r"[^A-Za-z0-9\n]{0,8}"
_CUE = re.compile(
    rf"\b(?i:answer|ans|option|choice|choose|pick|select){_NEAR}"
    rf"(?:(?i:is|be|must|should|would|the|correct|right|letter|option|choice|answer|therefore|clearly)\b{_NEAR}){{0,5}}"
    r"(?<![\w'-])(?:([A-E])|([a-e])(?=\s{0,3}(?:\)|[.]?\s{0,3}$|is (?:correct|right))))(?![\w'-])",
    re.M,
)
_CALLED_RIGHT = re.compile(rf"{_LETTER}[)\]]? (?:is|must be) (?:the )?(?:correct|right|answer|best|true)")
_LEADING = re.compile(r"\s{0,8}[(\[{]{0,2}([A-Ea-e])(?:[)\]}]{1,2}|[.:](?=\s|$)|\s{0,3}$)")
_OTHER = re.compile(rf"[)\]}}\s,./&]{{0,4}}(?:(?:or|and|nor) {{1,3}})?[(\[]?{_LETTER}")
_NEGATED = re.compile(rf",? (?:and )?not (?:(?:option|choice) )?[(]?{_LETTER}[)]?")
_ENDING = re.compile(rf"\b(?:is|it's|chose|so|leaves|thus|therefore|hence),? {{1,3}}[(\[]?{_LETTER}[)\].\s]{{0,5}}$")
_BRACKETED = re.compile(r"\(([A-E])\)")


def final_letter(text: str) -> str | None:
    r"""The letter, A to E, that a text chooses; None where it chooses none, or two at once.

    In a marked part (`text.final_part`) it is the letter at the beginning, as in "B) 12", or the only one that stands
    alone. In other text it is the one after the last "answer is", "answer:", "option" or "choose". Without these, it is
    in the last line that is not blank: the letter before "is correct", or the one after "is" or "so" at the end of the
    line; otherwise the one that begins the line, or the only one in parentheses. The article A, letters in words and
    letters after "not" do not count.

    Example: "The answer is (B)." -> "B"; "#### C" -> "C"; "A dog barks." -> None; "A or B" -> None.
    """
    part, is_marked = final_part(text)
    part = _NEGATED.sub(" ", plain(part))
    cued = _cued_letter(part)
    if is_marked:
        return _marked_letter(part, cued)
    if cued is None:
        return _letter_of_last_line(part)
    return cued or None


def _marked_letter(part: str, cued: str | None) -> str | None:
    letters = set(re.findall(_LETTER, _ARTICLE.sub(" ", part)))
    leading = _LEADING.match(part)
    if leading and letters <= {leading[1].upper()}:
        return leading[1].upper()
    if cued is not None:
        return cued or None
    return letters.pop() if len(letters) == 1 else None


def _cued_letter(part: str) -> str | None:
    """The letter after the last cue; "" where a second letter follows it, None where there is no cue."""
    cue = None
    for match in _CUE.finditer(part):
        if not (match[1] and _ARTICLE.match(part, match.start(1))):
            cue = match
    if cue is None:
        return None
    letter = (cue[1] or cue[2]).upper()
    other = _OTHER.match(part, cue.end())
    return "" if other and other[1] != letter else letter


def _letter_of_last_line(part: str) -> str | None:
    lines = [line for line in part.splitlines() if line.strip()]
    line = lines[-1] if lines else ""
    called = set(_CALLED_RIGHT.findall(line))
    leading = _LEADING.match(line)
    bracketed = set(_BRACKETED.findall(line))
    ending = _ENDING.search(line.rstrip())
    if called or ending:
        called |= {ending[1]} if ending else set()
        return called.pop() if len(called) == 1 else None
    if leading:
        others = set(re.findall(_LETTER, line[leading.end() :])) - {leading[1].upper()}
        return None if others else leading[1].upper()
    return bracketed.pop() if len(bracketed) == 1 else None
