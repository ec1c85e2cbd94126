"""Wrong inputs end a program with one line and exit code 2; bugs keep their traceback."""

import subprocess
import sys

import pytest
from helpers import ACCELERATE, RECIPES, run_program

from fourstage import errors
from fourstage.errors import one_line
from fourstage.verifiers import length

PROGRAM = """
from fourstage.errors import reported_errors
from fourstage.verifiers import length
with reported_errors():
    {body}
"""
WRONG_INPUT = "length(['a'], margin=0)"


def ended(tmp_path, body, *flags):
    """A program of that body: (exit code, stderr)."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(body=body))
    done = subprocess.run([sys.executable, program, *flags], capture_output=True, text=True, timeout=200)
    return done.returncode, done.stderr


def test_one_line():
    assert one_line(ValueError("a\n  b")) == "a b"
    assert one_line(ValueError("a\n  b"), with_type=True) == "ValueError: a b"
    assert one_line(ValueError("abc"), longest=2) == "ab"


def test_a_wrong_input_takes_one_line(tmp_path):
    code, said = ended(tmp_path, WRONG_INPUT)
    assert code == 2 and said.startswith("error: margin=0 must be at least 1") and said.count("\n") == 1


@pytest.mark.parametrize(
    "body", ["int('x')", "dict(zip('ab', 'c', strict=True))", "__import__('json').loads('{')", "{}['a']", "1 / 0"]
)
def test_a_bug_keeps_its_traceback(tmp_path, body):
    """ValueErrors of Python's own too, in our frame or below it."""
    code, said = ended(tmp_path, body)
    assert code == 1 and "Traceback" in said and not said.startswith("error:")


def test_debug_shows_where_a_wrong_input_was_found(tmp_path):
    code, said = ended(tmp_path, WRONG_INPUT, "--debug")
    assert code == 1 and "Traceback" in said and "margin=0 must be" in said.splitlines()[-1]


def test_debug_with_a_value_is_transformers_own(tmp_path):
    code, said = ended(tmp_path, WRONG_INPUT, "--debug", "underflow_overflow")
    assert code == 2 and said.count("\n") == 1


@pytest.mark.slow
def test_recipes_end_so_and_the_launcher_keeps_quiet_if_asked():
    """As a person starts one on a fresh clone, with half of what it needs."""
    done = run_program(sys.executable, RECIPES / "sft.py", "--max_steps=3", ok=False)
    last = done.stderr.rstrip().splitlines()[-1]
    assert done.returncode == 2 and last.startswith("error: model_name_or_path is missing")
    assert "Traceback" not in done.stderr and "configs/demo/sft.yaml" in last
    done = run_program(*ACCELERATE, "--quiet", RECIPES / "sft.py", "--max_steps=3", ok=False)
    assert "Traceback" not in done.stderr and done.stderr.rstrip().splitlines()[-1] == last


@pytest.mark.slow
def test_a_setting_that_a_library_refuses_is_told_with_its_name():
    flags = ["--dataset_name=fourstage/demo", "--load_best_model_at_end", "--save_strategy=no", "--output_dir=x"]
    done = run_program(sys.executable, RECIPES / "pretrain.py", *flags, ok=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.rstrip().endswith("(from transformers; --debug shows where)")


@pytest.mark.parametrize(("rank", "waits"), [("0", []), ("1", [10.0])])
def test_of_several_processes_the_first_speaks(monkeypatch, capsys, rank, waits):
    """The others wait to be ended by the launcher; the error of one that is not was its own."""
    slept = []
    monkeypatch.setattr(errors.time, "sleep", slept.append)
    monkeypatch.setenv("RANK", rank)
    with pytest.raises(SystemExit) as ended_with, errors.reported_errors():
        length(["a"], margin=0)
    assert ended_with.value.code == 2 and slept == waits
    assert capsys.readouterr().err.startswith("error: margin=0")
