"""The file of choices on disk: a choice that `append` has taken survives a kill and a power cut."""

import fcntl
import json
import os
from pathlib import Path
from threading import Lock

from fourstage.data.picks import CHOICES, FIELDS


class ChoiceFile:
    """A file of choices that this process alone appends to. `rows` are all of its lines, in order.

    Raises:
        ValueError: for a file that holds something else, cannot be written, or is open in another process.
    """

    def __init__(self, path: Path):
        self.path, self._lock = path, Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise ValueError(
                f"output={path} cannot be written ({error.strerror}); name another with --output"
            ) from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._file)
            raise ValueError(
                f"output={path} is open in another `fourstage prefer`; end that one, or name another with --output"
            ) from None
        self.rows = self._read()

    def _read(self) -> list[dict]:
        """All rows. What follows the last line break was never confirmed to anybody, and is cut off."""
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if content and not whole and not b'{"pair":'.startswith(content[:8]):
            raise ValueError(self._foreign(1))
        rows = [self._row(line, number) for number, line in enumerate(whole.splitlines(), start=1)]
        if len(whole) < len(content):
            os.ftruncate(self._file, len(whole))
        return rows

    def _row(self, line: bytes, number: int) -> dict:
        try:
            row = json.loads(line)
        except ValueError:
            raise ValueError(self._foreign(number)) from None
        if not isinstance(row, dict) or not {*FIELDS} <= row.keys() or row["choice"] not in CHOICES:
            raise ValueError(self._foreign(number))
        return row

    def _foreign(self, number: int) -> str:
        return f"output={self.path}: line {number} is not a choice of `fourstage prefer`; name another with --output"

    def append(self, row: dict) -> None:
        """Writes a row through to the disk; raises OSError with nothing written where that fails."""
        assert row.keys() == {*FIELDS}, sorted(row.keys() ^ {*FIELDS})
        line = json.dumps(row, ensure_ascii=True).encode() + b"\n"
        with self._lock:
            size = os.lseek(self._file, 0, os.SEEK_END)
            try:
                written = 0
                while written < len(line):
                    written += os.write(self._file, line[written:])
                os.fsync(self._file)
            except OSError:
                os.ftruncate(self._file, size)
                raise
            self.rows.append(row)

    def close(self) -> None:
        """Lets another process open it."""
        os.close(self._file)
