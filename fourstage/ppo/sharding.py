"""The critic over several processes: a copy in each beside DDP, else sharded as FSDP2 shards, whatever has the policy.

torch's `fully_shard` needs no engine: it gathers a layer's weights around its forward and backward pass, and averages
and scatters the gradients in the backward pass. So the critic is sharded alike beside FSDP2 and DeepSpeed, of which
accelerate drives one engine alone.
"""

from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers.modeling_layers import GradientCheckpointingLayer
from trl import GRPOTrainer


def shards(trainer: GRPOTrainer) -> bool:
    """Whether an engine other than DDP has the policy."""
    return bool(trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled)


def shard_critic(critic: nn.Module, accelerator: Accelerator) -> None:
    """Divides a critic's weights among all processes, layer by layer; gradients and optimizer states follow them."""
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    for layer in list(critic.modules()):
        if isinstance(layer, GradientCheckpointingLayer):
            fully_shard(layer, mesh=mesh)
    fully_shard(critic, mesh=mesh)


def average_gradients(parameters: list[nn.Parameter], accelerator: Accelerator) -> None:
    """Over the processes' copies, all in one message. DDP does not wrap the critic, which runs outside the policy's
    forward pass.
    """
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    mean = accelerator.reduce(torch.cat([grad.flatten() for grad in grads]), reduction="mean")
    for parameter, part in zip(parameters, mean.split([grad.numel() for grad in grads]), strict=True):
        parameter.grad = part.view_as(parameter)


def gathered(value: Any) -> Any:
    """A value of an optimizer's or a model's state as one process alone would have it, tensors on the CPU.

    All processes have to call it.
    """
    if isinstance(value, dict):
        return {key: gathered(part) for key, part in value.items()}
    if isinstance(value, DTensor):
        value = value.full_tensor()
    return value.detach().cpu().contiguous() if isinstance(value, Tensor) else value


def divided(value: Any, parameter: nn.Parameter) -> Any:
    """The reverse of `gathered` for what belongs to a parameter: tensors of its shape are divided as it is."""
    if not isinstance(parameter, DTensor) or not isinstance(value, Tensor) or value.shape != parameter.shape:
        return value
    return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)


def divided_states(state: dict, parameters: list[nn.Parameter]) -> dict:
    """An optimizer's state dict from `gathered`, divided as its `parameters` are, in their order."""
    parts = {i: {k: divided(v, parameters[i]) for k, v in part.items()} for i, part in state["state"].items()}
    return {**state, "state": parts}
