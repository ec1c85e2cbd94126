"""Checks before the first step, of what would fail later or quietly train wrongly."""

from itertools import islice
from typing import Any, cast

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import GRPOTrainer

from fourstage.data.lengths import BATCH, prompt_ids
from fourstage.models.adapters import complete_tied_head
from fourstage.models.facts import context_of
from fourstage.models.fused_head import before_sharding, check_head_on
from fourstage.rl.trl_contract import config_of

_STREAM_CHECKED = 1_000


def check_launch_supported(trainer: GRPOTrainer, critic_adapters: bool) -> None:
    """Raises ValueError for launches in which the critic cannot be trained like the policy."""
    quantised = getattr(trainer.accelerator.unwrap_model(trainer.model), "is_quantized", False)
    for name, on in (("FSDP", trainer.is_fsdp_enabled), ("DeepSpeed", trainer.is_deepspeed_enabled)):
        fix = "or launch with accelerate_configs/ddp.yaml"
        if on and critic_adapters:
            raise ValueError(f"value_peft_config: {name} shards a critic whole, without adapters; leave it out, {fix}")
        if on and quantised:
            raise ValueError(
                f"load_in_4bit, load_in_8bit: beside {name} PPO's critic has a copy of the base, and quantised weights "
                f"cannot be sharded for it; leave them out, {fix}"
            )


def check_prompts(trainer: GRPOTrainer) -> None:
    """Raises ValueError if a rollout takes more prompts than there are, or a prompt leaves no room for a completion."""
    args, data = config_of(trainer), trainer.train_dataset
    assert args.generation_batch_size and args.num_generations  # GRPOConfig has filled both
    needed = args.generation_batch_size // args.num_generations
    if isinstance(data, Dataset) and len(data) < needed:
        raise ValueError(
            f"train_dataset has {len(data)} prompts, a rollout takes {needed} (per_device_train_batch_size x "
            "steps_per_generation x processes / num_generations): give more, or lower one of these"
        )
    context = context_of(cast(PreTrainedModel, trainer.model))
    sets = [data, trainer.eval_dataset] if isinstance(trainer.eval_dataset, Dataset) else [data]
    for rows in sets:
        _check_lengths(trainer, rows, context)


def _check_lengths(trainer: GRPOTrainer, rows: Any, context: int | None) -> None:
    completion = config_of(trainer).max_completion_length or 0
    checked = iter(rows if isinstance(rows, Dataset) else islice(rows, _STREAM_CHECKED))
    number = 0
    while batch := list(islice(checked, BATCH)):
        for i, row in enumerate(batch, start=number + 1):
            if "prompt" not in row:
                raise ValueError(f"row {i} has no column `prompt`; its columns are {sorted(row)}")
        if context is None:
            return
        for ids in _prompt_ids(trainer, [row["prompt"] for row in batch]):
            number += 1
            if len(ids) + completion > context:
                raise ValueError(
                    f"prompt {number} has {len(ids)} tokens; with max_completion_length={completion} it does not fit "
                    f"the policy's context of {context}: leave it out, or lower max_completion_length"
                )


def _prompt_ids(trainer: GRPOTrainer, prompts: list) -> list[list[int]]:
    tokenizer = cast(PreTrainedTokenizerBase, trainer.processing_class)  # processors of images come with no such check
    return prompt_ids(tokenizer, prompts, cast(dict, trainer.chat_template_kwargs))


def check_head(trainer: GRPOTrainer) -> None:
    """Raises ValueError if TRL's fused output head and the policy differ in their probabilities on the first prompt."""
    prompt = next(iter(cast(Dataset, trainer.train_dataset)))["prompt"]
    ids = torch.tensor(_prompt_ids(trainer, [prompt])).to(trainer.accelerator.device)
    ids = ids if ids.size(1) > 1 else ids.repeat(1, 2)  # a prompt may be one token long
    model = cast(PreTrainedModel, trainer.model)
    complete_tied_head(model)
    with before_sharding(trainer):
        check_head_on(model.eval(), labels=ids, temperature=trainer.temperature, input_ids=ids)
    model.train()
