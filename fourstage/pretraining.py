"""Stage 1: TRL's SFTTrainer with a lean loss for plain text, and Muon beside AdamW."""

import math
from collections.abc import Iterable

import torch
from datasets import IterableDataset
from torch.optim import Optimizer
from transformers import Trainer
from trl import SFTTrainer

from fourstage.optim import MuonWithAdamW, fill_rates, parameter_groups


class PretrainTrainer(SFTTrainer):
    """SFTTrainer (TRL 1.16) for rows of packed text.

    Three things differ. The loss is the model's own: TRL's fused head recomputes the logits in the backward pass and
    adds entropy and accuracy to every step, a third of the time of a small model. The optimizer is `MuonWithAdamW`
    unless `use_muon` is off. Evaluations report bits per byte, which tokenizers of any size can be compared by.
    """

    def __init__(self, *args, bytes_per_token: float, **kwargs):
        super().__init__(*args, **kwargs)
        fill_rates(
            self.args, scaled_init=False, random_weights=False
        )  # whatever the caller left open: the careful ones
        self.bytes_per_token = bytes_per_token
        rows = self.args.max_eval_rows
        if isinstance(self.eval_dataset, IterableDataset) or len(self.eval_dataset) > rows:
            self.eval_dataset = self.eval_dataset.take(rows)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if self.aux_loss_enabled:  # mixtures of experts: TRL weights the routers' loss
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        inputs["use_cache"] = False
        return Trainer.compute_loss(self, model, inputs, return_outputs, num_items_in_batch)

    def create_optimizer(self, model=None) -> Optimizer:
        if self.optimizer is None and self.args.use_muon:
            self.optimizer = MuonWithAdamW(parameter_groups(self.model, self.args))
        return self.optimizer or super().create_optimizer(model)

    def create_scheduler(self, num_training_steps: int, optimizer=None):
        if self.args.lr_scheduler_type == "warmup_stable_decay" and not self.args.lr_scheduler_kwargs:
            decay = math.ceil(num_training_steps * self.args.decay_ratio)
            self.args.lr_scheduler_kwargs = {"num_decay_steps": decay, "decay_type": "linear", "min_lr_ratio": 0.0}
        return super().create_scheduler(num_training_steps, optimizer)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "eval_loss" in logs:
            logs["eval_bits_per_byte"] = logs["eval_loss"] / math.log(2) / self.bytes_per_token
        super().log(logs, start_time)


def bytes_per_token(texts: Iterable[str], tokenizer) -> float:
    """UTF-8 bytes of the texts over their tokens, the end token of each document counted as one."""
    size = tokens = 0
    for text in texts:
        size += len(text.encode("utf-8"))
        tokens += len(tokenizer(text, verbose=False)["input_ids"]) + 1
    return size / tokens


def packing_strategy(attn_implementation: str | None) -> str:
    """`bfd_split` where flash attention keeps packed documents apart for free, else `wrapped`.

    Best-fit packing makes one long padding-free row of a batch, which plain attention on a CPU pays for with 4 to 5
    times the time per step. Both split long documents and lose no token.
    """
    flash = "flash" in (attn_implementation or "")
    return "bfd_split" if flash and torch.cuda.is_available() else "wrapped"
