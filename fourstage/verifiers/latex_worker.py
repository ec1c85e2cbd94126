"""Compares answers with math-verify in processes that can be killed. This file has both ends of their pipes.

math-verify turns text into SymPy expressions, and a line such as 9**9**9 keeps SymPy busy for hours inside one C call,
which no exception interrupts. So a separate process, the worker, imports math-verify once and forks a few lanes, and
each lane forks a child for every few pairs. The kernel kills a child when the time of a pair is up; a new fork, which
takes some milliseconds, replaces it. Nothing that a pair did to SymPy's caches outlives its child.

Both directions carry JSON, one message a line; nothing is pickled. This file runs as a program and needs a POSIX
system.
"""

import atexit
import contextlib
import gc
import json
import os
import resource
import select
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

MEMORY = 1 << 29  # bytes of address space of the worker and of each child; after the imports 70 MB are in use
LANES = min(4, os.cpu_count() or 1)  # pairs compared at once
AT_ONCE = 12  # pairs that a child is given at most: as JSON they fit into a pipe
CLOCK = 30.0  # the limit on the clock, as a multiple of that on processor time: for a process that is stopped
GRACE = 5.0  # seconds that a silent lane gets beyond that before the worker is killed from here
STARTING = 120.0  # seconds that the imports may take on a busy machine
REMEMBERED = 20_000  # verdicts kept, so that the same pair has the same one however near it comes to a limit
SHORT_OF_MEMORY = 3  # exit status of a child
_CAUSES = {-signal.SIGPROF: "deadline", -signal.SIGALRM: "deadline", SHORT_OF_MEMORY: "memory"}

Pair = tuple[str, str]
Message = dict | str | bool | None  # what one line of JSON holds


@dataclass
class Lane:
    """This end of the pipes of one lane, and what it is doing."""

    writing: int  # numbers of its files
    reading: int
    pairs: list[Pair] = field(default_factory=list)  # that its child has not decided yet
    busy: bool = False  # until its child has ended
    is_first: bool = False  # whether pairs[0] is the first of its child
    readable: bool = False  # whether the gold of pairs[0] has been read
    heard: float = 0.0  # when it last answered
    buffer: bytes = b""

    def give(self, pairs: list[Pair], seconds: float, readable: set[str]) -> None:
        self.pairs, self.busy, self.is_first, self.readable = pairs, True, True, False
        self.heard = time.monotonic()
        _write(self.writing, [seconds, [(gold, answer, gold in readable) for gold, answer in pairs]])

    def messages(self) -> list[Message]:
        """What has arrived, at least a part of a line; raises ConnectionError if the lane has ended."""
        arrived = os.read(self.reading, 1 << 16)
        if not arrived:
            raise ConnectionError("it has ended")
        *lines, self.buffer = (self.buffer + arrived).split(b"\n")
        self.heard = time.monotonic()
        return [json.loads(line) for line in lines]


class Worker:
    """This end of the pipes. One per process, started when first needed, serves any number of threads.

    `counts` has the children killed at their deadline ("deadline"), those that ran short of memory ("memory"), and the
    children and workers that ended for other reasons ("died"). Each was replaced.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._verdicts: dict[Pair, bool | None] = {}
        self._readable: set[str] = set()  # golds
        self._unreadable: set[str] = set()
        self._process: subprocess.Popen[bytes] | None = None
        self._lanes: list[Lane] = []
        self._forget()
        atexit.register(self.stop)
        os.register_at_fork(after_in_child=self._forget)

    def compare(self, pairs: Iterable[Pair], seconds: float) -> dict[Pair, bool | None]:
        """For each pair, whether gold and answer are equal; None if the gold cannot be read, or for lack of time.

        A verdict depends on its pair alone: each has its own budget, and one that ends its child for another reason
        than its time is tried again in a fresh child.

        Args:
            pairs: (gold, answer), texts for math_verify.parse.
            seconds: processor time that each pair may take, and the reading of each gold.
        Raises:
            RuntimeError: if the worker does not start.
        """
        with self._lock:
            known = {pair: self._verdicts[pair] for pair in pairs if pair in self._verdicts}
            found = self._compare([pair for pair in dict.fromkeys(pairs) if pair not in known], seconds)
            self._verdicts |= found
            for pair in list(self._verdicts)[: max(len(self._verdicts) - REMEMBERED, 0)]:
                del self._verdicts[pair]
            golds = {gold for gold, _ in self._verdicts}
            self._readable, self._unreadable = self._readable & golds, self._unreadable & golds
        return known | found

    def stop(self) -> None:
        """Ends the worker, its lanes and their children, if there are any."""
        process = self._process
        self._process = None
        self._close()
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # it leads a process group of its own
            process.wait()

    def _forget(self) -> None:
        """Starts without a worker; in a forked child, leaves the worker to the parent.

        The child closes its copies of the pipes: while they are open, the lanes do not notice that the parent ended.
        """
        if self._process is not None:
            self._process.returncode = 0  # this process need not wait for it
        self._close()
        self._process, self._lock = None, threading.Lock()

    def _close(self) -> None:
        for lane in self._lanes:
            os.close(lane.writing)
            os.close(lane.reading)
        self._lanes = []

    # One call

    def _compare(self, pairs: list[Pair], seconds: float) -> dict[Pair, bool | None]:
        verdicts: dict[Pair, bool | None] = {}
        crashes: Counter[Pair] = Counter()
        size = max(1, min(AT_ONCE, len(pairs) // (2 * LANES)))
        queue = deque([pairs[start : start + size] for start in range(0, len(pairs), size)])
        while queue or any(lane.busy for lane in self._lanes):
            lanes = self._start()
            try:
                for lane in lanes:
                    if not lane.busy:
                        self._give(lane, queue, verdicts, seconds)
                for lane in self._ready(CLOCK * seconds + GRACE):
                    for message in lane.messages():
                        self._take(lane, message, verdicts, queue)
            except OSError:  # a lane or the worker has ended, or is silent
                self.counts["died"] += 1
                self._abandon(verdicts, crashes, queue)
        return verdicts

    def _ready(self, seconds: float) -> list[Lane]:
        """The lanes that have something to say; raises TimeoutError if one at work has been silent for `seconds`."""
        poll = select.poll()
        busy = {lane.reading: lane for lane in self._lanes if lane.busy}
        for number in busy:
            poll.register(number, select.POLLIN)
        end = min((lane.heard for lane in busy.values()), default=0.0) + seconds
        ready = poll.poll(max(end - time.monotonic(), 0) * 1000)
        if busy and not ready:
            raise TimeoutError(f"silent for {seconds:.0f} seconds")
        return [busy[number] for number, _ in ready]

    def _give(self, lane: Lane, queue: deque[list[Pair]], verdicts: dict[Pair, bool | None], seconds: float) -> None:
        """Gives a lane the next pairs, but for those whose gold is known to be unreadable."""
        while queue:
            pairs = queue.popleft()
            verdicts |= {pair: None for pair in pairs if pair[0] in self._unreadable}
            pairs = [pair for pair in pairs if pair[0] not in self._unreadable]
            if pairs:
                return lane.give(pairs, seconds, self._readable)

    def _take(self, lane: Lane, message: Message, verdicts: dict[Pair, bool | None], queue: deque[list[Pair]]) -> None:
        """Books one message: the gold is "readable", a verdict, or that the child ended, and how."""
        if isinstance(message, str):
            lane.readable = True
            self._readable.add(lane.pairs[0][0])
        elif not isinstance(message, dict):
            verdicts[lane.pairs.pop(0)] = message
            lane.is_first = lane.readable = False
        else:
            pairs, lane.pairs, lane.busy = lane.pairs, [], False
            if pairs:
                self.counts[message["ended"]] += 1
                if message["ended"] == "deadline" or lane.is_first:
                    verdicts[pairs[0]] = None
                    if not lane.readable:
                        self._unreadable.add(pairs[0][0])
                queue.extendleft([[pair for pair in pairs if pair not in verdicts]])

    def _abandon(self, verdicts: dict[Pair, bool | None], crashes: Counter[Pair], queue: deque[list[Pair]]) -> None:
        """Ends the worker; what its lanes had is for the next one, but a pair that was there twice is given up."""
        for lane in self._lanes:
            crashes.update(lane.pairs[:1])
            verdicts |= {pair: None for pair in lane.pairs[:1] if crashes[pair] > 1}
            queue.extendleft([pair] for pair in lane.pairs if pair not in verdicts)
        self.stop()

    def _start(self) -> list[Lane]:
        """The lanes of the worker, which is started where none is running.

        Raises RuntimeError if it cannot import math-verify.
        """
        if self._process is not None and self._process.poll() is not None and not any(x.busy for x in self._lanes):
            self.counts["died"] += 1
            self.stop()
        if self._process is not None:
            return self._lanes
        requests, replies = ([os.pipe() for _ in range(LANES)] for _ in range(2))
        theirs = [
            number
            for (reading, _), (_, writing) in zip(requests, replies, strict=True)
            for number in (reading, writing)
        ]
        command = [sys.executable, __file__, *map(str, theirs)]
        self._lanes = [Lane(writing, reading) for (_, writing), (reading, _) in zip(requests, replies, strict=True)]
        self._process = subprocess.Popen(
            command,
            pass_fds=theirs,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONHASHSEED": "0"},  # SymPy orders terms by hashes: the same in every run
            start_new_session=True,
        )
        for number in theirs:
            os.close(number)
        error = self._not_ready()
        if error:
            self.stop()
            raise RuntimeError(f"the math worker, {' '.join(command[:2])}, does not start: {error}")
        return self._lanes

    def _not_ready(self) -> str:
        """Waits for the worker's first message; what is wrong, or nothing."""
        first = self._lanes[0]
        first.busy, first.heard = True, time.monotonic()
        messages: list[Message] = []
        try:
            while not messages:
                messages = self._ready(STARTING)[0].messages()
        except (OSError, ValueError) as error:
            return f"{type(error).__name__}: {error}"
        first.busy = False
        return "" if messages == ["ready"] else str(messages[0])


# The other end


def main() -> None:
    """The worker: imports math-verify and forks a lane for each two pipes whose numbers are on the command line."""
    numbers = [int(number) for number in sys.argv[1:]]
    pipes = list(zip(numbers[::2], numbers[1::2], strict=True))  # (requests, replies) of each
    sys.path[0] = str(Path(__file__).parents[2])  # for `fourstage`, in place of this file's folder
    try:
        from fourstage.verifiers.latex_same import read, same, warm_up

        _limit_resources()
        warm_up()
    except Exception as error:
        _write(numbers[1], f"{type(error).__name__}: {error}")
        return
    gc.freeze()  # a garbage collection in a child would touch, and so copy, every shared page
    _write(numbers[1], "ready")
    for requests, replies in pipes:
        if os.fork() == 0:
            for other in {*numbers} - {requests, replies}:
                os.close(other)
            _serve(requests, replies, read, same)
    for number in numbers:
        os.close(number)
    for _ in pipes:
        os.wait()


def _serve(requests: int, replies: int, read: Callable, same: Callable) -> NoReturn:
    """A lane: reads pairs until its pipe is closed, and has a child answer."""
    try:
        for line in os.fdopen(requests, "rb"):
            child = os.fork()
            if child == 0:
                seconds, pairs = json.loads(line)
                _compare_pairs(replies, seconds, pairs, read, same)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            _write(replies, {"ended": _CAUSES.get(status, "died")})
    finally:
        os._exit(0)


def _limit_resources() -> None:
    """Limits the memory, forbids writing files, and lets the signals of the timers end the process."""
    for name, bound in (("RLIMIT_AS", MEMORY), ("RLIMIT_FSIZE", 0), ("RLIMIT_CORE", 0)):
        try:
            resource.setrlimit(getattr(resource, name), (bound, bound))
        except (ValueError, OSError):  # macOS refuses some of these
            continue
    for timer in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(timer, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGPROF, signal.SIGALRM])


def _compare_pairs(replies: int, seconds: float, pairs: list, read: Callable, same: Callable) -> NoReturn:
    """The child: writes a verdict for each pair and exits; the kernel kills it when a pair exceeds its limit."""
    try:
        golds: dict[str, object] = {}
        for gold, answer, is_readable in pairs:
            if gold not in golds:
                _alarm(seconds)
                golds[gold] = read(gold)
                if golds[gold] and not is_readable:
                    same(golds[gold], "1/2")  # if this takes too long, the gold is at fault
            if golds[gold]:
                _write(replies, "readable")
            _alarm(seconds)
            verdict = same(golds[gold], answer) if golds[gold] else None
            if not verdict and _is_short_of_memory():
                os._exit(SHORT_OF_MEMORY)  # SymPy takes its MemoryError for "not equal"
            _write(replies, verdict)
        os._exit(0)
    finally:
        os._exit(1)


def _is_short_of_memory() -> bool:
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return used > MEMORY // 2


def _alarm(seconds: float) -> None:
    """Lets the kernel kill this process after `seconds` of processor time, or CLOCK times as many on the clock."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, CLOCK * seconds)


def _write(pipe: int, message: object) -> None:
    line = memoryview(json.dumps(message, ensure_ascii=False).encode() + b"\n")
    while line:
        line = line[os.write(pipe, line) :]


if __name__ == "__main__":
    main()
