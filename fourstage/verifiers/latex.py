"""The verifier `math`: is the answer of a completion, in LaTeX or in prose, the same mathematics as the right one?

The equality is math-verify's (extra `math`). It runs in a process that is killed at its deadline (latex_worker.py). The
guards before it, here, read at most the last 4,096 characters of a completion and 512 of its answer.
"""

import functools
import importlib.util
import re
import unicodedata
import warnings
from collections import Counter

from fourstage.verifiers.latex_worker import Worker
from fourstage.verifiers.text import final_part, text_of

LENGTH = 512  # characters of an answer; the longest of 4,500 MATH answers has 81
DEPTH = 20  # brackets within brackets; there 3
DIGITS = 100  # of one number; there 8
EXPONENT = 10_000  # also of what stands in a factorial; there 2007
SECONDS = 1.0  # processor time of one comparison; it may take 1.4 by the clock
BUDGET = 6.0  # wall seconds that the comparisons cut off may cost one call; then each still has 0.02

_SAID = re.compile(r"\banswers?\b(?:[^.:=\n]{0,60}?\b(?:is|are)\b|\s?[:=])\s?:?", re.I)
_TEXT = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox)\s?\{([^{}]*)\}")
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3,}")
_FUNCTION = re.compile(r"(?<![\\A-Za-z])(sqrt|pi|sin|cos|tan|ln|log)(?![A-Za-z])")
_SUPERSCRIPT = re.compile("[\u2070\u00b9\u00b2\u00b3\u2074-\u2079]+")
_SIGNS = str.maketrans(
    {"\u2212": "-", "\u2013": "-", "\u00d7": r"\times ", "\u00b7": r"\cdot ", "\u00f7": r"\div ", "\u03c0": r"\pi "}
    | {"\u221e": r"\infty ", "\u2264": r"\le ", "\u2265": r"\ge ", "\u00b0": r"^\circ ", "\t": " ", "\n": " "}
)


def math(completions: list, answer: list, **kwargs) -> list[float | None]:
    r"""1.0 where math-verify calls the completion's answer equal to the row's `answer`, else 0.0.

    The answer of a completion is what it marked (`plain.final_part`: `\boxed{}`, `####` or `<answer>`, after its last
    `</think>`); without a mark, what follows the last "answer is" or "answer:", else its last line. Of `answer` too it
    is what is marked, else all of it.

    0.0 also for what the guards refuse (over 512 characters, 20 brackets deep, 100 digits on end, exponents over
    10,000, three storeys of powers), and for what takes over a second to compare: None is only for a row whose
    `answer` is missing, refused or unreadable. A call loses at most some 6 seconds to the latter; comparisons after
    that are cut off sooner.

    Math-verify is lax where school is: units, degrees and percent signs do not count, 10_5 equals 10, 1/3 equals
    0.333333. Beyond it, two different number bases differ here, and equal texts are equal.

    Example: r"so it is $\boxed{\frac{2}{4}}$" against "0.5" -> 1.0; "#### 7" against "8" -> 0.0.
    Raises:
        ValueError: if math-verify is missing.
        RuntimeError: if the worker does not start.
    """
    if importlib.util.find_spec("math_verify") is None:
        raise ValueError('reward function math needs math-verify; try: pip install "fourstage[math]"')
    golds = [_gold(wanted) for wanted in answer]
    answers = [_found(text_of(completion), wanted) for completion, wanted in zip(completions, answer, strict=True)]
    pairs = list(zip(golds, answers, strict=True))
    decided = {pair: _at_sight(*pair) for pair in pairs}
    open_pairs = [pair for pair, verdict in decided.items() if verdict == "open"]
    verdicts = _compare([(_reading(gold), _reading(found)) for gold, found in open_pairs])
    decided |= zip(open_pairs, verdicts, strict=True)
    return [decided[pair] for pair in pairs]


def worker_counts() -> dict[str, int]:
    """Processes of this process's worker that ended before their time and were replaced, by cause.

    "deadline": a comparison took too long; "died": of anything else, such as a lack of memory.
    """
    return {"deadline": 0, "died": 0} | _worker().counts


# The answer of a text


def _found(text: str, wanted: object) -> str | None:
    """The answer of a completion; where that is nothing but the gold, its lines are not taken apart."""
    return _gold(wanted) if text == wanted else located(text)


def located(text: str) -> str | None:
    """The final answer of a completion, cleaned; None where there is none, or where the guards refuse it."""
    part, marked = final_part(text)
    return _clean(part if marked and not _SAID.search(part) else _said(part))


def _gold(wanted: object) -> str | None:
    if isinstance(wanted, bool) or not isinstance(wanted, str | int | float) or wanted != wanted:
        return None
    part, marked = final_part(str(wanted))
    return _clean(part if marked else str(wanted))


def _said(text: str) -> str:
    """What follows the last "answer is", up to the end of the sentence, else the last line, else its formula."""
    said = None
    for said in _SAID.finditer(text):  # noqa: B007 (the last one)
        pass
    if said is not None:
        lines = text[said.end() :].strip(" *:\n").splitlines()
        return lines[0].partition(". ")[0] if lines else ""
    lines = [line for line in text.splitlines() if line.strip()]
    last = lines[-1].strip() if lines else ""
    return text[text.rstrip("$\\] \n").rfind("\n") + 1 :] if last in ("$$", "\\]") else last


def _clean(text: str) -> str | None:
    """The same answer in ASCII signs, without invisible ones and markup; None for none, or one that is refused."""
    if len(text) > LENGTH:
        return None
    text = _SUPERSCRIPT.sub(lambda power: f"^{{{''.join(str(unicodedata.digit(d)) for d in power[0])}}}", text)
    text = "".join(
        str(unicodedata.decimal(sign)) if sign.isdecimal() else sign
        for sign in text.translate(_SIGNS)
        if unicodedata.category(sign) not in ("Cc", "Cf", "Cs", "Co", "Cn")
    )
    text = re.sub(r"(?<=\d)(?:\{,\}|,\s?\\!)\s?(?=\d{3})", "", text)  # 12{,}345 and 12,\!345
    text = text.strip().strip("*`").strip().removesuffix(".").strip()
    return None if not text or refused(text) else text


# The guards


def refused(text: str) -> bool:
    """Whether an answer is longer, deeper or larger than SymPy should see; reads it once."""
    if len(text) > LENGTH or _depth(text) > DEPTH or re.search(rf"\d{{{DIGITS + 1}}}", text):
        return True
    if re.search(r"!\s?[)\]}]{0,20}\s?!", text):  # a factorial of a factorial
        return True
    factorial = re.search(r"(?<!\\)!(?!=)", text)
    if factorial and any(int(number) > EXPONENT for number in re.findall(r"\d+", text)):
        return True
    powers = re.sub(r"\s+", "", text.replace("**", "^"))
    return any(_too_large(exponent) for exponent in _exponents(powers))


def _depth(text: str) -> int:
    depth = deepest = 0
    for sign in text:
        depth = max(depth + (sign in "([{") - (sign in ")]}"), 0)
        deepest = max(deepest, depth)
    return deepest


def _exponents(text: str):
    """What stands after each ^: a bracket, or a number or name, with the powers that follow it (9^9^9)."""
    for caret in re.finditer(r"\^", text):
        at = caret.end()
        while True:
            at = _end_of_atom(text, at)
            if text[at : at + 1] != "^":
                break
            at += 1
        yield text[caret.end() : at]


def _end_of_atom(text: str, at: int) -> int:
    if text[at : at + 1] in ("(", "{", "["):
        depth = 0
        for end in range(at, len(text)):
            depth += (text[end] in "([{") - (text[end] in ")]}")
            if depth == 0:
                return end + 1
        return len(text)
    return re.compile(r"[-+]?(?:\d+|\\?[A-Za-z]+|.)?").match(text, at).end()


def _too_large(exponent: str) -> bool:
    """Numbers over 10,000, three storeys, or a power in it of two numbers, or of a bracket, that is not small."""
    if any(int(number) > EXPONENT for number in re.findall(r"\d+", exponent)):
        return True
    inner = re.findall(r"(\d+|[A-Za-z]|.)\^[({]?[-+]?(\d+|[A-Za-z\\])", exponent)
    if exponent.count("^") != len(inner) or any("^" in above for above in _exponents(exponent)):
        return "^" in exponent
    return any(
        not base.isalpha() and power.isdecimal() and not (base.isdecimal() and _power(base, power) <= EXPONENT)
        for base, power in inner
    )


def _power(base: str, power: str) -> int:
    return int(base) ** min(int(power), 64)


# The comparison


def _at_sight(gold: str | None, found: str | None) -> float | str | None:
    """The verdict that needs no mathematics, or "open"."""
    if gold is None:
        return None
    if found is None:
        return 0.0
    if _plain(gold) == _plain(found):
        return 1.0
    bases = [set(re.findall(r"\d_\{?(\d+)", text)) for text in (gold, found)]
    return 0.0 if all(bases) and bases[0] != bases[1] else "open"


def _plain(text: str) -> str:
    """The same text without what TeX does not print, or hardly; letters of one size if it is words."""
    text = _TEXT.sub(r"\1", text.replace("dfrac", "frac").replace("tfrac", "frac"))
    text = re.sub(r"\\left(?![a-z])|\\right(?![a-z])|\\[!,;: ]|(?<!\\)\$", "", text)
    text = re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", text).removesuffix(".")
    return text.casefold() if len(text) > 2 and text.isalpha() else text


def _reading(text: str) -> str:
    """The answer as math-verify is to read it: as LaTeX, as words, or, to find a number in it, as prose."""
    if not set(map(str.lower, _WORD.findall(text))) - {"sqrt", "sin", "cos", "tan", "log"}:
        text = _FUNCTION.sub(r"\\\1", re.sub(r"(?<!\\)sqrt\s?\(([^()]*)\)", r"\\sqrt{\1}", text))
    text = re.sub(r"^(-?\d+(?:\.\d+)?)[eE]\+?(-?\d{1,4})$", r"\1 \\times 10^{\2}", text)
    text = text.replace(" ", "") if re.fullmatch(r"-?\d{1,3}(?: \d{3})+(?:\.\d+)?", text) else text
    if re.search(r"(?<!\\)\$|\\\(|\\\[", text):
        return text
    if _WORD.search(text) and re.fullmatch(r"[A-Za-z ,;'-]+", text):
        return rf"$\text{{{text}}}$"
    if "\\" not in text and _WORD.search(text):
        return text
    text = re.sub(r"(?<!\\)%", r"\\%", re.sub(r"(?: [A-Za-z]{3,})+$", "", text))
    return f"${text}$"


@functools.cache
def _worker() -> Worker:
    return Worker()


def _compare(pairs: list[tuple[str, str]]) -> list[float | None]:
    if not pairs:
        return []  # no worker is needed
    before = Counter(_worker().counts)
    verdicts = _worker().compare(pairs, SECONDS, BUDGET)
    for cause in _worker().counts - before:
        _warn_once(cause)
    return [None if verdict is None else float(verdict) for verdict in verdicts]


@functools.cache
def _warn_once(cause: str) -> None:
    what = {
        "deadline": f"a comparison took over {SECONDS:g} s and was cut off; it counts as wrong",
        "died": "the process that compares answers died, of a lack of memory perhaps, and was replaced; the comparison "
        "that it was at counts as wrong",
    }
    warnings.warn(f"verifier math: {what[cause]}. This is said once; worker_counts() counts them", stacklevel=2)
