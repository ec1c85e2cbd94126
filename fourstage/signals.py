"""Ctrl-C, SIGTERM, SIGHUP and a launcher that has gone: they end a program with one line, at once or in good order.

A thread hears them. So they count while the main thread is inside a library's compiled code, and no KeyboardInterrupt
is raised where somebody's code would swallow it.
"""

import os
import select
import shlex
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    import psutil

ENDING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
_LAUNCHERS = {  # what starts a recipe, and how a person types it
    "accelerate": "accelerate",
    "accelerate-launch": "accelerate launch",
    "accelerate.commands.launch": "accelerate launch",
    "torchrun": "torchrun",
    "torch.distributed.run": "torchrun",
    **{f"{name}.py": None for name in ("pipeline", "pretrain", "sft", "reward", "ppo", "grpo")},
}
_LAUNCHERS_WORDS = 5.0  # seconds that `accelerate launch` may take to die of the same Ctrl-C
_PATIENCE = 2.0  # seconds that children have to end by themselves
_LOOK = 1.0  # seconds between two looks at whether the launcher is still there


@dataclass
class _Program:
    """What the thread and the main thread of a program know of its end."""

    words: str  # said where a signal ends it, with the signal's name in place of {signal}
    first: Callable[[int], object] | None = None  # takes the first signal, which then does not end the program
    asked: int = 0  # that first signal
    over: bool = False  # it has had its last words
    ttys: list[int] = field(default_factory=list)
    wakeup: tuple[int, int] = (-1, -1)
    handlers: dict[int, Any] = field(default_factory=dict)  # before
    wakeup_before: int = -1


_program: _Program | None = None


@contextmanager
def ended_by_signals(words: str = "ended by {signal}") -> Generator[None]:
    """Around a whole program: SIGINT, SIGTERM and SIGHUP end it at once, with `words` on stderr and 128 + their number
    as exit status, unless `take_first` has the first of them do something else; the second always ends it at once.

    So does the end of what launched it: `accelerate launch`, torchrun, the pipeline, another recipe. A shell is not a
    launcher: with nohup a program outlives it, as SIGHUP is then ignored and stays so. Of several processes the first
    speaks for all. Where the program has given a signal a handler of its own, that one counts.

    Does nothing on Windows, outside the main thread, and inside another such context.
    """
    global _program
    if _program or os.name != "posix" or threading.current_thread() is not threading.main_thread():
        yield
        return
    read, write = os.pipe()
    os.set_blocking(write, False)
    program = _Program(words, ttys=[fd for fd in (1, 2) if os.isatty(fd)], wakeup=(read, write))
    program.handlers = {n: h for n in ENDING if (h := signal.getsignal(n)) not in (signal.SIG_IGN, None)}
    _install(program)
    _program, listener = program, threading.Thread(target=_listen, args=(program, read, _launchers()), daemon=True)
    listener.start()
    try:
        yield
    except BaseException as error:
        if not program.asked:
            raise
        program.over = True
        _end_listening(write, listener)  # what it has to say about the first signal stands above the last words
        if not isinstance(error, SystemExit):
            program.words += f" ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
        _wait_for_launcher(program)
        say(program.words.replace("{signal}", _name(program.asked)))
        raise SystemExit(128 + program.asked) from None
    finally:
        _end_listening(write, listener)
        _uninstall(program)
        _program = None
        os.close(read)
        os.close(write)


def take_first(first: Callable[[int], object] | None) -> None:
    """Has the first signal call `first` with its number, in another thread; with None it ends the program at once."""
    if _program:
        _program.first = first


def last_words(words: str) -> None:
    """What is said where a signal ends the program; {signal} stands for its name."""
    if _program:
        _program.words = words


def asked() -> int:
    """The number of the signal that `take_first` had taken; 0 if none came."""
    return _program.asked if _program else 0


def end(number: int) -> NoReturn:
    """Ends the program in good order for a signal that this process or another one got."""
    if _program:
        _program.asked = number
    raise SystemExit(128 + number)


@contextmanager
def as_before() -> Generator[None]:
    """Within `ended_by_signals`: signals do what they did outside of it, for a dialogue, in which Ctrl-C raises
    KeyboardInterrupt, or a server with handlers of its own."""
    program = _program
    if program:
        _uninstall(program)
    try:
        yield
    finally:
        if program:
            _install(program)


def say(text: str) -> None:
    """A line on stderr from the first process, whatever the main thread is just writing; a gone terminal is left."""
    if int(os.environ.get("RANK", "0")):  # of torchrun and accelerate
        return
    ttys = _program.ttys if _program else []
    line = ("\n" if 2 in ttys and text[0] != "\n" else "") + text + "\n"  # below ^C
    try:
        os.write(2, line.encode(errors="replace"))
    except OSError:  # its terminal was closed, or who read it has gone: the next print would fail, within a step
        _write_nowhere([fd for fd in (1, 2) if not stat.S_ISREG(os.fstat(fd).st_mode)])


def _write_nowhere(files: list[int]) -> None:
    """What is written to these from now on is lost, and does not fail."""
    for fd in files:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, fd)
        os.close(nowhere)


def launch_command() -> str:
    """What a person would type to start this program again: `accelerate launch --config_file X recipes/sft.py ...`."""
    words: list[str] = []
    for process in _launchers()[:1]:
        with suppress(Exception):  # it ends just now
            words = _typed(process.cmdline())
    return shlex.join(words or ["python", *sys.argv])


def _install(program: _Program) -> None:
    program.wakeup_before = signal.set_wakeup_fd(program.wakeup[1], warn_on_full_buffer=False)
    for number in program.handlers:
        signal.signal(number, _heard)


def _uninstall(program: _Program) -> None:
    signal.set_wakeup_fd(program.wakeup_before)
    for number, handler in program.handlers.items():
        signal.signal(number, handler)


def _heard(number: int, frame: object) -> None:
    """Python's own part of a signal, of which the thread has heard by the file descriptor: a terminal that was closed
    is left here, before the main thread's next word to it would fail."""
    if _program and number == getattr(signal, "SIGHUP", None):
        _write_nowhere([fd for fd in _program.ttys if not os.isatty(fd)])


def _listen(program: _Program, read: int, launchers: list["psutil.Process"]) -> None:
    handles: list[int] = []
    for process in launchers:
        with suppress(AttributeError, OSError):  # Linux has them: at once, before a print finds a pipe without reader
            handles.append(os.pidfd_open(process.pid))
    while True:
        if read in select.select([read, *handles], [], [], _LOOK)[0]:
            numbers = os.read(read, 64)
            # Those that came together are one request: some launchers hand on what the whole group got.
            ours = [n for n in numbers if n in ENDING and signal.getsignal(n) is _heard]
            if ours:
                _take(program, ours[0])
            if 0 in numbers:
                break
        elif launchers and _gone(launchers):
            launchers, handles = [], _closed(handles)
            if not program.asked:
                _take(program, signal.SIGTERM)
    _closed(handles)


def _end_listening(write: int, listener: threading.Thread) -> None:
    os.write(write, b"\0")
    listener.join()


def _closed(handles: list[int]) -> list[int]:
    for handle in handles:
        os.close(handle)
    return []


def _take(program: _Program, number: int) -> None:
    if program.first and not program.asked:
        program.asked = number
        program.first(number)
        return
    if program.over:
        return
    flushing = threading.Thread(target=_flush, daemon=True)  # the main thread may hold the lock of a full pipe
    flushing.start()
    flushing.join(1.0)
    say(program.words.replace("{signal}", _name(number)))
    _end_children()
    os._exit(128 + number)


def _flush() -> None:
    with suppress(Exception):
        sys.stdout.flush()


def _wait_for_launcher(program: _Program) -> None:
    """`accelerate launch` of one process dies of a Ctrl-C with a traceback; what is said here stands below it."""
    launchers = _launchers()[:1]
    if program.asked != signal.SIGINT or not launchers or "LOCAL_RANK" in os.environ:
        return
    until = time.monotonic() + _LAUNCHERS_WORDS
    while time.monotonic() < until and not _gone(launchers):
        time.sleep(0.05)


def _end_children() -> None:
    import psutil

    children = psutil.Process().children(recursive=True)
    for end in (psutil.Process.terminate, psutil.Process.kill):
        for child in children:
            with suppress(psutil.Error):
                end(child)
        children = psutil.wait_procs(children, timeout=_PATIENCE)[1]


def _name(number: int) -> str:
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name


def _launchers() -> list["psutil.Process"]:
    """The processes that this one is to end with: its parent, that one's parent, as far as they launch recipes."""
    import psutil  # not before it is needed: every program imports this module

    found: list[psutil.Process] = []
    with suppress(psutil.Error):
        for process in psutil.Process().parents():
            if _script(process.cmdline()) is None:
                break
            found.append(process)
    return found


def _script(words: list[str]) -> tuple[str, int] | None:
    """(name of the launcher that a command line runs, place of its first argument); None if it runs another program.

    Example: ["python", "-u", "/usr/bin/accelerate", "launch", "x.py"] -> ("accelerate", 3). A shell whose text has the
    name of a launcher in it does not count.
    """
    if not words or not Path(words[0]).name.startswith(("python", "pypy")):
        return None
    place = next((i for i, word in enumerate(words[1:], 1) if word == "-m" or not word.startswith("-")), len(words))
    place += words[place : place + 1] == ["-m"]
    name = Path(words[place]).name if place < len(words) else ""
    return (name, place + 1) if name in _LAUNCHERS else None


def _typed(words: list[str]) -> list[str]:
    """How a launcher's command line was typed; empty if it is one of ours, which a person did not type for this."""
    found = _script(words)
    typed = found and _LAUNCHERS[found[0]]
    return [*typed.split(), *words[found[1] :]] if found and typed else []


def _gone(launchers: list["psutil.Process"]) -> bool:
    """Whether one of them has ended: its child has another parent then."""
    import psutil

    try:
        parents = [os.getppid(), *(process.ppid() for process in launchers[:-1])]
    except psutil.Error:
        return True
    return parents != [process.pid for process in launchers]


def _after_fork() -> None:
    """A forked worker is ended by its program, which a Ctrl-C in the terminal is not to get ahead of."""
    global _program
    if _program:
        signal.set_wakeup_fd(-1)
        for fd in _program.wakeup:
            os.close(fd)
        for number in ENDING:
            if signal.getsignal(number) is _heard:
                signal.signal(number, signal.SIG_IGN if number == signal.SIGINT else signal.SIG_DFL)
        _program = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
