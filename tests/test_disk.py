"""Disks that are full, read-only or no folders at all, by real files of the kernel: /dev/full takes nothing."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets.exceptions import DatasetGenerationError
from helpers import RECIPES, ROOT
from safetensors import SafetensorError

from fourstage.disk import disk_problem

pytestmark = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
WEIGHTS = {"a": torch.zeros(100_000)}


def text_to_full():
    with open("/dev/full", "w") as file:
        file.write("x" * 100_000)


def weights_to_full():
    torch.save(WEIGHTS, "/dev/full")


def safetensors_to_full():
    """In the words of safetensors 0.8; it would put a file of its own in the place of /dev/full."""
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize("write", [text_to_full, weights_to_full, safetensors_to_full])
def test_a_full_disk_is_known_by_every_writer(write):
    with pytest.raises(Exception) as error:
        write()
    said = disk_problem(error.value)
    assert said.startswith("the disk") and " is full; make room: the same command then goes on" in said
    try:
        raise DatasetGenerationError("An error occurred") from error.value
    except DatasetGenerationError as wrapped:
        assert disk_problem(wrapped) == said


def test_a_place_that_may_not_be_written_is_named():
    error = OSError(30, "Read-only file system", "runs/sft/run.json")
    assert disk_problem(error).startswith("runs/sft/run.json cannot be used (Read-only file system); allow it")


def test_a_cache_is_named_by_its_variable(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", "/dev/null/hf")
    monkeypatch.delenv("HF_DATASETS_CACHE", raising=False)
    with pytest.raises(OSError) as error:
        os.makedirs("/dev/null/hf/datasets")
    said = disk_problem(OSError(error.value.errno, error.value.strerror, "/dev/null/hf/datasets"))
    assert (
        said
        == "the cache /dev/null/hf/datasets cannot be written (Not a directory); name a folder that can with HF_HOME"
    )
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    said = disk_problem(OSError(28, "No space left on device", str(tmp_path / "a")))
    assert said.startswith(
        f"the disk of {tmp_path}/a is full; make room, or name another cache with HF_DATASETS_CACHE: "
    )


@pytest.mark.parametrize(
    "error", [ValueError("os error 28"), KeyError("a"), OSError("no such model"), OSError(2, "No", "x")]
)
def test_other_errors_are_not_the_disk_s(error):
    assert disk_problem(error) is None


PROGRAM = """
import sys
from fourstage.errors import reported_errors
with reported_errors():
    print("a bar", end="", file=sys.stderr)
    with open("/dev/full", "w") as file:
        file.write("x" * 100_000)
"""


def test_a_program_ends_with_one_line(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, timeout=200)
    assert done.returncode == 2 and re.fullmatch(r"a bar\nerror: the disk .*is full; .*\n", done.stderr)
    done = subprocess.run([sys.executable, program, "--debug"], capture_output=True, text=True, timeout=200)
    assert done.returncode == 1 and "Traceback" in done.stderr


def test_a_recipe_blames_the_cache_and_not_the_data(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "a"}\n{"text": "b"}\n')
    flags = ["--dataset_name", rows, "--num_parameters=60k", "--output_dir", tmp_path / "run", "--max_steps=1"]
    kept = {k: v for k, v in os.environ.items() if k != "HF_DATASETS_CACHE"}
    done = subprocess.run(
        [sys.executable, RECIPES / "pretrain.py", *flags, "--use_cpu"],
        **{"capture_output": True, "text": True, "timeout": 280},
        env=kept | {"HF_HOME": "/dev/null/hf", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)},
    )
    last = done.stderr.rstrip().splitlines()[-1]
    assert done.returncode == 2 and last.startswith("error: the cache /dev/null/hf") and last.endswith("with HF_HOME")
