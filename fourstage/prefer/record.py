"""The file of choices on disk: a choice that `append` has taken survives a kill and a power cut."""

import fcntl
import json
import os
import stat
from pathlib import Path
from threading import Lock

from fourstage.data.picks import FIELDS, problem_of

_MARK = b"\xef\xbb\xbf"  # some editors put it before a text
_BEGIN = b'{"pair":'  # of every line that this module writes
_READ = 1 << 20


def read_choices(path: Path) -> list[dict]:
    """All lines of a file of choices, which another process may be writing: a line that has no end yet is left out.

    Raises:
        ValueError: for a file that is missing, cannot be read, or holds something else.
    """
    try:
        return _whole_rows(path.read_bytes())[0]
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}); name a file of `fourstage prefer`") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}; mend or remove the line, or name a file of `fourstage prefer`") from None


def _whole_rows(content: bytes) -> tuple[list[dict], int]:
    """(all rows, bytes that they take). Behind them is at most the begin of a line that was never confirmed to anybody.

    A last line without its line break, as editors leave it, is a row.
    Raises:
        ValueError: for a line that is not a choice, with its number.
    """
    *lines, rest = content.removeprefix(_MARK).split(b"\n")
    rows = [_row(line, number) for number, line in enumerate(lines, start=1) if line.strip()]
    try:
        return [*rows, _row(rest, len(lines) + 1)], len(content)
    except ValueError:
        if not _is_cut_off(rest):
            raise
    return rows, len(content) - len(rest)


def _is_cut_off(line: bytes) -> bool:
    """Whether a kill or a power cut may have left this of a line; after the latter its bytes may all be 0."""
    written = line.rstrip(b"\0 \t\r")
    return _BEGIN.startswith(written[: len(_BEGIN)])


def _row(line: bytes, number: int) -> dict:
    try:
        row = json.loads(line.decode("utf-8"))
        problem = problem_of(row)
    except UnicodeDecodeError:
        problem = "it is not UTF-8"
    except (ValueError, RecursionError):
        problem = "it is no JSON"
    if problem:
        raise ValueError(f"line {number} is not a choice of `fourstage prefer`: {problem}")
    return row


class ChoiceFile:
    """A file of choices that this process alone appends to. `rows` are all of its lines, in order.

    Raises:
        ValueError: for a file that holds something else, cannot be written, or is open in another process.
    """

    def __init__(self, path: Path):
        self.path, self._lock = path, Lock()
        self._torn: int | None = None  # where a line begins that could not be taken back
        self._file = self._open()
        try:
            self._take()
            self.rows = self._read()
        except ValueError as error:
            self.close()
            raise ValueError(f"output={path} {error}") from None
        except OSError as error:
            self.close()
            raise self._unwritable(error) from None

    def _open(self) -> int:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            is_new = not self.path.exists()
            # Not blocking: a pipe would wait for whoever reads it
            file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, 0o644)
            if is_new:
                _sync_folder(self.path.resolve().parent)
            return file
        except OSError as error:
            raise self._unwritable(error) from None

    def _unwritable(self, error: OSError) -> ValueError:
        return ValueError(f"output={self.path} cannot be written ({error.strerror}); name another with --output")

    def _take(self) -> None:
        """Makes this process the only one that writes the file."""
        if not stat.S_ISREG(os.fstat(self._file).st_mode):
            raise ValueError("is no regular file; name another with --output")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                "is open in another page of fourstage; end that one, or name another with --output"
            ) from None

    def _read(self) -> list[dict]:
        """All rows; what a kill left of a line is cut off, and the last line ends with a line break."""
        content = b"".join(iter(lambda: os.read(self._file, _READ), b""))
        try:
            rows, length = _whole_rows(content)
        except ValueError as error:
            raise ValueError(f"holds something else: {error}; mend it, or name another with --output") from None
        if length < len(content):
            os.ftruncate(self._file, length)
        elif rows and not content.endswith(b"\n"):
            self._write(b"\n")
        return rows

    def append(self, row: dict) -> None:
        """Writes a row through to the disk, and adds what a reader will find there to `rows`.

        Half a surrogate pair, which no UTF-8 can hold, becomes U+FFFD.
        Raises:
            OSError: where that fails, with nothing written.
            ValueError: for a row that is not a choice.
        """
        kept = _as_read(row)
        problem = problem_of(kept) or next((f"it has {name!r}" for name in kept if name not in FIELDS), None)
        if problem:
            raise ValueError(f"not a choice of `fourstage prefer`: {problem}")
        line = json.dumps({name: kept[name] for name in FIELDS}).encode() + b"\n"
        with self._lock:
            self._check_place()
            self._write(line)
            self.rows.append(kept)

    def _check_place(self) -> None:
        """Raises OSError where the file was deleted or replaced: what is written then would be gone."""
        here = os.fstat(self._file)
        there = os.stat(self.path)
        if (here.st_dev, here.st_ino) != (there.st_dev, there.st_ino):
            raise FileNotFoundError(2, "the file was replaced by another one; start again", str(self.path))

    def _write(self, content: bytes) -> None:
        """Appends bytes, all or none of them."""
        if self._torn is not None:
            os.ftruncate(self._file, self._torn)
            self._torn = None
        end = os.lseek(self._file, 0, os.SEEK_END)
        try:
            written = 0
            while written < len(content):
                written += os.write(self._file, content[written:])
            os.fsync(self._file)
        except OSError:
            self._torn = end
            os.ftruncate(self._file, end)
            self._torn = None
            raise

    def close(self) -> None:
        """Lets another process open it."""
        with self._lock:
            if self._file >= 0:
                os.close(self._file)
            self._file = -1


def _as_read(row: dict) -> dict:
    """The row as it is after it was written and read."""
    text = json.dumps(row, ensure_ascii=False, allow_nan=False)
    return json.loads(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))


def _sync_folder(folder: Path) -> None:
    """Has the name of a new file survive a power cut too."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
