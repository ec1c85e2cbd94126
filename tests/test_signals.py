"""Real signals to real programs: what ends them, with which words and which status, and what does not."""

import os
import signal
import subprocess
import sys

import psutil
import pytest
from helpers import ROOT, environment

from fourstage import signals

NUMBERS = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129}
HEAD = """
import ctypes, os, signal, subprocess, sys, time
from fourstage import signals
from fourstage.signals import ended_by_signals
def ready(): print("ready", os.getpid(), flush=True)
"""
# In compiled code for good, which no signal lets return: a mutex that it holds itself.
WAITS = """
with ended_by_signals():
    ready()
    mutex, lock = ctypes.create_string_buffer(64), ctypes.CDLL(None).pthread_mutex_lock
    lock(mutex), lock(mutex)
"""
OUTLIVES = """
parent = os.getppid()
with ended_by_signals():
    ready()
    while os.getppid() == parent: time.sleep(0.02)
    time.sleep(3 * signals._LOOK)
    print("done", flush=True)
"""


class Program:
    """A program of its own, started, and read line by line."""

    def __init__(self, tmp_path, body, *before, name="program.py", **options):
        file = tmp_path / name
        file.write_text(HEAD + body)
        self.process = subprocess.Popen(
            [*before, sys.executable, str(file)],
            env=environment(),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )

    def pid(self):
        """Of the process that is ready next."""
        words = self.process.stdout.readline().split()
        assert words and words[0] == "ready", self.process.stderr.read()
        return int(words[1])

    def ended(self):
        """(status, stdout, stderr)"""
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out, err

    def kill(self, name, pid=None):
        os.kill(pid or self.process.pid, getattr(signal, name))


@pytest.mark.parametrize("name", NUMBERS)
def test_a_signal_ends_a_program_at_once_with_one_line(tmp_path, name):
    """Also while the main thread is in compiled code that does not come back."""
    program = Program(tmp_path, WAITS)
    program.pid()
    program.kill(name)
    said = "Ctrl-C" if name == "SIGINT" else name
    assert program.ended() == (NUMBERS[name], "", f"ended by {said}\n")


def test_what_was_printed_is_kept_and_children_end(tmp_path):
    body = WAITS.replace("ready()", "worker = subprocess.Popen(['sleep', '1000'])\n    print('half'); ready()")
    program = Program(tmp_path, body.replace("flush=True", "flush=False"))
    assert program.process.stdout.readline() == "half\n"
    pid = program.pid()
    (worker,) = psutil.Process(pid).children()
    program.kill("SIGTERM")
    assert program.ended()[0] == 143
    worker.wait(100)


FIRST = """
heard = []
def first(number):  # in another thread than what is printed next: a whole line, before that one goes on
    os.write(1, f"asked {{number}}\\n".encode())
    heard.append(number)
with ended_by_signals():
    signals.last_words("stopped by {{signal}}; go on with: x")
    signals.take_first(first)
    ready()
    while not heard: time.sleep(0.01)
    {then}
"""


def test_the_first_signal_can_wait_for_a_good_moment(tmp_path):
    program = Program(tmp_path, FIRST.format(then="print('saved', flush=True); signals.end(signals.asked())"))
    program.pid()
    program.kill("SIGHUP")
    assert program.ended() == (129, "asked 1\nsaved\n", "stopped by SIGHUP; go on with: x\n")


def test_what_the_first_has_to_say_stands_above_the_last_words(tmp_path):
    """Also where its thread gets to say it after the main thread has ended."""
    body = """
def first(number):
    time.sleep(0.5)
    signals.say("stopping")
with ended_by_signals("stopped by {signal}"):
    signals.take_first(first)
    ready()
    while not signals.asked(): time.sleep(0.001)
    signals.end(signals.asked())
"""
    program = Program(tmp_path, body)
    program.pid()
    program.kill("SIGTERM")
    assert program.ended() == (143, "", "stopping\nstopped by SIGTERM\n")


def test_the_second_does_not_wait(tmp_path):
    program = Program(tmp_path, FIRST.format(then="time.sleep(1000)"))
    program.pid()
    program.kill("SIGINT")
    assert program.process.stdout.readline() == "asked 2\n"
    program.kill("SIGTERM")
    assert program.ended() == (143, "", "stopped by SIGTERM; go on with: x\n")


def test_what_goes_wrong_after_the_first_is_no_traceback(tmp_path):
    """A worker that died of the same signal, say."""
    program = Program(tmp_path, FIRST.format(then="raise RuntimeError('worker\\nkilled')"))
    program.pid()
    program.kill("SIGTERM")
    status, _, err = program.ended()
    assert (status, err) == (143, "stopped by SIGTERM; go on with: x (RuntimeError: worker killed)\n")


def test_signals_that_came_together_are_one(monkeypatch):
    """Some launchers hand on what the whole group got: the thread finds both at once."""
    taken, (read, write) = [], os.pipe()
    monkeypatch.setattr(signals, "_take", lambda program, number: taken.append(number))
    monkeypatch.setattr(signal, "getsignal", lambda number: signals._heard)
    monkeypatch.setattr(os, "read", lambda *_, left=[b"\x02\x02\x0f", b"\0"]: left.pop(0))
    os.write(write, b"x")
    signals._listen(signals._Program(""), read, [])
    assert taken == [signal.SIGINT]


def test_an_error_without_a_signal_stays_what_it_is(tmp_path):
    status, _, err = Program(tmp_path, "with ended_by_signals():\n    1 / 0\n").ended()
    assert status == 1 and "ZeroDivisionError" in err
    assert Program(tmp_path, "with ended_by_signals():\n    sys.exit(7)\n").ended() == (7, "", "")


def test_nohup_is_respected(tmp_path):
    body = "with ended_by_signals():\n    ready()\n    sys.stdin.readline()\n"
    program = Program(tmp_path, body, "nohup", stdin=subprocess.PIPE)
    program.kill("SIGHUP", program.pid())
    status, _, err = [*program.ended()]
    assert status == 0, err


def test_a_handler_of_the_program_counts(tmp_path):
    body = """
heard = []
def own(*_): heard.append(1)
with ended_by_signals():
    signal.signal(signal.SIGINT, own)
    ready()
    while not heard: time.sleep(0.01)
    print("own")
"""
    program = Program(tmp_path, body)
    program.pid()
    program.kill("SIGINT")
    assert program.ended() == (0, "own\n", "")


def test_a_forked_worker_bears_a_ctrl_c_and_keeps_it_to_itself(tmp_path):
    body = """
with ended_by_signals():
    inner, outer = os.pipe()
    worker = os.fork()
    if not worker:
        os.kill(os.getpid(), signal.SIGINT)
        os.write(outer, b"lives")
        os.kill(os.getpid(), signal.SIGTERM)
        os._exit(0)
    print(os.read(inner, 9).decode(), os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]), signals.asked())
"""
    assert Program(tmp_path, body).ended() == (0, f"lives {-signal.SIGTERM} 0\n", "")


STARTS = """
process = subprocess.Popen([sys.executable, {child!r}], stdin=subprocess.DEVNULL)
process.wait()
"""


@pytest.mark.parametrize("starter", ["pipeline.py", "shell.py"])
def test_a_program_ends_with_what_launched_it_and_outlives_a_shell(tmp_path, starter):
    """The launcher is killed with SIGKILL, so that it can hand on nothing."""
    (tmp_path / "child").mkdir()
    child = tmp_path / "child" / "sft.py"
    child.write_text(HEAD + (WAITS if starter == "pipeline.py" else OUTLIVES))
    program = Program(tmp_path, STARTS.format(child=str(child)), name=starter)
    program.pid()
    program.process.kill()
    _, *said = program.ended()  # at the end of the child, which holds the pipes
    assert said == (["", "ended by SIGTERM\n"] if starter == "pipeline.py" else ["done\n", ""])


def test_which_command_lines_are_launchers():
    script = signals._script
    assert script(["/usr/bin/python3", "/v/bin/accelerate", "launch", "x.py"]) == ("accelerate", 2)
    assert script(["python", "-u", "-m", "torch.distributed.run", "x.py"]) == ("torch.distributed.run", 4)
    assert script(["python3.11", "recipes/pipeline.py"]) == ("pipeline.py", 2)
    for words in ([], ["bash", "-c", "python recipes/sft.py"], ["python", "-c", "1"], ["vim", "recipes/sft.py"]):
        assert script(words) is None
    assert signals._typed(["python", "-m", "accelerate.commands.launch", "a b.py"]) == [
        "accelerate",
        "launch",
        "a b.py",
    ]
    assert signals._typed(["python", "/v/bin/torchrun", "a.py"]) == ["torchrun", "a.py"]
    assert signals._typed(["python", "recipes/pipeline.py"]) == []


def test_a_closed_terminal_does_not_stop_what_has_to_be_saved(tmp_path):
    """The words cannot be written any more, and neither can what the program prints then: it gets to its end."""
    saved = tmp_path / "saved"
    body = f"""
with ended_by_signals():
    signals.take_first(lambda number: signals.say("stopping"))
    ready()
    while not signals.asked(): time.sleep(0.01)
    for n in range(3): print("step", n, flush=True)
    open({str(saved)!r}, "w").close()
    signals.end(signals.asked())
"""
    (tmp_path / "program.py").write_text(HEAD + body)
    master, slave = os.openpty()
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), slave)
    process = subprocess.Popen(
        [sys.executable, tmp_path / "program.py"],
        env=environment(),
        cwd=ROOT,
        start_new_session=True,
        preexec_fn=lambda: __import__("fcntl").ioctl(0, __import__("termios").TIOCSCTTY),
        **streams,
    )
    os.close(slave)
    heard = b""
    while not heard.endswith(b"\n"):  # all of it: a terminal closed half way through the line would fail the print
        heard += os.read(master, 100)
    assert b"ready" in heard
    os.close(master)
    assert (process.wait(100), saved.exists()) == (129, True)
