"""How each family of transformers names its sizes, and what else it needs. Data, with little code.

A Shape holds the sizes of a model; `field_values` turns it into the fields of a family's configuration. A name applies
to every family that has a field of that name, so most families need no entry of their own.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from transformers import PreTrainedConfig


class Shape(NamedTuple):
    """What the search varies, and what the tokenizer fixes. Sizes are numbers of units; counts are per model."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int  # inner size of one MLP, or of one expert
    vocab: int
    positions: int
    pad: int | None
    bos: int | None
    eos: int | None


# Shape attribute -> the names that configurations give it. A name applies to every family that has such a field.
NAMES: dict[str, str] = {
    "hidden": "hidden_size d_model n_embd emb_dim embedding_size embedding_dim word_embed_proj_dim lru_width "
    "input_embedding_size output_embedding_size",
    "layers": "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers num_encoder_layers "
    "num_decoder_layers num_blocks",
    "heads": "num_attention_heads n_head n_heads num_heads attention_heads encoder_attention_heads "
    "decoder_attention_heads num_encoder_attention_heads num_decoder_attention_heads swa_num_attention_heads "
    "linear_num_key_heads linear_num_value_heads linear_num_heads index_n_heads",
    "kv_heads": "num_key_value_heads num_kv_heads swa_num_key_value_heads",
    "head_dim": "head_dim dim_head d_head kv_channels attention_head_size swa_head_dim qk_nope_head_dim v_head_dim "
    "index_head_dim linear_key_head_dim linear_value_head_dim linear_head_dim rotary_dim query_pre_attn_scalar",
    "mlp": "intermediate_size n_inner ffn_dim dff dim_ff d_inner ffn_hidden_size feed_forward_size encoder_ffn_dim "
    "decoder_ffn_dim moe_intermediate_size expert_ffn_hidden_size shared_expert_intermediate_size "
    "shared_experts_intermediate_size shared_intermediate_size moe_shared_expert_intermediate_size",
    "vocab": "vocab_size vocab_size_per_layer_input decoder_vocab_size unpadded_vocab_size",
    "positions": "max_position_embeddings n_positions n_ctx max_seq_len context_length model_max_length "
    "max_target_positions original_max_position_embeddings",
    "pad": "pad_token_id",
    "bos": "bos_token_id decoder_start_token_id cls_token_id",
    "eos": "eos_token_id sep_token_id eod_token_id",
}
_ATTRIBUTE = {name: attribute for attribute, names in NAMES.items() for name in names.split()}
_EXPERT_SIZES = ("moe_intermediate_size", "expert_ffn_hidden_size", "intermediate_size_mlp")


def _layer_cycle(*kinds: str) -> Callable[[Shape], list[str]]:
    """Kinds of layer repeated over the depth, ending wherever the depth ends."""
    return lambda s: [kinds[i % len(kinds)] for i in range(s.layers)]


def _mostly(usual: str, fourth: str) -> dict[str, Any]:
    """layer_types of these families: every fourth layer and the last one are `fourth`, the others `usual`."""
    return {"layer_types": lambda s: [fourth if i % 4 == 3 or i == s.layers - 1 else usual for i in range(s.layers)]}


# Fields that are not copies of a Shape attribute: constants, or functions of the shape. With four small experts, two
# of them active, a mixture stays a mixture at any size; with one group, every expert can be chosen.
_FORMULAS: dict[str, Any] = {
    **dict.fromkeys(("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts"), 2),
    **dict.fromkeys(("n_group", "topk_group", "num_expert_group", "mamba_n_groups", "n_groups", "mamba_ngroups"), 1),
    **dict.fromkeys(("first_k_dense_replace", "num_dense_layers"), 1),
    **dict.fromkeys(("num_nextn_predict_layers", "num_kv_shared_layers", "zero_expert_num"), 0),
    **dict.fromkeys(("intermediate_size_mlp", "dense_intermediate_size"), lambda s: 2 * s.mlp),
    "mlp_layer_types": lambda s: ["dense"] + ["sparse"] * (s.layers - 1),
    "max_window_layers": lambda s: s.layers,
    "q_lora_rank": lambda s: max(32, s.hidden // 2),
    "kv_lora_rank": lambda s: max(32, s.hidden // 4),
    "o_lora_rank": lambda s: max(32, s.hidden // 4),
    "qk_rope_head_dim": lambda s: s.head_dim // 2,
    "mamba_n_heads": lambda s: s.hidden // 16,  # times 32 each: twice the hidden size, mamba's usual expansion
    "mamba_d_head": 32,
    "mamba_d_ssm": lambda s: 2 * s.hidden,
    "mamba_num_heads": lambda s: s.hidden // 16,
    "mamba_head_dim": 32,
}
_WINDOWS = (
    "sliding_window sliding_window_size attention_window_size window_size local_attention index_topk rel_extent "
    "attention_chunk_size keep_window_size"
)
# Fields that may only shrink: the family's default or this, whichever is smaller.
_CEILINGS: dict[str, Callable[[Shape], int]] = {
    **dict.fromkeys(_WINDOWS.split(), lambda s: s.positions),
    **dict.fromkeys(("mamba_d_state", "state_size", "ssm_state_size"), lambda s: max(16, s.hidden // 4)),
    **dict.fromkeys(("hidden_size_per_layer_input", "router_hidden_size"), lambda s: max(16, s.hidden // 4)),
    **dict.fromkeys(("laurel_rank", "gated_norm_rank", "adapter_rank"), lambda s: max(8, s.hidden // 8)),
    **dict.fromkeys(("n_shared_experts", "num_shared_experts", "moe_num_shared_experts"), lambda s: 1),
}
# Switches that make a model causal and text only, whatever its size. `exact_config` sets them too.
_SWITCHES: dict[str, Any] = {"is_decoder": True, "add_cross_attention": False, "forced_eos_token_id": None}
_FAMILY_SWITCHES: dict[str, dict[str, Any]] = {
    "big_bird": {"attention_type": "original_full"},
    "bigbird_pegasus": {"attention_type": "original_full"},
    "lfm2": {"block_auto_adjust_ff_dim": False},  # else the MLP gets another size than the field says
    "reformer": {"axial_pos_embds": False},
    # Sound and shape of Chinese characters mean nothing here; their tables cannot be left out, only made small.
    "roc_bert": dict.fromkeys(("enable_pronunciation", "enable_shape"), False)
    | dict.fromkeys(("pronunciation_vocab_size", "shape_vocab_size"), 1),
    "whisper": {"suppress_tokens": None, "begin_suppress_tokens": None},
    "xlm": {"causal": True},
    "xlnet": {"attn_type": "uni"},
    "xmod": {"default_language": "en_XX"},  # the adapters of its one default language
}


def _after_padding(s: Shape) -> int:
    """RoBERTa numbers positions from pad_token_id + 1, so its table must be that much longer."""
    return s.positions + (s.pad or 0) + 1


# What single families need beyond the rules above.
_FAMILIES: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        ("roberta", "camembert", "xlm-roberta", "xlm-roberta-xl", "data2vec-text", "roberta-prelayernorm", "xmod"),
        {"max_position_embeddings": _after_padding},
    ),
    **dict.fromkeys(
        ("kimi_linear", "olmo_hybrid", "qwen3_5_moe_text", "qwen3_5_text", "qwen3_next"),
        _mostly("linear_attention", "full_attention"),
    ),
    "bailing_hybrid": {"layer_group_size": 2},  # every second layer attends; its cache counts by the first that does
    "bamba": {"attn_layer_indices": lambda s: list(range(1, s.layers, 2))},
    # Its fused projection is cut in four, so heads come in fours.
    "codegen": {"n_head": lambda s: max(n for n in range(4, max(4, s.heads) + 1, 4) if s.hidden % n == 0)},
    # Reads rope_theta and clip_qkv without giving them a default; these are the published model's.
    "dbrx": {
        "attn_config": lambda s: {"kv_n_heads": s.kv_heads, "rope_theta": 500000.0, "clip_qkv": 8.0},
        "ffn_config": lambda s: {"ffn_hidden_size": s.mlp, "moe_num_experts": 4, "moe_top_k": 2},
    },
    # Wants the rotation spelled out for each kind of layer.
    "cohere_compass_text": {
        "rope_parameters": dict.fromkeys(
            ("full_attention", "sliding_attention"), {"rope_type": "default", "rope_theta": 10000.0}
        ),
    },
    "deepseek_v4": {"mlp_layer_types": lambda s: ["moe"] * s.layers},
    # Two half attentions are subtracted, so heads come in pairs.
    "diffllama": dict.fromkeys(("num_attention_heads", "num_key_value_heads"), lambda s: s.heads + s.heads % 2),
    "dots1": {"n_shared_experts": 1},  # None by default, which its model cannot be built with
    # Its image encoder comes with every model; no image will reach it.
    "git": {
        "vision_config": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1}
    },
    "gpt_neo": {
        "attention_types": lambda s: [[["global", "local"], s.layers // 2], [["global"], s.layers % 2]],
    },
    "granitemoehybrid": {"layer_types": _layer_cycle("linear_attention", "full_attention")},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2_moe": {"layer_types": _layer_cycle("conv", "full_attention")},
    "mamba2": {"num_heads": lambda s: 2 * s.hidden // s.head_dim},
    # Its sliding layers have twice the key-value heads.
    "mimo_v2_flash": {
        "num_attention_heads": lambda s: s.heads + s.heads % 2,
        "num_key_value_heads": lambda s: (s.heads + 1) // 2,
    },
    "nemotron_h": {"layers_block_type": _layer_cycle("linear_attention", "mlp", "full_attention", "moe")},
    "qwen4_exp_text": _mostly("linear_attention", "indexed_attention")
    | {
        "indexer_n_heads": lambda s: s.heads,
        "indexer_kv_heads": 1,
        "indexer_head_dim": lambda s: s.head_dim,
        "indexer_budget": lambda s: s.positions,
        "indexer_compress_ratio": 4,
    },
    "reformer": {"attn_layers": _layer_cycle("local", "lsh")},
    # All hybrid layers share one attention, and its model wants at least two to share it.
    "zamba": {"layers_block_type": _layer_cycle("hybrid")},
    "zamba2": {"layers_block_type": _layer_cycle("linear_attention", "hybrid")},
    "zaya": {"num_experts_per_tok": 1},  # all it supports
}


def field_defaults(config_class: type[PreTrainedConfig]) -> dict[str, Any]:
    """Every field of a family's configuration, with its default. Example: GPT2Config -> {..., "n_embd": 768, ...}."""
    return {field.name: field.default for field in dataclasses.fields(config_class)}


def switches(config_class: type[PreTrainedConfig]) -> dict[str, Any]:
    """Fields that make a model of the family causal and text only; fields that the family lacks may be among them."""
    return _SWITCHES | _FAMILY_SWITCHES.get(config_class.model_type, {})


def field_values(config_class: type[PreTrainedConfig], shape: Shape, pins: Mapping[str, Any]) -> dict[str, Any]:
    """Every field of the family that the shape, a switch or a pin decides; `pins` are exact values and win."""
    known = field_defaults(config_class)
    values: dict[str, Any] = {name: getattr(shape, attribute) for name, attribute in _ATTRIBUTE.items()}
    values |= _FORMULAS | {
        name: functools.partial(_at_most, known.get(name), ceiling) for name, ceiling in _CEILINGS.items()
    }
    if any(name in known for name in _EXPERT_SIZES):
        values["intermediate_size"] = 2 * shape.mlp  # a dense layer beside experts costs what two active experts do
    if "qk_rope_head_dim" in known:
        values["head_dim"] = shape.head_dim // 2  # latent attention calls the rotated part its head_dim
    values |= switches(config_class) | _FAMILIES.get(config_class.model_type, {}) | dict(pins)
    return {name: value(shape) if callable(value) else value for name, value in values.items() if name in known}


def _at_most(default: Any, ceiling: Callable[[Shape], int], shape: Shape) -> Any:
    return min(default, ceiling(shape)) if isinstance(default, int) else default
