"""The verifier `math`: is the answer of a completion, in LaTeX or in prose, the same mathematics as the right one?

latex_answer.py finds the answer and latex_signs.py puts it into LaTeX. math-verify (extra `math`), guarded by
latex_same.py, decides whether both are equal, in a process that is killed at its deadline (latex_worker.py). The guards
in this file come before that; they read at most 512 characters of an answer.
"""

import functools
import importlib.util
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence

from fourstage.verifiers.latex_answer import located, of_part
from fourstage.verifiers.latex_signs import LENGTH, as_latex
from fourstage.verifiers.latex_worker import Worker
from fourstage.verifiers.text import Completions, final_part, text_of

# The most that an answer may have; in brackets, the most that any of 4,500 MATH answers has.
DEPTH = 20  # brackets within one another (3)
DIGITS = 100  # digits of one number (8)
EXPONENT = 10_000  # an exponent, or a number in an answer with a factorial (2007)
SECONDS = 2.0  # processor time of one comparison, and of reading a right answer

_TEXT = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox)\s?\{([^{}]*)\}")
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3,}")
_FUNCTION = re.compile(r"(?<![\\A-Za-z])(sqrt|pi|arcsin|arccos|arctan|sin|cos|tan|ln|log|gcd)(?![A-Za-z])")
_ATOM = re.compile(r"[-+]?(?:\d+|\\?[A-Za-z]+|.)?")


def math(completions: Completions, answer: Sequence[object], **kwargs: object) -> list[float | None]:
    r"""1.0 where math-verify calls the completion's answer equal to the row's `answer`, else 0.0.

    The answer of a completion is the part that it marks (`\boxed{}`, `####` or `<answer>`, after its last `</think>`;
    boxes that "and" or a comma joins are one list), or the text after a later "the answer is"; without a mark, what its
    last sentence with mathematics in it says. Of `answer` it is the marked part, or all of it where nothing is marked.

    An answer scores 0.0 too if the guards refuse it: over 512 characters, over 20 brackets deep, over 100 digits in a
    row, exponents over 10,000, powers of powers of powers. So does a false equation, a list for a tuple, and "not 7".

    None where a row's `answer` is missing, refused or unreadable, and where the comparison takes over 2 seconds of
    processor time, which says nothing about the answer. A reward depends on its completion and `answer` alone, not on
    its batch or on how busy the machine is.

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
    answers = [_answers(text_of(completion), right) for completion, right in zip(completions, answer, strict=True)]
    rows = list(zip(golds, answers, strict=True))
    verdicts, undecided = _decide_at_sight(rows)
    compared = _compare([(gold, answer) for gold, answers in undecided for answer in answers])
    for gold, texts in undecided:
        verdicts[gold, texts] = _best([compared[gold, text] for text in texts])
    return [verdicts[row] for row in rows]


def worker_counts() -> dict[str, int]:
    """How many comparing processes of this process's worker were lost and replaced, by cause.

    "deadline": a comparison took too long. "memory": it took too much. "died": any other cause.
    """
    return {"deadline": 0, "memory": 0, "died": 0, **_worker().counts}


# The texts that are compared


def _answers(text: str, right: object) -> tuple[str, ...]:
    """What may be the answer of a completion, in LaTeX; one that equals the right answer as text is not searched."""
    gold = _gold(right) or ""
    if text.strip() == str(right).strip():
        return (gold,)
    found = located(text)
    found = found[:1] if "," not in gold or re.fullmatch(r"[(\[].*", gold) else found  # only a list has several boxes
    texts = [latex for latex in map(_checked, found) if latex]
    if re.fullmatch(r"-?\d*\.\d+", gold):
        texts = [re.sub(r"^(-?\d+),(\d+)$", r"\1.\2", text) for text in texts]  # 2,74 as some countries write it
    if not re.search(r"(?<![\\A-Za-z])[A-Za-z]", gold):
        texts = [
            re.sub(r"(?<=[\d}])\s?(?:[mgshLNJWVKCF]|[a-z]{1,3}/[a-z]{1,3})(?:\^\{?[23]\}?)?$", "", text)
            for text in texts
        ]
    word = re.fullmatch(r"\\text\{([A-Za-z]{3,})\}", gold)
    if word:  # "The train travels east."
        said = re.compile(rf"\\text\{{(?!.*\b(?:not|or|nor|and|if|neither)\b|.*n't\b).* {word[1]}\}}", re.I)
        texts = [gold if said.fullmatch(text) else text for text in texts]
    if r"\pi" in gold:
        texts = [re.sub(r"^(\d+)\s?\^\s?\{?\s?\\circ\s?\}?$", r"\\frac{\1\\pi}{180}", text) for text in texts]
    return tuple(dict.fromkeys(texts))


def _gold(right: object) -> str | None:
    """The right answer of a row, in LaTeX; None where it is missing, neither text nor a number, or refused."""
    if isinstance(right, bool) or not isinstance(right, str | int | float) or right != right:
        return None
    return _gold_of_text(str(right))


@functools.lru_cache(maxsize=10_000)
def _gold_of_text(text: str) -> str | None:
    part, is_marked = final_part(text)
    if r"\boxed" in text or (not is_marked and len(part) > LENGTH):
        return next((latex for latex in map(_checked, located(text)) if latex), None)
    return _checked(of_part(part, is_gold=True) or part)


def _checked(text: str) -> str | None:
    """An answer as math-verify should read it; None where nothing is left or the guards refuse it."""
    latex = as_latex(text)
    return None if latex is None or refused(latex) else _as_formula(latex)


def _as_formula(text: str) -> str:
    """Functions and words of an answer as LaTeX's; 5e3 as a power of ten; 1 250 as one number; no words at the end."""
    if not set(map(str.lower, _WORD.findall(text))) - {
        "sqrt",
        "sin",
        "cos",
        "tan",
        "log",
        "arcsin",
        "arccos",
        "arctan",
        "gcd",
    }:
        text = _FUNCTION.sub(r"\\\1", text)
    text = re.sub(r"^(-?\d+(?:\.\d+)?)[eE]\+?(-?\d{1,4})$", r"\1 \\times 10^{\2}", text)
    text = text.replace(" ", "") if re.fullmatch(r"-?\d{1,3}(?: \d{3})+(?:\.\d+)?", text) else text
    if _WORD.search(text) and re.fullmatch(r"[A-Za-z ,;'-]+", text):
        return rf"\text{{{text}}}"
    return re.sub(r"(?<=\d)(?: [A-Za-z]{3,})+$", "", text)


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
    rows: Sequence[tuple[str | None, tuple[str, ...]]],
) -> tuple[dict[tuple[str | None, tuple[str, ...]], float | None], list[tuple[str, tuple[str, ...]]]]:
    """(rewards of those pairs of gold and possible answers that need no mathematics, the others, each once)."""
    verdicts: dict[tuple[str | None, tuple[str, ...]], float | None] = {}
    undecided = []
    for gold, answers in dict.fromkeys(rows):
        if gold is None:
            verdicts[gold, answers] = None
        elif _normal_form(gold) in map(_normal_form, answers):
            verdicts[gold, answers] = 1.0
        elif all(re.fullmatch(r"-?\d+", text) for text in (gold, *answers)):
            verdicts[gold, answers] = float(int(gold) in map(int, answers))
        elif all(_have_different_bases(gold, text) or re.search(r"\d\s+\d", text) for text in answers):
            verdicts[gold, answers] = 0.0
        else:
            undecided.append((gold, answers))
    return verdicts, undecided


def _best(verdicts: Sequence[bool | None]) -> float | None:
    """1.0 if one is right; None if one of the others ran out of time; else 0.0."""
    return 1.0 if True in verdicts else None if None in verdicts else 0.0


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


@functools.cache
def _worker() -> Worker:
    return Worker()


def _compare(pairs: list[tuple[str, str]]) -> dict[tuple[str, str], bool | None]:
    if not pairs:
        return {}  # no worker is needed
    before = Counter(_worker().counts)
    verdicts = _worker().compare(pairs, SECONDS)
    for cause in _worker().counts - before:
        _warn_once(cause)
    return verdicts


@functools.cache
def _warn_once(cause: str) -> None:
    events = {
        "deadline": f"a comparison took over {SECONDS:g} s of processor time and was cut off; its reward is None",
        "memory": "a comparison took too much memory; its reward is None",
        "died": "a process that compares answers died and was replaced; a comparison that ends it twice has the reward "
        "None",
    }
    warnings.warn(
        f"verifier math: {events[cause]}. This warning is given once; worker_counts() counts every case", stacklevel=2
    )
