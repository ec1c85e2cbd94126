"""Values arrive as they are written in a file, and folders are read as what they are, whatever readers guess."""

import csv
import gzip
import json
from datetime import datetime
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, IterableDataset, List, Value
from helpers import ACCELERATE, RECIPES, SHAPE, run_program

from fourstage import verifiers
from fourstage.arguments import DataArguments
from fourstage.data.as_written import is_misread
from fourstage.data.files import load_files
from fourstage.data.loading import load_conversations, load_problems, load_prompts, load_texts
from fourstage.data.problems import problem_row
from fourstage.data.sources import load_source

BOTH = pytest.mark.parametrize("streaming", [False, True])


def jsonl(path, rows, bom=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        b"\xef\xbb\xbf" * bom + "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    )
    return path


def table(path, rows):
    names = list(dict.fromkeys(name for row in rows for name in row))
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerows([names, *([row.get(name, "") for name in names] for row in rows)])
    return path


def rows_of(path, streaming=False):
    """The training rows as they are read, before any conversion."""
    train, _ = load_source({"dataset_name": str(path)}, DataArguments(dataset_streaming=streaming), "ppo")
    assert isinstance(train, IterableDataset) is streaming
    return list(train)


def golds(path, function=verifiers.exact, streaming=False, unverifiable="error"):
    settings = SimpleNamespace(unverifiable=unverifiable, system_prompt=None)
    args = DataArguments(dataset_name=str(path), test_split_size=0.3, dataset_streaming=streaming)
    parts = load_problems(args, 0, [function], settings)
    return {row["prompt"][0]["content"]: row["answer"] for part in parts for row in part}


# JSON

BIG = 12345678901234567890
ANSWERS = {
    "beyond 64 bits": ([BIG + i for i in range(5)], [str(BIG + i) for i in range(5)]),
    "30 digits beside small ones": ([5, 10**30, 7], ["5", str(10**30), "7"]),
    "beyond 53 bits": ([2**53 + 1, 2**53 + 2, 3], [str(2**53 + 1), str(2**53 + 2), "3"]),
    "beyond 53 bits beside a float": ([2**53 + 1, 1.5, 3], [str(2**53 + 1), "1.5", "3"]),
    "negative": ([-BIG, -1, 1], [str(-BIG), "-1", "1"]),
    "integers beside floats": ([72, 72.5, 3], ["72", "72.5", "3"]),
    "whole floats": ([72.0, 3.0, 1.0], ["72", "3", "1"]),
    "dates": (["1879-03-14"] * 3, ["1879-03-14"] * 3),
    "days and times": (["1879-03-14 10:30:00", "1879-03-14", "2020-01-01 00:00:00"],) * 2,
    "ISO times": (["2020-01-01T10:00:00", "2020-01-01T00:00:00", "2021-01-01T10:00:00"],) * 2,
    "clock times": (["10:30:00"] * 3, ["10:30:00"] * 3),
    "booleans": ([True, False, True], ["true", "false", "true"]),
    "booleans as texts": (["True", "False", "true"], ["True", "False", "true"]),
    "numbers as texts": (["007", "1.50", "1e5"], ["007", "1.50", "1e5"]),
    "texts and numbers": (["1.50", 3, "007"], ["1.50", "3", "007"]),
    "texts and true": (["null", True, "5"], ["null", "true", "5"]),
    "numbers and lists as texts": ([4, "[1, 2]", '{"a": 1}'], ["4", "[1, 2]", '{"a": 1}']),
}


@BOTH
@pytest.mark.parametrize("ending", ["jsonl", "json", "jsonl.gz"])
@pytest.mark.parametrize("case", ANSWERS)
def test_golds_of_json_are_as_written(tmp_path, case, ending, streaming):
    values, texts = ANSWERS[case]
    rows = [{"question": f"Q{i}?", "answer": value} for i, value in enumerate(values)]
    lines = json.dumps(rows) if ending == "json" else "".join(json.dumps(row) + "\n" for row in rows)
    path = tmp_path / f"a.{ending}"
    path.write_bytes(gzip.compress(lines.encode()) if ending.endswith("gz") else lines.encode())
    if streaming:  # too few to hold some out
        got = [problem_row(row)["answer"] for row in rows_of(path, True)]
    else:
        got = [gold for _, gold in sorted(golds(path).items())]
    assert got == texts


@BOTH
def test_nested_values_of_json_are_as_written(tmp_path, streaming):
    nested = {
        "messages": [{"role": "user", "content": "2020-01-01"}, {"role": "assistant", "content": "1999-12-31"}],
        "reward_model": {"ground_truth": "1879-03-14", "style": "rule"},
        "nums": [1, 2**64],
        "score": 0.25,
        "tokens": 5,
        "empty": None,
        "none": {},
    }
    got = rows_of(jsonl(tmp_path / "a.jsonl", [nested] * 3), streaming)[0]
    assert got == {**nested, "nums": ["1", str(2**64)], "none": got["none"]} and not got["none"]


@BOTH
def test_dates_reach_every_stage_as_texts(tmp_path, streaming):
    rows = [{"question": f"When was {i}?", "answer": "1879-03-14"} for i in range(40)]
    args = DataArguments(dataset_name=str(jsonl(tmp_path / "a.jsonl", rows)), dataset_streaming=streaming)
    train, _ = load_conversations(args, 0)
    assert {row["completion"][0]["content"] for row in train} == {"1879-03-14"}
    assert {row["answer"] for row in load_prompts(args, 0)[0]} == {"1879-03-14"}
    texts = DataArguments(
        dataset_name=str(jsonl(tmp_path / "b.jsonl", [{"text": f"20{i}-01-01"} for i in range(10, 40)]))
    )
    assert all(row["text"].endswith("-01-01") for row in load_texts(texts, 0)[0])


def test_healthy_data_are_read_once(tmp_path, monkeypatch):
    """By the quick reader: the slow one is for what it gets wrong."""
    monkeypatch.setattr("fourstage.data.files.read_as_written", None)
    turns = [{"role": "user", "content": "5"}, {"role": "assistant", "content": "1.5 on 2020-01-01"}]
    call = [{"a": 1}, {"b": [2, "x"]}]
    rows = [
        {"messages": turns, "score": 0.5, "n": 2**60, "ok": True, "calls": call, "m": {"x": [1.0]}} for _ in range(9)
    ]
    assert rows_of(jsonl(tmp_path / "a.jsonl", rows))[0]["messages"] == turns
    assert len(rows_of(jsonl(tmp_path / "b.jsonl", rows), streaming=True)) == 9
    plain = [{"question": "a, b?", "answer": "x 7", "n": 3, "score": 0.5}] * 3
    assert rows_of(table(tmp_path / "a.csv", plain)) == plain


# Tables

CELLS = {
    "a gap": (["72", "", "3"], ["72", None, "3"]),
    "zeros in front": (["007", "010", "1"], ["007", "010", "1"]),
    "decimals": (["1.10", "2", "3.0"], ["1.10", "2", "3.0"]),
    "big": (["12345678901234567890", "123456789012345678901234567890", "5"],) * 2,
    "big with a gap": (["9007199254740993", "", "5"], ["9007199254740993", None, "5"]),
    "True": (["True", "False", "True"],) * 2,
    "true": (["true", "false", "yes"],) * 2,
    "dates": (["1879-03-14", "1879-03-15", "2020-01-01"],) * 2,
    "signs": (["+5", "-3", "-0"],) * 2,
    "powers": (["1e5", "2E-3", "7"],) * 2,
    "texts": (["x", "5", "a, b"],) * 2,
}


@BOTH
@pytest.mark.parametrize("case", CELLS)
def test_golds_of_tables_are_as_written(tmp_path, case, streaming):
    cells, texts = CELLS[case]
    path = table(tmp_path / "a.csv", [{"question": f"Q{i}?", "answer": cell} for i, cell in enumerate(cells)])
    assert [row["answer"] for row in rows_of(path, streaming)] == texts


@BOTH
def test_other_columns_of_tables_keep_their_types(tmp_path, streaming):
    rows = [
        {"question": f"Q{i}?", "answer": "007", "n": i, "score": i / 4, "ok": i > 1, "gap": i or ""} for i in range(4)
    ]
    got = rows_of(table(tmp_path / "a.csv", rows), streaming)
    assert got == [{**row, "gap": row["gap"] or None} for row in rows]
    huge = [{"question": "Q?", "id": str(10**25 + i), "sum": f"0.{10**17 + i}"} for i in range(3)]
    assert rows_of(table(tmp_path / "b.csv", huge), streaming) == huge


def test_a_gap_among_whole_numbers_is_no_gold_and_makes_no_floats(tmp_path):
    path = table(
        tmp_path / "a.csv", [{"question": f"{c}?", "answer": a} for c, a in (("a", 72), ("b", ""), ("c", 3), ("d", 5))]
    )
    assert golds(path, unverifiable="drop") == {"a?": "72", "c?": "3", "d?": "5"}


def test_a_table_whose_column_changes_after_many_rows(tmp_path):
    rows = [{"question": f"{i}?", "answer": "1", "level": str(i)} for i in range(10_500)] + [
        {"question": "x", "answer": "2", "level": "hard"}
    ]
    got = rows_of(table(tmp_path / "a.csv", rows))
    assert got[-1]["level"] == "hard" and got[7]["level"] == "7"


# Parquet and what datasets saved


def test_dates_and_floats_of_parquet(tmp_path):
    data = {
        "question": ["a?", "b?", "c?"],
        "answer": [datetime(1879, 3, 14), datetime(1999, 1, 1), datetime(2000, 1, 1, 5)],
    }
    pq.write_table(pa.table(data), tmp_path / "a.parquet")
    assert sorted(golds(tmp_path / "a.parquet").values()) == ["1879-03-14", "1999-01-01", "2000-01-01 05:00:00"]
    pq.write_table(pa.table({"question": ["a?", "b?"], "answer": [1.0, 2.0**60]}), tmp_path / "b.parquet")
    with pytest.raises(
        ValueError, match=r"b.parquet row 2: column 'answer' holds 1.15\d*e\+18, a whole number .* in quotes"
    ):
        golds(tmp_path / "b.parquet")


@BOTH
@pytest.mark.parametrize("inner", [False, True])
def test_saved_data_sets(tmp_path, streaming, inner):
    data = Dataset.from_list([{"text": f"a {i}"} for i in range(20)])
    data.save_to_disk(tmp_path / "one", num_shards=2)
    assert [row["text"] for row in rows_of(tmp_path / "one", streaming)] == data["text"][:]
    parts = DatasetDict(train=data, test=data.select(range(3)), extra=data.select(range(5)))
    if inner:
        for name, part in parts.items():
            part.save_to_disk(tmp_path / "all" / name)
    else:
        parts.save_to_disk(tmp_path / "all")
    splits = load_files(tmp_path / "all", streaming)
    assert {name: len(list(part)) for name, part in splits.items()} == {"train": 20, "test": 3, "extra": 5}
    args = DataArguments(dataset_name=str(tmp_path / "all"), dataset_train_split="extra", dataset_streaming=streaming)
    train, test = load_texts(args, 0)
    assert (len(list(train)), len(test)) == (5, 3)


@BOTH
def test_labels_with_names(tmp_path, streaming):
    names = Features({"question": Value("string"), "answer": ClassLabel(names=["no", "yes"])})
    Dataset.from_list([{"question": "a?", "answer": 1}, {"question": "b?", "answer": 0}], names).save_to_disk(
        tmp_path / "a"
    )
    assert [row["answer"] for row in rows_of(tmp_path / "a", streaming)] == ["yes", "no"]
    choices = Features({**names, "choices": List(Value("string"))})
    rows = [{"question": f"{i}?", "choices": ["A", "B"], "answer": i % 2} for i in range(4)]
    Dataset.from_list(rows, choices).save_to_disk(tmp_path / "b")
    assert [problem_row(row)["answer"] for row in rows_of(tmp_path / "b", streaming)] == ["A", "B", "A", "B"]


def test_notes_beside_data_are_no_rows(tmp_path):
    (tmp_path / "data").mkdir()
    Dataset.from_list([{"text": "a"}, {"text": "b"}]).to_parquet(tmp_path / "data" / "train.parquet")
    (tmp_path / "dataset_infos.json").write_text('{"default": {}}')
    (tmp_path / "README.md").write_text("# Data")
    assert [row["text"] for row in rows_of(tmp_path)] == ["a", "b"]


# Folders of unlike files


def as_parquet(path, rows):
    Dataset.from_list(rows).to_parquet(path)


@BOTH
@pytest.mark.parametrize(("ending", "write"), [("jsonl", jsonl), ("csv", table), ("parquet", as_parquet)])
def test_files_of_unlike_columns_have_those_of_all(tmp_path, ending, write, streaming):
    first, second = (
        ({"prompt": f"a{i}", "n": i, "only": "x"} for i in range(3)),
        ({"prompt": f"b{i}", "n": i + 0.5, "hint": i} for i in range(3)),
    )
    first, second = list(first), list(second)
    write(tmp_path / f"1.{ending}", first)
    write(tmp_path / f"2.{ending}", second)
    names = ("prompt", "n", "only", "hint")
    assert rows_of(tmp_path, streaming) == [{name: row.get(name) for name in names} for row in first + second]


@BOTH
def test_a_test_split_of_other_columns(tmp_path, streaming):
    jsonl(tmp_path / "train.jsonl", [{"prompt": "a", "hint": "x"}] * 3)
    jsonl(tmp_path / "test.jsonl", [{"prompt": "b", "level": 2}] * 3)
    train, test = load_prompts(DataArguments(dataset_name=str(tmp_path), dataset_streaming=streaming), 0)
    assert next(iter(train))["hint"] == "x" and test[0]["prompt"][0]["content"] == "b"


@pytest.mark.parametrize("late", ["x", 7, {"a": 1}, [1]])
def test_a_column_that_is_null_for_megabytes(tmp_path, late):
    rows = [{"prompt": f"{i} " + "x" * 100_000, "hint": None} for i in range(120)] + [{"prompt": "last", "hint": late}]
    path = jsonl(tmp_path / "a.jsonl", rows)
    assert rows_of(path)[-1]["hint"] == late
    if isinstance(late, str):  # a stream takes such a column for text
        assert rows_of(path, streaming=True)[-1]["hint"] == late


def test_a_stream_that_changes_says_where(tmp_path, monkeypatch):
    monkeypatch.setattr("fourstage.data.as_written.SAMPLED", 1_000)
    rows = [{"prompt": f"{i}", "day": "2020-01-01"} for i in range(1_200)]
    for odd, words in (({"day": {"a": 1}}, "column 'day' holds"), ({"new": "x"}, "column 'new' holds 'x'")):
        path = jsonl(tmp_path / "a.jsonl", [*rows, {**rows[0], **odd}])
        with pytest.raises(
            ValueError, match=rf"row 1201: {words}.*unlike the first rows of the stream; put such a row first"
        ):
            rows_of(path, streaming=True)


# Byte order marks


@BOTH
def test_a_byte_order_mark_is_no_text(tmp_path, streaming):
    mark = "\ufeff"
    for i in range(2):
        (tmp_path / f"{i}.txt").write_text(f"{mark}Text {i}\n", encoding="utf-8")
    assert [row["text"] for row in rows_of(tmp_path, streaming)] == ["Text 0\n", "Text 1\n"]
    (tmp_path / "z.txt.gz").write_bytes(gzip.compress(f"{mark}a\n\nb\n".encode()))
    assert [row["text"] for row in rows_of(tmp_path / "z.txt.gz", streaming)] == ["a\n\nb\n"]
    folder = tmp_path / "rows"
    for i in range(2):
        jsonl(folder / f"{i}.jsonl", [{"prompt": f"{i}", "answer": "1879-03-14" if i else "x"}], bom=True)
    assert [row["prompt"] for row in rows_of(folder, streaming)] == ["0", "1"]
    (tmp_path / "t.csv").write_text(f"{mark}question,answer\na,007\n", encoding="utf-8")
    assert rows_of(tmp_path / "t.csv", streaming) == [{"question": "a", "answer": "007"}]


def test_a_broken_line_after_a_mark_is_the_broken_one(tmp_path):
    (tmp_path / "a.jsonl").write_text('\ufeff{"text": "a"}\n{"text": "b"\n', encoding="utf-8")
    with pytest.raises(ValueError, match="line 2: broken JSON"):
        rows_of(tmp_path / "a.jsonl")


def test_what_is_misread_is_known_from_the_data():
    assert not is_misread(Dataset.from_dict({"a": [1, 2**60], "b": [0.5, 3.0], "c": ["x", "2020-01-01"]}), "json")
    assert is_misread(Dataset.from_dict({"b": [0.5, 2.0**53]}), "json")
    assert is_misread(Dataset.from_dict({"b": [{"c": [0.5, -(2.0**60)]}]}), "json")
    assert is_misread(Dataset.from_dict({"b": [3.0, None]}), "csv") and not is_misread(
        Dataset.from_dict({"b": [3.5, None]}), "csv"
    )


# Through whole recipes


@pytest.mark.slow
def test_recipes_read_what_is_published_and_written(tmp_path):
    """Dates, 007 and gaps in a table; digits for labels; YAML 1.1; a scheduler with a floor; columns of TRL's names."""
    days = [{"question": f"Day {i}?", "answer": f"2020-01-{i % 28 + 1:02}" if i % 2 else f"00{i}"} for i in range(40)]
    shape = json.dumps(SHAPE)
    (tmp_path / "pretrain.yaml").write_text(
        f"dataset_name: {jsonl(tmp_path / 'a.jsonl', [{'text': f'2020-01-{i % 28 + 1:02}'} for i in range(60)])}\n"
        f"num_parameters: 43000\nvocab_size: 384\nconfig_overrides: {shape}\nmax_length: 128\nmax_steps: 4e0\n"
        "save_strategy: no\neval_strategy: off\neval_on_start: no\nreport_to: none\nlr_scheduler_type: polynomial\n"
        f"lr_scheduler_kwargs: {{lr_end: 1e-6}}\noutput_dir: {tmp_path / 'base'}\n"
    )
    (tmp_path / "sft.yaml").write_text(
        f"dataset_name: {table(tmp_path / 'days.csv', days)}\nmodel_name_or_path: {tmp_path / 'base'}\nuse_muon: yes\n"
        "lr_scheduler_type: cosine_with_min_lr\nlr_scheduler_kwargs: {min_lr: 1e-6}\nmax_steps: 4\nreport_to: none\n"
        f"eval_steps: 2\nsave_steps: 2\noutput_dir: {tmp_path / 'sft'}\n"
    )
    rows = [
        {
            "question": f"Is {i} a number?",
            "choices": {"text": ["no", f"yes, {i}"], "label": ["1", "2"]},
            "answerKey": "2",
            "completions": ["x"],
            "tokens": 512,
        }
        for i in range(40)
    ]
    (tmp_path / "grpo.yaml").write_text(
        f"dataset_name: {jsonl(tmp_path / 'arc.jsonl', rows)}\nmodel_name_or_path: {tmp_path / 'sft'}\n"
        "reward_funcs: [choice, length]\nreward_weights: [1, 1e-1]\nnum_generations: 4\nmax_completion_length: 8\n"
        "max_steps: 2\neval_strategy: no\neval_on_start: no\nsave_strategy: no\nreport_to: none\n"
        f"per_device_train_batch_size: 4\ngradient_accumulation_steps: 2\noutput_dir: {tmp_path / 'grpo'}\n"
    )
    said = {}
    for stage in ("pretrain", "sft", "grpo"):
        command = [*ACCELERATE, "--cpu", "--num_processes", "1", RECIPES / f"{stage}.py"]
        said[stage] = run_program(*command, "--config", tmp_path / f"{stage}.yaml").stdout
    assert "columns completions are named like arguments of reward functions and left out" in said["grpo"]
    with open(tmp_path / "grpo" / "completions.jsonl", encoding="utf-8") as lines:
        first = json.loads(lines.readline())
    assert "A) no" in json.dumps(first) and "B) yes" in json.dumps(first)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_broken_lines_are_left_out_and_counted(tmp_path, capsys, name, streaming):
    lines = [json.dumps({"text": f"document {i}"}).encode() for i in range(30)]
    lines[4] = b'{"text": "cut'
    lines[7] = b'{"text": "half \\ud800"}'
    lines[9] = b'{"text": "no \xff UTF-8"}'
    lines[11] = b"[1, 2]"
    content = b"\n".join(lines)
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    settings = {"dataset_name": str(tmp_path / name), "dataset_streaming": streaming, "test_split_size": 0.2}
    with pytest.raises(ValueError, match="line 5: broken JSON"):
        train, _ = load_texts(DataArguments(**settings), 0)
        list(train)
    train, test = load_texts(DataArguments(**settings, unreadable="drop"), 0)
    kept = {f"document {i}" for i in range(30)} - {f"document {i}" for i in (4, 7, 9, 11)}
    assert {row["text"] for row in [*train, *test]} == kept
    assert f"{name}: 4 lines are unreadable and left out: no JSON (first: line 5)" in capsys.readouterr().out
