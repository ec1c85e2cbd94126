"""What became of a round: how far its reward models agree with the person, and the answers before and after."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed
from transformers.utils import logging

from fourstage.arguments import DataArguments, restored
from fourstage.data.loading import held_out_rows
from fourstage.evaluation.generation import answer_questions, sequence_log_probs
from fourstage.evaluation.metrics import standard_error
from fourstage.evaluation.reward_model import hits, score_conversations, score_pairs
from fourstage.models.checkpoint import open_causal_lm, open_classifier
from fourstage.models.encoding import conversation_ids
from fourstage.models.opening import open_tokenizer
from fourstage.parent import read_record
from fourstage.prefer.record import read_choices
from fourstage.prefer.rounds import FOLDS, Round, fold_of, held_out_agreement
from fourstage.prefer.statistics import statistics
from fourstage.rl.decoding import quick_generation
from fourstage.speaking import note

_PROMPTS = 200  # held out, answered before and after
_AT_ONCE = 64


def unseen_scores(of: Round) -> tuple[list[float], list[float]]:
    """Scores of the chosen and of the rejected answer of every pair, by the reward model of the fold without it."""
    logging.disable_progress_bar()
    places = fold_of(of.pairs)
    chosen, rejected = [0.0] * len(places), [0.0] * len(places)
    for number in of.folds():
        own = [i for i, fold in enumerate(places) if fold == number]
        model, tokenizer = _reward_model(of, number)
        for i, above, below in zip(own, *score_pairs(model, tokenizer, [of.pairs[i] for i in own]), strict=True):
            chosen[i], rejected[i] = above, below
    return chosen, rejected


def followed(of: Round, parent: Path, most_prompts: int = _PROMPTS) -> dict[str, Any]:
    """The figures of the report on a round.

    Args:
        parent: the model that the person chose answers of, from which PPO began.
        most_prompts: held-out prompts that both models answer.
    Returns:
        `choices` (those of `statistics`), `agreement` (that of `held_out_agreement`), `pairs` with their scores, and if
        PPO has finished `likelier`, `prompts` with both answers, and `preferred`, greedy and sampled; else None there.
        Shares have `mean`, `stderr` and `n`.
    """
    chosen, rejected = unseen_scores(of)
    pairs = [
        {
            "prompt": _last(row["prompt"]),
            "chosen": _last(row["chosen"]),
            "rejected": _last(row["rejected"]),
            "scores": s,
        }
        for row, s in zip(of.pairs, zip(chosen, rejected, strict=True), strict=True)
    ]
    found: dict[str, Any] = {
        "choices": statistics(read_choices(of.choices)),
        "agreement": held_out_agreement(chosen, rejected),
        "folds": FOLDS,
        "pairs": pairs,
        "likelier": None,
        "prompts": None,
        "preferred": None,
    }
    record = read_record(of.folder / "ppo")
    if record and record["status"] == "finished":
        _add_answers(found, of, parent, record, most_prompts)
    return found


def _add_answers(found: dict[str, Any], of: Round, parent: Path, record: dict, most: int) -> None:
    """The part of the figures that compares the model before with the one after."""
    models = {
        name: open_causal_lm(str(path), note) for name, path in (("before", parent), ("after", of.folder / "ppo"))
    }
    tokenizer = open_tokenizer(of.folder / "ppo")
    gaps = {name: _gaps(model, tokenizer, of.pairs) for name, model in models.items()}
    for pair, before, after in zip(found["pairs"], gaps["before"], gaps["after"], strict=True):
        pair["gaps"] = (before, after)
    found["likelier"] = _share([float(b < a) for b, a in zip(gaps["before"], gaps["after"], strict=True)])
    data_args = restored(DataArguments, record["arguments"]["data"])
    rows = held_out_rows("ppo", None, data_args, record["seed"], tokenizer=tokenizer).take(most)
    prompts = [row["prompt"] for row in rows]
    longest = record["arguments"]["training"]["max_completion_length"]
    answers = {
        (kind, name): _answers(model, tokenizer, prompts, longest, temperature)
        for kind, temperature in (("greedy", 0.0), ("sampled", 1.0))
        for name, model in models.items()
    }
    found["prompts"] = [
        {"prompt": _last(prompt), "before": before, "after": after}
        for prompt, before, after in zip(prompts, answers["greedy", "before"], answers["greedy", "after"], strict=True)
    ]
    found["preferred"] = {
        kind: _share(_preferred(of, prompts, answers[kind, "before"], answers[kind, "after"]))
        for kind in ("greedy", "sampled")
    }


def _preferred(of: Round, prompts: Sequence[list[dict]], before: Sequence[str], after: Sequence[str]) -> list[float]:
    """For each prompt the share of the folds' reward models that score the answer after above that before.

    Equal scores, such as those of equal answers, count half.
    """
    votes = []
    for number in of.folds():
        model, tokenizer = _reward_model(of, number)
        sides = [[[*p, _turn(a)] for p, a in zip(prompts, said, strict=True)] for said in (after, before)]
        votes.append(hits(*(score_conversations(model, tokenizer, side) for side in sides)))
    return [fmean(of_prompt) for of_prompt in zip(*votes, strict=True)]


def _answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list, longest: int, temperature: float
) -> list[str]:
    set_seed(0)
    with quick_generation(model):
        rows = answer_questions(model, tokenizer, prompts, longest, temperature, batch_size=_AT_ONCE)
    return [row["completion"] for row in rows]


def _gaps(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[dict]) -> list[float]:
    """By how many nats the model finds the chosen answer likelier than the rejected one, each with its end."""
    prompts = [conversation_ids(tokenizer, row["prompt"], add_generation_prompt=True) for row in pairs]
    logps = []
    for side in ("chosen", "rejected"):
        whole = [conversation_ids(tokenizer, row["prompt"] + row[side]) for row in pairs]
        answers = [ids[len(prompt) :] for ids, prompt in zip(whole, prompts, strict=True)]
        logps.append(sequence_log_probs(model, prompts, answers))
    return [a - b for a, b in zip(*logps, strict=True)]


def _reward_model(of: Round, number: int) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    folder = of.fold(number) / "reward"
    return open_classifier(str(folder), note), open_tokenizer(folder)


def _turn(answer: str) -> dict:
    return {"role": "assistant", "content": answer}


def _last(turns: Sequence[dict]) -> str:
    return str(turns[-1]["content"])


def _share(values: Sequence[float]) -> dict[str, Any]:
    return {"mean": fmean(values), "stderr": standard_error(values), "n": len(values)}
