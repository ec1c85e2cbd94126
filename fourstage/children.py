"""Programs that this one starts, and that do not outlive it."""

import os
import signal
import subprocess
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from fourstage import signals

_running: set[subprocess.Popen] = set()
_lock = threading.Lock()


@contextmanager
def child(words: Sequence[str], **options: Any) -> Generator[subprocess.Popen]:
    """A program that runs within the `with`, which waits for its end; `options` as of subprocess.Popen.

    It is in a process group of its own, so that a Ctrl-C in the terminal comes to this program alone. Under
    `signals.ended_by_signals` a signal is handed on as SIGTERM, once, and this program ends when its children have; a
    second one kills them. Where this program is killed, theirs is the part: `signals` looks at who launched a recipe.

    Raises:
        SystemExit: if a signal has come, with its status.
    """
    with _lock:
        if signals.asked():
            signals.end(signals.asked())
        process = subprocess.Popen(words, process_group=0, stdin=subprocess.DEVNULL, **options)
        _running.add(process)
        signals.take_first(_hand_on)
    try:
        yield process
        process.wait()
    except BaseException:
        _end(process, signal.SIGTERM)
        process.wait()
        raise
    finally:
        with _lock:
            _running.discard(process)
            if not _running and not signals.asked():
                signals.take_first(None)
    if signals.asked():
        signals.end(signals.asked())


def run_child(words: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs a program to its end, as subprocess.run does; what it writes is kept as text."""
    with child(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options) as process:
        out, err = process.communicate()
    return subprocess.CompletedProcess(words, process.returncode, out, err)


def _hand_on(number: int) -> None:
    signals.say("stopping, with a checkpoint at the end of the step that is running; once more ends it at once")
    with _lock:
        for process in _running:
            _end(process, signal.SIGTERM)


def _end(process: subprocess.Popen, number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)
