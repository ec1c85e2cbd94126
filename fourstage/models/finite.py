"""Weights that hold NaN or infinity: found in one pass over them, and refused by name."""

import os
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


@torch.no_grad()
def not_finite(weights: Mapping[str, Tensor]) -> list[str]:
    """The names of those weights that hold NaN or infinity; of sharded ones the shard of this process counts.

    The lowest and the highest value of each tell it: `aminmax` hands NaN on, allocates nothing, and reads 135M float32
    weights in 45 ms on one core of a CPU, where `isfinite().all()` takes 500 ms. Quantised weights are integers, which
    are always finite. On a GPU the host waits once, for all weights together.
    """
    here = {name: part for name, weight in weights.items() if (part := _part_here(weight)) is not None}
    if not here:
        return []
    ends = [torch.stack(part.aminmax()) for part in here.values()]
    finite = torch.stack([end.isfinite().all().to(ends[0].device) for end in ends]).tolist()
    return [name for name, fine in zip(here, finite, strict=True) if not fine]


def _part_here(weight: Tensor) -> Tensor | None:
    """The numbers that this process holds of a weight; None if it has none that could be wrong."""
    part = vars(weight).get("ds_tensor", weight)  # DeepSpeed's ZeRO-3 keeps the shard there and empties the weight
    part = part.to_local() if isinstance(part, DTensor) else part
    readable = part.is_floating_point() and part.element_size() > 1  # aminmax takes no float8
    return part if readable and part.numel() and not part.is_meta else None


def check_finite(name: str, model: nn.Module) -> None:
    """Refuses a model whose weights hold NaN or infinity. Of several processes the first on each machine reads them.

    Args:
        name: what the user called it: a folder, a Hub id or a file.
    Raises:
        ValueError: of one line, naming the first of those weights.
    """
    if int(os.environ.get("LOCAL_RANK", "0")):  # of torchrun and accelerate; under FSDP others may hold blanks yet
        return
    weights = dict(model.named_parameters())
    broken = not_finite(weights)
    if broken:
        raise ValueError(
            f"{name}: its weights are not finite: {broken[0]} holds NaN or infinity ({len(broken)} of {len(weights)} "
            "tensors do), as a run that diverged leaves them; train it again with a lower learning_rate, or start from "
            "another model or an earlier checkpoint"
        )
