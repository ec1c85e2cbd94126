"""A file of choices as data: a reward model, PPO and GRPO read it, each what it can use."""

import itertools
import json

import pytest
from datasets import load_dataset

from fourstage.arguments import DataArguments
from fourstage.data.formats import prompt_row
from fourstage.data.loading import load_conversations, load_preferences, load_problems, load_prompts, load_texts
from fourstage.data.picks import left_out, problem_of, standing
from tests.prefer.test_choice_file import choice, filled, turn


def side(number, **more):
    """A choice of the left answer about a prompt of its own, a0 over b0."""
    row = choice(f"p{number}", prompt=turn(f"q{number}", "user"), left=f"a{number}", right=f"b{number}")
    return row | {"chosen": turn(f"a{number}"), "rejected": turn(f"b{number}")} | more


def tie(number, kind="both_good", **more):
    return side(number) | {"choice": kind, "chosen": None, "rejected": None} | more


def undo(number, person="Ada"):
    return tie(number, "undo", person=person)


def read(path, load=load_preferences, **settings):
    """All rows that a stage reads, those held out too."""
    arguments = DataArguments(dataset_name=str(path), test_split_size=0.5, **settings)
    return [row for part in load(arguments, 0) for row in part]


def said_of(capsys, path):
    return [line.removeprefix(f"{path}: ") for line in capsys.readouterr().out.splitlines()]


MIXED = [tie(0), tie(1, "skip"), tie(2, "both_bad"), side(3), side(4), undo(4), side(5, person="Bo"), undo(3), side(3)]
MIXED += [side(3, person="Bo"), side(6, pair="p6b", repeat_of="p3"), tie(7, better="c", chosen=turn("c"))]
MIXED += [side(8, choice="right", chosen=turn("b8"), rejected=turn("a8"), comment="kinder")]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_reward_model_learns_from_the_choices_that_stand(tmp_path, capsys, streaming):
    path = filled(tmp_path / "prefs.jsonl", *MIXED)
    rows = read(path, dataset_streaming=streaming)
    pairs = sorted((row["prompt"][0]["content"], row["chosen"][0]["content"]) for row in rows)
    assert pairs == [("q3", "a3"), ("q3", "a3"), ("q5", "a5"), ("q8", "b8")]  # two people about q3
    assert all({*row} == {"prompt", "chosen", "rejected"} for row in rows)
    said = said_of(capsys, path)
    assert said[0] == "2 of 11 choices were undone or made again and are left out"
    assert streaming or said[1:] == [
        "3 of 9 rows are ties and left out",
        "1 of 9 rows are skipped and left out",
        "1 of 9 rows are repeated pairs and left out",
    ]


ODD = itertools.cycle([None, {}, {"temperature": 1}, {"temperature": "hot"}, 0.5, [1, "a"]])


@pytest.mark.parametrize("streaming", [False, True])
def test_bookkeeping_of_any_type_breaks_nothing(tmp_path, capsys, streaming):
    rows = [tie(i) for i in range(30)] + [side(i) for i in range(30, 40)]
    rows = [row | {"sampling": next(ODD), "models": next(ODD), "seconds": i} for i, row in enumerate(rows)]
    path = filled(tmp_path / "prefs.jsonl", *rows)
    assert len(read(path, dataset_streaming=streaming)) == 10
    assert "not used" not in capsys.readouterr().out
    assert len(read(path, load_prompts, dataset_streaming=streaming)) == 40


def test_other_tools_read_it_with_a_filter(tmp_path):
    path = filled(tmp_path / "prefs.jsonl", *[tie(i) for i in range(20)], side(20), tie(21, "skip"))
    data = load_dataset("json", data_files=str(path), split="train")
    ready = data.filter(lambda row: row["chosen"] is not None and row["rejected"] is not None)
    assert [(row["prompt"], row["chosen"]) for row in ready] == [(turn("q20", "user"), turn("a20"))]


def test_a_column_that_is_no_choices_is_still_named(tmp_path, capsys):
    path = tmp_path / "prefs.jsonl"
    path.write_text("".join(json.dumps(side(i) | {"mood": "good", "margin": 0.5}) + "\n" for i in range(4)))
    assert all(row["margin"] == 0.5 for row in read(path))
    assert said_of(capsys, path) == ["column mood is not used"]


def test_in_a_mixture(tmp_path, capsys):
    picks = filled(tmp_path / "prefs.jsonl", side(1), undo(1), side(2), side(3), tie(4), side(5), side(6))
    other = tmp_path / "pairs.jsonl"
    other.write_text("".join(json.dumps({"prompt": f"o{i}", "chosen": "a", "rejected": "b"}) + "\n" for i in range(9)))
    for streaming in (False, True):
        sources = [{"dataset_name": str(picks)}, {"dataset_name": str(other)}]
        arguments = DataArguments(datasets=sources, dataset_streaming=streaming, test_split_size=0.5)
        rows = [row for part in load_preferences(arguments, 0) for row in part]
        prompts = {row["prompt"][0]["content"] for row in rows}
        assert prompts == {"q2", "q3", "q5", "q6", *(f"o{i}" for i in range(9))}
        assert "prefs.jsonl: 1 of 6 choices were undone" in capsys.readouterr().out


def test_no_prompt_is_learnt_from_and_held_out(tmp_path):
    rows = [side(i % 7, pair=f"{i}", person=f"{i % 3}") for i in range(42)]
    parts = load_preferences(DataArguments(dataset_name=str(filled(tmp_path / "prefs.jsonl", *rows))), 0)
    prompts = [{row["prompt"][0]["content"] for row in part} for part in parts]
    assert prompts[0] | prompts[1] == {f"q{i}" for i in range(7)} and not prompts[0] & prompts[1]
    assert sum(len(list(part)) for part in parts) == 42


@pytest.mark.parametrize("streaming", [False, True])
def test_prompts_are_asked_once_and_come_without_the_bookkeeping(tmp_path, capsys, streaming):
    path = filled(tmp_path / "prefs.jsonl", *MIXED)
    rows = read(path, load_prompts, dataset_streaming=streaming)
    assert sorted(row["prompt"][0]["content"] for row in rows) == [f"q{i}" for i in range(9)]
    assert all({*row} == {"prompt"} for row in rows)
    assert said_of(capsys, path) == ["13 lines of a person's choices, 9 different prompts, each taken once"]
    assert prompt_row(rows[0]) == rows[0]


class Problems:
    unverifiable, system_prompt = "error", None


def test_problems_are_prompts_without_a_right_answer(tmp_path):
    path = filled(tmp_path / "prefs.jsonl", *MIXED)
    rows = read(path, lambda arguments, seed: load_problems(arguments, seed, [], Problems()))
    assert len(rows) == 9 and all({*row} == {"prompt"} for row in rows)


@pytest.mark.parametrize(("load", "stage"), [(load_conversations, "sft"), (load_texts, "pretrain")])
def test_stages_that_learn_from_texts_refuse_it(tmp_path, load, stage):
    path = filled(tmp_path / "prefs.jsonl", side(1), side(2))
    with pytest.raises(ValueError, match=f"choices between answers, which {stage} does not learn from; train a reward"):
        read(path, load)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([side(1), undo(1)], "prefs.jsonl: every choice in it was undone, so there is nothing to train on; choose"),
        ([tie(1), tie(2, "skip")], "prefs.jsonl: all rows are ties or skipped, so there is nothing to train on"),
        ([side(1, repeat_of="p0")], "prefs.jsonl: all rows are repeated pairs, so there is nothing to train on"),
        ([side(1)], "nothing can be held out of one document or copies of one"),
    ],
)
def test_a_file_of_which_nothing_is_usable(tmp_path, rows, said):
    with pytest.raises(ValueError, match=said):
        read(filled(tmp_path / "prefs.jsonl", *rows))


def test_an_empty_file_is_named(tmp_path):
    (tmp_path / "prefs.jsonl").write_text("")
    with pytest.raises(ValueError, match="prefs.jsonl is empty"):
        read(tmp_path / "prefs.jsonl")


def test_what_stands_is_the_last_word_of_each_person():
    rows = [side(1, seconds=1), side(1, seconds=2), side(2), undo(2), undo(3), side(1, person="Bo"), side(2, seconds=3)]
    found = [(row["person"], row["pair"], row["seconds"]) for row in standing(rows)]
    assert found == [("Ada", "p1", 2), ("Bo", "p1", 1.5), ("Ada", "p2", 3)]


def test_why_a_choice_is_left_out():
    rows = [side(1), tie(1), tie(1, "both_bad"), tie(1, "skip"), side(1, repeat_of="p0"), tie(1, better="c")]
    assert [left_out(row) for row in rows] == [None, "ties", "ties", "skipped", "repeated pairs", "ties"]
    assert left_out(tie(1, "both_bad", better="c", chosen=turn("c"), rejected=turn("a"))) is None
    assert problem_of(side(1)) is problem_of(undo(1)) is None
    assert problem_of(side(1, prompt=None)) == "its prompt is 'None', which must be turns"
