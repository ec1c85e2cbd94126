"""Compares answers with math-verify in a process that can be killed. This file has both ends of its pipe.

math-verify turns text into SymPy expressions, and a line such as 9**9**9 keeps SymPy busy for hours inside one C call,
which no exception interrupts. So a separate process, the worker, imports math-verify once and forks a child for each
batch of pairs. The kernel kills the child when the time of a pair is up; a new fork, which takes some milliseconds,
replaces it. Nothing that a pair did to SymPy's caches outlives its batch.

Both directions carry JSON, one message a line; nothing is pickled. This file runs as a program, without the rest of
fourstage, and needs a POSIX system.
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
from types import ModuleType
from typing import NoReturn

MEMORY = 1 << 29  # bytes of address space of the worker and of each child; after the imports 70 MB are in use
CLOCK = 1.4  # the limit on the clock, as a multiple of that on processor time: a busy machine is slower
LEAST = 0.02  # seconds that every pair may take; the mean is 2 to 5 ms
STARTING = 120.0  # seconds that the imports may take on a busy machine
GRACE = 5.0  # seconds that a silent worker gets beyond its own limits before it is killed from here

Message = dict | str | bool | None  # what one line of JSON holds


class Worker:
    """This end of the pipe. One per process, started when first needed, serves any number of threads.

    `counts` has the children killed at their deadline ("deadline"), and the children and workers that ended for other
    reasons ("died"). Each was replaced.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._process: subprocess.Popen[bytes] | None = None
        self._forget()
        atexit.register(self.stop)
        os.register_at_fork(after_in_child=self._forget)

    def compare(self, pairs: list[tuple[str, str]], seconds: float, budget: float) -> list[bool | None]:
        """For each pair, whether gold and answer are equal; None if the gold cannot be read, or not in time.

        Args:
            pairs: (gold, answer), texts for math_verify.parse.
            seconds: processor time that each pair may take, and the reading of each gold.
            budget: wall seconds that pairs which are cut off may cost together. A pair may take at most a quarter of
                what is left of it, but at least LEAST, so that the pairs after many slow ones are compared too.
        Raises:
            RuntimeError: if the worker does not start.
        """
        verdicts: dict[tuple[str, str], bool | None] = {}
        pending = list(dict.fromkeys(pairs))
        with self._lock:
            while pending:
                limit = max(min(seconds, budget / 4), min(LEAST, seconds))
                batch_verdicts, seconds_lost = self._compare_batch(pending, seconds, limit)
                compared = pending[: len(batch_verdicts)]
                pending = pending[len(compared) :]
                verdicts |= zip(compared, batch_verdicts, strict=True)
                if batch_verdicts[-1] is None:
                    unreadable_gold = compared[-1][0]
                    verdicts |= {pair: None for pair in pending if pair[0] == unreadable_gold}
                    pending = [pair for pair in pending if pair[0] != unreadable_gold]
                else:
                    budget -= seconds_lost
        return [verdicts[pair] for pair in pairs]

    def stop(self) -> None:
        """Ends the worker and its child, if there are any."""
        process = self._process
        self._process, self._buffer = None, b""
        if process is not None:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # it leads a process group of its own
            process.wait()
            _close_pipes(process)

    def _forget(self) -> None:
        """Starts without a worker; in a forked child, leaves the worker to the parent.

        The child closes its copies of the pipes: while they are open, the worker does not notice that the parent ended.
        """
        if self._process is not None:
            _close_pipes(self._process)
            self._process.returncode = 0  # this process need not wait for it
        self._process, self._buffer, self._lock = None, b"", threading.Lock()

    def _compare_batch(
        self, pairs: list[tuple[str, str]], seconds: float, limit: float
    ) -> tuple[list[bool | None], float]:
        """(verdicts up to and including the first pair that ended its child, else all; wall seconds of that pair)."""
        process = self._start()
        verdicts: list[bool | None] = []
        readable, since, status = False, time.monotonic(), None
        try:
            _send(process, [seconds, limit, pairs])
            while status is None:
                reply = self._receive(process, CLOCK * seconds + GRACE)
                if isinstance(reply, dict):
                    status = reply["ended"]
                elif isinstance(reply, str):  # the gold is "readable"
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

    def _start(self) -> subprocess.Popen[bytes]:
        """The worker, started where none is running; raises RuntimeError if it cannot import math-verify."""
        if self._process is not None and self._process.poll() is None:
            return self._process
        if self._process is not None:
            self.counts["died"] += 1
            self.stop()
        command = [sys.executable, __file__]
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env={**os.environ, "PYTHONHASHSEED": "0"},  # SymPy orders terms by hashes: the same in every run
            start_new_session=True,
        )
        self._process = process
        try:
            reply = self._receive(process, STARTING)
        except (OSError, ValueError) as error:
            reply = f"{type(error).__name__}: {error}"
        if reply != "ready":
            self.stop()
            raise RuntimeError(f"the math worker, {' '.join(command)}, does not start: {reply}")
        return process

    def _receive(self, process: subprocess.Popen[bytes], seconds: float) -> Message:
        """The next message; raises OSError if none arrives in time, or if the worker has ended."""
        end = time.monotonic() + seconds
        assert process.stdout is not None  # `_start` made it a pipe
        output = process.stdout.fileno()
        poll = select.poll()
        poll.register(output, select.POLLIN)
        while b"\n" not in self._buffer:
            if not poll.poll(max(end - time.monotonic(), 0) * 1000):
                raise TimeoutError(f"silent for {seconds:.0f} seconds")
            arrived = os.read(output, 1 << 16)
            if not arrived:
                raise ConnectionError("it has ended")
            self._buffer += arrived
        line, _, rest = self._buffer.partition(b"\n")
        self._buffer = rest
        return json.loads(line)


def _send(process: subprocess.Popen[bytes], message: object) -> None:
    assert process.stdin is not None  # `Worker._start` made it a pipe
    line = memoryview(json.dumps(message).encode() + b"\n")
    while line:
        written = os.write(process.stdin.fileno(), line)
        line = line[written:]


def _close_pipes(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


# The other end


def main() -> None:
    """The worker: reads batches from standard input until it ends, and answers each by a child."""
    replies = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # so that what a library prints is not taken for a message
    try:
        import math_verify

        _limit_resources()
        _same(_parsed("$x^2+1$", math_verify), "1/2", math_verify)  # warms it up: patterns and grammar
    except Exception as error:
        _write(replies, f"{type(error).__name__}: {error}")
        return
    gc.freeze()  # a garbage collection in a child would touch, and so copy, every shared page
    _write(replies, "ready")
    for line in sys.stdin.buffer:
        child = os.fork()
        if child == 0:
            seconds, limit, pairs = json.loads(line)
            _compare_pairs(replies, seconds, limit, pairs, math_verify)
        _write(replies, {"ended": os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])})


def _limit_resources() -> None:
    """Limits the memory, forbids writing files, and lets the signals of the timers end the process."""
    import resource

    for name, bound in (("RLIMIT_AS", MEMORY), ("RLIMIT_FSIZE", 0), ("RLIMIT_CORE", 0)):
        try:
            resource.setrlimit(getattr(resource, name), (bound, bound))
        except (ValueError, OSError):  # macOS refuses some of these
            continue
    for timer in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(timer, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGPROF, signal.SIGALRM])


def _compare_pairs(replies: int, seconds: float, limit: float, pairs: list, math_verify: ModuleType) -> NoReturn:
    """The child: writes a verdict for each pair and exits; the kernel kills it when a pair exceeds its limit."""
    try:
        golds: dict[str, list] = {}
        for gold, answer in pairs:
            if gold not in golds:
                _alarm(seconds)
                golds[gold] = _parsed(gold, math_verify)
                _same(golds[gold], "1/2", math_verify)  # if this takes too long, the gold is at fault
            if golds[gold]:
                _write(replies, "readable")
            _alarm(limit)
            _write(replies, _same(golds[gold], answer, math_verify) if golds[gold] else None)
        os._exit(0)
    finally:
        os._exit(1)


def _alarm(seconds: float) -> None:
    """Lets the kernel kill this process after `seconds` of processor time, or CLOCK times as many on the clock."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, CLOCK * seconds)


def _parsed(text: str, math_verify: ModuleType) -> list:
    return math_verify.parse(text, parsing_timeout=None)


def _same(gold: list, answer: str, math_verify: ModuleType) -> bool:
    try:
        return bool(math_verify.verify(gold, _parsed(answer, math_verify), timeout_seconds=None))
    except Exception:  # SymPy raises errors of any kind; what cannot be compared is not equal
        return False


def _write(replies: int, message: object) -> None:
    os.write(replies, json.dumps(message).encode() + b"\n")


if __name__ == "__main__":
    main()
