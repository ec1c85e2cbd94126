"""How often a reward model agrees with the choices of people."""

import io
import json
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial
from pathlib import Path

import datasets
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from fourstage.arguments import DataArguments, restored
from fourstage.data.lengths import drop_overlong, pair_tokens
from fourstage.data.loading import fingerprint, held_out_rows, load_preferences
from fourstage.evaluation.reward_model import clustered_error, hits, score_pairs
from fourstage.models.checkpoint import open_classifier
from fourstage.models.facts import context_of
from fourstage.models.opening import open_tokenizer
from fourstage.parent import find_parent
from fourstage.speaking import note, visible

_OTHER_DATA = "its run names other data"
_HELD_OUT = "those that its own training held out"
_MAYBE_SEEN = "it was trained on some of these, or on a file of the same name, so this may flatter it"
_UNKNOWN = "whether it was trained on some of these is not known: it has no run.json"


def score(name: str, path: Path) -> dict:
    """{"model", "pairs", "prompts", "overlong", "share", "stderr", "which"}: the share of pairs in which the reward
    model puts the chosen answer above the rejected one, a tie counting half.

    A model that was trained on this very file, as it is now, is asked about the pairs that it held out. `which` says
    in words what the pairs are to it. The standard error counts prompts, not pairs; it is None for a single one.
    Raises:
        ValueError: for what is no reward model, and where no pair is ready or short enough.
    """
    datasets.disable_progress_bars()
    logging.disable_progress_bar()
    record = find_parent(name).record
    tokenizer = open_tokenizer(name)
    model = open_classifier(name, note).to(torch.accelerator.current_accelerator(check_available=True) or "cpu")
    with redirect_stdout(io.StringIO()):  # what is left out stands in the statistics already
        rows, which = _rows(record, path, tokenizer)
        total = len(rows)
        longest = _settings(record).get("max_length") or min(context_of(model) or 1024, 1024)
        kept = list(drop_overlong(rows, partial(pair_tokens, tokenizer), longest, "drop", str(path)))
    right = hits(*score_pairs(model, tokenizer, kept))
    prompts = [json.dumps(row["prompt"]) for row in kept]
    return {
        "model": name,
        "pairs": len(kept),
        "prompts": len({*prompts}),
        "overlong": total - len(kept),
        "share": sum(right) / len(right),
        "stderr": clustered_error(right, prompts) if len({*prompts}) > 1 else None,
        "which": which,
    }


def _settings(record: Mapping | None) -> Mapping:
    return record["arguments"]["training"] if record else {}


def _rows(record: Mapping | None, path: Path, tokenizer: PreTrainedTokenizerBase) -> tuple[Dataset, str]:
    """The pairs to score, read as the model's run would read them, and what they are to it."""
    data_args = restored(DataArguments, record["arguments"]["data"]) if record else DataArguments()
    sources = data_args.datasets or [{"dataset_name": data_args.dataset_name or ""}]
    if record and len(sources) == 1:
        held_out = _held_out(record, replace(data_args, dataset_name=str(path), datasets=None), tokenizer)
        if held_out is not None:
            return held_out, _HELD_OUT
    is_named = any(Path(source["dataset_name"]).name == path.name for source in sources)
    which = _UNKNOWN if record is None else _MAYBE_SEEN if is_named else _OTHER_DATA
    asked = DataArguments(fold_system=data_args.fold_system)
    rows = held_out_rows("reward", str(path), asked, 0, tokenizer=tokenizer)
    assert isinstance(rows, Dataset)
    return rows, which


def _held_out(record: Mapping, data_args: DataArguments, tokenizer: PreTrainedTokenizerBase) -> Dataset | None:
    """The pairs that a run held out; None if these are not the rows that it read, wherever they lay then: with other
    rows, such as later ones, others are held out.
    """
    try:
        train, test = load_preferences(data_args, record["seed"], tokenizer)
    except ValueError:
        return None
    return test if record["data"] == {"train": fingerprint(train), "test": fingerprint(test)} else None


def describe_scored(found: Mapping) -> str:
    """The score in one line."""
    error = "" if found["stderr"] is None else f" ± {100 * found['stderr']:.1f}"
    overlong = f"; {found['overlong']:,} more are too long for it" if found["overlong"] else ""
    return (
        f"reward model {visible(found['model'])}: {100 * found['share']:.1f} %{error} of {found['pairs']:,} pairs of "
        f"{found['prompts']:,} prompts as the people chose; {found['which']}{overlong}"
    )
