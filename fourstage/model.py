"""The model of a stage: random weights of any architecture and size, or a checkpoint; adapters on top."""

import json

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from trl import get_peft_config

from fourstage import sizing
from fourstage.artifact import check_parent


def random_causal_lm(model_args, tokenizer: PreTrainedTokenizerBase, max_length: int) -> PreTrainedModel:
    """Builds `model_type` with random weights, sized by `num_parameters` and `config_overrides`; prints the shape.

    Call `set_seed` before. The vocabulary is the tokenizer's, position for position.
    Raises:
        ValueError: for an unknown type or config field, an impossible size, or adapters on random weights.
    """
    if model_args.use_peft:
        raise ValueError("use_peft: adapters on random weights learn next to nothing; leave --use_peft out")
    overrides = model_args.config_overrides or {}
    if isinstance(overrides, str):
        overrides = json.loads(overrides)
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    wanted = sizing.parse_count(model_args.num_parameters)
    config = sizing.sized_config(
        model_args.model_type,
        wanted,
        vocab_size=len(tokenizer),
        max_position_embeddings=max_length,
        special_token_ids=ids,
        overrides=overrides,
    )
    model = AutoModelForCausalLM.from_config(
        config, dtype=_dtype(model_args), attn_implementation=model_args.attn_implementation
    )
    model.generation_config = GenerationConfig(**ids)
    print(describe(model, wanted), flush=True)
    return model


def load_causal_lm(model_args, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Loads `model_name_or_path` in `dtype`, and makes it stop where the tokenizer's end token says."""
    model = AutoModelForCausalLM.from_pretrained(
        model_args.model_name_or_path,
        revision=model_args.model_revision,
        dtype=_dtype(model_args),
        attn_implementation=model_args.attn_implementation,
    )
    if model.generation_config.eos_token_id is None:
        model.generation_config.eos_token_id = tokenizer.eos_token_id
    return model


def load_tokenizer(model_args) -> PreTrainedTokenizerBase:
    """The tokenizer of `tokenizer_name`, else that of the checkpoint; it must know how to end and how to pad.

    Raises:
        ValueError: naming what is missing: the folder (and the command that makes it), the end or the pad token.
    """
    name = model_args.tokenizer_name or model_args.model_name_or_path
    check_parent(name)
    tokenizer = AutoTokenizer.from_pretrained(name, revision=model_args.model_revision)
    if tokenizer.eos_token is None:
        raise ValueError(f"the tokenizer of {name} has no eos_token, so that nothing could end; choose another")
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        raise ValueError(
            f"the tokenizer of {name} has pad_token={tokenizer.pad_token!r} and eos_token={tokenizer.eos_token!r}; "
            "they must be two tokens, or ends would be masked like padding: set pad_token in its tokenizer_config.json"
        )
    return tokenizer


def adapter_config(model_args, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, continues_text: bool):
    """TRL's LoRA settings or None; on a base model the template's markers are trainable too.

    A base model never saw the markers of a chat, their embeddings are noise; without training them an adapter has to
    guess who is speaking and does not learn to stop.
    """
    config = get_peft_config(model_args)
    if config is None:
        return None
    config.target_modules = config.target_modules or "all-linear"
    if continues_text:
        config.trainable_token_indices = template_token_ids(tokenizer)
    return config


def template_token_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of the special tokens that the chat template writes, sorted.

    Example: for fourstage's template those of <|bos|>, <|eos|>, <|user|> and <|assistant|>.
    """
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    ids = set(tokenizer.apply_chat_template(turns, return_dict=True)["input_ids"])
    return sorted(ids & set(tokenizer.all_special_ids))


def describe(model: PreTrainedModel, wanted: int | None = None) -> str:
    """For people: architecture, size and shape in one line."""
    config, size = model.config.get_text_config(), model.num_parameters()
    fields = ("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim")
    shape = [f"{name}={getattr(config, name)}" for name in fields if getattr(config, name, None) is not None]
    shape += [f"vocab_size={config.vocab_size}", "tied" if config.tie_word_embeddings else "untied"]
    off = f" (asked for {wanted:,}, {size / wanted - 1:+.1%})" if wanted else ""
    return f"{config.model_type}: {size:,} parameters{off}; {', '.join(shape)}"


def _dtype(model_args) -> torch.dtype | str:
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "auto": "auto"}
    if model_args.dtype not in known:
        raise ValueError(f"dtype={model_args.dtype!r} must be one of {', '.join(known)}")
    return known[model_args.dtype]
