"""Generation for rollouts: transformers' tokens by the same random numbers, without work on rows that have ended."""

import functools
import inspect
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import (
    DynamicCache,
    DynamicLayer,
    GenerationConfig,
    GenerationMixin,
    LogitsProcessorList,
    PreTrainedModel,
)

from fourstage.evaluation.generation import ignored_sampling_fields
from fourstage.models.facts import stop_ids
from fourstage.models.fused_head import base_model
from fourstage.rl.recorded import RecordedStep, recordable
from fourstage.rl.sampling import SampledByRow, inverse_transform, samples_by_row, type_of_sums

_DROPPED_SHARE = 0.25  # once this share of the rows left has ended, the cache is copied without them
_INPUTS = ("input_ids", "attention_mask", "position_ids", "past_key_values", "use_cache", "logits_to_keep")
# Settings that the loop below follows, and settings that have no effect at these values.
_FOLLOWED = ("max_new_tokens", "do_sample", "temperature", "eos_token_id", "pad_token_id")
_WITHOUT_EFFECT = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "num_beams": 1, "use_cache": True}
_IRRELEVANT = ("bos_token_id", "disable_compile", "transformers_version")


@contextmanager
def quick_generation(
    model: nn.Module, numbers: Callable[[int, int], Tensor] | None = None, own_loop: bool = False
) -> Generator[None]:
    """Makes `model.generate` run `decode` wherever that gives the same tokens, and its own code otherwise.

    Args:
        numbers: called with rows and tokens, gives the (tokens, rows) numbers in [0, 1) that choose tokens; without it
            they come from torch's random state. own_loop: leave the loop to the model, as sharded weights need it.
    """
    policy: Any = model  # a module's attributes are typed as tensors and modules
    before = vars(model).get("generate")  # FSDP puts one there
    policy.generate = functools.partial(_generate, model, policy.generate, numbers, own_loop)
    try:
        yield
    finally:
        del policy.generate
        if before is not None:
            policy.generate = before


def _generate(
    model: nn.Module, own: Callable, numbers: Callable | None, own_loop: bool, *args: Any, **kwargs: Any
) -> Any:
    config: GenerationConfig | None = kwargs.get("generation_config")
    uniforms = None
    if numbers is not None and config is not None and "input_ids" in kwargs and samples_by_row(config):
        uniforms = numbers(len(kwargs["input_ids"]), config.max_new_tokens)
    plain = not args and kwargs.keys() == {"input_ids", "attention_mask", "generation_config"} and not own_loop
    if plain and config is not None and decodable(model) and follows(model, config):
        return decode(model, kwargs["input_ids"], kwargs["attention_mask"], config, uniforms)
    if uniforms is not None and config is not None:
        others = kwargs.get("logits_processor") or []
        kwargs["logits_processor"] = LogitsProcessorList([*others, SampledByRow(uniforms, config)])
    return own(*args, **kwargs)


def decodable(model: nn.Module) -> bool:
    """Whether `decode` can run a model: a text decoder with full attention and the usual inputs.

    It cannot run models with sliding windows, states (Mamba), encoders, images or prompt tuning, nor models spread over
    several devices.
    """
    base = base_model(model)
    if not isinstance(base, PreTrainedModel) or base.config.is_encoder_decoder:
        return False
    adapters = getattr(model, "active_peft_config", None)
    peculiar = (
        getattr(adapters, "is_prompt_learning", False),
        base.config.get_text_config() is not base.config,
        getattr(type(base), "prepare_inputs_for_generation", None) is not GenerationMixin.prepare_inputs_for_generation,
        len(set(getattr(base, "hf_device_map", {}).values())) > 1,
    )
    takes = inspect.signature(base.forward).parameters
    layers = DynamicCache(config=base.config).layers
    full_attention = all(type(layer) is DynamicLayer for layer in layers)
    return full_attention and not any(peculiar) and all(name in takes for name in _INPUTS)


def follows(model: nn.Module, config: GenerationConfig) -> bool:
    """Whether `decode` supports all settings: a limit with greedy choice or a temperature, and nothing else."""
    given = {name: value for name, value in config.to_diff_dict().items() if value is not None}
    unknown = given.keys() - {*_FOLLOWED, *_IRRELEVANT, *_WITHOUT_EFFECT}
    different = any(given.get(name, value) != value for name, value in _WITHOUT_EFFECT.items())
    sampled = config.do_sample and config.top_k == 0 and (config.temperature or 0) > 0  # top_k is 50 unless it is given
    limited = config.max_new_tokens is not None and config.pad_token_id is not None
    inherited = ignored_sampling_fields(base_model(model))  # would fill the fields that are left open
    return not (unknown or different or inherited) and limited and (sampled or config.do_sample is False)


@torch.no_grad()
def decode(
    model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor,
    config: GenerationConfig,
    uniforms: Tensor | None = None,
) -> Tensor:
    """What `model.generate` returns: ids of prompt and completion, (B, P + T), padded; T is at most max_new_tokens.

    Equal prompts are read once. Rows that have ended leave the batch, unless the step is recorded. The tokens are those
    of transformers' loop with `SampledByRow` and the same numbers.

    Args:
        input_ids, attention_mask: (B, P), padded on the left. config: settings that `follows` accepts.
        uniforms: (max_new_tokens, B) in [0, 1), which choose the tokens. Default: from torch's random state.
    Raises:
        ValueError: for probabilities that are not finite.
    """
    limit, mask, size = config.max_new_tokens or 0, attention_mask, len(input_ids)
    chances = None
    if config.do_sample:
        chances = torch.rand(limit, size, dtype=torch.float64) if uniforms is None else uniforms
        chances = chances.to(input_ids.device, type_of_sums(input_ids.device))
    cache = DynamicCache(config=base_model(model).config)
    logits = _read_prompts(model, input_ids, mask, cache)
    step_of = RecordedStep(model, cache, mask, limit) if recordable(model, limit) else None
    written = input_ids.new_full((size, limit), cast(int, config.pad_token_id))
    ends = torch.tensor(stop_ids(config), device=written.device, dtype=written.dtype)
    rows, running = torch.arange(size, device=written.device), mask.new_ones(size, dtype=torch.bool)
    for step in range(limit):
        tokens = next_tokens(logits, config, None if chances is None else chances[step, rows])
        written[rows[running], step] = tokens[running]
        running = running & ~torch.isin(tokens, ends)
        left = int(running.sum())
        if left == 0 or step == limit - 1:
            break
        if step_of is not None:
            logits = step_of(tokens)
            continue
        if left <= (1 - _DROPPED_SHARE) * len(rows):
            chosen = running.nonzero()[:, 0]
            rows, tokens, mask, running = (values[chosen] for values in (rows, tokens, mask, running))
            cache.batch_select_indices(chosen)
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
        place = mask.sum(dim=1, keepdim=True) - 1
        inputs = {"attention_mask": mask, "position_ids": place, "past_key_values": cache}
        logits = model(input_ids=tokens[:, None], **inputs, use_cache=True).logits[:, -1]
    return torch.cat([input_ids, written[:, : step + 1]], dim=1)


def _read_prompts(model: nn.Module, ids: Tensor, mask: Tensor, cache: DynamicCache) -> Tensor:
    """Fills the cache and returns the logits after each prompt, (B, V); a repeated prompt is read once."""
    unique, which = torch.cat([ids, mask.to(ids.dtype)], dim=1).unique(dim=0, return_inverse=True)
    unique_ids, unique_mask = unique.chunk(2, dim=1)
    places = (unique_mask.cumsum(dim=1) - 1).clamp(min=0)
    inputs = {"attention_mask": unique_mask, "position_ids": places, "past_key_values": cache}
    logits = model(input_ids=unique_ids, **inputs, use_cache=True, logits_to_keep=1).logits[:, -1]
    cache.batch_select_indices(which)
    return logits[which]


def next_tokens(logits: Tensor, config: GenerationConfig, uniforms: Tensor | None = None) -> Tensor:
    """The token of each row by its logits, (B, V): the likeliest, or the one that (B,) numbers in [0, 1) choose."""
    if uniforms is None:
        return logits.float().argmax(dim=-1)
    return inverse_transform((logits.float() / config.temperature).softmax(dim=-1), uniforms)
