"""Whether a run can fit at all, from what every step needs for certain: weights, gradients, optimizer states."""

import os

import psutil
import torch
from peft import PeftModel
from torch import nn
from transformers import Trainer

GIB = 2**30
# Numbers that an optimizer keeps for each trained one; one that is not named here is taken to keep none.
_STATES = {"adamw_torch": 2, "adamw_torch_fused": 2, "adamw_apex_fused": 2, "muon": 1}


def check_memory(trainer: Trainer) -> None:
    """Refuses a run whose weights, gradients and optimizer states alone are more than its device has.

    Activations, logits, caches, reference and reward models come on top, so that a run which passes may still not fit:
    `fourstage plan` counts all of them. Where ZeRO or FSDP shards, every process is taken to hold its share.

    Raises:
        ValueError: naming what is needed, what the device has, and what needs less.
    """
    args, processes = trainer.args, trainer.accelerator.num_processes
    if not getattr(args, "check_memory", True):
        return
    sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    needed = sum(least_bytes(part, _optimizer(trainer)) for part in _trained(trainer)) // (processes if sharded else 1)
    total, name = _memory(args.device)
    if needed > total:
        raise ValueError(
            f"memory: weights, gradients and optimizer states need {needed / GIB:.1f} GiB a process, and {name} has "
            f"{total / GIB:.1f} GiB for each; use --use_peft true, a smaller model, or more processes with "
            "accelerate_configs/fsdp2.yaml (`fourstage plan` shows what each needs); --check_memory false starts all "
            "the same"
        )


def least_bytes(model: nn.Module, optimizer: str) -> int:
    """Bytes of all weights, and of gradients and optimizer states of those that are trained.

    Example: 1e9 trained float32 parameters under adamw_torch -> 4e9 + 4e9 + 8e9.
    """
    return sum(
        p.numel() * p.element_size() * (2 + _STATES.get(optimizer, 0) if p.requires_grad else 1)
        for p in model.parameters()
    )


def _memory(device: torch.device) -> tuple[int, str]:
    """(bytes for each process, words for where they are)."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory, "the GPU"
    return psutil.virtual_memory().total // int(os.environ.get("LOCAL_WORLD_SIZE", 1)), "this machine"


def _optimizer(trainer: Trainer) -> str:
    kind = trainer.args.optim
    return "muon" if getattr(trainer.args, "use_muon", False) else str(getattr(kind, "value", kind))


def _trained(trainer: Trainer) -> list[nn.Module]:
    """The policy, and PPO's critic unless it is an adapter on the policy."""
    critic = None if isinstance(trainer.model, PeftModel) else getattr(trainer, "value_model", None)
    return [part for part in (trainer.model, critic) if isinstance(part, nn.Module)]
