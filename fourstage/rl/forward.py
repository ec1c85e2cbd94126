"""How policy and critic read a batch: positions that count real tokens, and log-probabilities of completions."""

import copy
import inspect
from collections.abc import Callable
from types import SimpleNamespace

import torch
from accelerate.utils import is_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel
from trl.trainer.utils import add_fused_lm_head, disable_dropout_in_model

from fourstage.rl.batches import Batch

_SMALL = 1 << 25  # logits, 128 MB in float32


def whole(batch: Batch) -> tuple[Tensor, Tensor]:
    """Ids and attention mask of prompt and completion together, each (B, P + T)."""
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    return ids, torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)


def base_model(model: nn.Module) -> PreTrainedModel:
    """The model below its adapters, if it has any."""
    return model.get_base_model() if is_peft_model(model) else model


def frozen_copy(trainer) -> nn.Module:
    """The policy as it is now, prepared as GRPOTrainer prepares its reference: it loads one from the policy's path,
    which a model built in memory has not. `trainer` is a GRPOTrainer before training."""
    reference = copy.deepcopy(trainer.accelerator.unwrap_model(trainer.model))
    vars(reference).pop("forward", None)  # TRL's fused head there is bound to the policy
    reference.requires_grad_(False).eval()
    disable_dropout_in_model(reference)
    add_fused_lm_head(reference, trainer.temperature, trainer.args.cast_lm_head_to_fp32)
    return trainer.accelerator.prepare_model(reference, evaluation_mode=True)


def positions(model: nn.Module, attention_mask: Tensor) -> dict[str, Tensor]:
    """`position_ids` that count real tokens from 0, for models that take them; else nothing.

    Rows are padded on the left: a model with learned positions would otherwise see a prompt elsewhere than when it
    generated (TRL issue 6800).
    """
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return {}
    return {"position_ids": (attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)}


def plain_head_pays(model: PreTrainedModel, tokens: int) -> bool:
    """Whether `plain_head` is quicker than TRL's fused head: on a CPU, for logits that are not large.

    Without Triton the fused head also works on prompts, and again in the backward pass (benchmarks/ppo_vs_trl112.py).
    """
    takes_slice = "logits_to_keep" in inspect.signature(model.forward).parameters
    small = tokens * model.config.get_text_config().vocab_size <= _SMALL
    return model.device.type == "cpu" and takes_slice and small


def plain_head(model: Callable, tokens: int, temperature: float, with_entropy: bool) -> Callable[..., SimpleNamespace]:
    """A stand-in for a model with TRL's fused head that computes logits at the last `tokens` positions alone.

    It is called as GRPOTrainer calls that one, and gives `log_probs` and, if asked for, `entropy`, each (B, tokens),
    from ordinary logits; 0 where a label is -100. The entropy has no gradient: it is only reported.
    """

    def call(*, labels: Tensor, fused_lm_head: bool, **inputs) -> SimpleNamespace:
        logits = model(**inputs, logits_to_keep=tokens + 1, use_cache=False).logits[:, :-1].float()
        logps = (logits if temperature == 1 else logits / temperature).log_softmax(dim=-1)
        targets = labels[:, -tokens:]
        scored = logps.gather(-1, targets.clamp(min=0)[..., None])[..., 0].masked_fill(targets == -100, 0.0)
        entropy = None
        if with_entropy:
            with torch.no_grad():
                entropy = -torch.linalg.vecdot(logps.exp(), logps)
        return SimpleNamespace(log_probs=scored, entropy=entropy, aux_loss=None)

    return call
