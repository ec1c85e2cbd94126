"""What a disk can do to a program: it is full, it may not be written, or the cache of Hugging Face cannot be."""

import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

_FULL = (errno.ENOSPC, errno.EDQUOT)
_FORBIDDEN = (errno.EROFS, errno.EACCES, errno.EPERM)
_NUMBERED = re.compile(r"\bos error (\d+)|\[errno (\d+)\]", re.IGNORECASE)  # as Rust and Arrow write it
# PyTorch 2.13 tells of a file that it could not write to its end in these words alone.
_TORN = re.compile(r"inline_container.*unexpected pos|PytorchStreamWriter failed writing", re.DOTALL)
_CACHES = ("HF_DATASETS_CACHE", "HF_HUB_CACHE", "HF_ASSETS_CACHE", "HF_HOME", "XDG_CACHE_HOME")


def disk_problem(error: BaseException) -> str | None:
    """What of the disk is behind an error, in one line with what to do about it; None for errors of another kind.

    Example: OSError(28, "No space left on device", "runs/sft/a") -> "the disk of runs/sft/a is full; make room, ...".
    """
    for cause in _causes(error):
        number, file = _number(cause), getattr(cause, "filename", None)
        cache = _cache_of(file) if file else None
        where = f" of {file}" if isinstance(file, str) else ""
        if number in _FULL or _TORN.search(str(cause)):
            room = f"make room, or name another cache with {cache}" if cache else "make room"
            return f"the disk{where} is full; {room}: the same command then goes on from its last whole checkpoint"
        if cache and number is not None:
            return f"the cache {file} cannot be written ({_said(number)}); name a folder that can with {cache}"
        if number in _FORBIDDEN and where:
            return f"{file} cannot be used ({_said(number)}); allow it, or name another folder, such as an --output_dir"
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _number(error: BaseException) -> int | None:
    if isinstance(error, OSError) and error.errno:
        return error.errno
    found = None if isinstance(error, ValueError) else _NUMBERED.search(str(error))
    return int(found[1] or found[2]) if found else None


def _said(number: int) -> str:
    return os.strerror(number)


def _cache_of(file: object) -> str | None:
    """The variable that names the cache which a file lies in; None for other files."""
    if not isinstance(file, str):
        return None
    for name in _CACHES:
        folder = os.environ.get(name)
        if folder and Path(os.path.abspath(file)).is_relative_to(os.path.abspath(folder)):
            return name if name != "XDG_CACHE_HOME" else "HF_HOME"
    return "HF_HOME" if Path(file).is_relative_to(Path.home() / ".cache" / "huggingface") else None
