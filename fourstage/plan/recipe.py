"""The settings of a run that is planned: read as its recipe reads them, and as they would be on another device."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fourstage.arguments import DataArguments, InstructConfig, ModelArguments, PretrainConfig, RewardModelConfig, parse
from fourstage.grpo.config import GRPORunConfig
from fourstage.ppo.config import PPORunConfig
from fourstage.settings_file import read_yaml
from fourstage.shipped import shipped_folder

CONFIGS: dict[str, type] = {
    "pretrain": PretrainConfig,
    "sft": InstructConfig,
    "reward": RewardModelConfig,
    "ppo": PPORunConfig,
    "grpo": GRPORunConfig,
}


@dataclass
class Settings:
    """What a recipe was told: `given` are the names that the YAML or the flags set."""

    stage: str
    data: DataArguments
    training: Any  # of the class in CONFIGS
    model: ModelArguments
    given: set[str]


def read_settings(stage: str, words: list[str]) -> Settings:
    """The settings that recipes/STAGE.py would read from these words.

    Raises:
        ValueError: for an unknown recipe, and whatever the recipe itself refuses.
    """
    if stage not in CONFIGS:
        raise ValueError(f"recipe={stage!r} must be one of {', '.join(CONFIGS)}")
    recipe = shipped_folder() / "recipes" / f"{stage}.py"
    words = words or ["--config", str(recipe.parent / "configs" / "demo" / f"{stage}.yaml")]
    before, sys.argv = sys.argv, [str(recipe), *words]
    try:
        data, training, model = parse(str(recipe), DataArguments, CONFIGS[stage], ModelArguments)
    finally:
        sys.argv = before
    return Settings(stage, data, training, model, _given(words))


def _given(words: list[str]) -> set[str]:
    flags = {word.split("=")[0].removeprefix("--").removeprefix("no_") for word in words if word.startswith("--")}
    files = [word.removeprefix("--config=") for word in words if word.startswith("--config=")]
    files += [after for word, after in zip(words, words[1:], strict=False) if word == "--config"]
    return flags.union(*(read_yaml(Path(file))[0] for file in files))


def as_on_gpu(settings: Settings) -> None:
    """Puts precision and checkpointing as `arguments.choose_by_device` would on a GPU, where they were left open."""
    training, given = settings.training, settings.given
    training.precision_left_open = False
    if not given & {"bf16", "fp16"}:
        training.bf16, training.mixed_precision = True, "bf16"
    if not given & {"gradient_checkpointing", "activation_checkpointing"}:
        training.activation_checkpointing = settings.stage != "pretrain"
