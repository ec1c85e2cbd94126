"""Files that are shaped wrongly: rows longer than the header, cells that spell nothing, nesting without end."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fourstage.arguments import DataArguments
from fourstage.data.checks import DEEPEST, nesting_problem
from fourstage.data.loading import load_conversations, load_prompts, load_texts

STREAMING = pytest.mark.parametrize("streaming", [False, True])


def refusal(load, name, **fields):
    with pytest.raises(ValueError) as error:
        load(DataArguments(dataset_name=str(name), **fields), 0)
    assert "\n" not in str(error.value)
    return str(error.value)


def answers(parts):
    return {row["prompt"][0]["content"]: row["completion"][0]["content"] for part in parts for row in part}


# Tables


@STREAMING
@pytest.mark.parametrize("end", [",extra", ",", ",b,c,d"])
def test_rows_with_more_fields_than_the_header(tmp_path, streaming, end):
    """pandas takes the surplus for an index, and "a 1" becomes the question: measured with pandas 2 and 3."""
    path = tmp_path / "a.csv"
    path.write_text("question,answer\n" + "".join(f"q {i},a {i}{end}\n" for i in range(9)))
    said = refusal(load_conversations, path, dataset_streaming=streaming)
    assert f"a.csv row 1: it has {2 + end.count(',')} fields and the header names 2 (question, answer); " in said


def test_a_long_row_in_the_middle_or_in_one_file_of_two(tmp_path):
    rows = [f"q {i},a {i}" for i in range(9)]
    (tmp_path / "a.csv").write_text("question,answer\n" + "\n".join(rows) + "\nq,a,b\n")
    assert "Expected 2 fields in line 11, saw 3" in refusal(load_conversations, tmp_path / "a.csv")
    (tmp_path / "two").mkdir()
    (tmp_path / "two/a.csv").write_text("question,answer\n" + "\n".join(rows) + "\n")
    (tmp_path / "two/b.csv").write_text("question,answer\nq,a,b\n")
    assert "b.csv row 1: it has 3 fields" in refusal(load_conversations, tmp_path / "two")


@STREAMING
def test_what_spells_nothing_is_a_text_in_a_column_of_texts(tmp_path, streaming):
    """Namibia is NA; a cell without a sign is nothing. In a column of numbers NA stays a gap."""
    codes = ["NA", "null", "None", "n/a", "nan", "FR", "", "<NA>", "NULL"] * 5
    lines = [f"c {i},{code},{code if code != 'FR' else 'x'},{'NA' if i == 3 else i}" for i, code in enumerate(codes)]
    path = tmp_path / "a.csv"
    path.write_text("question,answer,hint,level\n" + "\n".join(lines) + "\n")
    args = DataArguments(dataset_name=str(path), dataset_streaming=streaming, test_split_size=0.3)
    expected = {f"c {i}": code for i, code in enumerate(codes) if code}
    assert answers(load_conversations(args, 0)) == expected
    (tmp_path / "b.csv").write_text("question,answer\n" + "".join(f"c {i},{code}\n" for i, code in enumerate(codes)))
    args_of_texts = DataArguments(
        dataset_name=str(tmp_path / "b.csv"), dataset_streaming=streaming, test_split_size=0.3
    )
    assert answers(load_conversations(args_of_texts, 0)) == expected  # by the quick reader alone
    rows = {row["prompt"][0]["content"]: row for part in load_prompts(args, 0) for row in part}
    assert [rows[f"c {i}"]["hint"] for i in range(9)] == ["NA", "null", "None", "n/a", "nan", "x", None, "<NA>", "NULL"]
    assert [rows[f"c {i}"]["level"] for i in (2, 3, 4)] == [2, None, 4]


# Nesting


def nested(levels, kind):
    value = "x"
    for _ in range(levels):
        value = [value] if kind == "list" else {"a": value}
    return value


@STREAMING
@pytest.mark.parametrize("levels", [DEEPEST, 60, 100_000])  # the last ends Arrow's own reader by a crash
def test_deep_rows_are_refused_with_their_line(tmp_path, streaming, levels):
    cell = "[" * levels + "]" * levels
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "[[[\\"{{"}\n' * 3 + f'{{"prompt": "q", "cell": {cell}}}\n')
    said = refusal(load_prompts, path, dataset_streaming=streaming)
    assert f"a.jsonl line 4: {levels + 1} lists or mappings in one another, expected at most 40; " in said


@STREAMING
@pytest.mark.parametrize("kind", ["list", "mapping"])
def test_rows_as_deep_as_allowed_are_read(tmp_path, streaming, kind):
    cell = nested(DEEPEST - 1, kind)
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"q {i}", "cell": cell}) + "\n" for i in range(30)))
    args = DataArguments(dataset_name=str(path), dataset_streaming=streaming, test_split_size=0.3)
    assert all(row["cell"] == cell for part in load_prompts(args, 0) for row in part)


def test_deep_columns_of_parquet_are_named(tmp_path):
    rows = [{"prompt": f"q {i}", "cell": nested(50, "mapping")} for i in range(9)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert "column 'cell' has more than 40 lists or mappings" in refusal(load_prompts, tmp_path / "a.parquet")


def test_nesting_is_counted_over_lines_and_outside_texts(tmp_path):
    """A JSON array over many lines, by hand; brackets within texts, escaped quotes among them, do not count."""
    path = tmp_path / "a.json.gz"
    lines = ["[", '  {"text": "[[[[ \\" {{{{",', *['  "a": [' + "[" * 10] * 5]
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    assert nesting_problem(str(path), 1e9).startswith(f"{path} line 6: 46 lists")  # 2 before them, then 11 a line
    assert nesting_problem(str(path), 40) is None  # of a stream only the start is looked at
    said = refusal(load_texts, path)
    assert "line 6: 46 lists" in said
