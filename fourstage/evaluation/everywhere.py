"""Evaluations while training: those of several processes give the figures of one, and none is taken twice."""

from typing import Any, cast

import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import Trainer


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
