"""Reward functions as TRL calls them: found by name, checked at every call, models asked as they were trained."""

import functools
import importlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from trl.data_utils import is_conversational
from trl.trainer.utils import is_async_callable

from fourstage import verifiers
from fourstage.models import facts
from fourstage.models.opening import opening
from fourstage.parent import check_parent
from fourstage.verifiers.text import text_of


def load_rewards(args) -> list[str | Callable]:
    """The reward sources that a run names: its reward model, its functions and, with weight 0, the one only reported.

    Sets `args.reward_weights`, one each. `args` is a RewardArguments with reward_weights. As a control all have weight
    0, and coin flips are trained on.
    Raises:
        ValueError: if there is none, one cannot be found, or the number of weights is another.
    """
    sources: list[str | Callable] = [load_reward_func(name) for name in args.reward_funcs or []]
    if args.reward_model_name_or_path:
        check_parent(args.reward_model_name_or_path)
        with opening(args.reward_model_name_or_path):
            labels = AutoConfig.from_pretrained(args.reward_model_name_or_path).num_labels
        facts.check_one_label(labels, f"reward_model_name_or_path={args.reward_model_name_or_path}")
        sources.insert(0, args.reward_model_name_or_path)
    if not sources:
        raise ValueError("nothing rewards: give reward_model_name_or_path, such as runs/reward, or reward_funcs")
    weights = args.reward_weights or [1.0] * len(sources)
    if len(weights) != len(sources):
        raise ValueError(
            f"reward_weights={weights} must be {len(sources)}: the reward model's, if there is one, then the functions'"
        )
    if args.gold_func:
        gold = load_reward_func(args.gold_func)
        sources.append(_named("gold", gold))
        weights = [*weights, 0.0]
    if args.control == "random_reward":  # each source is still reported
        sources, weights = [*sources, random_reward], [0.0] * len(weights) + [1.0]
    elif args.control:
        raise ValueError(f"control={args.control!r} must be random_reward, or left out")
    args.reward_weights = weights
    return sources


def random_reward(completions: list, **kwargs) -> list[float]:
    """0.0 or 1.0, each with probability one half, from torch's random state (which a checkpoint keeps)."""
    return torch.randint(2, (len(completions),)).tolist()


def _named(name: str, function: Callable) -> Callable:
    """The same function under another name, by which its rewards are reported."""
    renamed = checked(function)
    renamed.__name__ = name
    return renamed


def load_reward_func(name: str) -> Callable:
    """The reward function called `name`: one of `fourstage.verifiers`, or a dotted path such as `package.politeness`.

    It is called as TRL's reward functions are: with `prompts`, `completions`, `completion_ids` and the columns of the
    data as keyword lists; it returns one number a completion, or None for one that it cannot score.
    Raises:
        ValueError: if there is no such module or function.
    """
    module, _, attribute = name.rpartition(".")
    if not module:
        if name not in verifiers.__all__:
            raise ValueError(
                f"reward function {name!r} is unknown; want {', '.join(verifiers.__all__)} or a dotted path"
            )
        return getattr(verifiers, name)
    try:
        function = getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        raise ValueError(
            f"reward function {name!r} cannot be imported: {error}; is its folder on PYTHONPATH?"
        ) from None
    except AttributeError:
        raise ValueError(f"reward function {name!r}: module {module} has no {attribute}") from None
    if not callable(function):
        raise ValueError(f"reward function {name!r} must be the dotted path of a function, such as package.module.name")
    return function


def checked(function: Callable) -> Callable:
    """The same reward function, whose answers are looked at: as many as completions, each a finite number or None.

    The wrapper raises ValueError with the completion at fault; a NaN would otherwise reach the weights.
    """
    name = getattr(function, "__name__", type(function).__name__)
    if is_async_callable(function):

        @functools.wraps(function)
        async def wrapper(prompts, completions, **kwargs):
            return check_rewards(name, await function(prompts=prompts, completions=completions, **kwargs), completions)
    else:

        @functools.wraps(function)
        def wrapper(prompts, completions, **kwargs):
            return check_rewards(name, function(prompts=prompts, completions=completions, **kwargs), completions)

    wrapper.__name__ = name
    return wrapper


def check_rewards(name: str, rewards: Sequence, completions: Sequence) -> list[float | None]:
    """`rewards` as floats and None; raises ValueError for a wrong number of them, or one that is not finite."""
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
    """For a reward model and plain-text prompts: tokenises prompt + completion as RewardTrainer (TRL 1.16) did.

    That is with the end token after the text and with the tokenizer's own special tokens. GRPOTrainer leaves both out,
    so that the model would be asked about rows unlike any that it was trained on. Conversations need no such help.
    """

    tokenizer: PreTrainedTokenizerBase

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)

    def __call__(self, text: list[str], **options: Any) -> Any:
        end = self.tokenizer.eos_token
        options.pop("add_special_tokens", None)
        return self.tokenizer(text=[row if row.endswith(end) else row + end for row in text], **options)


def check_one_label(model: PreTrainedModel, field: str) -> None:
    """Raises ValueError unless the model gives one score."""
    facts.check_one_label(getattr(model.config, "num_labels", None), f"{field}: {type(model).__name__}")


def scoring_model(name: str) -> PreTrainedModel:
    """The reward model of a folder or Hub id, in float32; raises ValueError unless it gives one score."""
    with opening(name):
        labels = AutoConfig.from_pretrained(name).num_labels
    facts.check_one_label(labels, f"reward model {name}")
    with opening(name):
        return AutoModelForSequenceClassification.from_pretrained(name, dtype=torch.float32, use_safetensors=True)


def prepare_rewards(reward_funcs, processing_classes, dataset) -> tuple[list, list]:
    """(reward functions, tokenizers) for GRPOTrainer: names become reward models, functions are looked at at every
    call, and reward models read plain text as they were trained on it.

    Args:
        reward_funcs, processing_classes: one or a list, as GRPOTrainer takes them. dataset: tells by its first row
        whether the prompts are plain text.
    """
    functions = reward_funcs if isinstance(reward_funcs, list) else [reward_funcs]
    tokenizers = processing_classes if isinstance(processing_classes, list) else [processing_classes] * len(functions)
    plain_text = dataset is not None and not is_conversational(next(iter(dataset), {}))
    prepared = []
    for function, tokenizer in zip(functions, tokenizers, strict=True):
        if isinstance(function, str):
            function = scoring_model(function)
        if isinstance(function, nn.Module):
            check_one_label(function, "reward_funcs")
            tokenizer = tokenizer or AutoTokenizer.from_pretrained(function.config._name_or_path)
            tokenizer = PlainTextTokenizer(tokenizer) if plain_text else tokenizer
        else:
            function = checked(function)
        prepared.append((function, tokenizer))
    return [function for function, _ in prepared], [tokenizer for _, tokenizer in prepared]
