"""The metrics of the stage table: bits per byte, exact match, pass@k, and whether answers end."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import evaluate
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fourstage import verifiers
from fourstage.evaluation.generation import answer_questions, bits_per_byte_of, text_nats
from fourstage.models.encoding import generation_opening
from fourstage.verifiers.calls import call_reward

# As TRL calls them: texts and the columns of the data as keyword lists; one number an answer, None if it has no score.
RewardFunction = Callable[..., Sequence[float | None]]


def _metric_info(metric: evaluate.Metric, inputs: str, **types: str) -> evaluate.MetricInfo:
    features = datasets.Features({name: datasets.Value(kind) for name, kind in types.items()})
    return evaluate.MetricInfo(
        description=metric.__doc__ or "", citation="", inputs_description=inputs, features=features
    )


class BitsPerByte(evaluate.Metric):
    """Sum of nats / ln 2 / UTF-8 bytes: comparable between tokenizers, and with compressors such as xz.

    Example: 2 texts of 10 bytes in all that cost 13.863 nats -> 2.0 bits per byte.
    """

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features({"predictions": datasets.Value("float64"), "references": datasets.Value("int64")})
        return evaluate.MetricInfo(
            description=self.__doc__ or "",
            citation="",
            inputs_description="nats and bytes of each text",
            features=features,
        )

    def _compute(
        self, *, predictions: Sequence[float] = (), references: Sequence[int] = (), **kwargs
    ) -> dict[str, float]:
        return {"bits_per_byte": bits_per_byte_of(sum(predictions), sum(references))}


class ExactMatch(evaluate.Metric):
    """Share of answers that equal the reference, ignoring case, outer white space and a final full stop.

    Example: "Paris. " against "paris" counts, "Paris, France" does not.
    """

    def _info(self) -> evaluate.MetricInfo:
        return _metric_info(self, "answers and references", predictions="string", references="string")

    def _compute(
        self, *, predictions: Sequence[str] = (), references: Sequence[str] = (), **kwargs
    ) -> dict[str, float]:
        matches = [_normalised(p) == _normalised(r) for p, r in zip(predictions, references, strict=True)]
        return {"exact_match": sum(matches) / len(matches), "exact_match_stderr": standard_error(matches)}


class PassAtK(evaluate.Metric):
    """Unbiased estimate of the chance that one or more of k samples of a problem are right (arXiv 2107.03374, eq. 1).

    Predictions are the counts of right samples, one a problem; references the counts of samples. k may not exceed the
    smallest of these.

    Example: 10 samples of which 3 are right, k = 2 -> 1 - C(7, 2) / C(10, 2) = 0.533.
    """

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")})
        return evaluate.MetricInfo(
            description=self.__doc__ or "",
            citation="",
            inputs_description="right samples and samples",
            features=features,
        )

    def _compute(
        self, *, predictions: Sequence[int] = (), references: Sequence[int] = (), k: int = 1, **kwargs
    ) -> dict[str, float]:
        chances = [pass_at_k(n, c, k) for c, n in zip(predictions, references, strict=True)]
        return {f"pass@{k}": sum(chances) / len(chances), f"pass@{k}_stderr": standard_error(chances)}


def pass_at_k(n: int, c: int, k: int) -> float:
    """1 - C(n - c, k) / C(n, k) for n samples of which c are right; raises ValueError unless 1 <= k <= n."""
    if not 1 <= k <= n:
        raise ValueError(f"k={k} must be between 1 and {n}, the number of samples of a problem")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def _normalised(text: str) -> str:
    return text.strip().lower().removesuffix(".").strip()


def standard_error(values: Sequence[float]) -> float:
    """Standard error of the mean, with n - 1 in the variance; 0.0 for fewer than two values."""
    if len(values) < 2:
        return 0.0
    mean = sum(values) / len(values)
    return math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values))


def bits_per_byte(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], window: int
) -> float:
    """Bits per byte over `texts`, each read by itself in windows of `window` tokens (see `text_nats`)."""
    metric = BitsPerByte()
    for text in texts:
        metric.add(prediction=text_nats(model, tokenizer, text, window), reference=len(text.encode("utf-8")))
    return _computed(metric)["bits_per_byte"]


def _computed(metric: evaluate.Metric, **inputs: Any) -> dict[str, float]:
    values = metric.compute(**inputs)
    assert values is not None  # only the other processes of a distributed metric get None, and ours is not distributed
    return values


def score_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[dict],
    max_new_tokens: int = 128,
) -> tuple[dict, list[dict]]:
    """Held-out answers against their references: exact match, share that ends by itself, length in tokens.

    `conversations` are rows with `prompt` and `completion`, of which the first answer is asked for. Exact match counts
    references of at most three words only: longer ones have more than one right answer. Returns the metrics and the
    answers.
    """
    prompts, references = [], []
    for row in conversations:
        first = next(i for i, turn in enumerate(row["completion"]) if turn["role"] == "assistant")
        prompts.append(row["prompt"] + row["completion"][:first])
        references.append(row["completion"][first]["content"])
    answers = answer_questions(model, tokenizer, prompts, max_new_tokens)
    for answer, reference in zip(answers, references, strict=True):
        answer["reference"] = reference
    ended = [answer["stopped"] and bool(answer["completion"].strip()) for answer in answers]
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
        pairs = {"predictions": [a["completion"] for a in short], "references": [a["reference"] for a in short]}
        metrics |= {"exact_match_n": len(short), **_computed(ExactMatch(), **pairs)}
    return metrics, answers


@dataclass
class ProblemSettings:
    """How problems are asked and checked.

    Args:
        verifier: a reward function: 1.0 for a right answer, None for one that it cannot score.
        format_func: a reward function: 1.0 for an answer in the desired form. Without it every answer counts as such.
        begin: the text that forces the form, such as "<think>".
        samples: answers sampled for each problem at `temperature`.
        max_new_tokens: the longest answer.
    """

    verifier: RewardFunction
    format_func: RewardFunction | None = None
    begin: str = ""
    samples: int = 4
    temperature: float = 1.0
    max_new_tokens: int = 128


def score_problems(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[dict],
    settings: ProblemSettings,
) -> tuple[dict, list[dict]]:
    """Held-out problems: accuracy (pass@1) greedy, with the form forced, and sampled; pass@k; form and derivations.

    `problems` are rows of `load_problems`; those that the verifier cannot score are left out. Standard errors are over
    problems. Returns the metrics and, for each problem, the greedy answer with `right`, `in_format`,
    `derivation_right`, `forced` (the answer with the form forced), `forced_right`, `forced_derivation_right` and
    `samples_right`.
    Raises:
        ValueError: if the verifier can score none of the problems.
    """
    problems = [row for row in problems if _rewards(settings.verifier, [""], [row])[0] is not None]
    if not problems:
        raise ValueError("no row can be scored by the verifier; choose another --reward_funcs, or other rows")
    prompts = [row["prompt"] for row in problems]
    rows = answer_questions(model, tokenizer, prompts, settings.max_new_tokens)
    for row, problem in zip(rows, problems, strict=True):
        row["reference"] = str(problem.get("answer", problem.get("target")))
    opening = generation_opening(tokenizer)
    _check(rows, problems, settings, "", opening)
    begin = settings.begin.removeprefix(opening)  # what the template has written need not be forced
    if begin:
        forced = answer_questions(model, tokenizer, prompts, settings.max_new_tokens, begin=begin)
        _check(forced, problems, settings, "forced_", opening)
        for row, answer in zip(rows, forced, strict=True):
            row |= {key: answer[key] for key in answer if key.startswith("forced_")} | {"forced": answer["completion"]}
    if settings.samples:
        _sample(model, tokenizer, problems, settings, rows)
    return _problem_metrics(rows, settings), rows


def _sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[dict],
    settings: ProblemSettings,
    rows: list[dict],
) -> None:
    """Adds to every row how many of its sampled answers are right, and which share has the desired form."""
    repeated = [row for row in problems for _ in range(settings.samples)]
    prompts = [row["prompt"] for row in repeated]
    sampled = answer_questions(model, tokenizer, prompts, settings.max_new_tokens, settings.temperature)
    _check(sampled, repeated, settings, "", generation_opening(tokenizer))
    for i, row in enumerate(rows):
        samples = sampled[i * settings.samples : (i + 1) * settings.samples]
        row["samples_right"] = sum(sample["right"] for sample in samples)
        row["samples_in_format"] = sum(sample["in_format"] for sample in samples) / len(samples)


def _rewards(function: Callable, completions: list[str], problems: Sequence[dict], opening: str = "") -> list:
    columns = {name: [row[name] for row in problems] for name in problems[0] if name != "prompt"}
    rewards = call_reward(function, completions, columns, opening, [row["prompt"] for row in problems])
    if len(rewards) != len(completions):
        name = getattr(function, "__name__", type(function).__name__)
        raise ValueError(f"{name} gave {len(rewards)} rewards for {len(completions)} answers; each needs one")
    return rewards


def _check(answers: list[dict], problems: Sequence[dict], settings: ProblemSettings, name: str, opening: str) -> None:
    """Adds to every answer whether it is right, in the desired form, and right in every step that can be checked.

    `opening` is what the chat template wrote before the answers; fourstage's own verifiers see it too.
    """
    texts = [answer["completion"] for answer in answers]
    right = [reward == 1.0 for reward in _rewards(settings.verifier, texts, problems, opening)]
    forms: list = [1.0] * len(texts)
    if settings.format_func:
        forms = _rewards(settings.format_func, texts, problems, opening)
    steps = _rewards(verifiers.steps, texts, problems, opening)
    for answer, is_right, form, step in zip(answers, right, forms, steps, strict=True):
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
            chances = _computed(PassAtK(), predictions=right, references=[n] * len(rows), k=k)
            metrics |= {f"sampled_{name}": value for name, value in chances.items()}
        metrics["sampled_in_format"] = sum(row["samples_in_format"] for row in rows) / len(rows)
    return metrics
