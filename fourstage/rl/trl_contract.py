"""What the trainers of stages 3 and 4 need inside TRL and transformers, checked when a trainer is built.

They override private methods of GRPOTrainer. A release that renames one could train wrongly without an error: it is
refused, with what is missing and the versions that were tested. The tests check the behaviour too.
"""

import inspect
from importlib.metadata import version
from typing import cast

from trl import GRPOConfig, GRPOTrainer

TESTED = "trl 1.16.0 with transformers 5.23.0"

# Methods that are overridden or called, with the parameters that are passed.
METHODS: dict[str, tuple[str, ...]] = {
    "_generate_and_score_completions": ("inputs",),
    "_calculate_rewards": ("inputs", "prompts", "completions", "completion_ids_list"),
    "_prepare_inputs": ("generation_batch",),
    "_get_per_token_logps_and_entropies": ("model", "input_ids", "attention_mask", "logits_to_keep", "batch_size"),
    "_compute_loss": ("model", "inputs"),
    "training_step": ("model", "inputs", "num_items_in_batch"),
    "save_model": ("output_dir", "_internal_call"),
    "_save_optimizer_and_scheduler": ("output_dir",),
    "_load_optimizer_and_scheduler": ("checkpoint",),
    "get_optimizer_cls_and_kwargs": ("args",),
}
# What a built trainer must have.
ATTRIBUTES = (
    *("accelerator", "model", "temperature", "beta", "ref_model", "epsilon_low", "epsilon_high"),
    *("reward_funcs", "reward_func_names", "reward_processing_classes", "reward_weights"),
    *("eos_token_ids", "chat_template_kwargs", "aux_loss_enabled", "loss_type", "top_entropy_quantile"),
    *("_entropy_bonus_enabled", "_metrics", "_buffered_inputs", "_step", "_tokenizer", "_is_vlm"),
)
BATCH_KEYS = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "advantages", "num_items_in_batch")


def config_of(trainer: GRPOTrainer) -> GRPOConfig:
    """The settings of a trainer, which transformers types as TrainingArguments."""
    return cast(GRPOConfig, trainer.args)


def check_methods() -> None:
    """Raises ValueError if GRPOTrainer lacks a method or a parameter that fourstage relies on."""
    missing = []
    for name, parameters in METHODS.items():
        method = getattr(GRPOTrainer, name, None)
        if method is None:
            missing.append(f"{name}()")
            continue
        known = inspect.signature(method).parameters
        missing += [f"{name}({parameter})" for parameter in parameters if parameter not in known]
    _refuse(missing, "GRPOTrainer")


def check_attributes(trainer: GRPOTrainer) -> None:
    """Raises ValueError if a built trainer lacks an attribute that fourstage relies on."""
    _refuse([name for name in ATTRIBUTES if not hasattr(trainer, name)], "a built GRPOTrainer")


def check_batch(batch: dict) -> None:
    """Raises ValueError if a rollout of GRPOTrainer lacks a tensor that fourstage relies on."""
    _refuse([key for key in BATCH_KEYS if key not in batch], "GRPOTrainer's rollout")


def _refuse(missing: list[str], where: str) -> None:
    if missing:
        raise ValueError(
            f"trl {version('trl')}: {where} has no {', '.join(missing)}, which fourstage relies on; tested with "
            f"{TESTED}. Install that: pip install 'trl>=1.16,<1.17'"
        )
