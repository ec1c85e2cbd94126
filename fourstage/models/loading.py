"""The model of a stage from a checkpoint, with its configuration and tokenizer: a language model or a reward model."""

from typing import cast

import torch
from torch import nn
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from trl import get_quantization_config

from fourstage.arguments import ModelArguments
from fourstage.models.adapters import keep_layout
from fourstage.models.checkpoint import is_classifier, open_causal_lm, open_config, open_scorer
from fourstage.models.encoding import turn_end
from fourstage.models.facts import score_heads, stop_ids
from fourstage.models.opening import loading_options, open_tokenizer
from fourstage.models.tokenizer import repair_pad_token
from fourstage.models.turns import adapt_template
from fourstage.parent import check_parent, whole_model

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "auto": "auto"}


def _name_of(model_args: ModelArguments) -> str:
    assert model_args.model_name_or_path, "only a run with a parent loads one"
    return model_args.model_name_or_path


def load_config(model_args: ModelArguments) -> PreTrainedConfig:
    """The configuration of `model_name_or_path`; raises ValueError of one line for whatever is wrong with its files."""
    return open_config(_name_of(model_args), **loading_options(model_args))


def parameters_of(config: PreTrainedConfig, model_args: ModelArguments, tokens: int) -> int:
    """Parameters of the language model of a configuration, with an embedding row for each of `tokens`.

    Nothing is allocated, and tied weights count once. What `load_causal_lm` gives has as many, quantised or not.
    """
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=model_args.trust_remote_code)
    embedding, head = cast(nn.Embedding, model.get_input_embeddings()), model.get_output_embeddings()
    missing = max(0, tokens - embedding.num_embeddings)
    tables = 1 if head is None or head.weight is embedding.weight else 2
    return model.num_parameters() + missing * embedding.embedding_dim * tables


def load_causal_lm(model_args: ModelArguments, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Loads `model_name_or_path` in `dtype` or quantised; it pads and stops where the tokenizer's tokens say.

    Raises:
        ValueError: of one line, for whatever is wrong with its files (`checkpoint.open_causal_lm`).
    """
    model = open_causal_lm(_name_of(model_args), **loading_options(model_args), **_weight_options(model_args))
    if model.generation_config.eos_token_id is None:
        model.generation_config.eos_token_id = tokenizer.eos_token_id
    stops, end = stop_ids(model.generation_config), turn_end(tokenizer)
    if end is not None and end not in stops:
        model.generation_config.eos_token_id = [end, *stops]
    model.config.get_text_config().pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
    _fit(model, model_args, tokenizer)
    return model


def load_reward_model(model_args: ModelArguments, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Loads `model_name_or_path` with one score a sequence, read at the last token that is not the tokenizer's pad.

    The head of a causal LM is new: N(0, 0.001^2), so that all scores begin near zero and the first loss is ln 2
    whatever the width. transformers draws N(0, 0.02^2), whose scores grow with the square root of the width.
    Raises:
        ValueError: for a type without a classifier, a classifier with another number of labels, and a tokenizer with
            more tokens than the model has.
    """
    name, config = _name_of(model_args), _scoring_config(model_args)
    config.get_text_config().pad_token_id = tokenizer.pad_token_id
    model, lacking = open_scorer(name, config=config, **loading_options(model_args), **_weight_options(model_args))
    _fit(model, model_args, tokenizer)
    heads = score_heads(model)
    missing = [key for key in lacking if key.split(".")[0] not in heads]
    if missing:
        print(f"{name} lacks {', '.join(missing[:5])}, which begin at random ({len(missing)} in all)")
    if len(lacking) > len(missing):
        _draw_heads([getattr(model, head) for head in heads])
    return model


def _scoring_config(model_args: ModelArguments) -> PreTrainedConfig:
    """The configuration of a model that is to give one score; ValueError if it cannot."""
    name, config = _name_of(model_args), load_config(model_args)
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise ValueError(
            f"model type {config.model_type} of {name} has no sequence classifier in transformers, so it cannot score; "
            "choose a type with `yes` under reward in docs/architectures.md"
        )
    if config.num_labels != 1 and is_classifier(name, **loading_options(model_args)):
        raise ValueError(
            f"{name} is a classifier that has {config.num_labels} labels, a reward model needs 1; start from the model "
            "it was made from"
        )
    config.num_labels = 1
    return config


def _draw_heads(heads: list[nn.Module]) -> None:
    for module in (part for head in heads for part in head.modules()):
        if isinstance(module, nn.Linear) and module.out_features == 1:
            nn.init.normal_(module.weight, std=0.001)


def _weight_options(model_args: ModelArguments) -> dict:
    """With 4 or 8 bits `dtype` is that of the parts that stay whole."""
    return {
        "dtype": dtype_of(model_args),
        "attn_implementation": model_args.attn_implementation,
        "quantization_config": get_quantization_config(model_args),
    }


def dtype_of(model_args: ModelArguments) -> torch.dtype | str:
    """The type of the weights that `dtype` names, or "auto"; raises ValueError for another name."""
    if model_args.dtype not in _DTYPES:
        raise ValueError(f"dtype={model_args.dtype!r} must be one of {', '.join(_DTYPES)}")
    return _DTYPES[model_args.dtype]


def _fit(model: PreTrainedModel, model_args: ModelArguments, tokenizer: PreTrainedTokenizerBase) -> None:
    """Adds rows for tokens that the model's own tokenizer has gained, such as a new pad; another tokenizer must fit."""
    keep_layout(model)
    rows = cast(nn.Embedding, model.get_input_embeddings()).num_embeddings
    if len(tokenizer) > rows and not model_args.tokenizer_name:
        model.resize_token_embeddings(len(tokenizer))
    elif len(tokenizer) > rows:
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} tokens, {model_args.model_name_or_path} embeds {rows}; leave "
            "--tokenizer_name out"
        )


def load_tokenizer(model_args: ModelArguments, chats: bool = False) -> tuple[PreTrainedTokenizerBase, list[str]]:
    """The tokenizer of `tokenizer_name`, else that of the checkpoint, and what was repaired in it (for run.json).

    It must know how to end and, if it `chats`, how a conversation is written; a pad token it is given.
    Raises:
        ValueError: naming what is missing: the folder (and the command that makes it), a token or the template.
    """
    name = model_args.tokenizer_name or _name_of(model_args)
    if model_args.tokenizer_name:
        check_parent(name)
    tokenizer = open_tokenizer(name, **loading_options(model_args))
    if tokenizer.eos_token is None:
        raise ValueError(f"the tokenizer of {name} has no eos_token, so that nothing could end; choose another")
    if chats and tokenizer.chat_template is None:
        raise ValueError(f"the tokenizer of {name} has no chat_template; name one that has with --tokenizer_name")
    adapt_template(tokenizer, model_args.keep_markers)
    repairs = repair_pad_token(tokenizer)
    if chats and (end := new_stop(model_args, tokenizer)) is not None:
        named = tokenizer.convert_ids_to_tokens(end)
        repairs.append(f"eos_token_id: {named} joins {tokenizer.eos_token}, as the chat template ends turns with it")
    if chats and turn_end(tokenizer) is None:
        print(f"{name}: its chat template closes the assistant's turn with no token, so SFT teaches no end", flush=True)
    for repair in repairs:
        print(f"{name}: {repair}", flush=True)
    return tokenizer, repairs


def new_stop(model_args: ModelArguments, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token with which the chat template closes a turn, if the model has not been stopping there; else None.

    Example: <|im_end|> for Qwen2.5's base models, whose end token is <|endoftext|>; None for those that were tuned.
    """
    end, name = turn_end(tokenizer), _name_of(model_args)
    if end is None or end == tokenizer.eos_token_id:
        return None
    try:
        whole, revision = whole_model(name, model_args.model_revision)
        known = GenerationConfig.from_pretrained(whole, revision=revision or "main")
    except OSError:  # not every folder has one
        known = GenerationConfig.from_model_config(load_config(model_args))
    return None if end in stop_ids(known) else end


def describe(model: PreTrainedModel, wanted: int | None = None, parameters: int | None = None) -> str:
    """For people: architecture, size and shape in one line.

    Args:
        wanted: the size that was asked for. parameters: its own, where the model also holds an adapter's.
    """
    config, size = model.config.get_text_config(), parameters or model.num_parameters()
    fields = ("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim")
    shape = [f"{name}={getattr(config, name)}" for name in fields if getattr(config, name, None) is not None]
    shape += [f"vocab_size={config.vocab_size}", "tied" if config.tie_word_embeddings else "untied"]
    off = f" (asked for {wanted:,}, {size / wanted - 1:+.1%})" if wanted else ""
    return f"{config.model_type}: {size:,} parameters{off}; {', '.join(shape)}"
