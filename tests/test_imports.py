"""What a run does not need is not imported, and what a library says to itself does not reach the terminal."""

import importlib.util
import json
import logging
import re
import sys
import warnings

import pytest
from helpers import RECIPES, TINY, run_program

from fourstage.imports import quiet_libraries, without_bitsandbytes

INSTALLED = importlib.util.find_spec("bitsandbytes") is not None
# Python's loader may import bitsandbytes again after the block, and whoever asks is told that it is there.
IMPORTS = """
import gc, sys
import fourstage.arguments
from fourstage.imports import without_bitsandbytes
with without_bitsandbytes():
    from fourstage import GRPOTrainer, PPOTrainer
import fourstage.artifact.progress, fourstage.resolve, fourstage.models.loading, fourstage.models.adapters
from peft.import_utils import is_bnb_available
from transformers.utils import is_bitsandbytes_available
print("bitsandbytes" in sys.modules, is_bitsandbytes_available(), is_bnb_available())
print(gc.isenabled(), gc.get_freeze_count() > 100_000)
"""
RUN = "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__'); "
RUN += "print('bitsandbytes' in sys.modules)"
OURS = re.compile(r"|\w+: /.*|  .*|step \d+/\d+: .*|\w+ finished: .*|(train|held-out): .*|WARNING: .*|\d+ held-out .*")
BAR = re.compile(r"\s*|\s*\d+%\|.*")


def test_importing_the_trainers_leaves_bitsandbytes_alone_and_usable():
    done = run_program(sys.executable, "-c", IMPORTS)
    assert done.stdout.split("\n")[:2] == [f"False {INSTALLED} {INSTALLED}", "True True"]
    assert not done.stderr


@pytest.mark.parametrize(
    ("given", "taken"), [({}, "1000"), ({"GOMP_SPINCOUNT": "77"}, "77"), ({"OMP_WAIT_POLICY": "passive"}, "0")]
)
def test_threads_that_wait_sleep_soon_unless_the_user_says_how_they_wait(given, taken, monkeypatch):
    """Asked of libgomp itself, which writes its settings when torch loads it."""
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)  # set for this process by now
    for code in ("import fourstage.arguments", "from fourstage.cli import main; main(['compare', '/none', '/none'])"):
        done = run_program(sys.executable, "-c", code, OMP_DISPLAY_ENV="VERBOSE", **given)
        assert f"GOMP_SPINCOUNT = '{taken}'" in done.stderr, done.stderr


def test_what_was_imported_before_stays(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", logging)
    with without_bitsandbytes():
        assert sys.modules["bitsandbytes"] is logging
    assert sys.modules["bitsandbytes"] is logging


def test_it_can_be_imported_after_an_error_too(monkeypatch):
    monkeypatch.delitem(sys.modules, "bitsandbytes", raising=False)
    with pytest.raises(ModuleNotFoundError), without_bitsandbytes():
        import bitsandbytes  # noqa: F401
    assert "bitsandbytes" not in sys.modules


@pytest.mark.parametrize(
    ("name", "line", "shown"),
    [
        ("transformers.trainer_utils", "mtime may not be reliable on this filesystem", False),
        ("transformers.trainer_utils", "Deleting older checkpoint", True),
        ("bitsandbytes.backends.cpu.ops", "Failed to load CPU gemm_4bit_forward from kernels-community: %s.", False),
        ("bitsandbytes.backends.cpu.ops", "Another line", True),
    ],
)
def test_only_the_lines_that_help_nobody_are_left_out(monkeypatch, name, line, shown):
    logger, seen = logging.getLogger(name), []
    handler = logging.Handler()
    handler.emit = seen.append
    for owner, key, value in ((logger, "handlers", [handler]), (logger, "propagate", False), (logger, "level", 10)):
        monkeypatch.setattr(owner, key, value)
    quiet_libraries()
    quiet_libraries()
    logger.warning(line)
    assert (len(seen), len(logger.filters)) == (int(shown), 1)


def test_other_warnings_of_libraries_are_shown():
    with warnings.catch_warnings(record=True) as seen:
        quiet_libraries()
        warnings.warn(
            "`is_gradient_checkpointing` is deprecated and will be removed in v6.", FutureWarning, stacklevel=1
        )
        warnings.warn("`something_else` is deprecated and will be removed in v6.", FutureWarning, stacklevel=1)
    assert ["something_else" in str(one.message) for one in seen] == [True]


def write_rows(path, row, count=48):
    """Rows with their number in place of each {}."""
    lines = [json.dumps({key: text.format(i) for key, text in row.items()}) for i in range(count)]
    path.write_text("\n".join(lines))
    return path


@pytest.mark.slow
def test_a_healthy_run_prints_no_line_of_a_library(tmp_path):
    """Each stage from the one before, in processes of their own; nothing but our lines and the bars of training."""
    question, answer = "What is {} and 0?", "It is {}."
    short, ppo = ["--max_completion_length=8"], ["--per_device_train_batch_size=4", "--gradient_accumulation_steps=1"]
    parent = ["--model_name_or_path", tmp_path / "sft"]
    stages = {
        "pretrain": ({"text": "The old man looked at the sea and saw {} ships."}, ["--max_length=64", *TINY]),
        "sft": ({"prompt": question, "completion": answer}, ["--model_name_or_path", tmp_path / "pretrain"]),
        "reward": ({"prompt": question, "chosen": answer, "rejected": "No idea, {}."}, parent),
        "ppo": ({"prompt": question}, [*parent, *short, *ppo, "--reward_model_name_or_path", tmp_path / "reward"]),
        "grpo": (
            {"question": question, "answer": "{}"},
            [*parent, *short, *ppo, "--num_generations=4", "--reward_funcs=number"],
        ),
    }
    for stage, (row, flags) in stages.items():
        data = write_rows(tmp_path / f"{stage}.jsonl", row)
        every = ["--max_steps=4", "--eval_steps=2", "--save_steps=2", "--report_to=none", *flags]
        command = [RECIPES / f"{stage}.py", "--dataset_name", data, "--output_dir", tmp_path / stage, *every]
        done = run_program(sys.executable, "-c", RUN, *command)
        lines = done.stdout.splitlines()
        assert lines[-1] == "False", f"{stage} imports bitsandbytes"
        assert [line for line in lines[:-1] if not OURS.fullmatch(line)] == [], stage
        own_warnings = r".*/fourstage/\S+ UserWarning: .*\n  .*\n"  # that of PPO, say, that no answer ends
        chunks = re.split(r"[\r\n]|\x1b\[A", re.sub(own_warnings, "", done.stderr))
        assert [chunk for chunk in chunks if not BAR.fullmatch(chunk)] == [], stage
