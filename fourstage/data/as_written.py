"""Rows of JSON and CSV files with every value as it is written, where the quick readers guess it away.

They take "1879-03-14" for a date, 12345678901234567890 and whole numbers beside a gap for floats, and "007" for 7; and
they stop at a column that another file lacks, or that is null in the first megabytes. What is read here goes through
the file twice in Python: first for the types, then for the rows.
"""

import gzip
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import IO, Any

import pandas
from datasets import Dataset, Features, IterableDataset, Json, List, Value

from fourstage import __version__

Rows = Dataset | IterableDataset
_LOOKED_AT = 1_000  # rows of a stream that a quick reader gave
SAMPLED = 10 << 20  # characters at the start of a streamed file; the quick readers look at as many bytes
_EXACT = 2**53  # whole numbers up to this one are exact as floats
# Columns whose values are texts, in every format of rows; a table has no types, and 007 is as good an answer as 7.
_TEXTS = frozenset(
    (
        *(
            "text",
            "prompt",
            "question",
            "instruction",
            "input",
            "system",
            "problem",
            "completion",
            "output",
            "response",
        ),
        *("chosen", "rejected", "answer", "final_answer", "solution", "correct", "answerKey"),
    )
)
NOTHING = frozenset(("", "NA", "N/A", "n/a", "NaN", "nan", "NULL", "null", "None", "<NA>", "#N/A"))  # as pandas reads
_WHOLE = re.compile(r"-?(?:0|[1-9]\d*)")
_DECIMAL = re.compile(rf"(?:{_WHOLE.pattern}(?:\.\d*)?|-?\.\d+)(?:[eE][-+]?\d+)?")
_DIGITS = 15  # that a float holds exactly

# The kind of a value: a name, a list with the kind of its items, or a mapping with the kinds of its values. Whole
# numbers are "int" where floats hold them too, "big" where only int64 does, "huge" where nothing does.
Kind = str | list | dict
_TYPES = {"null": "null", "bool": "bool", "int": "int64", "big": "int64", "float": "float64", "text": "string"}


def is_misread(data: Rows, kind: str) -> bool:
    """Whether a quick reader has guessed: the values of some column may not be those in the file."""
    features = data.features
    if features is None:
        return True
    if isinstance(data, IterableDataset):
        if any(map(_is_null, features.values())):
            return True  # a later value would not fit
        suspects = {name: of for name, of in features.items() if _may_be_misread(of)}
        rows = list(data.take(_LOOKED_AT)) if suspects else []
        return any(_is_odd(row[name], of) for row in rows for name, of in suspects.items())
    columns = data.data
    return any(
        _is_misread(chunk, of, kind)
        for name, of in data.features.items()
        if _may_be_misread(of)
        for chunk in columns.column(name).chunks
    )


def _is_null(of: Any) -> bool:
    inner = of if isinstance(of, Mapping) else getattr(of, "feature", None)
    if isinstance(inner, Mapping):
        return any(map(_is_null, inner.values()))
    return _is_null(inner) if inner is not None else getattr(of, "dtype", "") == "null"


def _may_be_misread(of: Any) -> bool:
    if isinstance(of, Mapping):
        return any(map(_may_be_misread, of.values()))
    inner = getattr(of, "feature", None)
    if inner is not None:
        return _may_be_misread(inner)
    return isinstance(of, Json) or getattr(of, "dtype", "").startswith(("timestamp", "date", "time", "float"))


def _is_misread(array: Any, of: Any, kind: str) -> bool:
    """Whether an Arrow array of this feature has a value that the file may write otherwise."""
    if isinstance(of, Mapping):
        return any(_is_misread(array.field(name), inner, kind) for name, inner in of.items())
    inner = getattr(of, "feature", None)
    if inner is not None:
        return _is_misread(array.flatten(), inner, kind)
    if isinstance(of, Json):  # texts and numbers in one column
        texts = getattr(array, "storage", array).to_pylist()
        return any(text is not None and not text.lstrip().startswith(("{", "[")) for text in texts)
    if not of.dtype.startswith("float"):
        return of.dtype.startswith(("timestamp", "date", "time"))
    numbers = array.drop_null().to_numpy(zero_copy_only=False)
    has_gap = kind == "csv" and 0 < len(numbers) < len(array)
    return bool((abs(numbers) >= _EXACT).any()) or (has_gap and bool((numbers == numbers.round()).all()))


def _is_odd(value: Any, of: Any) -> bool:
    """As `_is_misread`, for one value of a stream."""
    inner = getattr(of, "feature", of)
    if isinstance(of, Mapping):
        return value is not None and any(_is_odd(value[name], inside) for name, inside in of.items())
    if inner is not of:
        return any(_is_odd(item, inner) for item in value or [])
    if isinstance(of, Json):
        return not isinstance(value, dict | list | None)
    return hasattr(value, "isoformat") or (isinstance(value, float) and abs(value) >= _EXACT)


def text_columns(names: Iterable[str]) -> list[str]:
    """Those columns whose values are texts in every format of rows."""
    return [name for name in names if name in _TEXTS]


def table_features(files: Sequence[str]) -> Features | None:
    """The types of the columns of tables by their first rows; None where a later row may not fit them.

    Whole numbers may, as pandas takes no gap among them.
    """
    kinds = [_found_kinds([file], "csv", SAMPLED) for file in files]
    plain = all(of in ("text", "float") for found in kinds for of in found.values())
    return _features(kinds[0]) if plain and all(found == kinds[0] for found in kinds) else None


def have_like_columns(files: Sequence[str], kind: str) -> bool:
    """Whether the first rows of all files have the same columns."""
    return len({frozenset(_found_kinds([file], kind, SAMPLED // 10)) for file in files}) == 1


def read_as_written(
    by_split: Mapping[str, list[str]], kind: str, streaming: bool, drops_broken: bool = False
) -> dict[str, Rows]:
    """The rows of JSON or CSV files by split, all with the columns that any of them has.

    A column of numbers that no type holds exactly becomes text, as they are written. One with values of several types
    keeps them as they are.
    Args:
        streaming: takes the types from the first 10 MB of each file.
        drops_broken: leaves lines out that are no JSON, and prints how many.
    Raises:
        ValueError: for what is no JSON or no table.
    """
    files = [file for part in by_split.values() for file in part]
    broken: dict[str, list[int]] | None = {} if drops_broken else None
    found = _found_kinds(files, kind, SAMPLED if streaming else math.inf, broken)
    for file, lines in (broken or {}).items():
        print(f"{file}: {len(lines):,} lines are unreadable and left out: no JSON (first: line {lines[0]})")
    kinds = {name: "text" if streaming and of == "null" else of for name, of in found.items()}
    source = IterableDataset if streaming else Dataset
    return {
        split: source.from_generator(
            _fitted,
            features=_features(kinds),
            # The times and the version stand for the content: rows that were made before are taken from the cache.
            gen_kwargs={
                "files": [(file, Path(file).stat().st_mtime_ns) for file in part],
                "kinds": kinds,
                "kind": kind,
                "version": "" if streaming else __version__,
                "drops_broken": drops_broken,
            },
        )
        for split, part in by_split.items()
    }


def _found_kinds(
    files: Sequence[str], source: str, limit: float, broken: dict[str, list[int]] | None = None
) -> dict[str, Kind]:
    """The kinds of all columns, by all rows of the files, or those at the start of each, up to `limit` characters."""
    found: dict[str, Kind] = {}
    for file in files:
        for row in _rows_of(file, source, limit, broken):
            for name, value in row.items():
                found[name] = _merged(found.get(name, "null"), _kind(value, name, source))
    if not found:
        raise ValueError(f"{', '.join(files)} has no rows")
    return {name: _settled(of, source) for name, of in found.items()}


def _features(kinds: Mapping[str, Kind]) -> Features:
    return Features({name: _feature(of) for name, of in kinds.items()})


def _fitted(
    files: list[tuple[str, int]], kinds: dict[str, Kind], kind: str, version: str, drops_broken: bool
) -> Iterator[dict]:
    for file, _ in files:
        for number, row in enumerate(_rows_of(file, kind, broken={} if drops_broken else None), start=1):
            problem = "" if version else _unlike(row, kinds, kind)  # of a stream not every row was seen before
            if problem and not drops_broken:
                raise ValueError(f"{file} row {number}: {problem}; put such a row first")
            if problem:
                print(f"{file} row {number} is unreadable and left out: {problem}")
                continue
            yield {name: _fit(row.get(name), of, kind) for name, of in kinds.items()}


def _unlike(row: dict, kinds: dict[str, Kind], source: str) -> str:
    """What of a row does not fit the columns of a stream; nothing if all does."""
    for name, value in row.items():
        if value is not None and not _fits(_kind(value, name, source), kinds.get(name)):
            return f"column {name!r} holds {str(value)[:80]!r}, unlike the first rows of the stream"
    return ""


def _fits(of: Kind, column: Kind | None) -> bool:
    if isinstance(of, dict) and isinstance(column, dict):
        return all(_fits(inner, column.get(key)) for key, inner in of.items())
    if isinstance(of, list) and isinstance(column, list):
        return _fits(of[0], column[0])
    if column == "text":
        return isinstance(of, str)
    numbers = {"float": ("int", "float"), "int": ("int", "big"), "big": ("int", "big")}
    return of == "null" or column == "mixed" or of in numbers.get(str(column), (column,))


def _kind(value: Any, name: str, source: str) -> Kind:
    if source == "csv":
        return _kind_of_text(value, name)
    if isinstance(value, dict):
        return {key: _kind(inner, key, source) for key, inner in value.items()}
    if isinstance(value, list):
        items: Kind = "null"
        for item in value:
            items = _merged(items, _kind(item, name, source))
        return [items]
    if isinstance(value, int) and not isinstance(value, bool):
        return _kind_of_whole(value)
    if isinstance(value, str) and not value.isascii():
        value.encode("utf-8")  # raises for half a surrogate pair, which JSON lets pass and Arrow does not
    return {str: "text", float: "float", bool: "bool", type(None): "null"}[type(value)]


def _kind_of_whole(value: int) -> Kind:
    return "int" if abs(value) <= _EXACT else "big" if -(2**63) <= value < 2**63 else "huge"


def _kind_of_text(value: str | None, name: str) -> Kind:
    """What a text in a table stands for."""
    if value is None or (value in NOTHING and name not in _TEXTS):
        return "null"
    if name in _TEXTS:
        return "text"
    if value.lower() in ("true", "false"):
        return "bool"
    if _WHOLE.fullmatch(value):
        return _kind_of_whole(int(value)) if len(value) < 40 else "huge"
    if _DECIMAL.fullmatch(value):
        return "float" if len(re.sub(r"[eE].*|\D", "", value).lstrip("0")) <= _DIGITS else "huge"
    return "text"


def _merged(one: Kind, other: Kind) -> Kind:
    """The kind of a column that holds values of both."""
    if one == other or other == "null":
        return one
    if one == "null":
        return other
    if isinstance(one, dict) and isinstance(other, dict):
        return {key: _merged(one.get(key, "null"), other.get(key, "null")) for key in (*one, *(other.keys() - one))}
    if isinstance(one, list) and isinstance(other, list):
        return [_merged(one[0], other[0])]
    names = {one, other} if isinstance(one, str) and isinstance(other, str) else {"mixed"}
    if names <= {"int", "big"}:
        return "big"
    if names <= {"int", "float"}:
        return "float"
    return "huge" if names <= {"int", "big", "huge", "float"} else "mixed"


def _settled(of: Kind, source: str) -> Kind:
    """The kind that is read: numbers that are too large are text, and so are mixtures in a table."""
    if isinstance(of, dict):
        return {key: _settled(inner, source) for key, inner in of.items()} or "mixed"
    if isinstance(of, list):
        return [_settled(of[0], source)]
    return "text" if of == "huge" or (of == "mixed" and source == "csv") else of


def _feature(of: Kind) -> Any:
    if isinstance(of, dict):
        return {key: _feature(inner) for key, inner in of.items()}
    if isinstance(of, list):
        return List(_feature(of[0]))
    return Json() if of == "mixed" else Value(_TYPES[of])


def _fit(value: Any, of: Kind, source: str) -> Any:
    """A value as one of a column of this kind."""
    if value is None:
        return None
    if isinstance(of, dict):
        return {key: _fit(value.get(key), inner, source) for key, inner in of.items()}
    if isinstance(of, list):
        return [_fit(item, of[0], source) for item in value]
    if of == "mixed":  # as JSON, so that "5" stays a text beside 5
        huge = isinstance(value, int) and not -(2**63) <= value < 2**63
        return json.dumps(str(value) if huge else value, ensure_ascii=False)
    if of == "text":
        return value if isinstance(value, str) else json.dumps(value)
    if source == "csv":
        known = {"int": int, "big": int, "float": float, "bool": lambda text: text.lower() == "true"}
        return None if value in NOTHING else known[of](value)
    return float(value) if of == "float" else value


def _rows_of(
    file: str, kind: str, limit: float = math.inf, broken: dict[str, list[int]] | None = None
) -> Iterator[dict]:
    """The rows of a file: of JSON with Python's values, of a table with texts, None where there is nothing.

    With a `limit` those within about so many characters. Lines that are no JSON are noted in `broken`, or raise.
    """
    with _opened(file, "strict" if broken is None else "surrogateescape") as source:
        if kind == "csv":
            for part in pandas.read_csv(source, dtype=str, keep_default_na=False, chunksize=1_000):
                yield from ({n: None if v == "" else v for n, v in row.items()} for row in part.to_dict("records"))
                limit -= int(part.map(len).to_numpy().sum()) if len(part) else 0
                if limit < 0:
                    return
            return
        start = next((line for line in source if line.strip()), "")
        if start.lstrip().startswith("["):
            yield from map(_as_row, json.loads(start + source.read()))
            return
        for number, line in enumerate(chain([start], source), start=1):
            row = _row_of_line(line, broken is not None) if line.strip() else None
            if row is not None:
                yield row
            elif line.strip() and broken is not None:
                broken.setdefault(file, []).append(number)
            limit -= len(line)
            if limit < 0:
                return


def _row_of_line(line: str, may_be_broken: bool) -> dict | None:
    try:
        if may_be_broken:
            json.dumps(json.loads(line), ensure_ascii=False).encode("utf-8")  # raises for what is no character
        return _as_row(json.loads(line))
    except ValueError:
        if may_be_broken:
            return None
        raise


def _as_row(row: Any) -> dict:
    if not isinstance(row, dict | str):
        raise ValueError(f"a row is {type(row).__name__}, expected a mapping")
    return {"text": row} if isinstance(row, str) else row


def _opened(file: str, errors: str) -> IO[str]:
    opener: Any = gzip.open if file.endswith(".gz") else open
    return opener(file, "rt", encoding="utf-8-sig", newline="", errors=errors)
