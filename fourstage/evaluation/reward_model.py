"""How often a reward model agrees with held-out preferences, and whether it knows more than which answer is longer."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fourstage.models.encoding import conversation_ids
from fourstage.models.turns import template_settings

_BINS = 10


def measure(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Mapping],
    longer: bool,
    batch_size: int = 16,
) -> tuple[dict, list[dict]]:
    """The report of a reward model on `rows`, and a few rows with their scores; `longer` as in `preference_report`."""
    chosen, rejected = score_pairs(model, tokenizer, rows, batch_size)
    return preference_report(chosen, rejected, rows, longer), sample_pairs(rows, chosen, rejected)


def score_pairs(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Mapping], batch_size: int = 16
) -> tuple[list[float], list[float]]:
    """Scores of the chosen and of the rejected answers of `rows` (columns: see `data.loading.load_preferences`)."""
    conversations = [row["prompt"] + row[side] for side in ("chosen", "rejected") for row in rows]
    settings = [template_settings(row) for row in rows] * 2
    scores = score_conversations(model, tokenizer, conversations, batch_size, settings)
    return scores[: len(rows)], scores[len(rows) :]


@torch.no_grad()
def score_conversations(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[list[dict]],
    batch_size: int = 16,
    settings: Sequence[Mapping] | None = None,
) -> list[float]:
    """One score for each list of turns, written with the chat template and padded on the right as in training.

    `settings` are those of `conversation_ids` for each list, such as the tools of a row.
    """
    model.eval()
    options = settings or [{}] * len(conversations)
    ids = [conversation_ids(tokenizer, turns, **each) for turns, each in zip(conversations, options, strict=True)]
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))  # little padding within a batch
    scores = [math.nan] * len(ids)
    for first in range(0, len(order), batch_size):
        batch = order[first : first + batch_size]
        rows = [torch.tensor(ids[i], device=model.device) for i in batch]
        tokens = pad_sequence(rows, batch_first=True, padding_value=tokenizer.pad_token_id)
        mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        logits = model(input_ids=tokens, attention_mask=mask, use_cache=False).logits
        for i, score in zip(batch, logits[:, 0].float().tolist(), strict=True):
            scores[i] = score
    return scores


def hits(better: Sequence[float], worse: Sequence[float]) -> list[float]:
    """1.0 for each pair in which `better` is above `worse`, 0.5 for a tie, else 0.0."""
    return [(b > w) + 0.5 * (b == w) for b, w in zip(better, worse, strict=True)]


def answer_lengths(rows: Iterable[Mapping]) -> tuple[list[int], list[int]]:
    """Characters of the chosen and of the rejected answers: of the assistant's turns, with their calls of tools."""
    sides: tuple[list[int], list[int]] = ([], [])
    for row in rows:
        for side, lengths in zip(("chosen", "rejected"), sides, strict=True):
            lengths.append(sum(len(_said(turn)) for turn in row[side] if turn["role"] == "assistant"))
    return sides


def _said(turn: Mapping) -> str:
    """The text of a turn and of its calls of tools."""
    return (turn["content"] or "") + (turn.get("tool_calls") or "")


def longer_wins(rows: Iterable[Mapping]) -> bool:
    """The length-only baseline, chosen on training rows: whether the longer answer wins at least half the pairs."""
    wins = hits(*answer_lengths(rows))
    return sum(wins) >= len(wins) / 2


def clustered_error(values: Sequence[float], groups: Sequence) -> float:
    """Standard error of the mean of `values`, which depend on each other within a group (answers to one prompt).

    sqrt(G / (G - 1) * sum over the G groups of (sum of deviations)^2) / n. It equals the usual standard error if every
    group has one value, and is 0.0 for a single group. Source: Cameron and Miller, 2015, section II.
    Example: values 1, 1, 0, 0 in groups a, a, b, b -> 0.5, as if there were two values.
    """
    mean = sum(values) / len(values)
    sums: dict = defaultdict(float)
    for value, group in zip(values, groups, strict=True):
        sums[group] += value - mean
    if len(sums) < 2:
        return 0.0
    return math.sqrt(len(sums) / (len(sums) - 1) * sum(s * s for s in sums.values())) / len(values)


def calibration_error(margins: Sequence[float]) -> float:
    """Expected calibration error: |share right - mean confidence|, averaged over 10 bins weighted by their pairs.

    A pair's confidence is sigmoid(|margin|), the probability that the model gives to its own choice, from 0.5 to 1.
    Example: margins ln 3, ln 3, -ln 3 (confidence 0.75, two of three right) -> 0.083.
    """
    bins: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for margin, right in zip(margins, hits(margins, [0.0] * len(margins)), strict=True):
        confidence = 1 / (1 + math.exp(-abs(margin)))
        bins[min(int((confidence - 0.5) * 2 * _BINS), _BINS - 1)].append((right, confidence))
    return sum(abs(sum(right - confidence for right, confidence in pairs)) for pairs in bins.values()) / len(margins)


def log_loss(margins: Sequence[float]) -> float:
    """Mean of -ln sigmoid(margin) in nats; ln 2 = 0.693 if all margins are 0."""
    return sum(max(-m, 0.0) + math.log1p(math.exp(-abs(m))) for m in margins) / len(margins)


def preference_report(
    chosen: Sequence[float], rejected: Sequence[float], rows: Sequence[Mapping], longer: bool
) -> dict[str, float | str]:
    """The metrics of a reward model on held-out pairs, flat, for run.json.

    Standard errors count the prompts, not the pairs. `above_length_baseline` is the accuracy minus that of the
    length-only baseline `longer` (see `longer_wins`), pair by pair. The report has a `warning` unless this difference
    is more than two standard errors above 0.
    """
    right, margins = hits(chosen, rejected), [c - r for c, r in zip(chosen, rejected, strict=True)]
    prompts = [str(row["prompt"]) for row in rows]
    lengths = answer_lengths(rows)
    baseline = hits(*lengths) if longer else hits(*reversed(lengths))
    above = [model - length for model, length in zip(right, baseline, strict=True)]
    metrics: dict[str, float] = {"reward_pairs": len(rows), "reward_prompts": len(set(prompts))}
    series = {"reward_accuracy": right, "reward_margin": margins}
    series |= {"length_baseline_accuracy": baseline, "above_length_baseline": above}
    for name, values in series.items():
        metrics[name] = sum(values) / len(values)
        metrics[f"{name}_stderr"] = clustered_error(values, prompts)
    metrics["reward_calibration_error"] = calibration_error(margins)
    metrics["reward_log_loss"] = log_loss(margins)
    report: dict[str, float | str] = {**metrics, "length_baseline": "longer wins" if longer else "shorter wins"}
    for kind in sorted({row["kind"] for row in rows if row.get("kind")}):
        of_kind = [value for value, row in zip(right, rows, strict=True) if row.get("kind") == kind]
        report |= {f"accuracy/{kind}": sum(of_kind) / len(of_kind), f"pairs/{kind}": len(of_kind)}
    above_two_errors = metrics["above_length_baseline"] > 2 * metrics["above_length_baseline_stderr"]
    if metrics["reward_prompts"] < 2 or not above_two_errors:
        report["warning"] = (
            f"the model ({metrics['reward_accuracy']:.1%}) does not beat the rule that the "
            f"{'longer' if longer else 'shorter'} answer wins ({metrics['length_baseline_accuracy']:.1%}) by two "
            "standard errors; tuning a policy against it may only change the length of its answers"
        )
    return report


def describe_report(report: Mapping) -> str:
    """The report in a few lines of text."""

    def share(name: str, unit: str = "%") -> str:
        return f"{100 * report[name]:.1f} {unit} ± {100 * report[f'{name}_stderr']:.1f}"

    lines = [
        f"{report['reward_pairs']:,} held-out pairs of {report['reward_prompts']:,} prompts: "
        f"{share('reward_accuracy')} right",
        f"  margin {report['reward_margin']:.2f} ± {report['reward_margin_stderr']:.2f}, "
        f"calibration error {report['reward_calibration_error']:.3f}, log loss {report['reward_log_loss']:.3f} "
        f"(of a coin: {math.log(2):.3f})",
        f"  length alone ({report['length_baseline']}): {share('length_baseline_accuracy')} right; "
        f"the model is {share('above_length_baseline', 'points')} above",
    ]
    kinds = [name.removeprefix("pairs/") for name in report if name.startswith("pairs/")]
    lines += [f"  {kind}: {report[f'accuracy/{kind}']:.1%} of {report[f'pairs/{kind}']:,} right" for kind in kinds]
    lines += [f"WARNING: {report['warning']}"] if "warning" in report else []
    return "\n".join(lines)


def sample_pairs(
    rows: Sequence[Mapping], chosen: Sequence[float], rejected: Sequence[float], count: int = 4
) -> list[dict]:
    """A few pairs with their scores, evenly spaced, for samples.jsonl and the model card."""
    return [
        {
            "prompt": rows[i]["prompt"][-1]["content"],
            "completion": _said(rows[i]["chosen"][-1]),
            "score": chosen[i],
            "rejected": _said(rows[i]["rejected"][-1]),
            "rejected_score": rejected[i],
        }
        for i in range(0, len(rows), max(1, -(-len(rows) // count)))
    ]
