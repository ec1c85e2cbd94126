"""What would fail, or quietly do something else, is said before the first step."""

from itertools import islice
from typing import Any

import torch
from datasets import Dataset

from fourstage.data.lengths import prompt_ids
from fourstage.models.adapters import complete_tied_head
from fourstage.models.facts import context_of
from fourstage.models.fused_head import check_head_on

_STREAM_CHECKED = 1_000


def check_launch_supported(trainer) -> None:
    """Raises ValueError for launches in which the critic could not be trained as the policy is."""
    for name, on in (("FSDP", trainer.is_fsdp_enabled), ("DeepSpeed", trainer.is_deepspeed_enabled)):
        if on:
            raise ValueError(
                f"{name}: the critic is a whole copy in every process, which {name} knows nothing of; launch with "
                "accelerate_configs/ddp.yaml, with --use_peft if memory is short"
            )


def check_prompts(trainer) -> None:
    """Raises ValueError if a rollout takes more prompts than there are, or one leaves no room for a completion."""
    args, data = trainer.args, trainer.train_dataset
    needed = args.generation_batch_size // args.num_generations
    if isinstance(data, Dataset) and len(data) < needed:
        raise ValueError(
            f"train_dataset has {len(data)} prompts, a rollout takes {needed} (per_device_train_batch_size x "
            "steps_per_generation x processes / num_generations): give more, or lower one of these"
        )
    room = context_of(trainer.model)
    sets = [data, trainer.eval_dataset] if isinstance(trainer.eval_dataset, Dataset) else [data]
    for rows in sets:
        _check_lengths(trainer, rows, room)


def _check_lengths(trainer, rows: Any, room: int | None) -> None:
    completion = trainer.args.max_completion_length
    checked = rows if isinstance(rows, Dataset) else list(islice(rows, _STREAM_CHECKED))
    for number, row in enumerate(checked, start=1):
        if "prompt" not in row:
            raise ValueError(f"row {number} has no column `prompt`, found {sorted(row)}")
        if room is None:
            return
        length = len(prompt_ids(trainer.processing_class, row["prompt"], trainer.chat_template_kwargs))
        if length + completion > room:
            raise ValueError(
                f"prompt {number} has {length} tokens; with max_completion_length={completion} it does not fit the "
                f"policy's context of {room}: leave it out, or lower max_completion_length"
            )


def check_head(trainer) -> None:
    """Raises ValueError if TRL's fused output head gives other probabilities than the policy: on the first prompt."""
    prompt = next(iter(trainer.train_dataset))["prompt"]
    ids = torch.tensor([prompt_ids(trainer.processing_class, prompt, trainer.chat_template_kwargs)])
    ids = ids.to(trainer.accelerator.device)
    ids = ids if ids.size(1) > 1 else ids.repeat(1, 2)  # a prompt may be one token long
    complete_tied_head(trainer.model)
    check_head_on(trainer.model.eval(), labels=ids, temperature=trainer.temperature, input_ids=ids)
    trainer.model.train()
