"""The critic's part of a PPO checkpoint: its weights in training, and the state of its optimizer."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from fourstage.ppo.sharding import divided, divided_states, gathered

VALUE_FILE, VALUE_OPTIMIZER_FILE = "value_model.safetensors", "value_optimizer.pt"


def save_training_state(
    folder: Path, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, should_save: bool
) -> None:
    """Writes both files; every process takes part, and the one with `should_save` writes."""
    weights, state = gathered(dict(parameters)), gathered(optimizer.state_dict())
    if should_save:
        save_file(weights, folder / VALUE_FILE)
        torch.save(state, folder / VALUE_OPTIMIZER_FILE)


def load_training_state(folder: Path, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
    """Puts both back, each process its part.

    Raises:
        ValueError: for the checkpoint of another trainer.
    """
    if not (folder / VALUE_OPTIMIZER_FILE).is_file():
        raise ValueError(
            f"checkpoint {folder} has no {VALUE_OPTIMIZER_FILE}, so it is not a PPO checkpoint: give "
            "resume_from_checkpoint one that PPOTrainer saved"
        )
    weights = load_file(folder / VALUE_FILE)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(divided(weights[name], parameter))
    state = torch.load(folder / VALUE_OPTIMIZER_FILE, map_location="cpu", weights_only=True)
    optimizer.load_state_dict(divided_states(state, list(parameters.values())))
