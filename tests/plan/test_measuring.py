"""What a step takes of torch's allocator, of steps whose sizes are known by hand."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from fourstage.plan.measuring import _held, _most_allocated, _profiler

SIZE = 4 * 500 * 1000  # bytes of the weights


def replaces(model):
    """As an engine that shards, or moves a model: its weights go, others take their place."""
    model.weight.data = torch.empty(0)
    model.weight.data = torch.zeros(500, 1000)


def adds(model):
    more = [torch.zeros(500, 1000) for _ in range(2)]
    del more


@pytest.mark.parametrize(("step", "expected"), [(replaces, SIZE), (adds, 3 * SIZE), (lambda model: None, SIZE)])
@pytest.mark.parametrize("from_file", [False, True])
def test_the_peak_of_a_step(tmp_path, step, expected, from_file):
    profiler = _profiler()
    model = nn.Linear(1000, 500, bias=False)
    before = torch.zeros(3000, 1000)  # gone before the step begins
    del before
    if from_file:  # its pages are not the allocator's
        model.weight.data = torch.from_numpy(np.memmap(tmp_path / "weights", np.float32, "w+", shape=(500, 1000)))
    else:
        model.weight.data = torch.zeros(500, 1000)
    trainer = SimpleNamespace(model=model)
    assert _held(trainer) == SIZE
    found = _most_allocated(profiler, trainer, lambda: step(model))
    copied = 0 if from_file else SIZE  # both exist for a moment
    assert max(expected, SIZE + copied) <= found < max(expected, SIZE + copied) + 10_000


def test_weights_that_share_a_storage_go_on_sharing_it():
    profiler = _profiler()
    model = nn.ModuleList([nn.Linear(10, 10, bias=False), nn.Linear(10, 10, bias=False)])
    model[1].weight.data = model[0].weight.data
    _most_allocated(profiler, SimpleNamespace(model=model), lambda: None)
    assert model[0].weight.data_ptr() == model[1].weight.data_ptr() and _held(SimpleNamespace(model=model)) == 400
