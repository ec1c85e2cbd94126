"""Evaluations while training: those of several processes give the figures of one, and none is taken twice."""

import math
from typing import Any, cast

import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import Trainer
from trl import GRPOConfig


def evaluate_everywhere(trainer: Trainer) -> None:
    """Has every process evaluate all held-out rows, where there are several.

    Divided among processes, rows are repeated until all processes have as many batches as the others, and figures are
    means over batches that no longer hold the same rows: they depend on the number of processes. Held-out rows are few
    beside those of training, so each process takes as long for them as one alone would.
    """
    if trainer.accelerator.num_processes == 1 or not isinstance(trainer.eval_dataset, Dataset):
        return

    replaced = cast(Any, trainer)  # its methods have wider types

    def all_rows(eval_dataset: Dataset | None = None) -> DataLoader:
        rows = cast(Dataset, trainer.eval_dataset if eval_dataset is None else eval_dataset)
        left = len(rows)

        def of_this_process(losses: torch.Tensor) -> torch.Tensor:
            """The mean loss of a batch, once for each row: transformers repeats it as if every batch were full."""
            nonlocal left
            counted = losses[:left]
            left -= len(counted)
            return counted

        replaced.gather_function = of_this_process  # transformers puts its own back after each evaluation
        return DataLoader(cast(Any, rows), batch_size=trainer.args.eval_batch_size, collate_fn=trainer.data_collator)

    replaced.get_eval_dataloader = all_rows


def held_out_prompts(test: Dataset, args: GRPOConfig, at_most: int) -> Dataset:
    """The first prompts, at most so many, of which evaluations by rollouts make batches of one size in every process.

    Their figures are means over batches, and rows are repeated where a batch is not full: so prompts that would not
    fill one are left out, and `args.per_device_eval_batch_size` is lowered to the size at which fewest are. Where
    there are too few for the processes, nothing is changed.

    Example: 61 prompts in batches of 32 at most, one process -> 60, in batches of 30.
    """
    prompts, processes = test.take(at_most), args.world_size
    answers = args.num_generations_eval or args.num_generations or 1
    unit = processes // math.gcd(processes, answers)  # prompts whose answers divide among the processes
    most = args.per_device_eval_batch_size * processes // (answers * unit) * unit
    batches = math.ceil(len(prompts) / max(most, 1))
    in_batch = len(prompts) // max(batches, 1) // unit * unit
    if not in_batch:
        return prompts
    args.per_device_eval_batch_size = in_batch * answers // processes
    return prompts.take(batches * in_batch)


def last_evaluation(trainer: Trainer) -> dict[str, Any]:
    """The figures of the held-out rows for the weights that training left.

    They are those of the evaluation after the last step where there was one, unless training ends by loading the
    weights of an earlier step; else the rows are evaluated now.
    """
    state = trainer.state
    last = next((row for row in reversed(state.log_history) if "eval_runtime" in row), {})
    if last.get("step") != state.global_step or trainer.args.load_best_model_at_end:
        return trainer.evaluate()
    return {name: value for name, value in last.items() if name.startswith("eval_") or name == "epoch"}
