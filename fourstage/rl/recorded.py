"""One step of generation as a CUDA graph: recorded once, replayed for every further token."""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import Cache, DynamicCache, StaticLayer

from fourstage.models.fused_head import base_model

_RECORDED_FROM = 8  # tokens, below which recording a step takes longer than it saves


def recordable(model: nn.Module, limit: int) -> bool:
    """Whether steps of one token, `limit` at most, are to be recorded.

    The model must have whole weights on a GPU, not quantised, and be of a type whose forward pass transformers compiles
    in one piece: others may read numbers of the device in between, as mixtures of experts do.
    """
    base = base_model(model)
    whole = all(p.is_cuda and not isinstance(p, DTensor) for p in base.parameters())
    plain = base._can_compile_fullgraph and getattr(base, "hf_quantizer", None) is None
    return limit >= _RECORDED_FROM and whole and plain


class RecordedStep:
    """The forward pass of one token for every row, recorded as a CUDA graph and replayed from then on.

    A step of a small model is hundreds of kernels, which take less time than their launches. The cache and the mask
    have a fixed length, so that every step has the same shapes.

    Args:
        cache: of the prompts. mask: (B, P), of the prompts. limit: tokens that may follow them.
    """

    def __init__(self, model: nn.Module, cache: DynamicCache, mask: Tensor, limit: int):
        self.model, self.cache = model, _with_room(cache, limit)
        self.read = mask.size(1)
        self.mask = torch.cat([mask, mask.new_zeros(len(mask), limit)], dim=1)
        self.tokens, self.places = mask.new_zeros(len(mask), 1), mask.sum(dim=1, keepdim=True) - 1
        self.graph: torch.cuda.CUDAGraph | None = None
        self.steps = 0

    def __call__(self, tokens: Tensor) -> Tensor:
        """The logits after `tokens`, (B,) -> (B, V)."""
        self.tokens.copy_(tokens[:, None])
        self.places.add_(1)
        self.mask[:, self.read + self.steps] = 1
        self.steps += 1
        if self.steps == 2 and tokens.is_cuda:  # libraries set themselves up in a first pass, which cannot be recorded
            self._record()
        if self.graph is None:
            return self._forward()
        self.graph.replay()
        return self.logits

    def _record(self) -> None:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self.logits = self._forward()
        except RuntimeError as error:  # a model that reads numbers of the device, or too little memory
            print(f"generation is not recorded: {str(error).splitlines()[0]}", flush=True)
        else:
            self.graph = graph

    def _forward(self) -> Tensor:
        inputs = {"attention_mask": self.mask, "position_ids": self.places, "past_key_values": self.cache}
        return self.model(input_ids=self.tokens, **inputs, use_cache=True).logits[:, -1]


class _RoomyLayer(StaticLayer):
    """A layer's keys and values in tensors of fixed length, in the type of the values.

    Under autocast keys come out of the rotation in float32 beside bfloat16 values, and attention takes both in
    bfloat16.
    """

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        kind, filled = value_states.dtype, cast(Any, self)  # keys and values are declared as possibly None
        if self.is_initialized and filled.values.dtype != kind:
            self.keys, self.values = filled.keys.to(kind), filled.values.to(kind)
        return super().update(key_states.to(kind), value_states, *args, **kwargs)


def _with_room(cache: DynamicCache, limit: int) -> Cache:
    """The same keys and values in a cache of fixed length with room for `limit` more; the old one is emptied."""
    layers: list[Any] = []
    while cache.layers:  # one by one, so that there is one copy of a layer at a time
        old: Any = cache.layers.pop(0)
        layers.append(_RoomyLayer(max_cache_len=old.get_seq_length() + limit))
        layers[-1].update(old.keys, old.values)
    return Cache(layers=layers)
