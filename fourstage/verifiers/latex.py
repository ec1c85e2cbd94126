"""The verifier `math`: is the answer of a completion, in LaTeX or in prose, the same mathematics as the right one?

math-verify (extra `math`) decides whether they are equal, in a process that is killed at its deadline
(latex_worker.py). The guards in this file come first; they read at most the last 4,096 characters of a completion and
512 of its answer.
"""

import functools
import importlib.util
import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence

from fourstage.verifiers.latex_worker import Worker
from fourstage.verifiers.text import Completions, final_part, text_of

# The most that an answer may have; in brackets, the most that any of 4,500 MATH answers has.
LENGTH = 512  # characters (81)
DEPTH = 20  # brackets within one another (3)
DIGITS = 100  # digits of one number (8)
EXPONENT = 10_000  # an exponent, or a number in an answer with a factorial (2007)
SECONDS = 1.0  # processor time of one comparison; on the clock it may take 1.4 times as long
BUDGET = 6.0  # wall seconds that one call may lose to comparisons cut off; after that each still has 0.02

_ANSWER_CUE = re.compile(r"\banswers?\b(?:[^.:=\n]{0,60}?\b(?:is|are)\b|\s?[:=])\s?:?", re.I)
_TEXT = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox)\s?\{([^{}]*)\}")
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3,}")
_FUNCTION = re.compile(r"(?<![\\A-Za-z])(sqrt|pi|sin|cos|tan|ln|log)(?![A-Za-z])")
_ATOM = re.compile(r"[-+]?(?:\d+|\\?[A-Za-z]+|.)?")
_SUPERSCRIPT = re.compile("[\u2070\u00b9\u00b2\u00b3\u2074-\u2079]+")
_SIGNS = str.maketrans(
    {"\u2212": "-", "\u2013": "-", "\u00d7": r"\times ", "\u00b7": r"\cdot ", "\u00f7": r"\div ", "\u03c0": r"\pi "}
    | {"\u221e": r"\infty ", "\u2264": r"\le ", "\u2265": r"\ge ", "\u00b0": r"^\circ ", "\t": " ", "\n": " "}
)


def math(completions: Completions, answer: Sequence[object], **kwargs: object) -> list[float | None]:
    r"""1.0 where math-verify calls the completion's answer equal to the row's `answer`, else 0.0.

    The answer of a completion is the part that it marks (`text.final_part`: `\boxed{}`, `####` or `<answer>`, after its
    last `</think>`); without a mark, the text after the last "answer is" or "answer:", or otherwise its last line. Of
    `answer` it is the marked part, or all of it where nothing is marked.

    An answer scores 0.0 too if the guards refuse it (over 512 characters, over 20 brackets deep, over 100 digits in a
    row, exponents over 10,000, powers of powers of powers), or if the comparison takes over a second. None is only for
    a row whose `answer` is missing, refused or unreadable. A call loses about 6 seconds at most to slow comparisons;
    those after that are cut off sooner.

    Math-verify is lenient: it ignores units, degrees and percent signs, 10_5 equals 10, and 1/3 equals 0.333333. Two
    rules are ours: numbers with different bases differ, and equal texts are always equal.

    Example: r"so it is $\boxed{\frac{2}{4}}$" against "0.5" -> 1.0; "#### 7" against "8" -> 0.0.
    Raises:
        ValueError: if math-verify is missing.
        RuntimeError: if the worker does not start.
    """
    if importlib.util.find_spec("math_verify") is None:
        raise ValueError('reward function math needs math-verify; try: pip install "fourstage[math]"')
    golds = [_gold(right) for right in answer]
    answers = [_answer(text_of(completion), right) for completion, right in zip(completions, answer, strict=True)]
    pairs = list(zip(golds, answers, strict=True))
    verdicts, undecided = _decide_at_sight(pairs)
    compared = _compare([(_as_latex(gold), _as_latex(answer)) for gold, answer in undecided])
    verdicts |= zip(undecided, compared, strict=True)
    return [verdicts[pair] for pair in pairs]


def worker_counts() -> dict[str, int]:
    """How many comparing processes of this process's worker were lost and replaced, by cause.

    "deadline": a comparison took too long. "died": any other cause, such as a lack of memory.
    """
    return {"deadline": 0, "died": 0, **_worker().counts}


# The answer of a text


def _answer(text: str, right: object) -> str | None:
    """The answer of a completion; one that is the right answer, word for word, is not searched for a last line."""
    return _gold(right) if text == right else located(text)


def located(text: str) -> str | None:
    """The final answer of a completion, cleaned; None where there is none or the guards refuse it."""
    part, is_marked = final_part(text)
    return _clean(part if is_marked and not _ANSWER_CUE.search(part) else _unmarked_answer(part))


def _gold(right: object) -> str | None:
    """The right answer of a row, cleaned; None where it is missing, neither text nor a number, or refused."""
    if isinstance(right, bool) or not isinstance(right, str | int | float) or right != right:
        return None
    part, is_marked = final_part(str(right))
    return _clean(part if is_marked else str(right))


def _unmarked_answer(text: str) -> str:
    """What follows the last "answer is" in its sentence; otherwise the last line, or the formula that it closes."""
    cue = max(_ANSWER_CUE.finditer(text), key=re.Match.start, default=None)
    if cue is not None:
        lines = text[cue.end() :].strip(" *:\n").splitlines()
        return lines[0].partition(". ")[0] if lines else ""
    lines = [line for line in text.splitlines() if line.strip()]
    last = lines[-1].strip() if lines else ""
    return text[text.rstrip("$\\] \n").rfind("\n") + 1 :] if last in ("$$", "\\]") else last


def _clean(text: str) -> str | None:
    """The answer in ASCII, without invisible signs and markup; None where nothing is left or the guards refuse it."""
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
    """Whether an answer is longer, more deeply nested or larger than SymPy should see."""
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


def _exponents(text: str) -> Iterator[str]:
    """The exponent after each ^: a bracket, a number or a name, with the powers that follow it (9^9^9)."""
    for caret in re.finditer(r"\^", text):
        end = _end_of_atom(text, caret.end())
        while text[end : end + 1] == "^":
            end = _end_of_atom(text, end + 1)
        yield text[caret.end() : end]


def _end_of_atom(text: str, start: int) -> int:
    """Where the bracket, number, name or single sign that begins at `start` ends."""
    if text[start : start + 1] in ("(", "{", "["):
        depth = 0
        for end in range(start, len(text)):
            depth += (text[end] in "([{") - (text[end] in ")]}")
            if depth == 0:
                return end + 1
        return len(text)
    atom = _ATOM.match(text, start)
    return atom.end() if atom else start


def _too_large(exponent: str) -> bool:
    """Whether an exponent has a number over 10,000, powers of powers, or a power that is not known to be small."""
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


def _decide_at_sight(
    pairs: Sequence[tuple[str | None, str | None]],
) -> tuple[dict[tuple[str | None, str | None], float | None], list[tuple[str, str]]]:
    """(verdicts of those pairs of gold and answer that need no mathematics, the other pairs, each once)."""
    verdicts: dict[tuple[str | None, str | None], float | None] = {}
    undecided = []
    for gold, answer in dict.fromkeys(pairs):
        if gold is None:
            verdicts[gold, answer] = None
        elif answer is None:
            verdicts[gold, answer] = 0.0
        elif _normal_form(gold) == _normal_form(answer):
            verdicts[gold, answer] = 1.0
        elif _have_different_bases(gold, answer):
            verdicts[gold, answer] = 0.0
        else:
            undecided.append((gold, answer))
    return verdicts, undecided


def _have_different_bases(gold: str, answer: str) -> bool:
    """Whether both have numbers with a base, such as 10_5, and the bases differ."""
    gold_bases, answer_bases = (set(re.findall(r"\d_\{?(\d+)", text)) for text in (gold, answer))
    return bool(gold_bases and answer_bases) and gold_bases != answer_bases


def _normal_form(text: str) -> str:
    """The text without what TeX does not print, or hardly prints; a single word in lower case."""
    text = _TEXT.sub(r"\1", text.replace("dfrac", "frac").replace("tfrac", "frac"))
    text = re.sub(r"\\left(?![a-z])|\\right(?![a-z])|\\[!,;: ]|(?<!\\)\$", "", text)
    text = re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", text).removesuffix(".")
    return text.casefold() if len(text) > 2 and text.isalpha() else text


def _as_latex(text: str) -> str:
    """The answer as math-verify should read it: as LaTeX, as words, or as prose in which it looks for a number."""
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
    events = {
        "deadline": f"a comparison took over {SECONDS:g} s and was cut off; it counts as wrong",
        "died": "the process that compares answers died, perhaps of a lack of memory, and was replaced; its comparison "
        "counts as wrong",
    }
    warnings.warn(
        f"verifier math: {events[cause]}. This warning is given once; worker_counts() counts every case", stacklevel=2
    )
