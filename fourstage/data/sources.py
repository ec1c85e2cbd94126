"""Finds what a data name stands for (a Hub id, a file, a folder, embedded or generated rows) and reads it."""

import json
import math
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from datasets import ClassLabel, Dataset, Features, Value, load_dataset
from datasets.exceptions import DatasetGenerationError

from fourstage.arguments import DataArguments
from fourstage.data.as_written import Rows
from fourstage.data.checks import column_problem
from fourstage.data.choices import choices_of
from fourstage.data.files import BUILDERS, RowError, files_of, first_problem, load_files
from fourstage.data.picks import are_picks, rows_for
from fourstage.disk import disk_problem
from fourstage.errors import one_line


def sources(data_args: DataArguments, stage: str) -> list[dict]:
    """The sources that a stage is to read: the entries of `datasets`, or one entry for `dataset_name`.

    Raises:
        ValueError: if both or neither are given, for an entry with unknown keys or without a name, for a path at which
            nothing is, for a weight that is not above 0, and for a test_split_size that is not between 0 and 1.
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
        _check_there(data_args.dataset_name)
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
        _check_there(source["dataset_name"])
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
        with one_line_errors(name):
            splits = load_files(path, data_args.dataset_streaming, data_args.unreadable == "drop")
    else:
        _check_there(name)
        splits = _load_hub(name, source.get("dataset_config", data_args.dataset_config), data_args.dataset_streaming)
    train_split = source.get("dataset_train_split", data_args.dataset_train_split)
    if train_split not in splits:
        raise ValueError(
            f"{name} has no split {train_split!r}, it has {sorted(splits)}; choose with --dataset_train_split"
        )
    problem = column_problem(splits[train_split].features, name)
    if problem:
        raise ValueError(problem)
    test = next((splits[key] for key in (data_args.dataset_test_split, "validation") if key in splits), None)
    train = _useful(splits[train_split], name, stage)
    return train, None if test is None else _useful(test, name, stage)


def _useful(data: Rows, name: str, stage: str) -> Rows:
    """The rows that the stage has a use for, with names instead of numbers."""
    return rows_for(stage, data, name) if are_picks(data.column_names or ()) else _with_names(data)


def _with_names(data: Rows) -> Rows:
    """The data with the names of a ClassLabel in the column `answer` instead of its numbers, unless it has choices."""
    label = (data.features or {}).get("answer")
    if not isinstance(label, ClassLabel) or choices_of(next(iter(data), {})):
        return data

    def named(row: dict) -> dict:
        return {"answer": None if row["answer"] is None else label.int2str(row["answer"])}

    return data.map(named, features=Features({**(data.features or {}), "answer": Value("string")}))


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


def _check_there(name: str) -> None:
    """Raises ValueError for a path at which nothing is."""
    if _is_path(name) and not Path(name).exists():
        raise ValueError(f"dataset_name={name}: no such file or folder")


def _is_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.count("/") != 1 or Path(name.removesuffix(".gz")).suffix in BUILDERS


def _load_hub(name: str, config: str | None, streaming: bool) -> dict:
    with one_line_errors(name):
        return dict(load_dataset(name, config, streaming=streaming))


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
        if said := disk_problem(error):
            raise ValueError(said) from error
        files = files_of(Path(name)) if Path(name).exists() else []
        problem = next(filter(None, map(first_problem, files)), None)
        if problem is None:
            cause = error.__cause__ if isinstance(error, DatasetGenerationError) and error.__cause__ else error
            text = one_line(cause, longest=300, with_type=True)
            problem = f"dataset_name={name} cannot be read; mend it or choose another: {text}"
        raise ValueError(problem) from error
