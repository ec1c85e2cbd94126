"""The models of a run by their configurations alone: no weight is read, downloaded or allocated."""

from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from fourstage.errors import one_line
from fourstage.models.checkpoint import open_config
from fourstage.models.facts import check_one_label
from fourstage.models.loading import dtype_of, load_config
from fourstage.models.random_init import overrides_of, uses_scaled_init
from fourstage.models.sizing import parse_count, sized_config
from fourstage.models.tokenizer import CHAT_TEMPLATE, SPECIAL_TOKENS
from fourstage.parent import find_parent, needed_parent
from fourstage.plan.recipe import Settings

ADDED = ("lora_", "trainable_tokens_delta", "modules_to_save")  # parameters of adapters, by their names in PEFT
WORD = "t6"  # in the vocabulary of every stand-in: the smallest tokenizer has 384 entries


@dataclass
class Shapes:
    """The configurations of a run's models.

    Args:
        policy: the model that is trained. reward: the reward model of PPO and GRPO, if there is one. critic: that of
            value_model_name_or_path, if it is given. is_base: whether the parent is a base model of ours.
    """

    policy: PreTrainedConfig
    reward: PreTrainedConfig | None = None
    critic: PreTrainedConfig | None = None
    is_base: bool = False


def shapes_of(settings: Settings) -> Shapes:
    """What the models of a run look like, from config.json.

    Raises:
        ValueError: of one line, for a model that does not exist or cannot be what it is asked to be.
    """
    model, training = settings.model, settings.training
    if settings.stage == "pretrain" and not model.model_name_or_path:
        return Shapes(_random_config(settings))
    if settings.stage == "pretrain" and model.model_name_or_path:
        parent = find_parent(model.model_name_or_path, model.model_revision)
    else:
        parent = needed_parent(model.model_name_or_path, model.model_revision, settings.stage)
    shapes = Shapes(load_config(model), is_base=parent.is_base)
    for field, name in (("reward", "reward_model_name_or_path"), ("critic", "value_model_name_or_path")):
        if where := getattr(training, name, None):
            find_parent(where, expected="reward")
            config = open_config(where)
            if field == "reward":
                check_one_label(config.num_labels, f"{name}={where}")
            setattr(shapes, field, config)
    return shapes


def _random_config(settings: Settings) -> PreTrainedConfig:
    model = settings.model
    vocabulary = model.vocab_size
    if model.tokenizer_name:
        vocabulary = open_config(model.tokenizer_name, revision=model.model_revision).get_text_config().vocab_size
    assert vocabulary is not None  # `resolve_pretrain` comes first
    overrides = overrides_of(model)
    if uses_scaled_init(model):
        overrides = {"tie_word_embeddings": False, **overrides}
    return sized_config(
        model.model_type,
        parse_count(model.num_parameters),
        vocab_size=vocabulary,
        max_position_embeddings=settings.training.max_length,
        special_token_ids={"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
        overrides=overrides,
    )


def build(config: PreTrainedConfig, settings: Settings, scores: bool = False, **options: Any) -> PreTrainedModel:
    """A model of a configuration, in the dtype and with the attention of the settings; to be called where tensors have
    no data. `scores`: a sequence classifier with one label."""
    kind = AutoModelForSequenceClassification if scores else AutoModelForCausalLM
    text = config.get_text_config()
    if text.pad_token_id is None:
        text.pad_token_id = 0
    if scores:
        config.num_labels = 1
    dtype = dtype_of(settings.model)
    if is_quantised(settings):  # no copy in another type is kept for the backward pass
        dtype = torch.bfloat16 if settings.training.bf16 else dtype
    options = {"dtype": config.dtype or torch.float32 if dtype == "auto" else dtype, **options}
    try:
        return kind.from_config(
            config,
            attn_implementation=settings.model.attn_implementation,
            trust_remote_code=settings.model.trust_remote_code,
            **options,
        )
    except (ImportError, ValueError, TypeError) as error:
        raise ValueError(f"model_type={config.model_type} cannot be built: {one_line(error)}") from error


def is_quantised(settings: Settings) -> bool:
    """Whether the frozen weights are read in 4 or 8 bits."""
    return bool(settings.model.load_in_4bit or settings.model.load_in_8bit)


def quantised_bytes(numbers: int, bits: int, nested: bool = False) -> int:
    """Bytes of a quantised matrix as bitsandbytes keeps it: NF4 with a float32 scale for 64 numbers, which `nested`
    quantises to 8 bits with a float32 for 256 of them; or 8 bits, whose scale for each row is not counted.

    Example: 64,000 numbers -> 4 bits: 32,000 + 4,000; nested 32,000 + 1,000 + 15; 8 bits: 64,000.
    """
    if bits == 8:
        return numbers
    blocks = numbers / 64
    return int(numbers / 2 + (blocks + blocks / 256 * 4 if nested else blocks * 4))


def saved_by_quantising(model: nn.Module, settings: Settings) -> int:
    """Bytes by which the linear layers of a model, but for its output head, are smaller when they are quantised."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    bits = 4 if settings.model.load_in_4bit else 8
    matrices = [
        module.weight
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head and not any(part in name for part in ADDED)
    ]
    nested = bool(settings.model.use_bnb_nested_quant)
    return sum(matrix.nbytes - quantised_bytes(matrix.numel(), bits, nested) for matrix in matrices)


def stand_in_tokenizer(size: int) -> PreTrainedTokenizerBase:
    """A tokenizer with `size` entries whose words are t6, t7, ...: planning reads no text."""
    names = [*SPECIAL_TOKENS, *(f"t{number}" for number in range(len(SPECIAL_TOKENS), size))]
    words = Tokenizer(WordLevel({name: number for number, name in enumerate(names)}, unk_token=WORD))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token=names[0],
        bos_token=names[1],
        eos_token=names[2],
        chat_template=CHAT_TEMPLATE,
    )
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL_TOKENS[3:]})
    return tokenizer
