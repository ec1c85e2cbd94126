"""How policy and critic read a batch: positions that count real tokens, and log-probabilities of completions."""

import copy
import inspect
from collections.abc import Callable
from types import SimpleNamespace
from typing import cast

import torch
from torch import Tensor, nn
from trl import GRPOTrainer
from trl.models import prepare_deepspeed, prepare_fsdp
from trl.trainer.utils import add_fused_lm_head, disable_dropout_in_model

from fourstage.rl.batches import Batch
from fourstage.rl.trl_contract import config_of


def whole(batch: Batch) -> tuple[Tensor, Tensor]:
    """Ids and attention mask of prompt and completion together, each (B, P + T)."""
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    return ids, torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)


def frozen_copy(trainer: GRPOTrainer) -> nn.Module:
    """A copy of the policy, prepared as GRPOTrainer prepares its reference; to be called before training.

    GRPOTrainer itself would load the reference from the policy's path, and a model built in memory has none.
    """
    reference = copy.deepcopy(trainer.accelerator.unwrap_model(trainer.model))
    vars(reference).pop("forward", None)  # TRL's fused head there is bound to the policy
    reference.requires_grad_(False).eval()
    disable_dropout_in_model(reference)
    add_fused_lm_head(reference, trainer.temperature, config_of(trainer).cast_lm_head_to_fp32)
    if trainer.is_deepspeed_enabled:
        return prepare_deepspeed(reference, trainer.accelerator)
    if trainer.is_fsdp_enabled:
        return cast(nn.Module, prepare_fsdp(reference, trainer.accelerator))  # an FSDPModule is one too
    return trainer.accelerator.prepare_model(reference, evaluation_mode=True)


def positions(model: nn.Module, attention_mask: Tensor) -> dict[str, Tensor]:
    """`position_ids` that count real tokens from 0, for models that take them; otherwise an empty dict.

    Rows are padded on the left: without these, a model with learned positions would read a prompt at other positions
    than when it generated (TRL issue 6800).
    """
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return {}
    return {"position_ids": (attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)}


def plain_head(model: Callable, tokens: int, temperature: float, with_entropy: bool) -> Callable[..., SimpleNamespace]:
    """Replaces a model with TRL's fused head by one that computes logits at the last `tokens` positions alone.

    It is called as GRPOTrainer calls the fused one, and returns `log_probs` and, with `with_entropy`, `entropy`, each
    (B, tokens), in nats, from ordinary logits; 0 where a label is -100. The entropy has no gradient: it is only
    reported.
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
