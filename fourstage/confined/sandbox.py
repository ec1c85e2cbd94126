"""Runs a program that a model wrote where it can reach nothing: bubblewrap, a filter of system calls, and limits.

A program sees the interpreter with its standard library, read-only, and no other file: no home, no environment, no
network, no other process, nowhere to write. It has SECONDS of processor time and MEMORY, one thread and no children.
"""

import functools
import json
import os
import secrets
import shutil
import subprocess
import sys
import threading
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from subprocess import PIPE

from fourstage.confined.syscalls import deny_filter, supported

SECONDS = 2  # of processor time, for a program with its tests
MEMORY = 1 << 29  # bytes of address space
CLOCK = 120.0  # seconds until a program that waits for something is ended
ANSWER = 1 << 22  # bytes that are read of an answer
_LIMITS = {
    "RLIMIT_AS": MEMORY,
    "RLIMIT_CPU": SECONDS,
    "RLIMIT_FSIZE": 0,
    "RLIMIT_NOFILE": 32,
    "RLIMIT_CORE": 0,
}
_SYSTEM = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")  # beside /usr: folders, or links into it
_INSIDE = Path(__file__).with_name("inside.py")

# What a program can reach of which nothing should be reachable; a list of words, empty in a sandbox that holds.
_ESCAPES = """
def escapes():
    import os, socket
    def works(action):
        try:
            action()
        except Exception:
            return False
        return True
    tries = {
        "network": lambda: socket.socket(),
        "processes": lambda: os.fork() or os._exit(0),
        "writing to /": lambda: open("/file", "w"),
        "writing to /tmp": lambda: open("/tmp/file", "w"),
        "writing to /usr": lambda: open("/usr/file", "w"),
        "a home": lambda: next(path for path in HOME if os.path.lexists(path)),
        "the environment": lambda: os.environ["PATH"],
        "/proc": lambda: os.listdir("/proc/1"),
    }
    return [name for name, action in tries.items() if works(action)]
"""


class Unconfined(ValueError):
    """A sandbox that could not be made; the message has the reason."""


def run(code: str, tests: Sequence[tuple[str, str]], setup: str = "") -> list[str | None]:
    """What each test gives after the code has run, as `inside._values`; an empty list where it did not come so far.

    Raises:
        Unconfined: if the sandbox cannot be made.
    """
    token = secrets.token_hex(16)
    asked = {"code": code, "setup": setup, "tests": tests, "token": token, "limits": _LIMITS}
    answer, error = _answer(json.dumps(asked).encode())
    if error.startswith(b"bwrap:"):
        raise Unconfined(f"bubblewrap cannot make a sandbox: {' '.join(error.decode(errors='replace').split())}")
    try:
        said, values = json.loads(answer)
    except (ValueError, TypeError, RecursionError):  # it ended, or wrote something else
        return []
    is_ours = said == token and isinstance(values, list) and len(values) in (0, len(tests))
    return values if is_ours and all(value is None or isinstance(value, str) for value in values) else []


def run_all(programs: Sequence[tuple[str, Sequence[tuple[str, str]], str]]) -> list[list[str | None]]:
    """The same for several (code, tests, setup), as many at once as there are cores, at most 8."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(lambda program: run(*program), programs))


@functools.cache
def why_not() -> str | None:
    """Why programs cannot be confined here, or None. It makes a sandbox and has a program try to leave it."""
    if not supported():
        return "only Linux on x86-64 and ARM64 is supported"
    if shutil.which("bwrap") is None:
        return "bubblewrap is not installed (its program is bwrap)"
    try:
        found = run(_ESCAPES, [("value", "escapes()")], f"HOME = {_files_at_home()!r}")
    except Unconfined as error:
        return str(error)
    if found == ["[]"]:
        return None
    return f"a program in the sandbox could reach {found[0]}" if found and found[0] else "a program did not run in it"


def _files_at_home() -> list[str]:
    """What is in the user's home, but for where Python itself is."""
    home = Path.home()
    found = home.iterdir() if os.access(home, os.R_OK) else []
    return [str(path) for path in found if not Path(sys.base_prefix).is_relative_to(path)]


def _answer(asked: bytes) -> tuple[bytes, bytes]:
    """What a program in a sandbox of its own wrote, and what bubblewrap said."""
    with _in_memory(deny_filter()) as calls, _in_memory(asked) as questions:
        command = [*_sandbox(), "--seccomp", str(calls), *_interpreter(), "-c", _INSIDE.read_text(encoding="utf-8")]
        with subprocess.Popen(command, pass_fds=[calls], env={}, stdin=questions, stdout=PIPE, stderr=PIPE) as process:
            assert process.stdout and process.stderr
            timer = threading.Timer(CLOCK, process.kill)
            timer.start()
            try:
                answer = process.stdout.read(ANSWER)
                if len(answer) == ANSWER:  # it writes without end
                    return b"", b""
                return answer, process.stderr.read(ANSWER)
            finally:
                timer.cancel()
                process.kill()


@contextmanager
def _in_memory(content: bytes) -> Generator[int]:
    """The number of an open file with this content, which is in memory alone."""
    number = os.memfd_create("fourstage")
    try:
        with os.fdopen(number, "wb", closefd=False) as file:
            file.write(content)
        os.lseek(number, 0, os.SEEK_SET)
        yield number
    finally:
        os.close(number)


@functools.cache
def _sandbox() -> tuple[str, ...]:
    """bubblewrap with an empty, read-only root, in which there is only what the interpreter needs."""
    words = [shutil.which("bwrap") or "bwrap", "--unshare-all", "--die-with-parent", "--new-session", "--clearenv"]
    words += ["--cap-drop", "ALL", "--setenv", "PYTHONHASHSEED", "0", "--setenv", "LC_ALL", "C.UTF-8"]
    words += ["--ro-bind", "/usr", "/usr", "--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"]
    for name in _SYSTEM:
        path = Path("/", name)
        if path.is_symlink():
            words += ["--symlink", os.readlink(path), str(path)]
        elif path.is_dir():
            words += ["--ro-bind", str(path), str(path)]
    if not Path(sys.base_prefix).is_relative_to("/usr"):
        words += ["--ro-bind", sys.base_prefix, sys.base_prefix]
    return (*words, "--remount-ro", "/", "--chdir", "/")


def _interpreter() -> tuple[str, ...]:
    """Python without site-packages and without whatever a user has set for it."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    return str(Path(sys.base_prefix, "bin", version)), "-s", "-S", "-B"
