"""Micro-batches of a rollout: rows of like length together, and no column that only pads."""

import torch
from torch import Tensor

Batch = dict[str, Tensor]


def loss_mask(batch: Batch) -> Tensor:
    """(B, T) True at the tokens that the policy chose: neither padding nor text of a tool."""
    mask = batch["completion_mask"].bool()
    return mask & batch["tool_mask"].bool() if "tool_mask" in batch else mask


def trimmed(batch: Batch) -> Batch:
    """Without the columns that are padding in every row: prompts are padded on the left, completions on the right.

    At least one column of each stays. Scalars, and tensors with one value a row, are kept as they are.
    """
    prompt, completion = batch["prompt_mask"].any(dim=0), batch["completion_mask"].any(dim=0)
    start = min(int(prompt.long().argmax()), prompt.numel() - 1)
    end = max(int(completion.sum()), 1)
    width = completion.numel()

    def cut(name: str, value: Tensor) -> Tensor:
        if value.dim() < 2:
            return value
        if name.startswith("prompt"):
            return value[:, start:]
        return value[:, :end] if value.size(1) == width else value

    return {name: cut(name, value) if torch.is_tensor(value) else value for name, value in batch.items()}


def grouped_by_length(batches: list[Batch], window: int) -> list[Batch]:
    """The same rows in micro-batches of the same sizes, sorted by length within each `window` of them, and trimmed.

    A window is what one optimizer step accumulates over. With a loss that is a sum over its tokens or sequences, the
    order of rows within it changes nothing but the padding: short completions no longer wait for the longest one.
    """
    grouped: list[Batch] = []
    for first in range(0, len(batches), window):
        group = batches[first : first + window]
        lengths = torch.cat([batch["completion_mask"].sum(dim=1) for batch in group])
        order, size = lengths.argsort(stable=True), len(group[0]["completion_mask"])
        rows = {
            name: torch.cat([batch[name] for batch in group])[order]
            if torch.is_tensor(value) and value.dim()
            else value
            for name, value in group[0].items()
        }
        for at in range(0, len(order), size):
            part = {n: v[at : at + size] if torch.is_tensor(v) and v.dim() else v for n, v in rows.items()}
            grouped.append(trimmed(part))
    return grouped
