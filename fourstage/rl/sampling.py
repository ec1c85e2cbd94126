"""Sampling by random numbers that belong to a row, so that processes, batches and devices change no token."""

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

_BELOW_ONE = 1 - 2**-24  # the largest number below 1 in float32, which the product with a sum keeps below the sum
# Settings that choose tokens in ways which `SampledByRow` does not know.
_OTHER_WAYS = ("top_h", "typical_p", "epsilon_cutoff", "eta_cutoff", "watermarking_config", "penalty_alpha")


def row_uniforms(key: Sequence[int], first: int, rows: int, tokens: int) -> Tensor:
    """(tokens, rows) numbers in [0, 1), float64 on the CPU, for rows number `first` and up.

    A row's numbers depend on `key`, such as a seed and the number of a rollout, and on its own number alone.
    """
    columns = [np.random.default_rng([*key, row]).random(tokens) for row in range(first, first + rows)]
    return torch.from_numpy(np.stack(columns, axis=1))


def type_of_sums(device: torch.device) -> torch.dtype:
    """float64, as in float32 a large vocabulary's sums lose what rare tokens add; Apple's GPUs have float32 alone."""
    return torch.float32 if device.type == "mps" else torch.float64


def inverse_transform(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """The token of each row where the running sum of its probabilities passes its number: (B, V), (B,) -> (B,).

    One number a row in place of one for each token of the vocabulary, which is what torch.multinomial draws.

    Args:
        uniforms: in [0, 1).
    Raises:
        ValueError: for probabilities that are not finite.

    Example: [0.2, 0.0, 0.5, 0.3] and 0.2 -> 2; 0.1 -> 0.
    """
    sums = probabilities.to(type_of_sums(probabilities.device)).cumsum(dim=-1)
    total = sums[:, -1:]
    if (~total.isfinite()).any():
        raise ValueError("the model's probabilities are not finite, so nothing can be sampled: lower learning_rate")
    passed = uniforms.clamp(max=_BELOW_ONE)[:, None] * total
    return torch.searchsorted(sums, passed, right=True)[:, 0]


class SampledByRow(LogitsProcessor):
    """Has transformers' `generate` sample the token that a row's number chooses: all others get probability zero.

    Args:
        uniforms: (tokens, rows) in [0, 1). config: that `generate` is given, with do_sample; see `samples_by_row`.
    """

    def __init__(self, uniforms: Tensor, config: GenerationConfig):
        self.uniforms, self.step = uniforms, 0
        self.warpers = LogitsProcessorList()  # transformers has its own after this, too late
        if config.temperature not in (None, 1.0):
            self.warpers.append(TemperatureLogitsWarper(config.temperature))
        if config.top_k:
            self.warpers.append(TopKLogitsWarper(config.top_k))
        if config.top_p is not None and config.top_p < 1.0:
            self.warpers.append(TopPLogitsWarper(config.top_p))
        if config.min_p is not None:
            self.warpers.append(MinPLogitsWarper(config.min_p))

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Of (B, V) scores, 0 for the token that is chosen and -inf for the others."""
        step = min(self.step, len(self.uniforms) - 1)  # transformers may look a step ahead, and drops it
        probabilities = self.warpers(input_ids, scores).softmax(dim=-1)
        uniforms = self.uniforms[step].to(scores.device, type_of_sums(scores.device))
        tokens = inverse_transform(probabilities, uniforms)
        self.step += 1
        return cast(torch.FloatTensor, torch.full_like(scores, -torch.inf).scatter_(1, tokens[:, None], 0.0))


def samples_by_row(config: GenerationConfig) -> bool:
    """Whether `SampledByRow` follows these settings: one answer a row, by temperature, top_k, top_p and min_p alone."""
    one = (config.num_beams or 1) == 1 and (config.num_return_sequences or 1) == 1
    limited = config.max_new_tokens is not None and config.top_k is not None  # else top_k would be 50
    return bool(config.do_sample) and one and limited and not any(getattr(config, name, None) for name in _OTHER_WAYS)
