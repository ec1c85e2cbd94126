"""TRL's fused output head: checked against the plain one, and where the plain one is quicker."""

import inspect
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, cast

import torch
from datasets import Dataset
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel, Trainer
from trl import SFTTrainer

_SMALL = 1 << 25  # logits, 128 MB in float32


def base_model(model: nn.Module) -> PreTrainedModel:
    """The model below its adapters, if it has any."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    return cast(PreTrainedModel, base)  # all that the trainers take


def plain_head_pays(model: PreTrainedModel, tokens: int) -> bool:
    """Whether `plain_head` is quicker than TRL's fused head: on a CPU, if the logits are small.

    Without Triton the fused head also computes logits of prompts, and all of them again in the backward pass
    (benchmarks/ppo_vs_trl112.py).
    """
    takes_slice = "logits_to_keep" in inspect.signature(model.forward).parameters
    small = tokens * model.config.get_text_config().vocab_size <= _SMALL
    return model.device.type == "cpu" and takes_slice and small


def check_fused_head(trainer: SFTTrainer) -> None:
    """`check_head_on` for a trainer of stage 2, on one held-out row."""
    model = cast(PreTrainedModel, trainer.model).eval()
    batch = trainer.data_collator([next(iter(cast(Dataset, trainer.eval_dataset)))])
    inputs = {key: value.to(model.device) for key, value in batch.items() if torch.is_tensor(value)}
    with before_sharding(trainer):
        check_head_on(model, **inputs)


@contextmanager
def before_sharding(trainer: Trainer) -> Generator[None]:
    """Around a forward pass between the making of a trainer and its training: under ZeRO-3 libraries take the weights
    for sharded then, which they are not yet.
    """
    plugin = trainer.args.deepspeed_plugin
    if plugin is None:
        yield
        return
    from transformers.integrations import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()
    try:
        yield
    finally:
        plugin.set_deepspeed_weakref()


@torch.no_grad()
def check_head_on(model: PreTrainedModel, labels: torch.Tensor, temperature: float = 1.0, **inputs: Any) -> None:
    """Refuses a model on which TRL's fused output head would train on wrong probabilities.

    The head multiplies the last hidden states by the head's weight; 22 of 189 architectures do something more in
    between, or cap or scale the logits (docs/architectures.md).
    Args:
        model: with the fused head added. labels: (B, T) ids, -100 at tokens that do not count.
        inputs: what the model reads, input_ids (B, T) among them.
    Raises:
        ValueError: naming the architecture and the largest difference of a log-probability.
    """
    targets = labels[:, 1:]
    plain = (model(**inputs).logits[:, :-1].float() / temperature).log_softmax(-1)
    expected = plain.gather(-1, targets.clamp(min=0)[..., None])[..., 0].masked_fill(targets == -100, 0.0)
    fused = model(**inputs, labels=labels, fused_lm_head=True).log_probs.float()
    difference = (fused - expected).abs().max().item()
    tolerance = 1e-3 if model.dtype == torch.float32 else 0.1
    if not difference < tolerance:
        raise ValueError(
            f"model type {model.config.model_type}: TRL's fused head is off by {difference:.2g} nats, so tuning would "
            "go wrong; choose a type with `yes` under fused log-probs in docs/architectures.md"
        )
