"""The numbers of the stage table: bits per byte, exact match, pass@k, and whether answers end."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import datasets
import evaluate

from fourstage import verifiers
from fourstage.evaluation.generation import answer_questions, text_nats


class BitsPerByte(evaluate.Metric):
    """Sum of nats over ln 2 and UTF-8 bytes: comparable between tokenizers, and with compressors such as xz.

    Example: 2 texts of 10 bytes in all that cost 13.863 nats -> 2.0 bits per byte.
    """

    def _info(self):
        features = datasets.Features({"predictions": datasets.Value("float64"), "references": datasets.Value("int64")})
        return evaluate.MetricInfo(
            description=self.__doc__, citation="", inputs_description="nats and bytes of each text", features=features
        )

    def _compute(self, predictions, references):
        return {"bits_per_byte": sum(predictions) / math.log(2) / sum(references)}


class ExactMatch(evaluate.Metric):
    """Share of answers that equal the reference, apart from case, outer white space and a final full stop.

    Example: "Paris. " against "paris" counts, "Paris, France" does not.
    """

    def _info(self):
        features = datasets.Features({"predictions": datasets.Value("string"), "references": datasets.Value("string")})
        return evaluate.MetricInfo(
            description=self.__doc__, citation="", inputs_description="answers and references", features=features
        )

    def _compute(self, predictions, references):
        hits = [_plain(p) == _plain(r) for p, r in zip(predictions, references, strict=True)]
        return {"exact_match": sum(hits) / len(hits), "exact_match_stderr": standard_error(hits)}


class PassAtK(evaluate.Metric):
    """Chance that at least one of k samples of a problem is right, without bias (arXiv 2107.03374, eq. 1).

    Predictions are how many samples of each problem are right, references how many there are; k is at most the least.

    Example: 10 samples of which 3 are right, k = 2 -> 1 - C(7, 2) / C(10, 2) = 0.533.
    """

    def _info(self):
        features = datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")})
        return evaluate.MetricInfo(
            description=self.__doc__, citation="", inputs_description="right samples and samples", features=features
        )

    def _compute(self, predictions, references, k=1):
        chances = [pass_at_k(n, c, k) for c, n in zip(predictions, references, strict=True)]
        return {f"pass@{k}": sum(chances) / len(chances), f"pass@{k}_stderr": standard_error(chances)}


def pass_at_k(n: int, c: int, k: int) -> float:
    """1 - C(n - c, k) / C(n, k) for n samples of which c are right; raises ValueError for k above n."""
    if not 1 <= k <= n:
        raise ValueError(f"k={k} must be between 1 and the {n} samples of a problem")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def _plain(text: str) -> str:
    return text.strip().lower().removesuffix(".").strip()


def standard_error(values: Sequence[float]) -> float:
    """Standard error of the mean, with n - 1 in the variance; 0.0 for fewer than two values."""
    if len(values) < 2:
        return 0.0
    mean = sum(values) / len(values)
    return math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values))


def bits_per_byte(model, tokenizer, texts: Iterable[str], window: int) -> float:
    """Bits per byte over `texts`, each read by itself in windows of `window` tokens (see `text_nats`)."""
    metric = BitsPerByte()
    for text in texts:
        metric.add(prediction=text_nats(model, tokenizer, text, window), reference=len(text.encode("utf-8")))
    return metric.compute()["bits_per_byte"]


def score_answers(model, tokenizer, conversations: Sequence[dict], max_new_tokens: int = 128) -> tuple[dict, list]:
    """Held-out answers against their references: exact match, share that ends by itself, length.

    `conversations` are rows with `prompt` and `completion`; the first answer is asked for. Exact match is taken over
    references of at most three words, for which one answer is right. Returns the metrics and the answers themselves.
    """
    prompts, references = [], []
    for row in conversations:
        first = next(i for i, turn in enumerate(row["completion"]) if turn["role"] == "assistant")
        prompts.append(row["prompt"] + row["completion"][:first])
        references.append(row["completion"][first]["content"])
    answers = answer_questions(model, tokenizer, prompts, max_new_tokens)
    for answer, reference in zip(answers, references, strict=True):
        answer["reference"] = reference
    ended = [a["stopped"] and bool(a["completion"].strip()) for a in answers]
    lengths = [len(tokenizer(r, add_special_tokens=False)["input_ids"]) + 1 for r in references]
    metrics = {
        "answers": len(answers),
        "ended": sum(ended) / len(ended),
        "ended_stderr": standard_error(ended),
        "mean_tokens": sum(a["tokens"] for a in answers) / len(answers),
        "reference_mean_tokens": sum(lengths) / len(lengths),
    }
    short = [a for a in answers if len(a["reference"].split()) <= 3]
    if short:
        predictions, wanted = [a["completion"] for a in short], [a["reference"] for a in short]
        metrics |= {"exact_match_n": len(short), **ExactMatch().compute(predictions=predictions, references=wanted)}
    return metrics, answers


@dataclass
class ProblemSettings:
    """How problems are asked and checked.

    Args:
        verifier: says whether an answer is right, 1.0 where it is, None where that cannot be told.
        format_func: says whether it is in the form wanted; none: every answer is.
        begin: the text that forces the form, such as "<think>".
        samples: answers of each problem at `temperature`.
    """

    verifier: Callable
    format_func: Callable | None = None
    begin: str = ""
    samples: int = 4
    temperature: float = 1.0
    max_new_tokens: int = 128


def score_problems(model, tokenizer, problems: Sequence[dict], settings: ProblemSettings) -> tuple[dict, list[dict]]:
    """Held-out problems: accuracy (pass@1) greedy, with the form forced, and sampled; pass@k; form and derivations.

    `problems` are rows of `load_problems`. Standard errors are over problems, of which those that the verifier cannot
    score are left out. Returns the metrics and, for each problem, the greedy answer with `right`, `in_format`,
    `derivation_right`, `forced` (that answer), `forced_right`, `forced_derivation_right` and `samples_right`.
    """
    problems = [row for row in problems if settings.verifier([""], **_columns([row]))[0] is not None]
    if not problems:
        raise ValueError("no row can be scored by the verifier; choose another --reward_funcs, or other rows")
    prompts = [row["prompt"] for row in problems]
    rows = answer_questions(model, tokenizer, prompts, settings.max_new_tokens)
    for row, problem in zip(rows, problems, strict=True):
        row["reference"] = str(problem.get("answer", problem.get("target")))
    _check(rows, problems, settings, "")
    if settings.begin:
        forced = answer_questions(model, tokenizer, prompts, settings.max_new_tokens, begin=settings.begin)
        _check(forced, problems, settings, "forced_")
        for row, answer in zip(rows, forced, strict=True):
            row |= {key: answer[key] for key in answer if key.startswith("forced_")} | {"forced": answer["completion"]}
    if settings.samples:
        _sample(model, tokenizer, problems, settings, rows)
    return _problem_metrics(rows, settings), rows


def _sample(model, tokenizer, problems: Sequence[dict], settings: ProblemSettings, rows: list[dict]) -> None:
    """Adds to every row how many of its sampled answers are right, and their share in the form wanted."""
    repeated = [row for row in problems for _ in range(settings.samples)]
    prompts = [row["prompt"] for row in repeated]
    sampled = answer_questions(model, tokenizer, prompts, settings.max_new_tokens, settings.temperature)
    _check(sampled, repeated, settings, "")
    for i, row in enumerate(rows):
        mine = sampled[i * settings.samples : (i + 1) * settings.samples]
        row["samples_right"] = sum(s["right"] for s in mine)
        row["samples_in_format"] = sum(s["in_format"] for s in mine) / len(mine)


def _columns(problems: Sequence[dict]) -> dict[str, list]:
    return {name: [row[name] for row in problems] for name in problems[0] if name != "prompt"}


def _check(answers: list[dict], problems: Sequence[dict], settings: ProblemSettings, name: str) -> None:
    """Adds to every answer whether it is right, in the form wanted, and right in every step that can be checked."""
    texts, columns = [a["completion"] for a in answers], _columns(problems)
    right = [reward == 1.0 for reward in settings.verifier(texts, **columns)]
    formed = settings.format_func(texts, **columns) if settings.format_func else [1.0] * len(texts)
    steps = verifiers.steps(texts, **columns)
    for answer, is_right, form, step in zip(answers, right, formed, steps, strict=True):
        answer |= {f"{name}right": is_right, f"{name}in_format": form == 1.0}
        answer[f"{name}derivation_right"] = is_right and step == 1.0


def _problem_metrics(rows: list[dict], settings: ProblemSettings) -> dict:
    names = ["right", "in_format", "derivation_right", "forced_right", "forced_derivation_right", "stopped"]
    metrics: dict = {"problems": len(rows)}
    for name in (name for name in names if name in rows[0]):
        values = [float(row[name]) for row in rows]
        metrics |= {name: sum(values) / len(values), f"{name}_stderr": standard_error(values)}
    if settings.samples:
        right, n = [row["samples_right"] for row in rows], settings.samples
        for k in sorted({1, n} | {2**i for i in range(n.bit_length()) if 2**i <= n}):
            found = PassAtK().compute(predictions=right, references=[n] * len(rows), k=k)
            metrics |= {f"sampled_{name}": value for name, value in found.items()}
        metrics["sampled_in_format"] = sum(row["samples_in_format"] for row in rows) / len(rows)
    return metrics
