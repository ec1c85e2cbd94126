"""What operations cost: their arithmetic, the bytes that products read and write, and the start of each."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

_ATEN = torch.ops.aten


@dataclass(frozen=True)
class Work:
    """Of some operations.

    Args:
        flops: of matrix products and attention. read: bytes that these read and write. starts: operations.
        drawn: random numbers, for dropout, which one thread of a CPU draws.

    Example: (10, 1000) @ (1000, 1000) in float32 -> flops 20,000,000, read 40,000 + 4,000,000 + 40,000, starts 1.
    """

    flops: float = 0
    read: float = 0
    starts: float = 0
    drawn: float = 0

    def __add__(self, other: "Work") -> "Work":
        return Work(*(getattr(self, one.name) + getattr(other, one.name) for one in fields(self)))

    def __mul__(self, times: float) -> "Work":
        return Work(*(getattr(self, one.name) * times for one in fields(self)))


def work_of(func: Any, args: tuple, kwargs: dict, result: Any) -> Work:
    """Of one operation, by its arguments and what it returned."""
    if func.namespace == "prim":  # tensors without data ask for their device by an operation
        return Work()
    flops = _flops(func, args, kwargs, result)
    drawn = result.numel() if func._overloadpacket is _ATEN.bernoulli_ else 0
    return Work(flops, _bytes([*args, *kwargs.values(), result]) if flops else 0, 1, drawn)


def _bytes(values: Any) -> int:
    if isinstance(values, Tensor):
        return values.numel() * values.element_size()
    return sum(map(_bytes, values)) if isinstance(values, list | tuple) else 0


def _flops(func: Any, args: tuple, kwargs: dict, result: Any) -> int:
    packet = func._overloadpacket
    if packet is _ATEN._scaled_dot_product_flash_attention_for_cpu:
        return sdpa_flop_count(*(x.shape for x in args[:3]))
    if packet is _ATEN._scaled_dot_product_flash_attention_for_cpu_backward:
        return sdpa_backward_flop_count(*(x.shape for x in args[:4]))
    counted: Callable | None = flop_registry.get(packet)
    return int(counted(*args, **kwargs, out_val=result)) if counted else 0
