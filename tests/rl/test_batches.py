"""Micro-batches by length: every row once, no column that only pads, and the cheapest cut there is."""

import itertools

import pytest
import torch

from fourstage.rl.batches import grouped_by_length, loss_mask, part_ends, trimmed


def batch_of(lengths, prompts, width=8, prompt_width=5, first=0):
    """Rows whose values tell who they are: 100 * row + column."""
    rows = torch.arange(first, first + len(lengths))[:, None] * 100
    mask = torch.arange(width)[None] < torch.tensor(lengths)[:, None]
    prompt = torch.arange(prompt_width)[None] >= prompt_width - torch.tensor(prompts)[:, None]
    return {
        "prompt_ids": rows + torch.arange(prompt_width),
        "prompt_mask": prompt.long(),
        "completion_ids": rows + torch.arange(width),
        "completion_mask": mask.long(),
        "advantages": rows + torch.arange(width) + 0.5,
        "scores": rows[:, 0].float(),
        "num_items_in_batch": torch.tensor(sum(lengths)),
    }


def test_columns_that_only_pad_go():
    batch = trimmed(batch_of([2, 5, 1], [3, 1, 2]))
    assert batch["completion_ids"].shape == (3, 5) and batch["prompt_ids"].shape == (3, 3)
    assert batch["prompt_ids"][0].tolist() == [2, 3, 4] and batch["advantages"][1].tolist() == [
        100.5 + i for i in range(5)
    ]
    assert batch["scores"].tolist() == [0, 100, 200] and batch["num_items_in_batch"] == 8


def test_a_batch_without_any_token_keeps_a_column():
    batch = trimmed(batch_of([0, 0], [1, 1]))
    assert batch["completion_ids"].shape == (2, 1)


def test_text_of_a_tool_is_no_choice_of_the_policy():
    batch = batch_of([3], [1], width=4) | {"tool_mask": torch.tensor([[1, 0, 1, 1]])}
    assert loss_mask(batch).tolist() == [[True, False, True, False]]


@pytest.mark.parametrize("same_sizes", [True, False])
def test_every_row_stands_once_with_all_that_is_its_own(same_sizes):
    lengths = [8, 1, 2, 3, 1, 7, 2, 1, 6, 1, 1, 1]
    batches = [batch_of(lengths[i : i + 3], [1, 2, 3], first=i) for i in range(0, 12, 3)]
    grouped = grouped_by_length(batches, 2, same_sizes)
    assert len(grouped) == 4
    if same_sizes:
        assert [len(batch["scores"]) for batch in grouped] == [3] * 4
    for half in (0, 1):  # of two windows
        rows = torch.cat([batch["scores"] for batch in grouped[2 * half : 2 * half + 2]]) / 100
        assert sorted(rows.tolist()) == list(range(6 * half, 6 * half + 6))
    for batch in grouped:
        assert batch["completion_mask"].any(dim=0).all() and batch["prompt_mask"].any(dim=0).all()
        for i, score in enumerate(batch["scores"].tolist()):
            length = lengths[int(score) // 100]
            assert batch["completion_mask"][i].sum() == length
            assert (batch["advantages"][i][:length] == score + torch.arange(length) + 0.5).all()


def test_cuts_are_the_best_of_all():
    chance = torch.Generator().manual_seed(0)
    for _ in range(20):
        widths = sorted(torch.randint(1, 12, (9,), generator=chance).tolist())
        most = 3 * widths[-1]
        possible = []
        for inner in itertools.combinations(range(1, 9), 2):
            ends = [*inner, 9]
            sizes = [(end - start) * widths[end - 1] for start, end in itertools.pairwise([0, *ends])]
            if max(sizes) <= most:
                possible.append((sum(sizes), ends))
        found = part_ends(widths, 3, most)
        sizes = [(end - start) * widths[end - 1] for start, end in itertools.pairwise([0, *found])]
        assert sum(sizes) == min(possible)[0] and max(sizes) <= most and found[-1] == 9


def test_cuts_by_hand():
    assert part_ends([1, 1, 1, 9], 2, 18) == [3, 4]
    assert part_ends([4, 4], 2, 4) == [1, 2]
    assert part_ends([5, 5, 5, 5], 2, 10) == [2, 4]
