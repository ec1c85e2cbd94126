"""Micro-batches of a rollout: rows of similar length together, and no column of padding alone."""

import itertools

import numpy as np
import torch
from torch import Tensor

Batch = dict[str, Tensor]


def loss_mask(batch: Batch) -> Tensor:
    """(B, T) True at the tokens that the policy chose, False at padding and at text from a tool."""
    mask = batch["completion_mask"].bool()
    return mask & batch["tool_mask"].bool() if "tool_mask" in batch else mask


def trimmed(batch: Batch) -> Batch:
    """The batch without the columns that are padding in every row.

    Prompts are padded on the left, completions on the right; at least one column of each stays. Scalars, and tensors
    with one value a row, stay as they are.
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


def grouped_by_length(batches: list[Batch], window: int, same_sizes: bool) -> list[Batch]:
    """The same rows in the same number of micro-batches, sorted by length within each `window` of them, and trimmed.

    A window is the micro-batches that one optimizer step accumulates. If the loss is a sum over tokens, the order of
    the rows and the number of rows in a micro-batch change only the padding: short completions no longer wait for the
    longest one. With `same_sizes` every micro-batch keeps its number of rows, for losses that are means over rows.
    """
    grouped: list[Batch] = []
    for first in range(0, len(batches), window):
        group = batches[first : first + window]
        lengths = torch.cat([batch["completion_mask"].sum(dim=1) for batch in group])
        order, size = lengths.argsort(stable=True), len(group[0]["completion_mask"])
        widths = (lengths[order] + group[0]["prompt_mask"].size(1)).tolist()
        ends = range(size, len(widths) + 1, size) if same_sizes else part_ends(widths, len(group), size * widths[-1])
        for start, end in itertools.pairwise([0, *ends]):
            rows = order[start:end]
            grouped.append(trimmed({name: _rows(group, name, rows) for name in group[0]}))
    return grouped


def _rows(group: list[Batch], name: str, rows: Tensor) -> Tensor:
    first = group[0][name]
    return torch.cat([batch[name] for batch in group])[rows] if torch.is_tensor(first) and first.dim() else first


def part_ends(widths: list[int], parts: int, most: int) -> list[int]:
    """Where each of `parts` consecutive parts of the rows, sorted by width, ends, so that the least padding is needed.

    A part takes rows x width of its widest row; the sum over the parts is minimal, and none takes more than `most`, so
    that memory does not grow.

    Example: widths [1, 1, 1, 9], 2 parts, most 18 -> [3, 4]: 3 x 1 + 1 x 9 = 12 instead of 2 x 1 + 2 x 9 = 20.
    """
    n, width = len(widths), np.array([0, *widths])
    size = (np.arange(n + 1)[None, :] - np.arange(n + 1)[:, None]) * width[None, :]  # of a part, by start and end
    size = np.where((size > 0) & (size <= most), size, np.inf)
    best = np.where(np.arange(n + 1) == 0, 0.0, np.inf)
    starts: list[np.ndarray] = []
    for _ in range(parts):
        total = best[:, None] + size
        starts.append(total.argmin(axis=0))
        best = total.min(axis=0)
    ends = [n]
    for start in reversed(starts[1:]):
        ends.insert(0, int(start[ends[0]]))
    return ends
