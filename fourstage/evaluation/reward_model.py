"""How often a reward model agrees with held-out preferences, and whether it knows more than which answer is longer."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch.nn.utils.rnn import pad_sequence

_BINS = 10


def measure(model, tokenizer, rows: Sequence[Mapping], longer: bool, batch_size: int = 16) -> tuple[dict, list[dict]]:
    """The report of a model on `rows`, and a few of them with their scores; `longer` as in `preference_report`."""
    chosen, rejected = score_pairs(model, tokenizer, rows, batch_size)
    return preference_report(chosen, rejected, rows, longer), sample_pairs(rows, chosen, rejected)


def score_pairs(model, tokenizer, rows: Sequence[Mapping], batch_size: int = 16) -> tuple[list[float], list[float]]:
    """Scores of the chosen and of the rejected answers of `rows` (columns as of `data.load_preferences`)."""
    conversations = [row["prompt"] + row[side] for side in ("chosen", "rejected") for row in rows]
    scores = score_conversations(model, tokenizer, conversations, batch_size)
    return scores[: len(rows)], scores[len(rows) :]


@torch.no_grad()
def score_conversations(model, tokenizer, conversations: Sequence[list[dict]], batch_size: int = 16) -> list[float]:
    """One score for each list of turns, written with the chat template and padded on the right as in training."""
    model.eval()
    ids = [tokenizer.apply_chat_template(turns, return_dict=True)["input_ids"] for turns in conversations]
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
    """1.0 where `better` is above `worse`, 0.5 for a tie, else 0.0."""
    return [(b > w) + 0.5 * (b == w) for b, w in zip(better, worse, strict=True)]


def answer_lengths(rows: Iterable[Mapping]) -> tuple[list[int], list[int]]:
    """Characters of the chosen and of the rejected answers; of several turns those of the assistant."""
    sides: tuple[list[int], list[int]] = ([], [])
    for row in rows:
        for side, lengths in zip(("chosen", "rejected"), sides, strict=True):
            lengths.append(sum(len(turn["content"]) for turn in row[side] if turn["role"] == "assistant"))
    return sides


def longer_wins(rows: Iterable[Mapping]) -> bool:
    """The length-only baseline, which is chosen on training rows: whether the longer answer is the better bet."""
    wins = hits(*answer_lengths(rows))
    return sum(wins) >= len(wins) / 2


def clustered_error(values: Sequence[float], groups: Sequence) -> float:
    """Standard error of the mean of `values` where those of one group (answers to one prompt) are not independent.

    sqrt(G / (G - 1) * sum over groups of (sum of deviations)^2) / n; the usual one where every group has one value, and
    0.0 for a single group. Cameron and Miller, 2015, section II.
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
    """Expected calibration error: |share right - mean confidence| over 10 bins of confidence, weighted by their pairs.

    A pair's confidence is sigmoid(|margin|), the probability that the model gives to its own choice, from 0.5 to 1.
    Example: margins ln 3, ln 3, -ln 3 (confidence 0.75, two of three right) -> 0.083.
    """
    bins: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for margin, right in zip(margins, hits(margins, [0.0] * len(margins)), strict=True):
        confidence = 1 / (1 + math.exp(-abs(margin)))
        bins[min(int((confidence - 0.5) * 2 * _BINS), _BINS - 1)].append((right, confidence))
    return sum(abs(sum(right - confidence for right, confidence in pairs)) for pairs in bins.values()) / len(margins)


def log_loss(margins: Sequence[float]) -> float:
    """Mean of -ln sigmoid(margin) in nats; ln 2 = 0.693 for a model that knows nothing."""
    return sum(max(-m, 0.0) + math.log1p(math.exp(-abs(m))) for m in margins) / len(margins)


def preference_report(
    chosen: Sequence[float], rejected: Sequence[float], rows: Sequence[Mapping], longer: bool
) -> dict[str, float | str]:
    """The numbers of a reward model on held-out pairs, flat, for run.json.

    Standard errors count the prompts, not the pairs. `above_length_baseline` is the difference to the length-only
    baseline `longer` (see `longer_wins`), pair by pair. A `warning` is there if it is not two standard errors above 0.
    """
    right, margins = hits(chosen, rejected), [c - r for c, r in zip(chosen, rejected, strict=True)]
    prompts = [str(row["prompt"]) for row in rows]
    lengths = answer_lengths(rows)
    baseline = hits(*lengths) if longer else hits(*reversed(lengths))
    above = [model - length for model, length in zip(right, baseline, strict=True)]
    report: dict[str, float | str] = {"reward_pairs": len(rows), "reward_prompts": len(set(prompts))}
    named = {"reward_accuracy": right, "reward_margin": margins}
    named |= {"length_baseline_accuracy": baseline, "above_length_baseline": above}
    for name, values in named.items():
        report[name] = sum(values) / len(values)
        report[f"{name}_stderr"] = clustered_error(values, prompts)
    report["reward_calibration_error"] = calibration_error(margins)
    report["reward_log_loss"] = log_loss(margins)
    report["length_baseline"] = "longer wins" if longer else "shorter wins"
    for kind in sorted({row["kind"] for row in rows if row.get("kind")}):
        of_kind = [value for value, row in zip(right, rows, strict=True) if row.get("kind") == kind]
        report |= {f"accuracy/{kind}": sum(of_kind) / len(of_kind), f"pairs/{kind}": len(of_kind)}
    above_two_errors = report["above_length_baseline"] > 2 * report["above_length_baseline_stderr"]
    if report["reward_prompts"] < 2 or not above_two_errors:
        report["warning"] = (
            f"the model ({report['reward_accuracy']:.1%}) does not beat the rule that the "
            f"{report['length_baseline'].replace('wins', 'answer wins')} ({report['length_baseline_accuracy']:.1%}) by "
            "two standard errors; tuning a policy against it may only change the length of its answers"
        )
    return report


def describe_report(report: Mapping) -> str:
    """For people: the report in a few lines."""

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


def sample_pairs(rows: Sequence[Mapping], chosen: Sequence[float], rejected: Sequence[float], count: int = 4) -> list:
    """A few pairs with their scores, evenly spaced, for samples.jsonl and the model card."""
    return [
        {
            "prompt": rows[i]["prompt"][-1]["content"],
            "completion": rows[i]["chosen"][-1]["content"],
            "score": chosen[i],
            "rejected": rows[i]["rejected"][-1]["content"],
            "rejected_score": rejected[i],
        }
        for i in range(0, len(rows), max(1, -(-len(rows) // count)))
    ]
