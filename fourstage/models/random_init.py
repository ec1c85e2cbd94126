"""Random weights of any architecture and size."""

import json
import math

import torch
from torch import nn
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from fourstage.arguments import ModelArguments
from fourstage.models import sizing
from fourstage.models.loading import dtype_of
from fourstage.models.tokenizer import check_reload


def random_causal_lm(
    model_args: ModelArguments, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> PreTrainedModel:
    """Builds `model_type` with random weights, sized by `num_parameters` and `config_overrides`.

    Call `set_seed` before. The embedding has one row for each entry of the tokenizer. `max_length` is the context in
    tokens.
    Raises:
        ValueError: for an unknown type or config field, an impossible size, or a type whose folder would load another
            tokenizer (`tokenizer.check_reload`).
    """
    overrides = overrides_of(model_args)
    if uses_scaled_init(model_args):
        overrides = {"tie_word_embeddings": False, **overrides}
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    config = sizing.sized_config(
        model_args.model_type,
        sizing.parse_count(model_args.num_parameters),
        vocab_size=len(tokenizer),
        max_position_embeddings=max_length,
        special_token_ids=ids,
        overrides=overrides,
    )
    check_reload(tokenizer, config)
    model = AutoModelForCausalLM.from_config(
        config, dtype=dtype_of(model_args), attn_implementation=model_args.attn_implementation
    )
    model.generation_config = GenerationConfig(**ids)
    if uses_scaled_init(model_args):
        scale_init(model)
    return model


def overrides_of(model_args: ModelArguments) -> dict:
    """`config_overrides` as a mapping, whether it came from YAML or as JSON from the command line."""
    overrides = model_args.config_overrides or {}
    try:
        overrides = json.loads(overrides) if isinstance(overrides, str) else overrides
    except json.JSONDecodeError as error:
        raise ValueError(
            f"config_overrides={overrides!r} is not valid JSON ({error.msg}); write '{{\"field\": value}}'"
        ) from None
    if not isinstance(overrides, dict):
        raise ValueError(f"config_overrides={overrides!r} must be a mapping, such as '{{\"num_hidden_layers\": 6}}'")
    return overrides


# Families whose blocks add the plain output of attention and MLP to a stream that the next norm rescales. Elsewhere (a
# norm after the output projection, scaled embeddings, other blocks) the rules of `scale_init` were not measured.
PRE_NORM_FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "smollm3")


def uses_scaled_init(model_args: ModelArguments) -> bool:
    """Whether random weights are drawn by `scale_init`: for pre-norm families with an untied output head."""
    tied = overrides_of(model_args).get("tie_word_embeddings", False)
    return model_args.scaled_init and model_args.model_type in PRE_NORM_FAMILIES and not tied


@torch.no_grad()
def scale_init(model: PreTrainedModel) -> None:
    """Redraws the weights so that a block starts as the identity and every matrix keeps the size of its input.

    Embedding N(0, 1); hidden matrices N(0, 1 / fan_in); the projections back into the stream zero; head N(0, 0.001^2),
    so that the first loss is ln(vocabulary). As in nanochat (gpt.py, init_weights at 92d63d4), with normal draws;
    benchmarks/pretrain_quality.py measures what it brings.
    """
    head = model.get_output_embeddings()
    for name, module in model.named_modules():
        if module is head:
            module.weight.normal_(0, 0.001)
        elif isinstance(module, nn.Embedding):
            module.weight.normal_(0, 1)
        elif isinstance(module, nn.Linear):
            into_stream = name.endswith(("o_proj", "down_proj"))
            module.weight.normal_(0, 0 if into_stream else 1 / math.sqrt(module.in_features))
