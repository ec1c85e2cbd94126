"""What is wrong with a file, before it is read: readers crash on deep nesting, and shift rows that are too long."""

import gzip
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas

DEEPEST = 40  # levels of lists and mappings in a row: beyond it Arrow, datasets and JSON readers fail, some by a crash
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"')
_OTHERS = bytes(sorted({*range(256)} - {*b"[]{}"}))


def table_problem(file: str) -> str | None:
    """Why the first row of a table does not fit its header; None where it does.

    pandas takes the first columns for an index where all rows have more fields than the header, and each value ends up
    under its neighbour's name. A longer row after a fitting one it refuses itself.
    """
    first = pandas.read_csv(file, nrows=1, dtype=str)
    if isinstance(first.index, pandas.RangeIndex) or not len(first):
        return None
    fields, names = first.index.nlevels + len(first.columns), ", ".join(map(str, first.columns))
    return (
        f"{file} row 1: it has {fields} fields and the header names {len(first.columns)} ({names[:200]}); remove a "
        "comma at the end of rows, put texts with commas into quotes, or name every column"
    )


def nesting_problem(file: str, limit: float) -> str | None:
    """The first line of a JSON file with more than DEEPEST lists and mappings in one another, within `limit` bytes."""
    depth = 0
    with (gzip.open if Path(file).suffix == ".gz" else open)(file, "rb") as lines:
        for number, line in enumerate(lines, start=1):
            is_row = line.startswith(b"{")
            depth = 0 if is_row else depth
            if not (is_row and line.count(b"[") + line.count(b"{") <= DEEPEST and line.rstrip().endswith(b"}")):
                depth, deepest = _depths(line, depth)
                if deepest > DEEPEST:
                    return f"{file} line {number}: {deepest} lists or mappings in one another, {_too_deep()}"
            limit -= len(line)
            if limit < 0:
                return None
    return None


def _depths(line: bytes, before: int) -> tuple[int, int]:
    """(depth after a line, the greatest within it), of a line that begins at depth `before`."""
    signs = np.frombuffer(_STRING.sub(b"", line).translate(None, _OTHERS), dtype=np.uint8)
    if not len(signs):
        return before, before
    depths = before + np.cumsum(np.where((signs == ord("[")) | (signs == ord("{")), 1, -1))
    return int(depths[-1]), int(depths.max())


def column_problem(features: Any, name: str) -> str | None:
    """The column of Arrow data that is nested too deeply; None where all can be read."""
    for column, kind in (features or {}).items():
        if _is_deep(kind):
            return f"{name}: column {column!r} has more than {DEEPEST} lists or mappings in one another, {_too_deep()}"
    return None


def _is_deep(kind: Any) -> bool:
    level, kinds = 0, [kind]
    while kinds and level <= DEEPEST:
        inner = [k.values() if isinstance(k, dict) else [k.feature] if hasattr(k, "feature") else [] for k in kinds]
        kinds, level = [one for some in inner for one in some], level + 1
    return bool(kinds)


def _too_deep() -> str:
    return f"expected at most {DEEPEST}; flatten it, or remove it"
