"""Muon for the hidden matrices beside AdamW for the rest, as one optimizer."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.tensor import DTensor
from torch.optim import AdamW, Muon, Optimizer
from transformers import PreTrainedModel

from fourstage.arguments import InstructConfig, PretrainConfig

_OURS = {"nesterov": True, "adjust_lr_fn": "match_rms_adamw"}
_TOGETHER = 1 << 27  # numbers that are orthogonalised at once
_SMALL = 1 << 16  # numbers of a matrix whose products take less time on a CPU than what surrounds them


class MuonWithAdamW(Optimizer):
    """One optimizer that steps `torch.optim.Muon` on some groups and AdamW on the others.

    Each works on some of this optimizer's `param_groups` and on its `state`, so that schedulers, checkpoints and
    accelerate see one ordinary optimizer.

    Args:
        groups: parameter groups, each with its `lr`. Groups with `use_muon=True` hold matrices only, the others have
            `use_muon=False`; the other keys are those of `torch.optim.Muon` and of AdamW. The highest rate of the
            matrices is `defaults["lr"]`, by which transformers' schedulers turn a lowest rate (`min_lr`, `lr_end`) into
            a share, the same for all groups.
    """

    def __init__(self, groups: Iterable[dict[str, Any]]):
        groups = list(groups)
        rates = [group["lr"] for group in groups if group["use_muon"]] or [group["lr"] for group in groups]
        super().__init__(groups, defaults={"lr": max(rates)})
        self._link()

    def _link(self) -> None:
        """Points both optimizers at this one's groups and state; needed again when either was replaced."""
        self._optimizers = []
        for kind, use_muon in ((BatchedMuon, True), (AdamW, False)):
            groups = [group for group in self.param_groups if group["use_muon"] is use_muon]
            if groups:
                inner = kind([{**group} for group in groups])
                for group, inner_group in zip(groups, inner.param_groups, strict=True):
                    group.update({key: value for key, value in inner_group.items() if key not in group})
                inner.param_groups, inner.state = groups, self.state
                self._optimizers.append(inner)

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        self._link()

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """One step of both; `closure`, if given, is called first and its loss returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for inner in self._optimizers:
            inner.step()
        return loss


class BatchedMuon(Muon):
    """`torch.optim.Muon` with the matrices of one shape together, and with processes that share the work.

    torch starts some 30 kernels for each matrix, most of them shorter than their start: 3,000 in a step of 98 matrices.
    Where processes hold the same matrices (DDP), each orthogonalises its share and hands it to the others. The state is
    torch's, and so are the steps but for rounding. Sharded matrices take torch's own step, and so do other settings
    than Nesterov's momentum with steps scaled to the size of AdamW's.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """One step of every matrix that has a gradient; `closure`, if given, is called first and its loss returned."""
        sharded = any(isinstance(parameter, DTensor) for group in self.param_groups for parameter in group["params"])
        if sharded or any(group[name] != value for group in self.param_groups for name, value in _OURS.items()):
            return super().step(closure)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            alike = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike[parameter.shape].append(parameter)
            for parameters in alike.values():
                size = max(_processes(), _TOGETHER // parameters[0].numel() if _is_small(parameters[0]) else 1)
                for start in range(0, len(parameters), size):
                    self._step_alike(parameters[start : start + size], group)
        return loss

    def _step_alike(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """Momentum, its orthogonalisation and decoupled weight decay (arXiv 2502.16982, 2.2), for one shape."""
        gradients: Any = [parameter.grad for parameter in parameters]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if "momentum_buffer" not in self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(gradient)
        buffers, momentum = [self.state[parameter]["momentum_buffer"] for parameter in parameters], group["momentum"]
        torch._foreach_lerp_(buffers, gradients, 1 - momentum)
        ahead = torch._foreach_lerp(gradients, buffers, momentum)  # Nesterov's
        iterate = partial(orthogonal, coefficients=group["ns_coefficients"], steps=group["ns_steps"], eps=group["eps"])
        updates = [update.to(parameters[0].dtype) for update in _by_all(iterate, list(ahead))]
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(parameters, updates, alpha=-group["lr"] * 0.2 * math.sqrt(max(parameters[0].shape)))


def orthogonal(matrices: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """The Newton-Schulz iteration of `torch.optim.Muon` (2.13) for a matrix, or many of one shape, (N, rows, columns).

    In bfloat16, as there. The singular values of what it returns lie near 1, those of zero matrices at 0.
    """
    (a, b, c), add = coefficients, torch.addmm if matrices.ndim == 2 else torch.baddbmm
    wide = matrices.size(-2) <= matrices.size(-1)
    x = (matrices if wide else matrices.mT).bfloat16()
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.mT
        x = add(x, add(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if wide else x.mT


def _by_all(iterate: Callable[[Tensor], Tensor], matrices: list[Tensor]) -> list[Tensor]:
    """`iterate` of matrices of one shape that every process has, each process for its share of them."""
    count = _processes()
    if count == 1:
        return _together(iterate, matrices)
    share, rank = math.ceil(len(matrices) / count), distributed.get_rank()
    mine = _together(iterate, matrices[rank * share : (rank + 1) * share])
    sent = matrices[0].new_zeros(share, *matrices[0].shape, dtype=torch.bfloat16)
    for place, matrix in enumerate(mine):
        sent[place] = matrix
    received = [torch.empty_like(sent) for _ in range(count)]
    distributed.all_gather(received, sent)
    return list(torch.cat(received)[: len(matrices)].unbind())


def _together(iterate: Callable[[Tensor], Tensor], matrices: list[Tensor]) -> list[Tensor]:
    if matrices and _is_small(matrices[0]):
        return list(iterate(torch.stack(matrices)).unbind())
    return [iterate(matrix) for matrix in matrices]


def _is_small(matrix: Tensor) -> bool:
    """Whether one matrix alone leaves the device idle: any on a GPU, few on a CPU, whose caches a single one fills."""
    return matrix.is_cuda or matrix.numel() < _SMALL


def _processes() -> int:
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def parameter_groups(model: PreTrainedModel, args: PretrainConfig | InstructConfig) -> list[dict[str, Any]]:
    """Every trainable parameter once: hidden matrices, embeddings, output head, and vectors (gains and biases).

    A hidden matrix is a parameter with two dimensions that is neither an embedding nor the output head. A tied head
    counts as an embedding. Every learning rate is a multiple of `args.learning_rate`.
    """
    rate, embedding_scale, head_scale = args.learning_rate, args.embedding_lr_scale, args.head_lr_scale
    assert rate is not None and embedding_scale is not None and head_scale is not None  # `fill_rates` comes first
    embedded = {id(p) for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    head = model.get_output_embeddings()
    in_head = {id(p) for p in head.parameters()} - embedded if head is not None else set()
    kinds: dict[str, list] = {"matrices": [], "embedding": [], "head": [], "vectors": []}
    for parameter in (p for p in model.parameters() if p.requires_grad):
        if id(parameter) in embedded:
            kind = "embedding"
        elif id(parameter) in in_head:
            kind = "head"
        else:
            kind = "matrices" if parameter.ndim == 2 else "vectors"
        kinds[kind].append(parameter)
    scales = {"embedding": embedding_scale, "head": head_scale}
    adamw = {
        "use_muon": False,
        "betas": (args.adam_beta1, args.adam_beta2),
        "eps": args.adam_epsilon,
        "fused": True,
    }
    # Muon's step is scaled to the size of AdamW's, so that one learning rate serves (Moonlight, arXiv 2502.16982, 2.2).
    muon = {"use_muon": True, "momentum": args.muon_momentum, "adjust_lr_fn": "match_rms_adamw"}
    return [
        {
            "params": parameters,
            "lr": rate * scales.get(kind, 1.0),
            "weight_decay": 0.0 if kind == "vectors" else args.weight_decay,
            **(muon if kind == "matrices" else adamw),
        }
        for kind, parameters in kinds.items()
        if parameters
    ]


def fill_rates(args: PretrainConfig, scaled_init: bool, random_weights: bool, adapters: bool = False) -> None:
    """Fills the learning rates that were left open with values that suit the weights a run starts from.

    After `random_init.scale_init` the embedding has size one and the head nearly zero, so that they need steps of
    another size than the matrices. Trained weights need smaller steps, and so do adapters, which AdamW trains.
    """
    if args.learning_rate is None and random_weights:
        args.learning_rate = 1e-2
    elif args.learning_rate is None:
        args.learning_rate = 2e-4 if adapters else 1e-3
    if args.embedding_lr_scale is None:
        args.embedding_lr_scale = 20.0 if scaled_init else 1.0
    if args.head_lr_scale is None:
        args.head_lr_scale = 0.7 if scaled_init else 1.0
