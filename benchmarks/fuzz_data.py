"""Odd data files for the five recipes: each is rightly read or refused in one line, and nothing else happens.

    python benchmarks/fuzz_data.py
    python benchmarks/fuzz_data.py --count 200 --seed 7 --stage sft

A file has thirty good rows. A mutation spoils cells, rows, columns or the bytes. Rightly read means that each row which
was left alone comes out once, with its own texts side by side, and that nothing is added. The files are read as the
recipes read them, whole or as a stream, with --unreadable error or drop.
"""

import argparse
import csv
import gzip
import io
import json
import random
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import disable_progress_bars

from fourstage import verifiers
from fourstage.arguments import DataArguments
from fourstage.data import loading

ROWS = 30
KINDS = ("jsonl", "json", "csv", "parquet")
Row = dict[str, Any]


def problems(data_args: DataArguments, seed: int) -> tuple:
    settings = SimpleNamespace(unverifiable="drop", system_prompt=None)
    return loading.load_problems(data_args, seed, [verifiers.exact], settings)


def said(turns: list[Row]) -> str:
    return turns[-1]["content"]


# stage -> (how its rows are loaded, the good row of a number, the texts of a row that was read)
STAGES: dict[str, tuple[Callable, Callable[[int], Row], Callable[[Row], tuple]]] = {
    "pretrain": (loading.load_texts, lambda i: {"text": f"text {i} é"}, lambda r: (r["text"],)),
    "sft": (
        loading.load_conversations,
        lambda i: {"question": f"q {i}", "answer": f"a {i}"},
        lambda r: (said(r["prompt"]), said(r["completion"])),
    ),
    "reward": (
        loading.load_preferences,
        lambda i: {"prompt": f"q {i}", "chosen": f"c {i}", "rejected": f"r {i}"},
        lambda r: (said(r["prompt"]), said(r["chosen"]), said(r["rejected"])),
    ),
    "ppo": (
        loading.load_prompts,
        lambda i: {"prompt": f"q {i}", "hint": f"h {i}"},
        lambda r: (said(r["prompt"]), str(r["hint"])),
    ),
    "grpo": (
        problems,
        lambda i: {"question": f"q {i}", "answer": f"a {i}"},
        lambda r: (said(r["prompt"]), r["answer"]),
    ),
}


def nested(levels: int) -> list:
    value: list = []
    for _ in range(levels):
        value = [value]
    return value


TEXTS = (
    *("", " ", "NA", "null", "None", "nan", "2024-01-05", "12:30", "007", "1e5", "true", "[1]", '{"a": 1}', "a,b"),
    *('a"b', "a\nb", "a\r\nb", "\r", "\x00", "\x1b[2J", "\u202e", "\ufeff", "\U0001f600", "é" * 300_000, "<|eos|>"),
)
OTHERS = (None, 0, 5, -1, 10**20, 10**400, 0.5, 1e308, float("nan"), float("inf"), True, [], {}, ["a"], [None])
OTHERS += (
    {"a": 1},
    nested(8),
    nested(70),
    [{"role": "user", "content": "x"}],
    [{"role": ["x"], "content": 5}],
    {"role": "user"},
)
NAMES = ("image", "images", "completions", "prompts", "trainer_state", "self", "messages", "system", "tools", "", "é")
NO_ROWS = (None, 5, "text", [], ["a"], [[1, 2]], True)
TYPES = ("int64", "float64", "bool", "binary", "large_string", "timestamp[us]", "date32", "null", "dictionary", "list")
TYPES += ("struct",)


@dataclass
class Case:
    """One file: the `texts` of rows that must come out if it is read, and how many others may."""

    name: str
    content: bytes
    texts: Counter = field(default_factory=Counter)
    others: int = 0
    told: str = ""  # what was done to it


def make_case(stage: str, kind: str, rng: random.Random) -> Case:
    """A file of this stage and kind with one to three mutations."""
    good = STAGES[stage][1]
    rows: list[Any] = [good(i) for i in range(ROWS)]
    spoilt: set[int] = set()
    told = [rng.choice((spoil_cell, spoil_cell, spoil_row))(rows, spoilt, kind, rng) for _ in range(rng.randrange(3))]
    write = {"parquet": parquet, "csv": table}.get(kind, json_text)
    content, written = write(rows, spoilt, kind, rng)
    texts = Counter(tuple(good(i).values()) for i in range(ROWS) if i not in spoilt)
    if written.startswith("!"):  # every row is another one now
        texts = Counter()
    name = f"a.{kind}"
    if rng.random() < 0.5:
        name, content, done = spoil_bytes(name, content, rng)
        told.append(done)
        if done.startswith("!"):
            texts = Counter()
    told = [part for part in (*told, written) if part]
    return Case(name, content, texts, ROWS + 1 - sum(texts.values()), ", ".join(told) or "nothing")


def spoil_cell(rows: list, spoilt: set[int], kind: str, rng: random.Random) -> str:
    i = rng.randrange(ROWS)
    value = rng.choice(TEXTS + OTHERS if kind != "csv" else TEXTS)
    if isinstance(rows[i], dict):
        rows[i] = rows[i] | {rng.choice(list(rows[i])): value}
    spoilt.add(i)
    return f"cell {i} = {value!r:.30}"


def spoil_row(rows: list, spoilt: set[int], kind: str, rng: random.Random) -> str:
    i, what = rng.randrange(ROWS), rng.choice(("no row", "key gone", "new key", "twice"))
    spoilt.add(i)
    if what == "no row" and kind in ("json", "jsonl"):
        rows[i] = rng.choice(NO_ROWS)
    elif isinstance(rows[i], dict) and what == "key gone" and len(rows[i]) > 1:
        rows[i] = dict(list(rows[i].items())[1:])
    elif isinstance(rows[i], dict) and what == "new key":
        value = rng.choice(TEXTS if kind == "csv" else TEXTS + OTHERS)
        rows[i] = rows[i] | {rng.choice(NAMES): value}
    return f"row {i}: {what}"


def json_text(rows: list, spoilt: set[int], kind: str, rng: random.Random) -> tuple[bytes, str]:
    shape = rng.choice(("lines", "lines", "array", "pretty", "wrapped", "surrogate", "trailing comma"))
    lines = [json.dumps(row, ensure_ascii=rng.random() < 0.5) for row in rows]
    if shape == "lines" and kind == "jsonl":
        text = "\n".join(lines) + "\n" * rng.randrange(3)
    elif shape == "pretty":
        text = json.dumps(rows, indent=1)
    elif shape == "wrapped":
        text = json.dumps({"version": 1, "data": rows})
        shape = "!wrapped"
    elif shape == "surrogate":
        text = "\n".join([*lines, '{"text": "\\ud800", "prompt": "\\ud800", "question": "\\ud800", "answer": "b"}'])
    elif shape == "trailing comma":
        text = "[" + ",\n".join(lines) + ",]"
    else:
        text, shape = "[" + ",\n".join(lines) + "]", "array"
    return text.encode("utf-8", "surrogatepass"), shape


def table(rows: list, spoilt: set[int], kind: str, rng: random.Random) -> tuple[bytes, str]:
    names = list(dict.fromkeys(name for row in rows if isinstance(row, dict) for name in row))
    cells = [names, *([row.get(name, "") for name in names] for row in rows)]
    odd = ("surplus", "one surplus", "short", "semicolons", "open quote", "header twice")
    shape = rng.choice(("plain", "plain", *odd))
    if shape == "surplus":
        cells[1:] = [[*line, "x"] for line in cells[1:]]
    elif shape in ("one surplus", "short", "header twice"):
        i = rng.randrange(1, len(cells))
        changed = {"one surplus": [*cells[i], "x"], "short": cells[i][:1], "header twice": cells[0]}
        cells[i] = changed[shape]
        spoilt.add(i - 1)
    stream = io.StringIO(newline="")
    delimiter = ";" if shape == "semicolons" else ","
    writer = csv.writer(stream, delimiter=delimiter, lineterminator=rng.choice(("\n", "\r\n")))
    writer.writerows(cells)
    text = stream.getvalue()
    if shape == "open quote":
        place = text.index("\n", rng.randrange(len(text) // 2)) + 1
        text, shape = f'{text[:place]}"{text[place:]}', "!open quote"
    return text.encode("utf-8"), shape if shape != "plain" else ""


def parquet(rows: list, spoilt: set[int], kind: str, rng: random.Random) -> tuple[bytes, str]:
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns, told = {}, ""
    for name in names:
        values = [row.get(name) if isinstance(row, dict) else None for row in rows]
        try:
            columns[name] = pa.array(values)
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):  # values of several types
            columns[name] = as_texts(values)
    if rng.random() < 0.5:
        name, kind_of = rng.choice(names), rng.choice(TYPES)
        columns[name], told = of_type(kind_of), f"!{name} is {kind_of}"
    stream = io.BytesIO()
    try:
        pq.write_table(pa.table(columns), stream)
    except pa.ArrowNotImplementedError:  # parquet has no mapping without a key
        stream = io.BytesIO()
        pq.write_table(pa.table({name: as_texts(column.to_pylist()) for name, column in columns.items()}), stream)
    return stream.getvalue(), told


def as_texts(values: list) -> pa.Array:
    return pa.array([None if value is None else str(value) for value in values])


def of_type(kind: str) -> pa.Array:
    numbers = list(range(ROWS))
    if kind == "dictionary":
        return pa.array([str(i) for i in numbers]).dictionary_encode()
    if kind == "list":
        return pa.array([[str(i)] * (i % 3) for i in numbers])
    if kind == "struct":
        return pa.array([{"role": "user", "content": str(i), "n": i} for i in numbers])
    if kind == "null":
        return pa.nulls(ROWS)
    if kind == "binary":
        return pa.array([str(i).encode() for i in numbers])
    if kind == "large_string":
        return pa.array(map(str, numbers), pa.large_string())
    if kind == "date32":
        return pa.array(numbers, pa.int32()).cast(pa.date32())
    if kind == "bool":
        return pa.array([i % 2 == 0 for i in numbers])
    return pa.array(numbers).cast(pa.timestamp("us") if kind == "timestamp[us]" else kind)


def spoil_bytes(name: str, content: bytes, rng: random.Random) -> tuple[str, bytes, str]:
    is_text = not name.endswith("parquet")
    of_text = ("bom", "crlf", "cr", "latin-1", "utf-16", "nul", "blank lines")
    names = ("gz", "cut", "noise", "empty", "cut gz", *(of_text if is_text else ()))
    how = rng.choice(names)
    if how == "bom":
        return name, b"\xef\xbb\xbf" + content, how
    if how in ("crlf", "cr"):
        end = b"\r\n" if how == "crlf" else b"\r"
        return name, content.replace(b"\r\n", b"\n").replace(b"\n", end), f"!{how}" if b'"' in content else how
    if how == "blank lines":
        return name, b"\n\n" + content + b"\n \n\n", how
    if how in ("latin-1", "utf-16"):
        return name, content.decode("utf-8", "replace").encode(how, "replace"), f"!{how}"
    if how == "gz":
        return f"{name}.gz", gzip.compress(content), f"!{how}" if not is_text else how
    place = rng.randrange(len(content) + 1)
    if how == "cut gz":
        return f"{name}.gz", gzip.compress(content)[:-9], f"!{how}"
    changed = {"cut": content[:place], "empty": b"", "nul": content[:place] + b"\0\0" + content[place:]}
    noise = bytes(rng.randrange(256) for _ in range(5))
    return name, changed.get(how, content[:place] + noise + content[place + 5 :]), f"!{how}"


def read(stage: str, case: Case, folder: Path, streaming: bool, unreadable: str) -> tuple[str, str]:
    """(what came of the file, more about it): read, refused, wrong, or the type of an exception."""
    load, _, texts_of_row = STAGES[stage]
    path = folder / case.name
    path.write_bytes(case.content)
    args = DataArguments(str(path), dataset_streaming=streaming, unreadable=unreadable, test_split_size=0.2)
    try:
        found = Counter(texts_of_row(row) for part in load(args, 0) for row in part)
    except ValueError as error:
        is_ours = "fourstage" in traceback.extract_tb(error.__traceback__)[-1].filename
        return ("refused" if is_ours and "\n" not in str(error) else "wrong words"), str(error)
    except Exception as error:
        return type(error).__name__, traceback.format_exc()
    lacking, added = case.texts - found, found - case.texts
    if lacking or sum(added.values()) > case.others:
        return "wrong", f"lacking {list(lacking)[:3]}, added {list(added)[:3]}"
    return "read", ""


def fuzz(count: int, seed: int, stages: list[str], folder: Path) -> list[tuple[str, str, str, str, str]]:
    """(stage, kind, outcome, more, what was done) of `count` files."""
    outcomes = []
    for number in range(count):
        rng = random.Random(f"{seed} {number}")
        stage, kind = stages[number % len(stages)], rng.choice(KINDS)
        case = make_case(stage, kind, rng)
        place = folder / str(number)
        place.mkdir()
        streaming, unreadable = rng.random() < 0.3, rng.choice(("error", "error", "drop"))
        told = f"{case.told}{', streamed' if streaming else ''}, {unreadable}"
        outcome, more = read(stage, case, place, streaming, unreadable)
        if outcome not in ("read", "refused"):
            print(f"{number}: {stage} {kind}: {outcome} after {told}\n    {more.strip()[-600:]}", flush=True)
        outcomes.append((stage, kind, outcome, more, told))
    return outcomes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1_000, help="files (default: 1,000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stage", choices=STAGES, action="append", help="may be repeated (default: all)")
    args = parser.parse_args()
    disable_progress_bars()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        outcomes = fuzz(args.count, args.seed, args.stage or list(STAGES), Path(folder))
    bad = [line for line in outcomes if line[2] not in ("read", "refused")]
    print("\n| rows of | files | rightly read | refused in one line | other |\n|---|---|---|---|---|")
    for stage in [*STAGES, "all"]:
        lines = [line for line in outcomes if stage in (line[0], "all")]
        counts = Counter(line[2] for line in lines)
        others = len(lines) - counts["read"] - counts["refused"]
        print(f"| {stage} | {len(lines)} | {counts['read']} | {counts['refused']} | {others} |")
    print(f"\n{time.perf_counter() - start:.0f} s")
    raise SystemExit(1 if bad else 0)


if __name__ == "__main__":
    main()
