"""Settings of GRPO: TRL's GRPOConfig with defaults that do not collapse, and what recipes/grpo.py adds."""

import os
from dataclasses import dataclass

import trl

from fourstage.arguments import RewardArguments, RunDefaults, choose_by_device, option
from fourstage.ranges import check_values


@dataclass
class GRPOConfig(trl.GRPOConfig):
    """TRL's GRPOConfig with precision and checkpointing by device, and defaults under which small models learn.

    A step rewards per_device_train_batch_size x gradient_accumulation_steps completions per process: num_generations
    for each prompt, which are compared with one another.
    """

    _argument_group_name = "training"

    lr_scheduler_type: str = option("constant_with_warmup", "Any scheduler of transformers, such as linear.")
    warmup_steps: float = option(5, "Steps of linear warm-up, or a share of all steps if below 1.")
    per_device_train_batch_size: int = option(16, "Completions a device takes at once.")
    gradient_accumulation_steps: int = option(8, "Such batches a step.")
    per_device_eval_batch_size: int = option(32, "Held-out prompts a device answers at once.")
    num_generations: int | None = option(8, "Completions per prompt, compared with one another. It divides the batch.")
    num_generations_eval: int | None = option(1, "Completions per held-out prompt.")
    epsilon_high: float | None = option(0.28, "Upper clip: above epsilon rare tokens may grow (arXiv 2503.14476).")
    disable_dropout: bool = option(True, "Turn dropout off: a ratio of probabilities needs a fixed network.")
    logging_steps: float = option(1, "Optimizer steps between log lines.")
    gradient_checkpointing: bool | None = option(None, "Trade compute for memory. Default: on for a GPU.")
    bf16: bool | None = option(
        None,
        "bfloat16 mixed precision. Default: on where the GPU, or in a recipe the CPU (from 0.5M on), multiplies it.",
    )

    def __post_init__(self) -> None:
        check_values(self)
        choose_by_device(self, checkpointing_on_gpu=True)
        self._check_group_size()
        super().__post_init__()

    def _check_group_size(self) -> None:
        processes = int(os.environ.get("WORLD_SIZE", "1"))
        steps = self.steps_per_generation or self.gradient_accumulation_steps
        batch = self.generation_batch_size or self.per_device_train_batch_size * steps * processes
        given = self.num_generations or 0
        if given < 2 or batch % given:
            fitting = [n for n in range(2, min(batch, 4_096) + 1) if batch % n == 0]
            which = ", ".join(map(str, fitting)) or "none: raise per_device_train_batch_size"
            raise ValueError(
                f"num_generations={self.num_generations} must divide the {batch} completions of a step "
                f"(per_device_train_batch_size x steps_per_generation x processes) and be 2 or more: {which} would"
            )


@dataclass
class GRPORunConfig(RunDefaults, RewardArguments, GRPOConfig):
    """What recipes/grpo.py adds: where the rewards come from, when the run is evaluated and saved, how it resumes."""

    output_dir: str | None = option("runs/grpo", "The run folder: everything the stage leaves is in it.")
    unverifiable: str = option(
        "error", "Rows whose right answer its own verifier rejects: error (names the row) or drop (counted)."
    )
    system_prompt: str | None = option(None, "Text of a system turn before every question, such as the desired format.")
    overlong: str = option("drop", "Prompts that leave no room for max_completion_length: drop (counted) or error.")
    max_completion_length: int | None = option(256, "Longest completion in tokens.")
    max_eval_rows: int = option(128, "Held-out prompts that an evaluation answers, once each, sampled as in training.")
    learning_rate: float | None = option(
        None,
        "Peak learning rate. Default: 1e-6 x (1e9 / parameters)^0.75, at least 1e-6, such as 1.8e-4 for 1M and 3e-5 "
        "for 10M; ten times that for LoRA.",
    )
    num_train_epochs: float = option(1.0, "Passes over the prompts, unless max_steps is given.")
    eval_steps: float | None = option(0.25, "Steps between evaluations, or a share of all steps if below 1.")

    def __post_init__(self) -> None:
        rate = self.learning_rate
        self.learning_rate = rate or 1e-6  # transformers refuses None; `fourstage.resolve` fills it by the model's size
        super().__post_init__()
        self.learning_rate = rate


def default_learning_rate(parameters: int, adapters: bool) -> float:
    """A rate that neither stalls nor collapses, by the number of parameters: TRL's 1e-6 from 1e9 on, higher below.

    It was measured at 1M only (docs/grpo.md), where 4e-4 learned faster still; from there to 1e9 it is a straight line
    in the logarithms.

    Example: 1,000,000 -> 1.8e-4; 10,000,000 -> 3.2e-5; 7e9 -> 1e-6; with adapters ten times as much.
    """
    rate = 1e-6 * max(1.0, 1e9 / parameters) ** 0.75
    return rate * (10 if adapters else 1)
