"""Finds what a data name stands for (a Hub id, a file, a folder, embedded or generated rows) and reads it."""

import gzip
import json
import math
import re
import zlib
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from datasets import Dataset, IterableDataset, load_dataset
from datasets.exceptions import DatasetGenerationError

from fourstage.arguments import DataArguments
from fourstage.errors import one_line

Rows = Dataset | IterableDataset
_BUILDERS = {".txt": "text", ".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}
_TEST_NAMES = ("test", "validation", "valid", "val", "dev")


class RowError(ValueError):
    """A row that fits no format; the message names the source and the number of the row."""


def sources(data_args: DataArguments, stage: str) -> list[dict]:
    """The sources that a stage is to read: the entries of `datasets`, or one entry for `dataset_name`.

    Raises:
        ValueError: if both or neither are given, for an entry with unknown keys or without a name, for a weight that is
            not above 0, and for a test_split_size that is not between 0 and 1.
    """
    if bool(data_args.dataset_name) == bool(data_args.datasets):
        given = "both" if data_args.dataset_name else "neither"
        raise ValueError(
            f"dataset_name and `datasets:` (in the YAML) are two ways to name data, got {given}; give one of them, or "
            f"--config recipes/configs/demo/{stage}.yaml for the demo's data and settings"
        )
    if not 0 < data_args.test_split_size < 1:
        raise ValueError(f"test_split_size={data_args.test_split_size} must be a share between 0 and 1, such as 0.05")
    if data_args.dataset_name:
        return [{"dataset_name": data_args.dataset_name}]
    if not isinstance(data_args.datasets, list):
        raise ValueError(f"datasets: must be a list of entries with dataset_name, got {data_args.datasets!r}")
    known = ("dataset_name", "weight", "dataset_config", "dataset_train_split", "task_settings", "license")
    for number, source in enumerate(data_args.datasets, start=1):
        if not isinstance(source, dict) or not source.get("dataset_name") or source.keys() - {*known}:
            raise ValueError(
                f"datasets: entry {number} is {source!r}; it needs dataset_name and may have {', '.join(known[1:])}"
            )
        weight = source.get("weight", 1.0)
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
            raise ValueError(f"datasets: entry {number} has weight {weight!r}; it must be a number above 0")
    return data_args.datasets


def load_source(source: dict, data_args: DataArguments, stage: str) -> tuple[Rows, Rows | None]:
    """Training rows, and test rows where the source has a test split of its own."""
    name, path = source["dataset_name"], Path(source["dataset_name"])
    if name == "fourstage/demo":
        from fourstage.data.embedded.rows import demo_rows

        train, test = (Dataset.from_list(part) for part in demo_rows(stage))
        return (train.to_iterable_dataset() if data_args.dataset_streaming else train), test
    if name.startswith("reasoning-gym/") and not path.exists():
        return _make_task(name, source.get("task_settings", data_args.task_settings), data_args)
    if path.exists():
        splits = _load_local(path, data_args.dataset_streaming)
    elif _is_path(name):
        raise ValueError(f"dataset_name={name}: no such file or folder")
    else:
        splits = _load_hub(name, source.get("dataset_config", data_args.dataset_config), data_args.dataset_streaming)
    train_split = source.get("dataset_train_split", data_args.dataset_train_split)
    if train_split not in splits:
        raise ValueError(
            f"{name} has no split {train_split!r}, it has {sorted(splits)}; choose with --dataset_train_split"
        )
    test = next((splits[key] for key in (data_args.dataset_test_split, "validation") if key in splits), None)
    return splits[train_split], test


def _make_task(name: str, settings: dict | str | None, data_args: DataArguments) -> tuple[Dataset, Dataset]:
    """Generated rows; they are the same for every seed of the run."""
    from fourstage.data.reasoning_gym import task_split

    try:
        settings = json.loads(settings) if isinstance(settings, str) else settings or {}
    except json.JSONDecodeError as error:
        raise ValueError(f"task_settings={settings} must be JSON, such as '{{\"max_terms\": 3}}': {error}") from None
    if data_args.task_size < 2:
        raise ValueError(f"task_size={data_args.task_size} must be at least 2")
    held_out = max(1, round(data_args.task_size * data_args.test_split_size))
    parts = task_split(name.removeprefix("reasoning-gym/"), data_args.task_size, held_out, 0, settings)
    train, test = (Dataset.from_list(part) for part in parts)
    return train, test


def _is_path(name: str) -> bool:
    return (
        name.startswith((".", "/", "~")) or name.count("/") != 1 or Path(name.removesuffix(".gz")).suffix in _BUILDERS
    )


def _load_hub(name: str, config: str | None, streaming: bool) -> dict:
    with one_line_errors(name):
        return dict(load_dataset(name, config, streaming=streaming))


def _load_local(path: Path, streaming: bool) -> dict:
    """Reads files by split, which in a folder their names give: `validation.jsonl.gz`, `test/part1.txt`."""
    files = _files(path)
    kind = _kind(files[0]) if files else None
    if kind is None or any(_kind(file) != kind for file in files):
        found = ", ".join(sorted({p.name for p in files})[:5]) or "no data file"
        raise ValueError(f"{path}: expected files of one kind ({' '.join(_BUILDERS)}, also .gz), found {found}")
    empty = [str(file) for file in files if file.stat().st_size == 0]
    if empty:
        raise ValueError(f"{empty[0]} is empty; remove it or fill it")
    by_split: dict[str, list[str]] = {}
    for file in files:
        split = _split_of(str(file.relative_to(path))) if path.is_dir() else "train"
        by_split.setdefault(split, []).append(str(file))
    with one_line_errors(str(path)):
        if kind == "text":
            return dict(load_dataset("text", data_files=by_split, streaming=streaming, sample_by="document"))
        return dict(load_dataset(kind, data_files=by_split, streaming=streaming))


def _kind(path: Path) -> str | None:
    return _BUILDERS.get(Path(path.name.removesuffix(".gz")).suffix) if path.is_file() else None


def _files(path: Path) -> list[Path]:
    return sorted(p for p in path.rglob("*") if _kind(p)) if path.is_dir() else [path]


def _split_of(name: str) -> str:
    words = re.split(r"[^a-z]+", name.lower())
    split = next((word for word in words if word in _TEST_NAMES), "train")
    return split if split in ("train", "test") else "validation"


@contextmanager
def numbered(name: str, index: int) -> Generator[None]:
    """Adds the number of the row, counted from 1, to an error about it."""
    try:
        yield
    except ValueError as error:
        raise RowError(f"{name} row {index + 1}: {error}") from None


@contextmanager
def one_line_errors(name: str) -> Generator[None]:
    """Turns what the readers raise, a dozen types of error, into a ValueError of one line: where it is, and the fix."""
    try:
        yield
    except RowError:
        raise
    except Exception as error:
        files = _files(Path(name)) if Path(name).exists() else []
        problem = next(filter(None, map(_first_problem, files)), None)
        if problem is None:
            cause = error.__cause__ if isinstance(error, DatasetGenerationError) and error.__cause__ else error
            text = one_line(cause, longest=300, with_type=True)
            problem = f"dataset_name={name} cannot be read; mend it or choose another: {text}"
        raise ValueError(problem) from error


def _first_problem(file: Path) -> str | None:
    """The line at which reading fails. This reads slowly, so only after the fast reader has failed."""
    suffix = Path(file.name.removesuffix(".gz")).suffix
    if suffix == ".parquet":
        return None
    number = 0
    with (gzip.open if file.suffix == ".gz" else open)(file, "rb") as lines:
        try:
            for number, line in enumerate(lines, start=1):  # noqa: B007 (named in the messages)
                text = line.decode("utf-8")
                if suffix == ".jsonl" and text.strip():
                    json.dumps(json.loads(text), ensure_ascii=False).encode("utf-8")
        except UnicodeDecodeError as error:
            return f"{file} line {number}: not UTF-8 (byte {error.object[error.start]:#04x}); convert it to UTF-8"
        except UnicodeEncodeError:
            return f"{file} line {number}: half a surrogate pair, which is not a character; mend or remove the line"
        except json.JSONDecodeError as error:
            return f"{file} line {number}: broken JSON ({error.msg} at column {error.colno}); mend or remove the line"
        except (gzip.BadGzipFile, zlib.error, EOFError) as error:
            return f"{file}: an incomplete or broken gzip file ({error}); fetch it again"
    return None if number else f"{file} is empty; remove it or fill it"
