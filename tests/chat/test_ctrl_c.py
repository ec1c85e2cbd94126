"""Ctrl-C at very many moments: each ends with the status that shells expect, or stops the answer where it is lost."""

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress

import pytest
from helpers import ROOT, environment

from fourstage.speaking import Sampling, chat_ids, open_speaker, speak

# Everything is imported once; then a fork for each moment runs the command, and gets its Ctrl-C at the call of a Python
# function with that number, of as many as there are. What it wrote is printed with its status.
MOMENTS = """
import json, os, signal, sys
count, words = int(sys.argv[1]), sys.argv[2:]
import fourstage.chat.terminal, fourstage.chat.compare
from fourstage.cli import main

def run(moment):
    inner, outer = os.pipe()
    child = os.fork()
    if not child:
        os.dup2(outer, 1), os.dup2(outer, 2)
        calls = 0
        def trace(frame, event, value):
            nonlocal calls
            calls += 1
            if calls == moment:
                os.kill(os.getpid(), signal.SIGINT)
        sys.settrace(trace)
        status = main(words)
        sys.settrace(None)
        if moment is None:
            print("calls", calls, flush=True)
        os._exit(status)
    os.close(outer)
    said = open(inner, errors="replace").read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said

status, said = run(None)
assert status == 0, said
calls = int(said.split()[-1])
print(json.dumps([(k, *run(k)) for k in (2 + i * (calls - 2) // count for i in range(count))]))
"""


@pytest.mark.parametrize(
    ("command", "moments"),
    [("chat", 15), *(pytest.param(name, 200, marks=pytest.mark.slow) for name in ("chat", "compare"))],
)
def test_at_many_moments_of_one_answer(folders, command, moments):
    words = [command, folders / "endless", "--prompt", "dim", "--max_new_tokens", "6"]
    done = subprocess.run(
        [sys.executable, "-c", MOMENTS, str(moments), *map(str, words)],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    ended = json.loads(done.stdout)
    assert len({moment for moment, _, _ in ended}) == moments
    others = [(moment, status, said) for moment, status, said in ended if status != 130 or "Traceback" in said]
    assert not others
    assert (
        sum("(stopped)" in said for _, _, said in ended) > 0.7 * moments
    )  # the others came while the command line was read


def test_an_interrupt_that_a_library_swallows_stops_the_answer_at_the_next_token(folders):
    """As a weak reference's callback does, whose exceptions Python only prints."""
    speaker, heard = open_speaker(str(folders / "endless")), []

    def write(text):
        heard.append(text)
        if len(heard) == 5:
            with suppress(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    ids = chat_ids(speaker, [{"role": "user", "content": "dim"}])
    stream = speak(speaker, ids, Sampling(0.0, 1.0, 0, 50_000), write)
    assert stream.interrupted and stream.tokens == 5
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_other_signals_end_an_answer_too(folders, number):
    words = [sys.executable, "-m", "fourstage.cli", "chat", folders / "endless", "--prompt", "dim"]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([*map(str, words), "--max_new_tokens=90000"], cwd=ROOT, env=environment(), **streams)
    assert process.stdout.read(8) == " bab gef"
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number and err.endswith("(stopped)\n")
