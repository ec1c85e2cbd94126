"""Stage 1: TRL's SFTTrainer with the model's own loss for plain text, and Muon beside AdamW."""

import math
from collections.abc import Iterable
from functools import partial
from itertools import tee
from typing import Any, cast

import torch
from datasets import Dataset, IterableDataset
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer
from trl import SFTTrainer

from fourstage.arguments import PretrainConfig
from fourstage.data.packed import collate_packed, packed_rows, packs_here
from fourstage.data.sources import Rows
from fourstage.evaluation.generation import bits_per_byte_of
from fourstage.models.encoding import encode_texts
from fourstage.models.markers import Markers
from fourstage.optim import MuonWithAdamW, fill_rates, parameter_groups


class PretrainTrainer(SFTTrainer):
    """SFTTrainer (TRL 1.16) for rows of packed text.

    Three things differ. The loss is the model's own: TRL's fused head recomputes the logits in the backward pass and
    adds entropy and accuracy to every step, which takes a third of the time of a small model. The optimizer is
    `MuonWithAdamW` unless `use_muon` is off. Evaluations report bits per byte, by which models with different
    tokenizers can be compared.

    Args:
        args, kwargs: as in SFTTrainer, with an `eval_dataset`; the settings are a PretrainConfig.
        bytes_per_token: UTF-8 bytes of a token of the evaluation's texts, on average (see `bytes_per_token`).
        keep_markers: let a special token that is spelt out in a document be the token; otherwise it is plain text.
    """

    args: PretrainConfig  # transformers declares the class of all trainers' settings

    def __init__(self, *args: Any, bytes_per_token: float, keep_markers: bool = False, **kwargs: Any):
        tokenizer, texts = (
            kwargs["processing_class"],
            {name: kwargs[name] for name in ("train_dataset", "eval_dataset")},
        )
        packs = packs_here(kwargs["args"])
        if packs:
            given = kwargs["args"].dataset_kwargs or {}
            kwargs["args"].dataset_kwargs = {**given, "skip_prepare_dataset": True}
        super().__init__(*args, **(kwargs if keep_markers or packs else kwargs | _with_plain_markers(**kwargs)))
        self.processing_class = tokenizer  # the one to save
        if packs:
            rows = packed_rows(texts, tokenizer, self.args, keep_markers)
            self.train_dataset, self.eval_dataset = rows["train_dataset"], rows["eval_dataset"]
            self.data_collator = partial(collate_packed, self.data_collator)
        fill_rates(self.args, scaled_init=False, random_weights=False)  # the smaller rates, where none were given
        self.bytes_per_token = bytes_per_token
        rows, held_out = self.args.max_eval_rows, cast(Dataset | IterableDataset, self.eval_dataset)
        if isinstance(held_out, IterableDataset) or len(held_out) > rows:
            self.eval_dataset = held_out.take(rows)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor | Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The model's own loss; for mixtures of experts TRL's, which adds that of the routers."""
        if self.aux_loss_enabled:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        inputs["use_cache"] = False
        return Trainer.compute_loss(self, model, inputs, return_outputs, num_items_in_batch)

    def create_optimizer(self, model: nn.Module | None = None) -> Optimizer:
        """`MuonWithAdamW`, or with `use_muon` off the optimizer that `--optim` names."""
        if self.optimizer is None and self.args.use_muon:
            self.optimizer = MuonWithAdamW(parameter_groups(cast(PreTrainedModel, self.model), self.args))
        return self.optimizer or super().create_optimizer(model)

    def create_scheduler(self, num_training_steps: int, optimizer: Optimizer | None = None) -> LRScheduler:
        """The scheduler; warmup_stable_decay falls linearly to zero over the last `decay_ratio` of the steps."""
        if self.args.lr_scheduler_type == "warmup_stable_decay" and not self.args.lr_scheduler_kwargs:
            decay = math.ceil(num_training_steps * self.args.decay_ratio)
            self.args.lr_scheduler_kwargs = {"num_decay_steps": decay, "decay_type": "linear", "min_lr_ratio": 0.0}
        return super().create_scheduler(num_training_steps, optimizer)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds bits per byte to the logs of evaluations."""
        if "eval_loss" in logs:
            logs["eval_bits_per_byte"] = bits_per_byte_of(logs["eval_loss"], self.bytes_per_token)
        super().log(logs, start_time)


def _with_plain_markers(
    train_dataset: Rows, eval_dataset: Rows, processing_class: PreTrainedTokenizerBase, **kwargs: Any
) -> dict[str, Any]:
    """The texts with their markers broken, and the tokenizer that reads them; nothing where no text has a marker."""
    markers = Markers(processing_class)
    parts = {"train_dataset": train_dataset, "eval_dataset": eval_dataset}
    if not all("text" in (rows.column_names or ["text"]) for rows in parts.values()):  # they came as ids
        return {}
    count = sum(markers.found_in(row["text"]) for rows in parts.values() if isinstance(rows, Dataset) for row in rows)
    if not count and isinstance(train_dataset, Dataset):
        return {}
    if count:
        print(
            f"{count:,} documents spell out special tokens; they are read as plain text (--keep_markers: as the tokens)"
        )

    def broken(row: dict) -> dict:
        return {"text": markers.broken(row["text"])}

    return {name: rows.map(broken, features=rows.features) for name, rows in parts.items()} | {
        "processing_class": markers.reader
    }


def bytes_per_token(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> float:
    """UTF-8 bytes of the texts per token; the end token of each document counts as one."""
    size = tokens = 0
    counted, encoded = tee(texts)
    for text, ids in zip(counted, encode_texts(tokenizer, encoded, split_special_tokens=True), strict=True):
        size += len(text.encode("utf-8"))
        tokens += len(ids) + 1
    return size / tokens


def packing_strategy(attn_implementation: str | None) -> str:
    """`bfd_split` if flash attention keeps packed documents apart at no cost, else `wrapped`.

    Best-fit packing turns a batch into one long row without padding, with which plain attention on a CPU takes 4 to 5
    times as long per step. Both split long documents and lose no token.
    """
    flash = "flash" in (attn_implementation or "")
    return "bfd_split" if flash and torch.cuda.is_available() else "wrapped"
