"""Loads rows from the Hub, local files, folders or a mixture; checks them; brings them into TRL's formats."""

import gzip
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from datasets import Dataset, IterableDataset, concatenate_datasets, interleave_datasets, load_dataset
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

from fourstage import rows
from fourstage.arguments import DataArguments

Rows = Dataset | IterableDataset
_BUILDERS = {".txt": "text", ".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}
_TEST_NAMES = ("test", "validation", "valid", "val", "dev")
_STREAM_BUFFER, _STREAM_CHECKED, _STREAM_HELD_OUT = 1_000, 1_000, 200


def load_texts(data_args, seed: int, text_field: str = "text") -> tuple[Rows, Rows]:
    """Documents to train on and documents held out, each with the one column `text`, none of them empty.

    Raises ValueError for a missing column or file, a broken line, bytes that are not UTF-8, or nothing but empty texts.
    """
    return _load(data_args, "pretrain", seed, lambda row: rows.text_row(row, text_field))


def load_conversations(data_args, seed: int) -> tuple[Rows, Rows]:
    """Conversations to train on and held out: `prompt` (turns before the first answer) and `completion` (the rest).

    Accepts `messages`, ShareGPT `conversations`, `prompt`/`completion`, Alpaca and `question`/`answer` rows.
    """
    return _load(data_args, "sft", seed, rows.conversation_row)


def held_out_rows(stage: str, dataset_name: str | None, data_args, seed: int) -> Rows:
    """What to measure on: all rows of `dataset_name` if it is given, else the part that a run with `data_args` and
    `seed` held out."""
    convert = {"pretrain": rows.text_row, "sft": rows.conversation_row}[stage]
    if not dataset_name:
        return _load(data_args, stage, seed, convert)[1]
    whole = DataArguments(dataset_name=dataset_name)
    train, test = _load_source({"dataset_name": dataset_name}, whole, stage)
    return _convert(train if test is None else test, convert, dataset_name)


def fingerprint(data: Rows) -> str:
    """A hash of the first 1,000 rows and, where it is known, of the number of rows."""
    digest = hashlib.sha256()
    for row in data.take(_STREAM_CHECKED):
        digest.update(json.dumps(row, sort_keys=True, default=str).encode())
    return f"{digest.hexdigest()[:16]}-{len(data) if isinstance(data, Dataset) else 'stream'}"


def describe(data: Rows) -> str:
    """For people: the number of rows, where it is known."""
    return f"{len(data):,} rows" if isinstance(data, Dataset) else "a stream"


def drop_overlong(data: Rows, count_tokens: Callable[[dict], int], max_length: int, overlong: str, name: str) -> Rows:
    """Leaves out rows of more than `max_length` tokens, so that no end token is ever cut off; says how many.

    Raises:
        ValueError: with overlong="error", for the first such row; and if no row is short enough.
    """

    def fits(row: dict, index: int) -> bool:
        tokens = count_tokens(row)
        if tokens > max_length and overlong == "error":
            raise ValueError(
                f"{name} row {index + 1} has {tokens:,} tokens, max_length is {max_length:,}; "
                "raise --max_length, or leave such rows out with --overlong drop"
            )
        return tokens <= max_length

    kept = data.filter(fits, with_indices=True)
    if isinstance(data, Dataset):
        if not len(kept):
            raise ValueError(
                f"all {len(data):,} {name} rows are longer than max_length={max_length}; raise --max_length"
            )
        print(f"{name}: {len(data) - len(kept):,} of {len(data):,} rows dropped, longer than {max_length:,} tokens")
    return kept


def _load(data_args, stage: str, seed: int, convert: rows.Convert) -> tuple[Rows, Rows]:
    """Every source: load, convert, hold out; then mix the training parts by weight and join the held-out ones."""
    parts, weights = [], []
    for source in _sources(data_args):
        train, test = _load_source(source, data_args, stage)
        train = _convert(train, convert, source["dataset_name"])
        if test is not None:
            test = _convert(test, convert, source["dataset_name"])
        elif stage == "pretrain" and isinstance(train, Dataset) and len(train) == 1:
            train, test = _split_long_document(train, data_args.test_split_size)
        else:
            train, test = hold_out(train, data_args.test_split_size, seed)
        parts.append((train, test))
        weights.append(float(source.get("weight", 1.0)))
    train, test = parts[0]
    if len(parts) > 1:
        shares = [weight / sum(weights) for weight in weights]
        train = interleave_datasets(
            [part for part, _ in parts], probabilities=shares, seed=seed, stopping_strategy="all_exhausted"
        )
        test = concatenate_datasets([part for _, part in parts])
    if isinstance(train, IterableDataset):
        train = train.shuffle(seed=seed, buffer_size=_STREAM_BUFFER)
    return train, test


def _sources(data_args) -> list[dict]:
    if bool(data_args.dataset_name) == bool(data_args.datasets):
        got = "both" if data_args.dataset_name else "neither"
        raise ValueError(f"give either --dataset_name or `datasets:` in the YAML, got {got}")
    if not 0 < data_args.test_split_size < 1:
        raise ValueError(f"test_split_size={data_args.test_split_size} must be a share between 0 and 1, such as 0.05")
    if data_args.dataset_name:
        return [{"dataset_name": data_args.dataset_name}]
    known = {"dataset_name", "weight", "dataset_config", "dataset_train_split"}
    for number, source in enumerate(data_args.datasets, start=1):
        if not isinstance(source, dict) or "dataset_name" not in source or source.keys() - known:
            raise ValueError(f"datasets: entry {number} is {source!r}; it needs dataset_name and may have {known}")
        if float(source.get("weight", 1.0)) <= 0:
            raise ValueError(f"datasets: entry {number} has weight {source['weight']}; it must be above 0")
    return data_args.datasets


def _load_source(source: dict, data_args, stage: str) -> tuple[Rows, Rows | None]:
    """Training rows and, where the source has a test split of its own, test rows."""
    name, path = source["dataset_name"], Path(source["dataset_name"])
    if name == "fourstage/demo":
        from fourstage.demo import demo_rows

        return tuple(Dataset.from_list(part) for part in demo_rows(stage))
    if path.exists():
        splits = _load_local(path, data_args.dataset_streaming)
    elif _is_path(name):
        raise ValueError(f"dataset_name={name}: no such file or folder")
    else:
        splits = _load_hub(name, source.get("dataset_config", data_args.dataset_config), data_args.dataset_streaming)
    wanted = source.get("dataset_train_split", data_args.dataset_train_split)
    if wanted not in splits:
        raise ValueError(f"{name} has no split {wanted!r}, it has {sorted(splits)}; choose with --dataset_train_split")
    test = next((splits[key] for key in (data_args.dataset_test_split, "validation") if key in splits), None)
    return splits[wanted], test


def _is_path(name: str) -> bool:
    return (
        name.startswith((".", "/", "~")) or name.count("/") != 1 or Path(name.removesuffix(".gz")).suffix in _BUILDERS
    )


def _load_hub(name: str, config: str | None, streaming: bool) -> dict:
    try:
        return dict(load_dataset(name, config, streaming=streaming))
    except (DatasetNotFoundError, ConnectionError, OSError) as error:
        raise ValueError(f"dataset_name={name}: {' '.join(str(error).split())}") from error


def _load_local(path: Path, streaming: bool) -> dict:
    """Files by split: a folder's are told apart by name, as in `train.jsonl.gz` and `validation.jsonl.gz`."""
    files = sorted(p for p in path.rglob("*") if _kind(p)) if path.is_dir() else [path]
    kinds = {_kind(file) for file in files}
    if len(kinds) != 1 or None in kinds:
        found = ", ".join(sorted({p.name for p in files})[:5]) or "no data file"
        raise ValueError(f"{path}: want files of one kind ({' '.join(_BUILDERS)}, also .gz), found {found}")
    empty = [str(file) for file in files if file.stat().st_size == 0]
    if empty:
        raise ValueError(f"{empty[0]} is empty; remove it or fill it")
    by_split: dict[str, list[str]] = {}
    for file in files:
        by_split.setdefault(_split_of(file) if path.is_dir() else "train", []).append(str(file))
    kind = kinds.pop()
    options = {"sample_by": "document"} if kind == "text" else {}
    try:
        return dict(load_dataset(kind, data_files=by_split, streaming=streaming, **options))
    except (DatasetGenerationError, ValueError, OSError) as error:
        raise ValueError(_first_problem(files) or f"{path}: {' '.join(str(error).split())[:300]}") from error


def _kind(path: Path) -> str | None:
    return _BUILDERS.get(Path(path.name.removesuffix(".gz")).suffix) if path.is_file() else None


def _split_of(file: Path) -> str:
    words = re.split(r"[^a-z]+", file.name.lower())
    name = next((word for word in words if word in _TEST_NAMES), "train")
    return name if name in ("train", "test") else "validation"


def _first_problem(files: Iterable[Path]) -> str | None:
    """The file and line at which reading failed, looked for only after the fast reader has given up."""
    for file in files:
        number = 0
        with (gzip.open if file.suffix == ".gz" else open)(file, "rb") as lines:
            try:
                for number, line in enumerate(lines, start=1):  # noqa: B007 (named in the messages)
                    text = line.decode("utf-8")
                    if file.name.removesuffix(".gz").endswith(".jsonl") and text.strip():
                        json.loads(text)
            except UnicodeDecodeError as error:
                return f"{file} line {number}: not UTF-8 (byte {error.object[error.start]:#04x}); convert it to UTF-8"
            except json.JSONDecodeError as error:
                return (
                    f"{file} line {number}: broken JSON ({error.msg} at column {error.colno}); mend or remove the line"
                )
            except (gzip.BadGzipFile, EOFError) as error:
                return f"{file}: not a whole gzip file ({error}); fetch it again"
    return None


def _convert(data: Rows, convert: rows.Convert, name: str) -> Rows:
    """Applies `convert` to every row; rows it calls empty are left out, and counted where the data has a length."""

    def numbered(row: dict, index: int) -> dict:
        try:
            return {"converted": convert(row)}
        except ValueError as error:
            raise ValueError(f"{name} row {index + 1}: {error}") from None

    first = next(iter(data), None)
    if first is None:
        raise ValueError(f"{name}: no rows; it is empty")
    columns = list(first)
    numbered(first, 0)
    converted = data.map(numbered, with_indices=True, remove_columns=columns)
    converted = converted.filter(lambda row: row["converted"] is not None)
    if isinstance(converted, Dataset):
        if not len(converted):
            raise ValueError(f"{name}: all {len(data):,} rows are empty texts; nothing to train on")
        if len(converted) < len(data):
            print(f"{name}: {len(data) - len(converted):,} of {len(data):,} rows are empty and left out")
        return converted.flatten().rename_columns({f"converted.{key}": key for key in converted[0]["converted"]})
    checked = list(converted.take(_STREAM_CHECKED))  # a bad row among the first ones stops before the first step
    if not checked:
        raise ValueError(f"{name}: the first {_STREAM_CHECKED:,} rows are empty texts; nothing to train on")
    return converted.map(lambda row: row["converted"], remove_columns=["converted"])


def hold_out(data: Rows, share: float, seed: int) -> tuple[Rows, Rows]:
    """Splits by a seeded hash of the row's content: the same rows every time, and copies never on both sides.

    At least one row is held out of a data set. Of a stream the test part is the first 200 held-out rows.
    """

    def position(row: dict) -> float:
        content = json.dumps(row, sort_keys=True, ensure_ascii=False).encode()
        digest = hashlib.sha256(str(seed).encode() + b"\0" + content).digest()
        return int.from_bytes(digest[:8]) / 2**64

    if isinstance(data, IterableDataset):
        test = data.filter(lambda row: position(row) < share).take(_STREAM_HELD_OUT)
        return data.filter(lambda row: position(row) >= share), test
    positions = [position(row) for row in data]
    threshold = sorted(positions)[max(1, round(share * len(data))) - 1]
    train = data.select([i for i, p in enumerate(positions) if p > threshold])
    if not len(train):
        raise ValueError(f"{len(data)} different rows are too few to hold some out; give at least two")
    return train, data.select([i for i, p in enumerate(positions) if p <= threshold])


def _split_long_document(data: Dataset, share: float) -> tuple[Dataset, Dataset]:
    """One single document: its end is held out, from the paragraph or line break next after `1 - share` of it."""
    text = data[0]["text"]
    wanted = int(len(text) * (1 - share))
    cut = next((at for at in (text.find("\n\n", wanted), text.find("\n", wanted), wanted) if 0 < at < len(text)), 0)
    head, tail = text[:cut], text[cut:].lstrip("\n")
    if not head.strip() or not tail.strip():
        raise ValueError("the data is one short document, so nothing can be held out; give more documents")
    print(f"one document: its last {len(tail):,} of {len(text):,} characters are held out")
    return Dataset.from_list([{"text": head}]), Dataset.from_list([{"text": tail}])


def texts_of(data: Rows) -> Iterator[str]:
    """The `text` of every row, one at a time."""
    return (row["text"] for row in data)
