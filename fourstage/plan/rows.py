"""How much a run reads: rows, tokens and the longest row, from data that lie on this machine."""

import contextlib
import io
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

from datasets import Dataset, disable_progress_bars

from fourstage.data.encoded import encode_conversations, encode_pairs
from fourstage.data.files import files_of
from fourstage.data.lengths import prompt_tokens
from fourstage.data.loading import (
    load_conversations,
    load_preferences,
    load_problems,
    load_prompts,
    load_texts,
    texts_of,
)
from fourstage.data.sources import sources
from fourstage.models.facts import context_of
from fourstage.models.loading import load_config, load_tokenizer
from fourstage.plan.recipe import Settings
from fourstage.ppo.ptx import load_ptx

_READ_UP_TO = 100_000_000  # bytes of files that are read and tokenized to see their lengths
_BYTES_PER_TOKEN = 4  # of English text with a vocabulary of tens of thousands


@dataclass
class Amount:
    """Rows of a stage and their lengths in tokens; None where nothing is known without reading or downloading more.

    Args:
        rows: of training; of packed text, rows of max_length tokens. longest, mean: of a row, or with PPO and GRPO of a
            prompt. exact: whether they were counted. ptx: the longest row of PPO-ptx.
    """

    rows: int | None = None
    longest: int | None = None
    mean: float | None = None
    exact: bool = False
    ptx: int | None = None


def amount_of(settings: Settings) -> Amount:
    """Reads what is on this machine as the recipe would; nothing is downloaded.

    Raises:
        ValueError: whatever the recipe refuses about its data.
    """
    disable_progress_bars()
    size = _local_bytes(settings)
    if size is None or settings.data.dataset_streaming:
        return Amount()
    if settings.stage == "pretrain":
        tokens = size / _BYTES_PER_TOKEN
        if size <= _READ_UP_TO:
            tokens = sum(len(text.encode()) for text in texts_of(_quietly(settings, None))) / _BYTES_PER_TOKEN
        length = settings.training.max_length
        return Amount(max(1, round(tokens / length)), length, length)
    return _counted(settings) if size <= _READ_UP_TO else Amount()


def _counted(settings: Settings) -> Amount:
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            tokenizer, _ = load_tokenizer(settings.model, chats=True)
        except ValueError:  # config.json may be all there is
            tokenizer = None
    data = _quietly(settings, tokenizer)
    if tokenizer is None or not isinstance(data, Dataset):
        return Amount(len(data) if isinstance(data, Dataset) else None)
    with contextlib.redirect_stdout(io.StringIO()):
        if settings.stage == "sft":
            rows = cast(Dataset, encode_conversations(tokenizer, data, settings.training, "train"))
            lengths = [len(ids) for ids in rows["input_ids"]]
        elif settings.stage == "reward":
            rows = cast(Dataset, encode_pairs(tokenizer, data, settings.training, "train"))
            lengths = [len(ids) for side in ("chosen_ids", "rejected_ids") for ids in rows[side]]
        else:
            lengths = data.map(
                lambda batch: {"tokens": prompt_tokens(tokenizer, batch)},
                batched=True,
                remove_columns=data.column_names,
            )["tokens"]
            return Amount(len(data), max(lengths), sum(lengths) / len(lengths), True, _longest_ptx(settings, tokenizer))
    return Amount(len(rows), max(lengths), sum(lengths) / len(lengths), True)


def _longest_ptx(settings: Settings, tokenizer: Any) -> int | None:
    name = getattr(settings.training, "ptx_dataset_name", None)
    size = _bytes_of(name) if name else None
    if size is None or size > _READ_UP_TO:
        return None
    rows = load_ptx(settings.training, settings.data, tokenizer, context_of(load_config(settings.model)))
    return max(map(len, rows["input_ids"])) if rows is not None else None


def _quietly(settings: Settings, tokenizer: Any) -> Any:
    data, training = settings.data, settings.training
    load: Any = {
        "pretrain": partial(load_texts, text_field=getattr(training, "dataset_text_field", "text")),
        "sft": partial(load_conversations, tokenizer=tokenizer),
        "reward": partial(load_preferences, tokenizer=tokenizer),
        "ppo": partial(load_prompts, tokenizer=tokenizer),
        "grpo": lambda data, seed: load_problems(data, seed, [], training, tokenizer),
    }[settings.stage]
    with contextlib.redirect_stdout(io.StringIO()):
        return load(data, training.seed)[0]


def _local_bytes(settings: Settings) -> int | None:
    """Bytes of the files; None for data that would be downloaded or that cannot be told."""
    sizes = [_bytes_of(source["dataset_name"]) for source in sources(settings.data, settings.stage)]
    return None if None in sizes else sum(size for size in sizes if size)


def _bytes_of(name: str) -> int | None:
    path = Path(name)
    if name == "fourstage/demo" or (name.startswith("reasoning-gym/") and not path.exists()):
        return 0
    return sum(file.stat().st_size for file in files_of(path)) if path.exists() else None
