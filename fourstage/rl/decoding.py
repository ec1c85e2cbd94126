"""Generation for rollouts: transformers' tokens, seed for seed, without work on rows that have ended."""

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, DynamicLayer, GenerationConfig, GenerationMixin, PreTrainedModel

from fourstage.evaluation.generation import ignored_sampling_fields
from fourstage.models.facts import stop_ids
from fourstage.rl.forward import base_model

_DROPPED_SHARE = 0.25  # of the rows that are left: so many have to have ended before the cache is copied without them
_INPUTS = ("input_ids", "attention_mask", "position_ids", "past_key_values", "use_cache", "logits_to_keep")
# Settings that the loop below follows, and those that ask for nothing at these values.
_FOLLOWED = ("max_new_tokens", "do_sample", "temperature", "eos_token_id", "pad_token_id")
_WITHOUT_EFFECT = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "num_beams": 1, "use_cache": True}
_IRRELEVANT = ("bos_token_id", "disable_compile", "transformers_version")


@contextmanager
def quick_generation(model: nn.Module) -> Iterator[None]:
    """Within it `model.generate` runs `decode` where that gives the same, and else what it was."""
    own = model.generate
    model.generate = functools.partial(_generate, model, own)
    try:
        yield
    finally:
        del model.generate


def _generate(model: nn.Module, own: Callable, *args: Any, **kwargs: Any) -> Any:
    config = kwargs.get("generation_config")
    plain = not args and kwargs.keys() == {"input_ids", "attention_mask", "generation_config"}
    if plain and config is not None and decodable(model) and follows(model, config):
        return decode(model, kwargs["input_ids"], kwargs["attention_mask"], config)
    return own(*args, **kwargs)


def decodable(model: nn.Module) -> bool:
    """Whether `decode` knows how to run a model: a decoder of text with full attention and nothing peculiar about it.

    Not so for sliding windows, states (Mamba), encoders, images, prompt tuning, or layers spread over several devices.
    """
    base = base_model(model)
    if not isinstance(base, PreTrainedModel) or base.config.is_encoder_decoder:
        return False
    adapters = getattr(model, "active_peft_config", None)
    peculiar = (
        getattr(adapters, "is_prompt_learning", False),
        base.config.get_text_config() is not base.config,
        type(base).prepare_inputs_for_generation is not GenerationMixin.prepare_inputs_for_generation,
        len(set(getattr(base, "hf_device_map", {}).values())) > 1,
    )
    takes = inspect.signature(base.forward).parameters
    layers = DynamicCache(config=base.config).layers
    full_attention = all(type(layer) is DynamicLayer for layer in layers)
    return full_attention and not any(peculiar) and all(name in takes for name in _INPUTS)


def follows(model: nn.Module, config: GenerationConfig) -> bool:
    """Whether `decode` does all that the settings ask for: a temperature and a limit, or greedy, and no more."""
    given = {name: value for name, value in config.to_diff_dict().items() if value is not None}
    more = given.keys() - {*_FOLLOWED, *_IRRELEVANT, *_WITHOUT_EFFECT}
    different = any(given.get(name, value) != value for name, value in _WITHOUT_EFFECT.items())
    sampled = config.do_sample and config.top_k == 0 and (config.temperature or 0) > 0  # top_k is 50 unless it is given
    limited = config.max_new_tokens is not None and config.pad_token_id is not None
    open_fields = ignored_sampling_fields(base_model(model))  # those of the model would fill what is left open
    return not (more or different or open_fields) and limited and (sampled or config.do_sample is False)


@torch.no_grad()
def decode(model: nn.Module, input_ids: Tensor, attention_mask: Tensor, config: GenerationConfig) -> Tensor:
    """What `model.generate` returns: ids of prompt and completion, (B, P + T), T at most max_new_tokens, padded.

    Equal prompts are read once, and rows that have ended leave the batch. A token is drawn as torch.multinomial draws
    one: argmax of probability / exponential noise. Noise is drawn for the rows that have ended too, so that with the
    same random state the tokens are those of transformers' `generate`.

    Args:
        input_ids, attention_mask: (B, P), padded on the left. config: settings that `follows` accepts.
    Raises:
        ValueError: for probabilities that are not finite.
    """
    cache = DynamicCache(config=base_model(model).config)
    ids, mask, size = input_ids, attention_mask, len(input_ids)
    logits = _read_prompts(model, ids, mask, cache)
    written = ids.new_full((size, config.max_new_tokens), config.pad_token_id)
    ends = torch.tensor(stop_ids(config), device=ids.device, dtype=ids.dtype)
    rows, running = torch.arange(size, device=ids.device), ids.new_ones(size, dtype=torch.bool)
    for step in range(config.max_new_tokens):
        tokens = _next_tokens(logits, rows, size, config)
        written[rows[running], step] = tokens[running]
        running = running & ~torch.isin(tokens, ends)
        left = int(running.sum())
        if left == 0 or step == config.max_new_tokens - 1:
            break
        if left <= (1 - _DROPPED_SHARE) * len(rows):
            kept = running.nonzero()[:, 0]
            rows, tokens, mask, running = rows[kept], tokens[kept], mask[kept], running[kept]
            cache.batch_select_indices(kept)
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
        place = mask.sum(dim=1, keepdim=True) - 1
        inputs = {"attention_mask": mask, "position_ids": place, "past_key_values": cache}
        logits = model(input_ids=tokens[:, None], **inputs, use_cache=True).logits[:, -1]
    return torch.cat([input_ids, written[:, : step + 1]], dim=1)


def _read_prompts(model: nn.Module, ids: Tensor, mask: Tensor, cache: DynamicCache) -> Tensor:
    """Fills the cache and gives the logits after each prompt, (B, V): a prompt that stands there often is read once."""
    different, which = torch.cat([ids, mask.to(ids.dtype)], dim=1).unique(dim=0, return_inverse=True)
    ids, mask = different.chunk(2, dim=1)
    places = (mask.cumsum(dim=1) - 1).clamp(min=0)
    inputs = {"attention_mask": mask, "position_ids": places, "past_key_values": cache}
    logits = model(input_ids=ids, **inputs, use_cache=True, logits_to_keep=1).logits[:, -1]
    cache.batch_select_indices(which)
    return logits[which]


def _next_tokens(logits: Tensor, rows: Tensor, size: int, config: GenerationConfig) -> Tensor:
    if not config.do_sample:
        return logits.float().argmax(dim=-1)
    probabilities = (logits.float() / config.temperature).softmax(dim=-1)
    noise = probabilities.new_empty(size, probabilities.size(1)).exponential_()
    best, tokens = (probabilities / (noise if len(rows) == size else noise[rows])).max(dim=-1)
    if best.isnan().any():
        raise ValueError("the model's probabilities are not finite, so nothing can be sampled: lower learning_rate")
    return tokens
