"""The columns that reward functions get: with their types, whatever the first rows hold, and none that TRL sets."""

import inspect
import json
import re
from types import SimpleNamespace

import pytest
from datasets import Dataset, Value
from trl import GRPOTrainer

from fourstage import verifiers
from fourstage.arguments import DataArguments
from fourstage.data.columns import INSPECTED_ROWS, RESERVED_COLUMNS
from fourstage.data.loading import load_problems, load_prompts

SETTINGS = SimpleNamespace(unverifiable="error", system_prompt=None)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def load(stage, **fields):
    args = DataArguments(test_split_size=0.1, **fields)
    if stage == "ppo":
        return load_prompts(args, 0)
    return load_problems(args, 0, [verifiers.number], SETTINGS)


def values(parts, name):
    return [row[name] for part in parts for row in part]


LATE = {"text": "x", "number": 7, "list": [1], "mapping": {"a": "b"}, "texts": ["x"]}


@pytest.mark.parametrize("stage", ["ppo", "grpo"])
@pytest.mark.parametrize("late", LATE)
def test_a_column_that_is_null_at_first(tmp_path, stage, late):
    rows = [{"question": f"{i}+1?", "answer": str(i + 1), "hint": None} for i in range(INSPECTED_ROWS + 1)]
    rows.append({**rows[0], "question": "Last?", "hint": LATE[late]})
    parts = load(stage, dataset_name=write(tmp_path / "a.jsonl", rows))
    assert [hint for hint in values(parts, "hint") if hint is not None] == [LATE[late]]


@pytest.mark.parametrize("stage", ["ppo", "grpo"])
@pytest.mark.parametrize("late", LATE)
def test_a_column_that_only_one_of_two_sources_has(tmp_path, stage, late):
    plain = [{"question": f"{i}+1?", "answer": str(i + 1)} for i in range(40)]
    with_hint = [{"question": f"{i}+2?", "answer": str(i + 2), "hint": LATE[late]} for i in range(40)]
    nothing = [{"question": f"{i}+3?", "answer": str(i + 3), "hint": None} for i in range(40)]
    names = [write(tmp_path / f"{i}.jsonl", part) for i, part in enumerate((plain, with_hint, nothing))]
    parts = load(stage, datasets=[{"dataset_name": name} for name in names])
    assert {json.dumps(hint) for hint in values(parts, "hint")} == {json.dumps(LATE[late]), "null"}


@pytest.mark.parametrize("stage", ["ppo", "grpo"])
def test_a_stream_with_a_column_that_is_null_at_first(tmp_path, stage):
    rows = [{"question": f"{i}+1?", "answer": str(i + 1), "hint": None} for i in range(INSPECTED_ROWS + 200)]
    rows += [{**rows[0], "question": f"Last {i}?", "hint": "x"} for i in range(50)]
    train, _ = load(stage, dataset_name=write(tmp_path / "a.jsonl", rows), dataset_streaming=True)
    assert {row["hint"] for row in train} == {None, "x"} and train.features["hint"] == Value("string")


def test_types_are_those_of_the_data(tmp_path):
    rows = [{"prompt": f"{i}?", "answer": i, "tokens": i, "score": i / 4, "nested": {"a": [i]}} for i in range(20)]
    parts = load("ppo", dataset_name=write(tmp_path / "a.jsonl", rows))
    for name in ("tokens", "score", "nested"):
        assert sorted(values(parts, name), key=str) == sorted((row[name] for row in rows), key=str)
    problems = load("grpo", dataset_name=write(tmp_path / "b.jsonl", rows))
    assert sorted(values(problems, "answer")) == sorted(str(row["answer"]) for row in rows)


@pytest.mark.parametrize("stage", ["ppo", "grpo"])
@pytest.mark.parametrize("streaming", [False, True])
def test_a_column_of_several_types_keeps_them(tmp_path, stage, streaming):
    hints = ["1.50", 3, "true", True, "x", "[1]", None, {"a": "5"}, "null", [1, "2"]]
    rows = [{"prompt": f"{i}?", "answer": str(i), "hint": hints[i % 10]} for i in range(40)]
    parts = load(stage, dataset_name=write(tmp_path / "a.jsonl", rows), dataset_streaming=streaming)
    got = {row["prompt"][0]["content"]: row["hint"] for part in parts for row in part}
    assert got == {row["prompt"]: row["hint"] for row in rows}


@pytest.mark.parametrize("stage", ["ppo", "grpo"])
@pytest.mark.parametrize("streaming", [False, True])
def test_columns_named_like_keywords_of_the_reward_call(tmp_path, capsys, stage, streaming):
    odd = {name: ["a"] for name in RESERVED_COLUMNS}
    rows = [{"prompt": f"{i}?", "answer": str(i), "tokens": 512, **odd} for i in range(30)]
    name = write(tmp_path / "a.jsonl", rows)
    parts = load(stage, dataset_name=name, dataset_streaming=streaming)
    kept = {key for part in parts for row in part for key in row}
    assert kept == {"prompt", "answer", "tokens"}
    assert re.search(rf"{name}: columns prompts, completions, .* are named like arguments", capsys.readouterr().out)


def test_reserved_names_are_those_of_trl():
    """Every keyword that GRPOTrainer sets itself, as its source has them."""
    source = inspect.getsource(GRPOTrainer._calculate_rewards)
    keywords = set(re.findall(r'reward_kwargs\["(\w+)"\]', source)) | set(
        re.findall(r"(\w+)=\w+,? ", source.split("reward_func(\n")[1][:200])
    )
    assert keywords - {"prompt", "completion"} == {*RESERVED_COLUMNS}  # those two are for a warning


def test_which_of_several_right_answers_counts_is_said(tmp_path, capsys):
    rows = [{"problem": f"{i}?", "answer": str(i), "solution": rf"So \boxed{{{i}}}."} for i in range(20)]
    load("grpo", dataset_name=write(tmp_path / "a.jsonl", rows))
    assert "right answers" not in capsys.readouterr().out
    rows[3]["solution"] = r"So \boxed{5}."
    load("grpo", dataset_name=write(tmp_path / "b.jsonl", rows))
    assert "b.jsonl: right answers are those of 'answer'; other ones in 'solution'" in capsys.readouterr().out
    assert isinstance(load("grpo", dataset_name=str(tmp_path / "b.jsonl"))[0], Dataset)
