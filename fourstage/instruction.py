"""Stage 2: TRL's SFTTrainer with ordinary logits where they are quicker than its fused head."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from trl import SFTTrainer

from fourstage.models.fused_head import base_model, plain_head_pays


class InstructTrainer(SFTTrainer):
    """SFTTrainer (TRL 1.16), which on a CPU scores the tokens that count alone, as its fused head does with Triton.

    Args: as in SFTTrainer.
    """

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor | Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        others = self.aux_loss_enabled or self.compute_loss_func is not None or self.label_smoother is not None
        labels, base = inputs["labels"], base_model(self.accelerator.unwrap_model(model))
        if others or return_outputs or not plain_head_pays(base, labels.numel()):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        return super().compute_loss(counted_head(model), inputs, num_items_in_batch=num_items_in_batch)


def counted_head(model: Callable) -> Callable[..., SimpleNamespace]:
    """Replaces a model with TRL's fused head by one that takes ordinary logits and scores labelled tokens alone.

    It is called as SFTTrainer calls the fused one, and returns `log_probs` and `entropy`, in nats, `is_top1` and
    `label_mask`, each (B, T - 1) and 0 where a label is -100.
    """

    def call(*, labels: Tensor, fused_lm_head: bool, **inputs: Any) -> SimpleNamespace:
        logits = model(**inputs).logits[:, -labels.size(1) : -1]  # prompt tuning puts tokens before the row
        targets = labels[:, 1:]
        mask = targets != -100
        chosen, wanted = logits[mask].float(), targets[mask]
        logps = chosen.log_softmax(dim=-1)
        with torch.no_grad():  # both are only reported
            entropy = -torch.linalg.vecdot(logps.exp(), logps)
            right = (chosen.argmax(dim=-1) == wanted).float()
        scored = logps.gather(-1, wanted[:, None])[:, 0]
        fields = {"log_probs": scored, "entropy": entropy, "is_top1": right}
        spread = {name: x.new_zeros(mask.shape).masked_scatter(mask, x) for name, x in fields.items()}
        return SimpleNamespace(**spread, label_mask=mask, aux_loss=None)

    return call
