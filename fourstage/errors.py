"""Wrong inputs as a person reads them: one line and exit code 2. A traceback is for bugs.

What ends a program from outside takes one line too: `fourstage.signals`.
"""

import linecache
import os
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from traceback import walk_tb
from types import FrameType

from fourstage.disk import disk_problem
from fourstage.printing import visible
from fourstage.signals import ended_by_signals

_LIBRARIES = ("trl", "transformers", "peft", "accelerate")
_WAIT_FOR_FIRST = 10.0  # seconds: processes come to a wrong input within a few


def one_line(error: BaseException, longest: int = 400, with_type: bool = False) -> str:
    """The message of an error on one line, cut off after `longest` characters; with its type where that says more.

    Example: ValueError("a\\n  b") -> "a b", with its type "ValueError: a b".
    """
    text = f"{type(error).__name__}: {error}" if with_type else str(error)
    return " ".join(text.split())[:longest]


@contextmanager
def reported_errors() -> Generator[None]:
    """Around a whole program: a wrong input ends it with `error: ...` on stderr and exit code 2, without a traceback;
    Ctrl-C, SIGTERM and SIGHUP end it as `ended_by_signals` does.

    A wrong input is a ValueError from a `raise` of fourstage, or from a library before the training began: TRL and
    transformers check their settings that way. A disk that is full or may not be written takes one line too. Whatever
    else is raised is a bug and keeps its traceback, as everything does where the command line has `--debug` alone (with
    a value it is transformers' own flag).

    Of several processes the first speaks for all: its end has the launcher end the others, which meanwhile wait. One
    that is still there after some seconds has found what the first has not, and says it.

    To tell a `raise` from int("x"), it reads the source line; without sources every error keeps its traceback.
    """
    debug = _take_debug_flag()
    try:
        with ended_by_signals():
            yield
    except Exception as error:
        message = None if debug else _message(error)
        if message is None:
            raise
        if int(os.environ.get("RANK", "0")):  # of torchrun and accelerate
            time.sleep(_WAIT_FOR_FIRST)
        bar = "" if isinstance(error, ValueError) else "\n"  # which may stand there half drawn
        print(f"{bar}{visible(f'error: {message}')}", file=sys.stderr, flush=True)
        raise SystemExit(2) from None


def _message(error: Exception) -> str | None:
    """What is said of an error that is no bug; None for a bug."""
    origin = _origin(error) if isinstance(error, ValueError) else None
    if origin is None:
        return disk_problem(error)
    return str(error) if origin == "fourstage" else f"{one_line(error)} (from {origin}; --debug shows where)"


def _take_debug_flag() -> bool:
    if "--debug" not in sys.argv:
        return False
    place = sys.argv.index("--debug")
    value = sys.argv[place + 1 : place + 2]
    if value and not value[0].startswith("--"):
        return False
    del sys.argv[place]
    return True


def _origin(error: ValueError) -> str | None:
    """Who raised a wrong input: `fourstage`, or a library that checks settings; None for a bug."""
    frames = list(walk_tb(error.__traceback__))
    frame, line = frames[-1]
    package = _module(frame).split(".")[0]
    if package in ("fourstage", "__main__"):
        # Not int("x") or zip(strict=True), whose errors are raised in our frame and not by us.
        raised = linecache.getline(frame.f_code.co_filename, line).lstrip().startswith("raise")
        return "fourstage" if raised else None
    training = any(_module(f).startswith("transformers.trainer") and f.f_code.co_name == "train" for f, _ in frames)
    return package if package in _LIBRARIES and not training else None


def _module(frame: FrameType) -> str:
    return frame.f_globals.get("__name__", "")
