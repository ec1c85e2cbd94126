"""Reads local data: files and folders of text, JSON, tables and parquet, and what datasets saved to disk."""

import gzip
import json
import math
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, DatasetDict, Features, Value, concatenate_datasets, load_dataset, load_from_disk

from fourstage.data.as_written import (
    NOTHING,
    SAMPLED,
    Rows,
    have_like_columns,
    is_misread,
    read_as_written,
    table_features,
    text_columns,
)
from fourstage.data.checks import nesting_problem, table_problem

BUILDERS = {".txt": "text", ".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}
_TEST_NAMES = ("test", "validation", "valid", "val", "dev")
_NOT_DATA = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")  # what datasets notes beside


class RowError(ValueError):
    """What is wrong with data, in words already; the message names the source, and the row where it is about one."""


def load_files(path: Path, streaming: bool, drops_broken: bool = False) -> dict[str, Rows]:
    """Reads files by split, which in a folder their names give: `validation.jsonl.gz`, `test/part1.txt`.

    A folder that datasets saved has the splits that it was saved with. Files of unlike columns have those of all.
    Args:
        drops_broken: leave out lines that are no JSON, with their number, instead of an error.
    Raises:
        ValueError: for files of no kind, or of several, and for empty ones. Readers raise what they do.
    """
    if path.is_dir():
        saved = dict(_saved(path))
        if saved:
            return {split: part.to_iterable_dataset() if streaming else part for split, part in saved.items()}
    files = files_of(path)
    kind = _kind(files[0]) if files else None
    if kind is None or any(_kind(file) != kind for file in files):
        found = ", ".join(sorted({p.name for p in files})[:5]) or "no data file"
        raise RowError(f"{path}: expected files of one kind ({' '.join(BUILDERS)}, also .gz), found {found}")
    empty = [str(file) for file in files if file.stat().st_size == 0]
    if empty:
        raise RowError(f"{empty[0]} is empty; remove it or fill it")
    _refuse_ill_formed(kind, list(map(str, files)), streaming)
    by_split: dict[str, list[str]] = {}
    for file in files:
        split = _split_of(str(file.relative_to(path))) if path.is_dir() else "train"
        by_split.setdefault(split, []).append(str(file))
    if kind == "text":
        return _load_texts(by_split, streaming)
    if kind == "json":
        return _load_json(by_split, streaming, drops_broken)
    return {"csv": _load_tables, "parquet": _load_parquet}[kind](by_split, streaming)


def _refuse_ill_formed(kind: str, files: list[str], streaming: bool) -> None:
    limit = SAMPLED if streaming else math.inf
    problems = {"csv": table_problem, "json": lambda file: nesting_problem(file, limit)}
    problem = next(filter(None, map(problems.get(kind, lambda file: None), files)), None)
    if problem:
        raise RowError(problem)


def _saved(folder: Path) -> Iterator[tuple[str, Dataset]]:
    """The splits of a folder of `save_to_disk`, or of a folder of such folders."""
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        saved = load_from_disk(str(folder))
        if isinstance(saved, DatasetDict):
            yield from ((str(split), part) for split, part in saved.items())
        else:
            yield "train", saved
    else:
        inner = [part for part in sorted(folder.iterdir()) if (part / "state.json").is_file()]
        yield from ((part.name, cast(Dataset, load_from_disk(str(part)))) for part in inner)


def _quick(kind: str, by_split: dict[str, list[str]], streaming: bool, **options: Any) -> dict[str, Rows]:
    loaded: Any = load_dataset(kind, data_files=by_split, streaming=streaming, **options)
    return dict(loaded)


def _load_texts(by_split: dict[str, list[str]], streaming: bool) -> dict[str, Rows]:
    texts = _quick("text", by_split, streaming, sample_by="document", encoding="utf-8-sig")
    if not any(file.endswith(".gz") for files in by_split.values() for file in files):
        return texts
    return {split: part.map(_without_mark) for split, part in texts.items()}  # the encoding is not for packed files


def _without_mark(row: dict) -> dict:
    return {"text": row["text"].removeprefix("\ufeff")}


def _load_json(by_split: dict[str, list[str]], streaming: bool, drops_broken: bool) -> dict[str, Rows]:
    """JSON by the quick reader, where that reads what is written."""
    files = [file for part in by_split.values() for file in part]
    if streaming and drops_broken:
        return read_as_written(by_split, "json", streaming, drops_broken)  # the quick reader stops at a broken line
    quick = None
    try:
        if not streaming or len(files) == 1 or have_like_columns(files, "json"):
            quick = _quick("json", by_split, streaming)
            if not any(is_misread(part, "json") for part in quick.values()):
                return quick
    except Exception:  # of a dozen types; what is no JSON fails below once more, and is named by its line
        quick = None
    try:
        return read_as_written(by_split, "json", streaming, drops_broken and quick is None)
    except ValueError:
        if quick is None:
            raise
        return quick  # one object that holds a column in each field


def _load_tables(by_split: dict[str, list[str]], streaming: bool) -> dict[str, Rows]:
    """Tables by the quick reader, with texts in the columns that are for texts."""
    files = [file for part in by_split.values() for file in part]
    try:
        if streaming:
            features = table_features(files)
            return _quick_table(by_split, features, True) if features else read_as_written(by_split, "csv", True)
        quick = _quick("csv", by_split, False)
        features = next(iter(quick.values())).features
        assert features is not None
        typed = Features({**features, **{name: Value("string") for name in text_columns(features)}})
        if typed != features or any(_has_gap(part, name) for part in quick.values() for name in _texts_in(features)):
            quick = _quick_table(by_split, typed, False)
        if not any(is_misread(part, "csv") for part in quick.values()):
            return quick
    except Exception:  # as above
        pass
    return read_as_written(by_split, "csv", streaming)


def _quick_table(by_split: dict[str, list[str]], features: Features, streaming: bool) -> dict[str, Rows]:
    """Tables of these columns; in those of texts NA, null and None are texts like others, and only "" is nothing."""
    nothing = {name: [""] if name in _texts_in(features) else sorted(NOTHING) for name in features}
    return _quick("csv", by_split, streaming, features=features, keep_default_na=False, na_values=nothing)


def _texts_in(features: Features) -> list[str]:
    return [name for name, kind in features.items() if str(getattr(kind, "dtype", "")).endswith("string")]


def _has_gap(data: Rows, name: str) -> bool:
    return isinstance(data, Dataset) and data.data.column(name).null_count > 0


def _load_parquet(by_split: dict[str, list[str]], streaming: bool) -> dict[str, Rows]:
    schemas = [pq.read_schema(file) for files in by_split.values() for file in files if not file.endswith(".gz")]
    if all(schema.remove_metadata() == schemas[0].remove_metadata() for schema in schemas):
        return _quick("parquet", by_split, streaming)
    features = Features.from_arrow_schema(pa.unify_schemas(schemas, promote_options="permissive"))
    parts = {}
    for split, files in by_split.items():
        tables: list[Any] = [_quick("parquet", {"train": [file]}, streaming)["train"] for file in files]
        own = [Features({name: features[name] for name in table.features}) for table in tables]
        parts[split] = concatenate_datasets([table.cast(of) for table, of in zip(tables, own, strict=True)])
    return parts


def _kind(path: Path) -> str | None:
    return BUILDERS.get(Path(path.name.removesuffix(".gz")).suffix) if path.is_file() else None


def files_of(path: Path) -> list[Path]:
    """The data files of a folder, or the one file."""
    if not path.is_dir():
        return [path]
    return sorted(p for p in path.rglob("*") if _kind(p) and p.name not in _NOT_DATA)


def _split_of(name: str) -> str:
    words = re.split(r"[^a-z]+", name.lower())
    split = next((word for word in words if word in _TEST_NAMES), "train")
    return split if split in ("train", "test") else "validation"


def first_problem(file: Path) -> str | None:
    """The line at which reading fails. This reads slowly, so only after the fast reader has failed."""
    suffix = Path(file.name.removesuffix(".gz")).suffix
    if suffix == ".parquet":
        return None
    number = 0
    with (gzip.open if file.suffix == ".gz" else open)(file, "rb") as lines:
        try:
            for number, line in enumerate(lines, start=1):
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                if suffix == ".jsonl" and text.strip():
                    json.dumps(json.loads(text), ensure_ascii=False).encode("utf-8")
        except UnicodeDecodeError as error:
            return f"{file} line {number}: not UTF-8 (byte {error.object[error.start]:#04x}); convert it to UTF-8"
        except UnicodeEncodeError:
            return f"{file} line {number}: half a surrogate pair, which is not a character; mend or remove the line"
        except json.JSONDecodeError as error:
            what = f"{file} line {number}: broken JSON ({error.msg} at column {error.colno})"
            return f"{what}; mend or remove the line, or leave such lines out with --unreadable drop"
        except RecursionError:
            return f"{file} line {number}: more lists or mappings in one another than can be read; flatten the line"
        except (gzip.BadGzipFile, zlib.error, EOFError) as error:
            return f"{file}: an incomplete or broken gzip file ({error}); fetch it again"
    return None if number else f"{file} is empty; remove it or fill it"
