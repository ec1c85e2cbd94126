"""A process that compares answers with math-verify and can be killed: both ends of its pipe.

math-verify turns text into SymPy expressions, and a line such as 9**9**9 keeps SymPy busy for hours inside one C call,
which no exception interrupts. So a process of its own imports math-verify once and forks a child for each batch. The
kernel kills the child when a pair has had its time; a fork, some milliseconds, replaces it. Nothing that a pair did to
SymPy's caches lives longer than its batch.

JSON goes both ways, a line at a time; nothing is pickled. This file runs as a program without the rest of fourstage.
It needs a POSIX system.
"""

import atexit
import gc
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections import Counter

MEMORY = 1 << 29  # bytes of address space of the worker and of each child; after the imports 70 MB are in use
CLOCK = 1.4  # a pair has so much of its processor time by the clock: a busy machine may be slower, nothing may wait
LEAST = 0.02  # seconds that each pair has in any case; the mean is 2 to 5 ms
STARTING = 120.0  # seconds that the imports may take, on a machine that is busy with other things
GRACE = 5.0  # seconds beyond all of its own limits after which a silent worker is killed from here


class Worker:
    """This end of the pipe: one per process, started when first needed, for any number of threads.

    `counts`: children killed at their deadline ("deadline"), and children or workers that ended otherwise ("died").
    Each was replaced.
    """

    def __init__(self):
        self.counts: Counter = Counter()
        self._forget()
        atexit.register(self.stop)
        os.register_at_fork(after_in_child=self._forget)

    def compare(self, pairs: list[tuple[str, str]], seconds: float, budget: float) -> list[bool | None]:
        """For each (gold, answer) whether they are equal; None where the gold could not be read, or not in its time.

        Args:
            pairs: texts that math_verify.parse reads.
            seconds: processor time of each pair, and of each gold.
            budget: wall seconds that pairs cut off may cost. A pair has at most a quarter of what is left of them, but
            at least LEAST, so that the pairs after many bad ones get a turn too.
        Raises:
            RuntimeError: if the worker does not start.
        """
        verdicts: dict[tuple[str, str], bool | None] = {}
        pending = list(dict.fromkeys(pairs))
        with self._lock:
            while pending:
                limit = max(min(seconds, budget / 4), min(LEAST, seconds))
                found, lost = self._batch(pending, seconds, limit)
                verdicts |= zip(pending, found, strict=False)
                (gold, _), pending = pending[len(found) - 1], pending[len(found) :]
                if found[-1] is None:
                    verdicts |= {pair: None for pair in pending if pair[0] == gold}
                    pending = [pair for pair in pending if pair[0] != gold]
                else:
                    budget -= lost
        return [verdicts[pair] for pair in pairs]

    def stop(self) -> None:
        """Ends the worker, with the child that it may have."""
        process, self._process, self._buffer = self._process, None, b""
        if process is not None:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # it leads a process group of its own
            process.wait()
            process.stdin.close()
            process.stdout.close()

    def _forget(self) -> None:
        """The start, and in a forked child, where the worker belongs to the parent: it must see the pipe's end."""
        process = getattr(self, "_process", None)
        if process is not None:
            process.stdin.close()
            process.stdout.close()
            process.returncode = 0  # not ours to wait for
        self._process, self._buffer, self._lock = None, b"", threading.Lock()

    def _batch(self, pairs: list, seconds: float, limit: float) -> tuple[list[bool | None], float]:
        """(verdicts up to and with the first pair that ended its child, or all; wall seconds that this pair took)."""
        self._start()
        verdicts: list[bool | None] = []
        readable, since, status = False, time.monotonic(), None
        try:
            self._send([seconds, limit, pairs])
            while status is None:
                reply = self._receive(CLOCK * seconds + GRACE)
                if isinstance(reply, dict):
                    status = reply["ended"]
                elif reply == "readable":
                    readable = True
                else:
                    verdicts.append(reply)
                    readable, since = False, time.monotonic()
        except (OSError, ValueError):
            self.stop()
            status = -signal.SIGKILL
        if status != 0:
            self.counts["deadline" if status in (-signal.SIGPROF, -signal.SIGALRM) else "died"] += 1
        if len(verdicts) == len(pairs):
            return verdicts, 0.0
        return [*verdicts, False if readable else None], time.monotonic() - since

    def _start(self) -> None:
        """A worker that has imported math-verify; raises RuntimeError if it cannot."""
        if self._process is not None and self._process.poll() is None:
            return
        if self._process is not None:
            self.counts["died"] += 1
            self.stop()
        command = [sys.executable, __file__]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "bufsize": 0}
        environment = {**os.environ, "PYTHONHASHSEED": "0"}  # SymPy's order of terms, the same in every run
        self._process = subprocess.Popen(command, **pipes, env=environment, start_new_session=True)
        try:
            reply = self._receive(STARTING)
        except (OSError, ValueError) as error:
            reply = f"{type(error).__name__}: {error}"
        if reply != "ready":
            self.stop()
            raise RuntimeError(f"the math worker, {' '.join(command)}, does not start: {reply}")

    def _send(self, message: object) -> None:
        line = memoryview(json.dumps(message).encode() + b"\n")
        while line:
            line = line[self._process.stdin.write(line) :]

    def _receive(self, seconds: float) -> object:
        """The next message; raises OSError where none comes in time, or none can come."""
        end = time.monotonic() + seconds
        output = self._process.stdout.fileno()
        poll = select.poll()
        poll.register(output, select.POLLIN)
        while b"\n" not in self._buffer:
            if not poll.poll(max(end - time.monotonic(), 0) * 1000):
                raise TimeoutError(f"silent for {seconds:.0f} seconds")
            arrived = os.read(output, 1 << 16)
            if not arrived:
                raise ConnectionError("it has ended")
            self._buffer += arrived
        line, _, self._buffer = self._buffer.partition(b"\n")
        return json.loads(line)


# The other end


def main() -> None:
    replies = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what a library prints is no message
    try:
        import math_verify

        _limit()
        _same(_parsed("$x^2+1$", math_verify), "1/2", math_verify)  # compiles its expressions, loads its grammar
    except Exception as error:
        _write(replies, f"{type(error).__name__}: {error}")
        return
    gc.freeze()  # a child's collections would touch, and so copy, every page that it shares
    _write(replies, "ready")
    for line in sys.stdin.buffer:
        child = os.fork()
        if child == 0:
            _answer(replies, *json.loads(line), math_verify)
        _write(replies, {"ended": os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])})


def _limit() -> None:
    """Bounds the memory, forbids to write a file, and lets the timers' signals end the process."""
    import resource

    for name, bound in (("RLIMIT_AS", MEMORY), ("RLIMIT_FSIZE", 0), ("RLIMIT_CORE", 0)):
        try:
            resource.setrlimit(getattr(resource, name), (bound, bound))
        except (ValueError, OSError):  # macOS refuses some
            continue
    for timer in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(timer, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGPROF, signal.SIGALRM])


def _answer(replies: int, seconds: float, limit: float, pairs: list, math_verify) -> None:
    """The child: a verdict for each pair, each within its limit, or the kernel ends it. Does not return."""
    try:
        golds: dict[str, list] = {}
        for gold, answer in pairs:
            if gold not in golds:
                _alarm(seconds)
                golds[gold] = _parsed(gold, math_verify)
                _same(golds[gold], "1/2", math_verify)  # if this takes too long it is the gold's fault
            if golds[gold]:
                _write(replies, "readable")
            _alarm(limit)
            _write(replies, _same(golds[gold], answer, math_verify) if golds[gold] else None)
        os._exit(0)
    finally:
        os._exit(1)


def _alarm(seconds: float) -> None:
    """The kernel ends this process after so much processor time, or CLOCK times as much by the clock."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, CLOCK * seconds)


def _parsed(text: str, math_verify) -> list:
    return math_verify.parse(text, parsing_timeout=None)


def _same(gold: list, answer: str, math_verify) -> bool:
    try:
        return bool(math_verify.verify(gold, _parsed(answer, math_verify), timeout_seconds=None))
    except Exception:  # of SymPy, of any kind; what cannot be compared is not equal
        return False


def _write(replies: int, message: object) -> None:
    os.write(replies, json.dumps(message).encode() + b"\n")


if __name__ == "__main__":
    main()
