"""Rewards as TRL calls them: functions found by name and validated on every call, models given text as in training."""

import functools
import importlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import nn
from transformers import (
    BatchEncoding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from trl import GRPOTrainer
from trl.data_utils import is_conversational
from trl.trainer.utils import is_async_callable

from fourstage import verifiers
from fourstage.confined import check_confined, python_tests
from fourstage.data.columns import RESERVED_COLUMNS
from fourstage.models.checkpoint import check_openable, open_classifier, open_config
from fourstage.models.encoding import generation_opening
from fourstage.models.facts import check_one_label
from fourstage.models.markers import Markers
from fourstage.models.opening import open_tokenizer
from fourstage.parent import check_parent
from fourstage.verifiers.calls import call_reward, is_ours, original
from fourstage.verifiers.text import text_of

RewardSource = str | nn.Module | Callable  # a reward model by name or in memory, or a function


class RewardSettings(Protocol):
    """What `load_rewards` reads in the settings of PPO and GRPO (`arguments.RewardArguments` explains the fields)."""

    reward_model_name_or_path: str | None
    reward_funcs: list[str] | None
    reward_weights: list[float] | None
    gold_func: str | None
    control: str | None


def load_rewards(args: RewardSettings) -> list[str | Callable]:
    """The reward sources that a run names: its reward model, its functions, and `gold_func`, which is only reported.

    Sets `args.reward_weights`, one for each source; that of `gold_func` is 0. With control=random_reward all have
    weight 0, and the policy is trained on coin flips.
    Raises:
        ValueError: if there is no source, one cannot be found, or there are not as many weights as sources.
    """
    sources: list[str | Callable] = [load_reward_func(name) for name in args.reward_funcs or []]
    if args.reward_model_name_or_path:
        check_parent(args.reward_model_name_or_path, expected="reward")
        check_openable(args.reward_model_name_or_path, scores=True)
        labels = open_config(args.reward_model_name_or_path).num_labels
        check_one_label(labels, f"reward_model_name_or_path={args.reward_model_name_or_path}")
        sources.insert(0, args.reward_model_name_or_path)
    if not sources:
        raise ValueError("no reward: give reward_model_name_or_path, such as runs/reward, or reward_funcs")
    weights = args.reward_weights or [1.0] * len(sources)
    if len(weights) != len(sources):
        raise ValueError(
            f"reward_weights={weights} must be {len(sources)} numbers: first the reward model's, if there is one, then "
            "one for each of reward_funcs"
        )
    if args.gold_func:
        sources.append(checked(load_reward_func(args.gold_func), name="gold"))
        weights = [*weights, 0.0]
    if args.control == "random_reward":  # each source is still reported
        sources, weights = [*sources, random_reward], [0.0] * len(weights) + [1.0]
    elif args.control:
        raise ValueError(f"control={args.control!r} must be random_reward, or left out")
    args.reward_weights = weights
    return sources


def random_reward(completions: list, **kwargs: Any) -> list[float]:
    """A coin flip for each completion, 0.0 or 1.0, from torch's random state (which a checkpoint keeps)."""
    return torch.randint(2, (len(completions),)).tolist()


def load_reward_func(name: str) -> Callable:
    """The reward function called `name`: one of `fourstage.verifiers`, `python_tests`, or a dotted path such as
    `package.politeness`.

    It is called as TRL calls reward functions: with `prompts`, `completions`, `completion_ids` and the columns of the
    data as keyword lists. It returns one number for each completion, or None for one that it cannot score.
    Raises:
        ValueError: if there is no such module or function; for python_tests where programs cannot be confined.
    """
    if name == python_tests.__name__:
        check_confined()
        return python_tests
    module, _, attribute = name.rpartition(".")
    if "." in name and not all(part.isidentifier() for part in name.split(".")):
        raise ValueError(f"reward function {name!r} is no dotted path; give one such as package.module.name")
    if not module:
        if name not in verifiers.__all__:
            raise ValueError(
                f"reward function {name!r} is unknown; choose one of {', '.join(verifiers.__all__)}, python_tests, or "
                "give the dotted path of yours, such as package.module.name"
            )
        return getattr(verifiers, name)
    try:
        function = getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        raise ValueError(
            f"reward function {name!r} cannot be imported: {error}; is its folder on PYTHONPATH?"
        ) from None
    except AttributeError:
        raise ValueError(f"reward function {name!r}: module {module} has no {attribute}; correct the name") from None
    if not callable(function):
        raise ValueError(f"reward function {name!r} must be the dotted path of a function, such as package.module.name")
    return function


def checked(function: Callable, name: str | None = None, opening: str = "") -> Callable:
    """The same reward function, called by `call_reward` and validated: one finite number or None for each completion.

    The wrapper raises ValueError with the completion at fault; a NaN would otherwise reach the weights. TRL reports
    its rewards under its `__name__`: `name`, else that of the function.
    """
    own_name = getattr(function, "__name__", None) or getattr(original(function), "__name__", type(function).__name__)
    if is_async_callable(function):

        @functools.wraps(function)
        async def wrapper(completions, prompts=None, **columns):
            return check_rewards(own_name, await call_reward(function, completions, columns, "", prompts), completions)
    else:

        @functools.wraps(function)
        def wrapper(completions, prompts=None, **columns):
            rewards = call_reward(function, completions, columns, opening, prompts)
            return check_rewards(own_name, rewards, completions)

    wrapper.__name__ = name or own_name
    return wrapper


def check_rewards(name: str, rewards: Sequence, completions: Sequence) -> list[float | None]:
    """`rewards` as floats and None; raises ValueError if their number is wrong or one is not finite."""
    rewards = list(rewards)
    if len(rewards) != len(completions):
        raise ValueError(f"reward function {name} returned {len(rewards)} rewards for {len(completions)} completions")
    for reward, completion in zip(rewards, completions, strict=True):
        if reward is not None and not math.isfinite(reward):
            raise ValueError(
                f"reward function {name} returned {reward} for the completion {text_of(completion)[:200]!r}; it must "
                "be a finite number, or None where it cannot be scored"
            )
    return [None if reward is None else float(reward) for reward in rewards]


@dataclass
class PlainTextTokenizer:
    """For a reward model and plain-text prompts: tokenises prompt + completion as RewardTrainer (TRL 1.16) does.

    RewardTrainer puts the end token after the text and adds the tokenizer's own special tokens. GRPOTrainer does
    neither, and the model would score rows unlike those it was trained on. Conversations do not need this.
    """

    tokenizer: PreTrainedTokenizerBase

    def __getattr__(self, name: str) -> Any:
        if name == "tokenizer":  # while a copy of this is made, which has no fields yet
            raise AttributeError(name)
        return getattr(self.tokenizer, name)

    def __call__(self, text: list[str], **options: Any) -> BatchEncoding:
        end = self.tokenizer.eos_token
        options.pop("add_special_tokens", None)
        return self.tokenizer(text=[row if row.endswith(end) else row + end for row in text], **options)


@dataclass
class ConversationTokenizer:
    """For a reward model and conversations: markers that a prompt or completion spells out are plain text.

    GRPOTrainer (TRL 1.16) has the template write a text and tokenises that, so that the template's own markers and
    those in a message look alike. A reward model was trained on rows in which they differ.
    """

    tokenizer: PreTrainedTokenizerBase

    def __post_init__(self) -> None:
        self.markers = Markers(self.tokenizer)

    def __getattr__(self, name: str) -> Any:
        if name in ("tokenizer", "markers"):  # while a copy of this is made, which has no fields yet
            raise AttributeError(name)
        return getattr(self.tokenizer, name)

    def apply_chat_template(self, conversation: list, **options: Any) -> Any:
        return self.tokenizer.apply_chat_template(self.markers.broken(conversation), **options)

    def __call__(self, text: list[str], **options: Any) -> BatchEncoding:
        return self.markers.reader(text=text, **options)


def scoring_model(name: str) -> PreTrainedModel:
    """The reward model of a folder or Hub id, in float32; raises ValueError unless it gives one score."""
    check_one_label(open_config(name).num_labels, f"reward model {name}")
    return open_classifier(name, dtype=torch.float32)


def prepare_rewards(
    reward_funcs: RewardSource | list[RewardSource],
    processing_classes: PreTrainedTokenizerBase | list[PreTrainedTokenizerBase | None] | None,
    dataset: Iterable[dict] | None,
) -> tuple[list, list]:
    """(reward functions, tokenizers) for GRPOTrainer.

    Names become reward models, functions are validated on every call, and reward models read plain text as in training.

    Args:
        reward_funcs, processing_classes: one or a list, as GRPOTrainer takes them.
        dataset: its first row decides whether the prompts are plain text.
    Raises:
        ValueError: for lists of different lengths, and for a column that TRL's call of the functions has no room for.
    """
    functions = reward_funcs if isinstance(reward_funcs, list) else [reward_funcs]
    tokenizers = processing_classes if isinstance(processing_classes, list) else [processing_classes] * len(functions)
    if len(tokenizers) != len(functions):
        raise ValueError(
            f"reward_processing_classes has {len(tokenizers)} entries for {len(functions)} reward_funcs; give one for "
            "each, None for a function"
        )
    first = {} if dataset is None else next(iter(dataset), {})
    reserved = [name for name in RESERVED_COLUMNS if name in first]
    if reserved:
        raise ValueError(f"train_dataset has the column {reserved[0]!r}, an argument of reward functions; rename it")
    plain_text = dataset is not None and not is_conversational(first)
    prepared = []
    for function, tokenizer in zip(functions, tokenizers, strict=True):
        source = scoring_model(function) if isinstance(function, str) else function
        if isinstance(source, nn.Module):
            model = cast(PreTrainedModel, source)
            labels = getattr(model.config, "num_labels", None)
            check_one_label(labels, f"reward_funcs: {type(model).__name__}")
            tokenizer = tokenizer or open_tokenizer(model.config._name_or_path)
            tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token  # as TRL has it
            reads = PlainTextTokenizer if plain_text else ConversationTokenizer
            prepared.append((model, reads(tokenizer)))
        else:
            prepared.append((checked(source), tokenizer))
    return [function for function, _ in prepared], [tokenizer for _, tokenizer in prepared]


def show_opening(trainer: GRPOTrainer) -> None:
    """Lets the reward functions of fourstage see completions with what the chat template wrote before them.

    TRL hands over what the model generated. Where the template itself has written `<think>`, no completion would have
    the form that `think_format` pays, and the numbers of unfinished thoughts would be answers.
    """
    if not isinstance(trainer.processing_class, PreTrainedTokenizerBase):
        return
    opening = generation_opening(trainer.processing_class, **cast(dict, trainer.chat_template_kwargs))
    if opening:
        functions = cast("list[Callable]", trainer.reward_funcs)  # or models, which `is_ours` knows from functions
        trainer.reward_funcs = [checked(one, opening=opening) if is_ours(one) else one for one in functions]
