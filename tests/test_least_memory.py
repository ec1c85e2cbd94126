"""Whether a run can fit at all: bytes by hand, and a machine that is too small for them."""

from types import SimpleNamespace

import psutil
import pytest
import torch
from torch import nn

from fourstage.memory import check_memory, least_bytes


def trainer_of(model, critic=None, processes=1, sharded=False, **args):
    settings = {"use_muon": False, "optim": "adamw_torch", "device": torch.device("cpu"), "check_memory": True}
    return SimpleNamespace(
        model=model,
        value_model=critic,
        args=SimpleNamespace(**(settings | args)),
        accelerator=SimpleNamespace(num_processes=processes),
        is_fsdp_enabled=sharded,
        is_deepspeed_enabled=False,
    )


def test_bytes_are_those_of_a_count_by_hand():
    model = nn.Linear(10, 20, bias=False)  # 200 numbers of 4 bytes
    assert least_bytes(model, "adamw_torch") == 200 * 4 * (1 + 1 + 2)
    assert least_bytes(model, "muon") == 200 * 4 * (1 + 1 + 1)
    assert least_bytes(model, "sgd") == 200 * 4 * 2
    assert least_bytes(model.to(torch.bfloat16), "adamw_torch") == 200 * 2 * 4
    frozen = nn.Sequential(nn.Linear(10, 20, bias=False).requires_grad_(False), nn.Linear(20, 1, bias=False))
    assert least_bytes(frozen, "adamw_torch") == 200 * 4 + 20 * 4 * 4


@pytest.mark.parametrize(
    ("more", "most"),
    [
        ({}, 3200),
        ({"critic": nn.Linear(5, 20, bias=False)}, 3200 + 1600),
        ({"use_muon": True}, 2400),
        ({"processes": 2, "sharded": True}, 1600),
        ({"processes": 2}, 3200),
    ],
)
def test_a_run_that_cannot_fit_is_refused_and_one_byte_more_is_enough(monkeypatch, more, most):
    trainer = trainer_of(nn.Linear(10, 20, bias=False), **more)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=most))
    check_memory(trainer)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=most - 1))
    with pytest.raises(ValueError, match="check_memory false") as refused:
        check_memory(trainer)
    assert "\n" not in str(refused.value)
    trainer.args.check_memory = False
    check_memory(trainer)


def test_processes_of_one_machine_share_its_memory(monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=3200))
    check_memory(trainer_of(nn.Linear(10, 20, bias=False)))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="memory"):
        check_memory(trainer_of(nn.Linear(10, 20, bias=False), processes=2))
