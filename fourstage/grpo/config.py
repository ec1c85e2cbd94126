"""Settings of GRPO: TRL's GRPOConfig with defaults that do not collapse, and what recipes/grpo.py adds."""

import os
from dataclasses import dataclass

from trl import GRPOConfig

from fourstage.arguments import RewardArguments, choose_by_device
from fourstage.arguments import _option as option


@dataclass
class GRPORunConfig(RewardArguments, GRPOConfig):
    """GRPOConfig, where the rewards come from, and how a run is kept and watched.

    A step rewards per_device_train_batch_size x gradient_accumulation_steps completions a process: num_generations of
    each prompt, which are compared with one another.
    """

    _argument_group_name = "training"

    output_dir: str | None = option("runs/grpo", "The run folder: everything the stage leaves is in it.")
    resume_from_checkpoint: str | None = option(
        "auto", "auto: go on where a run with the same settings was cut off; or the path of a checkpoint."
    )
    unverifiable: str = option(
        "error", "Rows whose right answer its own verifier rejects: error (names the row) or drop (counted)."
    )
    system_prompt: str | None = option(None, "Text of a system turn before every question, such as the format wanted.")
    overlong: str = option("drop", "Prompts that leave no room for max_completion_length: drop (counted) or error.")
    max_completion_length: int | None = option(256, "Longest completion in tokens.")
    max_eval_rows: int = option(128, "Held-out prompts that an evaluation answers, once each, sampled as in training.")
    learning_rate: float | None = option(
        None,
        "Peak learning rate. Default: 1e-6 x (1e9 / parameters)^0.75, at least 1e-6, such as 1.8e-4 for 1M and 3e-5 "
        "for 10M; ten times that for LoRA.",
    )
    lr_scheduler_type: str = option("constant_with_warmup", "Any scheduler of transformers, such as linear.")
    warmup_steps: float = option(5, "Steps of linear warm-up, or a share of all steps if below 1.")
    num_train_epochs: float = option(1.0, "Passes over the prompts, unless max_steps is given.")
    per_device_train_batch_size: int = option(16, "Completions a device takes at once.")
    gradient_accumulation_steps: int = option(8, "Such batches a step.")
    per_device_eval_batch_size: int = option(32, "Held-out prompts a device answers at once.")
    num_generations: int | None = option(8, "Completions per prompt, compared with one another. It divides the batch.")
    num_generations_eval: int | None = option(1, "Completions per held-out prompt.")
    epsilon_high: float | None = option(0.28, "Upper clip: above epsilon rare tokens may grow (arXiv 2503.14476).")
    disable_dropout: bool = option(True, "Turn dropout off: a ratio of probabilities needs a fixed network.")
    logging_steps: float = option(1, "Optimizer steps between log lines.")
    gradient_checkpointing: bool | None = option(None, "Trade compute for memory. Default: on for a GPU.")
    bf16: bool | None = option(None, "bfloat16 mixed precision. Default: on where a GPU has it.")
    eval_strategy: str = option("steps", "no, steps or epoch.")
    eval_steps: float | None = option(0.25, "Steps between evaluations, or a share of all steps if below 1.")
    eval_on_start: bool = option(True, "Measure the starting weights too.")
    save_steps: float = option(0.1, "Steps between checkpoints, or a share of all steps if below 1.")
    save_total_limit: int | None = option(1, "Checkpoints kept.")

    def __post_init__(self):
        for name, allowed in (("overlong", ("drop", "error")), ("unverifiable", ("error", "drop"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r} must be {' or '.join(allowed)}")
        choose_by_device(self, checkpointing_on_gpu=True)
        self._check_group_size()
        rate, self.learning_rate = self.learning_rate, self.learning_rate or 1e-6
        super().__post_init__()
        self.learning_rate = rate

    def _check_group_size(self) -> None:
        processes = int(os.environ.get("WORLD_SIZE", "1"))
        steps = self.steps_per_generation or self.gradient_accumulation_steps
        batch = self.generation_batch_size or self.per_device_train_batch_size * steps * processes
        fitting = [n for n in range(2, batch + 1) if batch % n == 0]
        if self.num_generations not in fitting:
            which = ", ".join(map(str, fitting)) or "none: raise per_device_train_batch_size"
            raise ValueError(
                f"num_generations={self.num_generations} must divide the {batch} completions of a step "
                f"(per_device_train_batch_size x steps_per_generation x processes) and be 2 or more: {which} would"
            )


def default_learning_rate(parameters: int, adapters: bool) -> float:
    """A rate that neither stalls nor collapses, by the number of parameters: 1e-6 (TRL's) from 1e9 on, more below.

    Tried at 1M (docs/grpo.md), where 4e-4 learned faster still; up to 1e9 it is a line in the logarithms.

    Example: 1,000,000 -> 1.8e-4; 10,000,000 -> 3.2e-5; 7e9 -> 1e-6; with adapters ten times as much.
    """
    rate = 1e-6 * max(1.0, 1e9 / parameters) ** 0.75
    return rate * (10 if adapters else 1)
