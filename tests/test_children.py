"""A program that starts others, as the pipeline does: they end with it, once and in good order."""

import os
import signal
import subprocess
import sys

import psutil
import pytest
from helpers import ROOT, environment

CHILD = """
import os, signal, sys, time
def say(text): os.write(1, f"{sys.argv[1]} {text}\\n".encode())  # whole lines of two processes
asked = []
def hear(number, frame):
    asked.append(number)
    say(f"asked {len(asked)}")
signal.signal(signal.SIGTERM, hear)
signal.signal(signal.SIGINT, hear)
say("ready")
while len(asked) < int(sys.argv[2]): time.sleep(0.01)
sys.exit(143)
"""
STARTER = """
import sys
from concurrent.futures import ThreadPoolExecutor
from fourstage import signals
from fourstage.children import child
def start(name):
    with child([sys.executable, "child.py", name, sys.argv[1]]) as process:
        pass
    print(name, "went on", process.returncode, flush=True)
with signals.ended_by_signals():
    signals.last_words("stopped by {signal}")
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(start, ["one", "two", "three"]))
"""


@pytest.fixture
def starter(tmp_path):
    """Starts the program, with two children that bear so many signals; it waits until both are ready."""
    (tmp_path / "child.py").write_text(CHILD)
    started = []

    def start(bears):
        words = [sys.executable, "-c", STARTER, str(bears)]
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        process = subprocess.Popen(words, cwd=tmp_path, env=environment(), start_new_session=True, **streams)
        started.append(process)
        ready = {process.stdout.readline() for _ in range(2)}
        assert ready == {"one ready\n", "two ready\n"}
        return process

    yield start
    for process in started:
        process.kill()


@pytest.mark.parametrize(("name", "to", "status"), [("SIGTERM", os.kill, 143), ("SIGINT", os.killpg, 130)])
def test_children_get_one_signal_and_nothing_is_started_after(starter, name, to, status):
    """Of a Ctrl-C in the terminal too, which goes to the whole group of the program."""
    process = starter(1)
    to(process.pid, getattr(signal, name))
    out, err = process.communicate(timeout=60)
    assert process.returncode == status
    assert sorted(out.splitlines()) == ["one asked 1", "two asked 1"]
    said = "Ctrl-C" if name == "SIGINT" else name
    assert err.count("\n") == 2 and err.endswith(f"\nstopped by {said}\n") and "Traceback" not in err


def test_the_second_signal_ends_all_at_once(starter):
    process = starter(100)
    children = psutil.Process(process.pid).children()
    process.send_signal(signal.SIGTERM)
    asked = {process.stdout.readline() for _ in range(2)}
    assert asked == {"one asked 1\n", "two asked 1\n"}
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143 and len(children) == 2
    assert psutil.wait_procs(children, timeout=60)[1] == []


def test_a_child_that_ends_by_itself_is_a_process_that_ended(tmp_path, monkeypatch):
    from fourstage.children import run_child

    monkeypatch.chdir(ROOT)
    done = run_child([sys.executable, "-c", "import sys; print('out'); sys.stderr.write('err'); sys.exit(3)"])
    assert (done.returncode, done.stdout, done.stderr) == (3, "out\n", "err")
