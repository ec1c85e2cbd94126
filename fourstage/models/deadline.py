"""An end to chat templates that have none: they are programs, which come with a model from anywhere."""

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

# Seconds of CPU time, whatever else the machine does, for a conversation. Templates take milliseconds; those that mark
# the assistant's turns take a few seconds for a thousand turns.
LONGEST = 10.0


class TemplateTimeoutError(ValueError):
    """A chat template that did not end."""


@contextmanager
def deadline(conversations: int = 1) -> Generator[None]:
    """Within it a chat template is stopped after `LONGEST` seconds of CPU time for each conversation.

    In the main thread only, as signals are; elsewhere, and where a deadline runs already, nothing is stopped. It acts
    between two steps of the template: one that builds a text of gigabytes in one step is stopped after that step.
    Raises:
        TemplateTimeoutError: at the deadline.
    """
    in_main = threading.current_thread() is threading.main_thread() and hasattr(signal, "SIGVTALRM")
    if not in_main or signal.getsignal(signal.SIGVTALRM) is _stop:
        yield
        return
    before = signal.signal(signal.SIGVTALRM, _stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, LONGEST * max(conversations, 1))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def _stop(number: int, frame: FrameType | None) -> None:
    raise TemplateTimeoutError(
        f"the chat template has not ended after {LONGEST:g} seconds; correct its loops, or choose another model"
    )
