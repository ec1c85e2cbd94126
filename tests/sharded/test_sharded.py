"""Every recipe in two processes: DDP, FSDP2 and ZeRO train what one process trains, to the rounding of sums.

FSDP2 shards over CPU processes here through sitecustomize.py beside this file. benchmarks/sharding.py has the runs.
"""

import importlib.util
import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from helpers import ROOT, cut_off, run_here, run_program
from safetensors.torch import load_file

pytestmark = pytest.mark.slow


def load_benchmark():
    spec = importlib.util.spec_from_file_location("sharding_benchmark", ROOT / "benchmarks" / "sharding.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


sharding = load_benchmark()
CASES = ("pretrain", "pretrain-muon", "sft", "sft-lora", "reward", "ppo", "ppo-lora", "ppo-ptx", "grpo")
ADAPTER = "adapter_model.safetensors"
ROWS = "--per_device_train_batch_size=8"


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """A folder with the models that the runs start from."""
    folder = tmp_path_factory.mktemp("sharded")
    for stage, (recipe, *flags) in sharding.chain_commands(folder / "chain").items():
        run_here(recipe, *flags, *sharding.ALL, ROWS, "--output_dir", folder / "chain" / stage)
    return folder


@pytest.fixture(scope="module")
def reference(out):
    """The run that a case is compared with: of one process."""

    def run(case):
        folder, (recipe, *flags) = out / f"{case}-reference", sharding.cases(out / "chain")[case]
        if not folder.exists():
            run_here(recipe, *flags, *sharding.TRIAL, *sharding.ALL, ROWS, "--output_dir", folder)
        return folder

    return run


ZERO = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="the extra deepspeed is missing")


@pytest.mark.parametrize(
    ("engine", "case"),
    [("fsdp2", case) for case in CASES]
    + [("ddp", case) for case in ("ppo-lora", "grpo")]
    + [pytest.param("zero2", "pretrain", marks=ZERO)]
    + [pytest.param("zero3", case, marks=ZERO) for case in ("sft", "ppo", "ppo-lora", "ppo-ptx")],
)
def test_sharded_weights_learn_the_same(out, reference, engine, case):
    folder, (recipe, *flags) = out / f"{case}-{engine}", sharding.cases(out / "chain")[case]
    assert sharding.launch(engine, folder, recipe, [*flags, *sharding.TRIAL]) == ""
    found = sharding.compare(folder, reference(case))
    assert not found["missing"]
    assert found["apart"] < sharding.EQUAL, found["figure"]
    if case != "pretrain-muon":  # Muon iterates in bfloat16, which magnifies differences of rounding
        assert found["weights"] < 1e-4
    if case == "ppo-lora":  # the critic has a base of its own, and is written as the one that shares the policy's
        ours, theirs = (load_file(path / "value" / "value" / ADAPTER) for path in (folder, reference(case)))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    assert any(found["figures"]["grad_norm"])
    assert json.loads((folder / "run.json").read_text())["engine"] == engine


@pytest.mark.parametrize(
    ("engine", "case"),
    [("ddp", "ppo-lora"), ("fsdp2", "pretrain-muon"), ("fsdp2", "ppo"), ("fsdp2", "ppo-lora")],
)
def test_all_processes_hold_the_same_weights_after_every_update(out, tmp_path, engine, case, monkeypatch):
    """Policy and critic, gathered: the same hash in both processes, and another one after each update."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    recipe, *flags = sharding.cases(out / "chain")[case]
    through = ("-m", "hashed", tmp_path / "hashes")
    assert sharding.launch(engine, tmp_path / "run", recipe, [*flags, *sharding.TRIAL], through=through) == ""
    lines, other = ((tmp_path / f"hashes.{rank}").read_text().splitlines() for rank in range(2))
    assert lines == other and len(lines) == 5
    assert len({line.split()[0] for line in lines}) == 5
    assert {len(line.split()) for line in lines} == {2 if recipe == "ppo" else 1}


@pytest.mark.parametrize(
    ("engine", "case"),
    [
        ("fsdp2", "ppo"),
        ("fsdp2", "ppo-lora"),
        *(pytest.param("zero3", case, marks=ZERO) for case in ("ppo", "ppo-lora")),
    ],
)
def test_ppo_resumes_to_the_same_end_under_its_own_engine_only(out, engine, case):
    recipe, *flags = sharding.cases(out / "chain")[case]
    flags += [*sharding.TRIAL, "--max_steps=6", "--save_strategy=steps", "--save_steps=4", "--save_total_limit=2"]
    straight, resumed = out / f"straight-{case}-{engine}", out / f"resumed-{case}-{engine}"
    assert sharding.launch(engine, straight, recipe, flags) == ""
    shutil.copytree(straight, resumed)
    cut_off(resumed, step=4)
    for other, why in (("ddp", f"ran under {engine}, now ddp"), ("one", "per_device_train_batch_size was 4, now 8")):
        assert why in sharding.launch(other, resumed, recipe, flags)
    assert sharding.launch(engine, resumed, recipe, flags) == ""
    assert "from checkpoint-4" in Path(f"{resumed}.log").read_text()
    found = sharding.compare(resumed, straight)
    assert found["apart"] < sharding.EQUAL and found["weights"] < 1e-6, found["figure"]


@pytest.mark.parametrize(
    ("case", "first", "then"),
    [
        ("pretrain", "ddp", "one"),
        ("pretrain-muon", "one", "ddp"),
        ("sft-lora", "one", "ddp"),
        ("reward", "ddp", "one"),
        ("ppo-ptx", "ddp", "one"),
        ("grpo", "one", "ddp"),
    ],
)
def test_a_run_goes_on_with_another_number_of_processes(out, case, first, then):
    """Two processes and one that accumulates twice read the same rows an update: losses, gradients and weights.

    TRL's other figures are means of micro-batches, in which rows weigh otherwise.
    """

    def launch(engine, folder):
        rows, batches = {"one": (4, 2), "ddp": (8, 1)}[engine]  # of all processes at once
        return sharding.launch(engine, folder, recipe, [*flags, f"--gradient_accumulation_steps={batches}"], rows)

    recipe, *flags = sharding.cases(out / "chain")[case]
    step = 4 if recipe == "ppo" else 3  # an update of PPO has four
    flags += [*sharding.TRIAL, "--max_steps=6", "--save_strategy=steps", f"--save_steps={step}", "--save_total_limit=2"]
    straight, resumed = out / f"straight-{case}", out / f"elastic-{case}"
    assert launch(first, straight) == ""
    shutil.copytree(straight, resumed)
    cut_off(resumed, step)
    assert launch(then, resumed) == ""
    log = (out / f"elastic-{case}.log").read_text()
    assert f"from checkpoint-{step}" in log and f"goes on with {1 if then == 'one' else 2}" in log
    ours, theirs = sharding.figures(resumed), sharding.figures(straight)
    for name in ("loss", "grad_norm", *(["reward", "completions/mean_length"] if "reward" in ours else [])):
        assert len(ours[name]) == (2 if name not in ("loss", "grad_norm") and recipe == "ppo" else 6)
        assert ours[name] == pytest.approx(theirs[name], rel=sharding.EQUAL, abs=1e-6)
    if case != "pretrain-muon":  # Muon iterates in bfloat16, which magnifies differences of rounding
        assert sharding.compare(resumed, straight)["weights"] < 1e-4


def test_the_slurm_script_starts_a_process_for_each_gpu_of_each_node(tmp_path):
    """Two nodes of two GPUs on this machine, by commands in place of Slurm's."""
    srun = 'shift; for SLURM_NODEID in 0 1; do export SLURM_NODEID; "$@" & done; wait'
    program = """import os, sys
from pathlib import Path
Path(sys.argv[0] + os.environ["RANK"]).write_text(" ".join([os.environ["WORLD_SIZE"], *sys.argv[1:]]))"""
    for name, text in {"srun": srun, "scontrol": "echo 127.0.0.1; seq 100000"}.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "program.py").write_text(program)
    nodes = {"SLURM_JOB_NUM_NODES": "2", "SLURM_GPUS_ON_NODE": "2", "SLURM_JOB_NODELIST": "x", "SLURM_JOB_ID": "77"}
    path = os.pathsep.join([str(tmp_path), str(Path(sys.executable).parent), os.environ["PATH"]])
    run_program("bash", ROOT / "recipes" / "launch.slurm", tmp_path / "program.py", "--a", "b c", PATH=path, **nodes)
    assert [(tmp_path / f"program.py{rank}").read_text() for rank in range(4)] == ["4 --a b c"] * 4


def test_a_refusal_of_two_processes_is_said_once(out):
    recipe, *flags = sharding.cases(out / "chain")["ppo-lora"]
    refused = sharding.launch("fsdp2", out / "refused", recipe, [*flags, "--load_in_4bit"])
    assert refused.startswith("refused: load_in_4bit, load_in_8bit: beside FSDP")
    assert (out / "refused.log").read_text().count("error: load_in_4bit") == 1


def test_memory_is_measured_by_stage_and_engine(tmp_path):
    rows = sharding.memory(tmp_path, "200K", ["one"]).splitlines()[2:]
    assert [row.split("|")[1].strip() for row in rows] == ["sft", "ppo", "ppo-lora"]
    assert all(re.fullmatch(r"[1-9]\d* MB \(1\.00; \d\.\d\d\)", row.split("|")[2].strip()) for row in rows)
