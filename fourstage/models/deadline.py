"""An end to chat templates that have none: they are programs, which come with a model from anywhere."""

import ctypes
import signal
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

# Seconds of CPU time, whatever else the machine does, for a conversation. Templates take milliseconds; those that mark
# the assistant's turns take a few seconds for a thousand turns.
LONGEST = 10.0


class TemplateTimeoutError(ValueError):
    """A chat template that did not end."""


_local = threading.local()  # whether a deadline runs in this thread
_LOOK = 0.2  # seconds between two looks at another thread


@contextmanager
def deadline(conversations: int = 1) -> Generator[None]:
    """Within it a chat template is stopped after `LONGEST` seconds of CPU time for each conversation.

    Where a deadline runs already, that one holds. It acts between two steps of the template: one that builds a text of
    gigabytes in one step is stopped after that step. In the main thread a signal tells the time, in others, such as a
    web page's, a thread that looks at their clock; nothing is stopped where a system has no such signal or clock.
    Raises:
        TemplateTimeoutError: at the deadline.
    """
    in_main = threading.current_thread() is threading.main_thread()
    missing = not hasattr(signal, "SIGVTALRM") if in_main else not hasattr(time, "pthread_getcpuclockid")
    if missing or getattr(_local, "runs", False):
        yield
        return
    _local.runs = True
    try:
        with (_by_signal if in_main else _by_thread)(LONGEST * max(conversations, 1)):
            yield
    except TemplateTimeoutError:
        raise TemplateTimeoutError(
            f"the chat template has not ended after {LONGEST:g} seconds; correct its loops, or choose another model"
        ) from None
    finally:
        _local.runs = False


@contextmanager
def _by_signal(seconds: float) -> Generator[None]:
    before = signal.signal(signal.SIGVTALRM, _stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def _stop(number: int, frame: FrameType | None) -> None:
    raise TemplateTimeoutError


@contextmanager
def _by_thread(seconds: float) -> Generator[None]:
    """Python raises in a thread what another one asks for, before that thread's next step."""
    thread, over, lock = threading.get_ident(), threading.Event(), threading.Lock()
    clock, raise_in = time.pthread_getcpuclockid(thread), ctypes.pythonapi.PyThreadState_SetAsyncExc
    end = time.clock_gettime(clock) + seconds

    def watch() -> None:
        while not over.wait(_LOOK):
            with lock:
                if not over.is_set() and time.clock_gettime(clock) > end:
                    raise_in(ctypes.c_ulong(thread), ctypes.py_object(TemplateTimeoutError))
                    return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        with lock:
            over.set()
            raise_in(ctypes.c_ulong(thread), None)  # what was asked for and not yet raised
