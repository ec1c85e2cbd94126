"""Muon in several processes that hold the same matrices: each does a part of the work, and all end as one would."""

import pytest
import torch
from torch import distributed, multiprocessing
from torch.optim import Muon

from fourstage.optim import BatchedMuon

SETTINGS = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.9, "adjust_lr_fn": "match_rms_adamw"}
SHAPES = [(128, 128)] * 5 + [(16, 48)] * 2 + [(320, 256)] * 3 + [(48, 16)]


def matrices():
    torch.manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape)) for shape in SHAPES]


def trained(kind):
    torch.set_num_threads(1)
    some = matrices()
    optimizer = kind(some, **SETTINGS)
    for seed in range(4):
        torch.manual_seed(seed)
        for matrix in some:
            matrix.grad = torch.randn_like(matrix)
        optimizer.step()
    return [matrix.detach() for matrix in some] + [optimizer.state[matrix]["momentum_buffer"] for matrix in some]


def train_and_save(rank, count, folder):
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=count)
    torch.save(trained(BatchedMuon), f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.parametrize("count", [2, 3])
def test_each_process_does_its_share_and_all_end_alike(tmp_path, count):
    multiprocessing.spawn(train_and_save, (count, tmp_path), count)
    ends = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(count)]
    for other in ends[1:]:
        assert all(torch.equal(a, b) for a, b in zip(ends[0], other, strict=True))
    threads = torch.get_num_threads()
    try:
        expected = trained(Muon)
    finally:
        torch.set_num_threads(threads)
    for ours, theirs in zip(ends[0], expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=5e-3)  # a step moves a number by up to 0.07
