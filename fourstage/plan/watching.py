"""What a step holds while it runs on tensors without data: bytes by part at their peak, and operations.

The method is that of torch's MemTracker: every storage is counted from the operation that makes it until it is freed.
MemTracker itself refuses a second step and models with frozen weights (torch 2.13), which LoRA, reference models and
the optimizer's states need; tests/plan compares the two where both can count.
"""

import weakref
from collections import Counter
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from fourstage.plan.work import Work, work_of

_ATEN = torch.ops.aten


class Watch(TorchDispatchMode):
    """Counts bytes by part, and what the operations cost; to be entered inside FakeTensorMode.

    It also answers what only data could tell: a number is 1, and a mask selects every place. So
    every label counts, and memory is at its largest.

    Args:
        vocabularies: tensors as wide as one of these are logits. repeats: how often torch.unique finds each row.
        condition: the answer to every condition. shapes: the part of tensors of a shape.
    Attributes:
        peak: bytes by part at the moment at which the sum was largest. work: of models so far. update: of optimizers.

    Example: a (1000, 1000) float32 weight that is multiplied by a (10, 1000) input -> weights 4,000,000 and activations
    40,000 bytes.
    """

    def __init__(
        self,
        vocabularies: set[int] | None = None,
        repeats: int = 1,
        condition: bool = True,
        shapes: dict[tuple[int, ...], str] | None = None,
    ):
        super().__init__()
        self.vocabularies = vocabularies or set()
        self.repeats, self.condition, self.shapes = repeats, condition, shapes or {}
        self._now: Counter[str] = Counter()
        self.peak: Counter[str] = Counter()
        self.work, self.update = Work(), Work()
        self._parts: dict[int, str] = {}  # the part of a living storage, by its id
        self._living: dict[int, weakref.ref] = {}
        self._held = self._most = 0
        self._in_optimizer = False
        self._trained: list[Tensor] = []
        self._hooks: list[Any] = []

    def hold(self, part: str, *held: nn.Module | Tensor) -> None:
        """Counts tensors, and the weights of modules, as `part`, and gradients of weights as gradients.

        What was held before keeps its part.
        """
        for module in (one for one in held if isinstance(one, nn.Module)):
            self.hold(part, *module.parameters(), *module.buffers())
        for tensor in (one for one in held if isinstance(one, Tensor)):
            self._count(tensor, part)
            if tensor.is_leaf and tensor.requires_grad:
                self._trained.append(tensor)
        self._compare()

    def __enter__(self) -> Self:
        self._hooks += [
            register_optimizer_step_pre_hook(lambda *_: self._step(True)),
            register_optimizer_step_post_hook(lambda *_: self._step(False)),
        ]
        return super().__enter__()

    def __exit__(self, exc_type: Any, exc_val: Any, exc_tb: Any) -> None:
        super().__exit__(exc_type, exc_val, exc_tb)
        for hook in self._hooks:
            hook.remove()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func is _ATEN._local_scalar_dense.default:
            kind = args[0].dtype
            return self.condition if kind == torch.bool else 1.0 if kind.is_floating_point else 1
        if func is _ATEN.nonzero.default:
            return args[0].new_zeros((args[0].numel(), args[0].dim()), dtype=torch.int64)
        if func is _ATEN.index.Tensor:
            args = (args[0], [place for index in args[1] for place in _places(index)])
        if func is _ATEN.masked_select.default:
            return torch.broadcast_tensors(args[0], args[1])[0].flatten()
        if func is _ATEN.unique_dim.default:
            rows, size = len(args[0]) // self.repeats, len(args[0])
            return args[0][:rows].clone(), *(args[0].new_zeros(n, dtype=torch.int64) for n in (size, rows))
        result = func(*args, **kwargs)
        if self._in_optimizer:
            self.update += work_of(func, args, kwargs, result)
        else:
            self.work += work_of(func, args, kwargs, result)
        for tensor in result if isinstance(result, list | tuple) else [result]:
            if isinstance(tensor, Tensor):
                self._count(tensor, self._part_of(tensor))
        self._compare()
        return result

    def _part_of(self, tensor: Tensor) -> str:
        if self._in_optimizer:
            return "optimizer"
        if (part := self.shapes.get(tuple(tensor.shape))) is not None:
            return part
        return "logits" if tensor.dim() > 1 and tensor.shape[-1] in self.vocabularies else "activations"

    def _count(self, tensor: Tensor, part: str) -> None:
        storage = tensor.untyped_storage()
        key, size = id(storage), storage.nbytes()
        if key in self._living:
            return
        self._parts[key] = part
        self._now[part] += size
        self._held += size

        def forget(_: Any) -> None:
            self._now[self._parts.pop(key)] -= size
            self._held -= size
            del self._living[key]

        self._living[key] = weakref.ref(storage, forget)

    def _compare(self) -> None:
        if self._held > self._most:
            self._most, self.peak = self._held, self.by_part()

    def by_part(self) -> Counter[str]:
        """Bytes that are held now. Gradients are found at their weights."""
        parts = self._now.copy()
        for tensor in self._trained:
            if tensor.grad is not None:
                storage = tensor.grad.untyped_storage()
                parts[self._parts.get(id(storage), "gradients")] -= storage.nbytes()
                parts["gradients"] += storage.nbytes()
        return parts

    def _step(self, begins: bool) -> None:
        self._in_optimizer = begins


def _places(index: Tensor | None) -> list[Tensor | None]:
    """A mask as the places that it selects if all of it is true, one tensor a dimension, which is what torch makes."""
    if index is None or index.dtype != torch.bool:
        return [index]
    return [index.new_zeros(index.numel(), dtype=torch.int64) for _ in range(index.dim())]
