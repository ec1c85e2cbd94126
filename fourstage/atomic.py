"""Files that are whole or not there, also after a power loss."""

import os
from pathlib import Path


def write_atomically(path: Path, text: str) -> None:
    """Writes a text file in UTF-8, in one step: a reader finds the former content or the new one, never a part."""
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    _sync(temporary)
    os.replace(temporary, path)
    _sync(path.parent)


def write_through(folder: Path) -> None:
    """Waits until the disk has every file below a folder, and the folder itself: the kernel alone keeps a file in
    memory for half a minute.
    """
    for path, _, files in os.walk(folder, topdown=False):
        for file in files:
            _sync(Path(path, file))
        _sync(Path(path))
    _sync(folder.parent)


def _sync(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:  # a file that another program removed meanwhile
        return
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():  # some network file systems cannot sync a folder
            raise
    finally:
        os.close(descriptor)
