"""One process at a time for an output folder: a lock that dies with its process, whatever ends it."""

import atexit
import os
import socket
import sys
from contextlib import suppress
from pathlib import Path

if os.name == "posix":
    import fcntl

NAME = ".lock"
_held: dict[Path, int] = {}  # folder -> file descriptor, of this process
_made: set[Path] = set()  # the folders that were made for their lock


def lock_folder(folder: Path) -> None:
    """Makes the folder and holds it until `unlock_folder` or the end of this process; once more does no harm.

    A file system without locks, such as some network ones, costs a warning.
    Raises:
        ValueError: if another process holds it, with its number and what to do.
    """
    if os.name != "posix" or folder.resolve() in _held:
        return
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        _made.add(folder.resolve())
    while True:
        file = os.open(folder / NAME, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(file, 200, 0).decode(errors="replace").strip()
            os.close(file)
            raise ValueError(_in_use(folder, holder)) from None
        except OSError as error:
            os.close(file)
            print(
                f"warning: {folder} cannot be locked ({error.strerror}): do not start the same command twice at once",
                file=sys.stderr,
            )
            return
        if _is_still(folder / NAME, file):
            break
        os.close(file)  # the one before removed it as it finished
    os.ftruncate(file, 0)
    os.pwrite(file, f"{os.getpid()} {socket.gethostname()}\n".encode(), 0)
    _held[folder.resolve()] = file


def unlock_folder(folder: Path) -> None:
    """Removes the lock, and the folder if it was made for it and is empty; nothing if this process has no lock."""
    file = _held.pop(folder.resolve(), None)
    if file is not None:
        (folder / NAME).unlink(missing_ok=True)
        os.close(file)
        if folder.resolve() in _made:
            with suppress(OSError):  # it holds a run by now
                folder.rmdir()


def _is_still(path: Path, file: int) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.stat(path), os.fstat(file))
    return False


def _in_use(folder: Path, holder: str) -> str:
    number, _, host = holder.partition(" ")
    if not number.isdecimal():
        return f"output_dir={folder} is in use by another process; wait for its end, or choose another --output_dir"
    where = "" if host == socket.gethostname() else f" on {host!r}"
    return (
        f"output_dir={folder} is in use by process {number}{where}; wait for its end, stop it with `kill {number}`"
        f"{where}, or choose another --output_dir"
    )


def _after_fork() -> None:
    """A worker that outlives its program does not keep the folder."""
    for file in _held.values():
        with suppress(OSError):
            os.close(file)
    _held.clear()


def _at_end() -> None:
    for folder in [*_held]:
        unlock_folder(folder)


atexit.register(_at_end)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
