"""`make prefer`: Ctrl-C in the terminal ends the page, and then the model learns; a page that failed ends it all."""

import os
import shutil
import signal
import subprocess

import pytest
from helpers import ROOT, environment

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
PAGE = r"""#!/bin/bash
trap 'echo "page ended" >> {log}; exit {status}' INT
echo "page $*" >> {log}
# The shell of make catches SIGINT once it waits: until then a Ctrl-C would end it, and no person is that quick.
until (( 0x$(sed -n 's/^SigCgt:\s*//p' /proc/$PPID/status) & 2 )); do sleep 0.01; done
echo ready
while :; do sleep 0.05; done
"""
LEARNING = """#!/bin/bash
echo "learning $*" >> {log}
"""


def interrupted(tmp_path, status):
    """What ran, line by line, and make's status, after a Ctrl-C, which a terminal sends to the whole group."""
    folder, log = tmp_path / "venv", tmp_path / "log"
    (folder / "bin").mkdir(parents=True)
    for name, text in (("fourstage", PAGE), ("python", LEARNING)):
        (folder / "bin" / name).write_text(text.format(log=log, status=status))
        (folder / "bin" / name).chmod(0o755)
    (folder / ".fourstage-installed").touch()
    process = subprocess.Popen(
        ["make", "-s", "prefer", f"VENV={folder}", "ARGS=--seed 7"],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout.readline() == "ready\n"
    os.killpg(process.pid, signal.SIGINT)
    process.communicate()
    return log.read_text().splitlines(), process.returncode


def test_ctrl_c_ends_the_page_and_the_model_learns(tmp_path):
    lines, _ = interrupted(tmp_path, 0)
    assert lines[0].startswith("page prefer runs/demo/sft --output runs/demo/prefs.jsonl --trains_next")
    learning = "learning recipes/pipeline.py --stages reward ppo --pairs runs/demo/prefs.jsonl --seed 7"
    assert lines[1:] == ["page ended", learning]


def test_of_a_page_that_failed_nothing_is_learnt(tmp_path):
    lines, status = interrupted(tmp_path, 1)
    assert lines[1:] == ["page ended"] and status != 0
