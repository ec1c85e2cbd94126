"""What the settings that were left open come to: one function a stage, called once, before the run folder is opened.

Each changes the arguments in place and returns the names of the settings that it filled in, which run.json keeps:
`arguments` there holds the values used.
"""

from typing import Protocol

from accelerate.utils import DistributedType
from transformers import PreTrainedTokenizerBase

from fourstage.arguments import DataArguments, InstructConfig, ModelArguments, PretrainConfig, RewardModelConfig
from fourstage.data.sources import sources
from fourstage.grpo.config import GRPORunConfig, default_learning_rate
from fourstage.models.adapters import check_targets
from fourstage.models.facts import context_of
from fourstage.models.loading import load_config, parameters_of
from fourstage.models.random_init import overrides_of, uses_scaled_init
from fourstage.models.sizing import check_overrides, parse_count
from fourstage.models.tokenizer import default_vocab_size
from fourstage.optim import fill_rates
from fourstage.ppo.config import PPORunConfig
from fourstage.pretraining import packing_strategy
from fourstage.speed import fill_precision

_LONGEST = 1024  # tokens of a row, unless max_length asks for more


def resolve_pretrain(data_args: DataArguments, training_args: PretrainConfig, model_args: ModelArguments) -> list[str]:
    """Learning rates by the weights it starts from, the packing by the attention, the vocabulary by the size."""
    sources(data_args, "pretrain")
    if training_args.max_length is None:
        raise ValueError(
            "max_length=None must be at least 2: it is the context of the model, and packed rows are as long"
        )
    left_open = ("learning_rate", "embedding_lr_scale", "head_lr_scale")
    filled = [name for name in left_open if getattr(training_args, name) is None]
    random_weights = not model_args.model_name_or_path
    if training_args.use_muon and model_args.use_peft:  # adapters take AdamW
        training_args.use_muon = False
        filled.append("use_muon")
    filled += _without_muon(training_args)
    size = _new_size(model_args) if random_weights else _parameters(model_args)
    fill_rates(training_args, random_weights and uses_scaled_init(model_args), random_weights, model_args.use_peft)
    if training_args.packing_strategy == "auto":
        training_args.packing_strategy = packing_strategy(model_args.attn_implementation)
        filled.append("packing_strategy")
    if random_weights and not model_args.tokenizer_name and not model_args.vocab_size:
        model_args.vocab_size = default_vocab_size(size)
        filled.append("vocab_size")
    return filled + fill_precision(training_args, model_args, size)


def resolve_sft(data_args: DataArguments, training_args: InstructConfig, model_args: ModelArguments) -> list[str]:
    """The longest row by the model's context.

    Raises:
        ValueError: for Muon on adapters, beside what is wrong with the data's name.
    """
    if training_args.use_muon and model_args.use_peft:
        raise ValueError("use_muon with use_peft: Muon is for whole matrices, adapters take AdamW; leave one out")
    sources(data_args, "sft")
    filled = _fill_max_length(training_args, model_args) + _without_muon(training_args)
    return filled + fill_precision(training_args, model_args, _parameters(model_args))


def resolve_reward(data_args: DataArguments, training_args: RewardModelConfig, model_args: ModelArguments) -> list[str]:
    """The longest side of a pair by the model's context."""
    sources(data_args, "reward")
    filled = _fill_max_length(training_args, model_args)
    return filled + fill_precision(training_args, model_args, _parameters(model_args))


def resolve_ppo(data_args: DataArguments, training_args: PPORunConfig, model_args: ModelArguments) -> list[str]:
    """The precision alone: PPOConfig fills the critic's rate and the steps between log lines itself."""
    sources(data_args, "ppo")
    if training_args.ptx_dataset_name:
        sources(DataArguments(dataset_name=training_args.ptx_dataset_name), "sft")
    _check_room(training_args, model_args)
    return fill_precision(training_args, model_args, _parameters(model_args))


def resolve_grpo(
    data_args: DataArguments,
    training_args: GRPORunConfig,
    model_args: ModelArguments,
    tokenizer: PreTrainedTokenizerBase,
) -> list[str]:
    """The learning rate by the model's size (`grpo.config.default_learning_rate`)."""
    sources(data_args, "grpo")
    _check_room(training_args, model_args)
    size = _parameters(model_args, len(tokenizer))
    filled = fill_precision(training_args, model_args, size)
    if training_args.learning_rate is None:
        training_args.learning_rate = default_learning_rate(size, model_args.use_peft)
        filled.append("learning_rate")
    return filled


def _without_muon(training_args: PretrainConfig | InstructConfig) -> list[str]:
    """Takes AdamW where DeepSpeed would hand Muon flat vectors for its matrices, and says so."""
    state = training_args.distributed_state
    if not training_args.use_muon or state is None or state.distributed_type != DistributedType.DEEPSPEED:
        return []
    if state.is_main_process:
        print("use_muon: DeepSpeed flattens weights and Muon needs whole matrices, so AdamW takes its place")
    training_args.use_muon = False
    return ["use_muon"]


def _new_size(model_args: ModelArguments) -> int:
    """The parameters that random weights are to have, whose type and overrides are checked too."""
    check_overrides(model_args.model_type, overrides_of(model_args))
    try:
        return parse_count(model_args.num_parameters)
    except ValueError as error:
        raise ValueError(f"num_parameters: {error}") from None


def _parameters(model_args: ModelArguments, tokens: int = 0) -> int:
    config = load_config(model_args)
    check_targets(model_args, config)
    return parameters_of(config, model_args, tokens)


def _check_room(training_args: PPORunConfig | GRPORunConfig, model_args: ModelArguments) -> None:
    context, longest = context_of(load_config(model_args)), training_args.max_completion_length
    if longest is None:
        raise ValueError("max_completion_length=None must be at least 1: a rollout needs an end")
    if context and longest >= context:
        raise ValueError(
            f"max_completion_length={longest} leaves no room for a prompt: the model reads {context} tokens in all; "
            "lower it"
        )


class _HasMaxLength(Protocol):
    max_length: int | None


def _fill_max_length(training_args: _HasMaxLength, model_args: ModelArguments) -> list[str]:
    if training_args.max_length:
        return []
    training_args.max_length = min(context_of(load_config(model_args)) or _LONGEST, _LONGEST)
    return ["max_length"]
