"""Weights that are quantised already, as their config.json says: what is made whole again, and what is refused."""

from typing import Any, cast

import torch
from transformers import FineGrainedFP8Config, PreTrainedConfig, PreTrainedModel
from transformers.utils import is_bitsandbytes_available
from transformers.utils.quantization_config import Mxfp4Config

# What transformers 5.23 dequantises while it reads. bitsandbytes' weights are made whole after that.
_ON_READING: dict[str, Any] = {"fp8": FineGrainedFP8Config, "mxfp4": Mxfp4Config}
_BITSANDBYTES = "bitsandbytes"


def quantisation_of(config: PreTrainedConfig) -> dict | None:
    """`quantization_config` of a configuration, whose `quant_method` is set; None for whole weights."""
    found = getattr(config, "quantization_config", None) or getattr(
        config.get_text_config(), "quantization_config", None
    )
    if not found:
        return None
    settings = found if isinstance(found, dict) else found.to_dict()
    bits = settings.get("load_in_4bit") or settings.get("load_in_8bit")
    return {"quant_method": _BITSANDBYTES if bits else "unknown"} | settings


def describe_quantisation(settings: dict) -> str:
    """For people. Example: "fp8", "4-bit bitsandbytes"."""
    method = str(getattr(settings["quant_method"], "value", settings["quant_method"]))
    bits = {True: "4-bit ", False: "8-bit "}[bool(settings.get("load_in_4bit"))] if method == _BITSANDBYTES else ""
    return f"{bits}{method}"


def check_quantisation(name: str, config: PreTrainedConfig, load_in: str | None = None) -> None:
    """Raises ValueError for quantised weights that cannot be made whole, or not in the way that is asked for.

    Args:
        load_in: `load_in_4bit` or `load_in_8bit`, if that is asked for. bitsandbytes' own weights of as many bits are
            taken for it as they are.
    """
    settings = quantisation_of(config)
    if settings is None:
        return
    method, kind = settings["quant_method"], describe_quantisation(settings)
    if load_in and not (method == _BITSANDBYTES and settings.get(load_in)):
        raise ValueError(
            f"{load_in}: {name} holds {kind} weights already; leave --{load_in} out, and they are dequantised, or "
            "start from the unquantised model it was made from"
        )
    if method == _BITSANDBYTES and not is_bitsandbytes_available():
        raise ValueError(f'{name} holds {kind} weights: pip install -e ".[quant]" -c constraints.txt')
    if method != _BITSANDBYTES and method not in _ON_READING:
        raise ValueError(
            f"{name} holds {kind} weights, which cannot be dequantised here; start from the unquantised model it was "
            "made from"
        )


def reading_options(settings: dict) -> dict[str, Any]:
    """What `from_pretrained` needs so that the weights can be made whole, on the CPU."""
    kind = _ON_READING.get(settings["quant_method"])
    return {"quantization_config": kind(dequantize=True)} if kind else {"device_map": {"": "cpu"}}


def whole_weights(model: PreTrainedModel, dtype: torch.dtype | str | None) -> PreTrainedModel:
    """A model read with `reading_options`, as one that was never quantised: it trains, and is saved as any other.

    To be called before its first forward pass: bitsandbytes 0.50 repacks 4-bit weights in it on CPUs with AVX512-BF16.
    """
    config = model.config
    wanted = dtype if isinstance(dtype, torch.dtype) else cast(torch.dtype, config.dtype)
    if getattr(model, "is_loaded_in_4bit", False) or getattr(model, "is_loaded_in_8bit", False):
        model = cast(Any, model).dequantize(wanted)
    for part in (config, config.get_text_config()):
        if hasattr(part, "quantization_config"):
            del part.quantization_config
    plain = from_state(type(model), config, model, wanted)[0]
    if model.can_generate():
        plain.generation_config = model.generation_config
    return plain


def from_state(
    kind: Any, config: PreTrainedConfig, model: PreTrainedModel, dtype: torch.dtype
) -> tuple[PreTrainedModel, dict]:
    """A model of another class, or of the same without a trace of how it was read, with the weights of `model`; and
    what transformers says about them.
    """
    return kind.from_pretrained(
        None, config=config, state_dict=model.state_dict(), dtype=dtype, output_loading_info=True
    )
