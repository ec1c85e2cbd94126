"""Problems of the known data sets become prompts and right answers, which their own verifiers must accept."""

import functools
import json
import re
from datetime import date, datetime
from decimal import Decimal
from types import SimpleNamespace

import pytest
from helpers import ROOT

from fourstage import verifiers
from fourstage.arguments import DataArguments
from fourstage.data.embedded import sums
from fourstage.data.embedded.rows import demo_rows
from fourstage.data.loading import held_out_rows, load_problems, problem_format
from fourstage.data.problems import gold_check, golds_of, problem_row
from fourstage.rl.rewards import checked


def asked(text):
    return [{"role": "user", "content": text}]


WHICH = {"question": "What is hot?"}
HOT = {"prompt": asked("What is hot?\nA) ice\nB) fire"), "answer": "B"}
# One row of each data set, in the columns that it is published with; the questions are ours.
ROWS = [
    (
        {"question": "A hen lays 3 eggs a day. In a week?", "answer": "3*7 = <<3*7=21>>21 eggs.\n#### 21"},
        {
            "prompt": asked("A hen lays 3 eggs a day. In a week?"),
            "answer": "21",
            "derivation": "3*7 = <<3*7=21>>21 eggs.",
        },
    ),
    (
        {"id": "chal-0", "question": "Ben had 4 and ate 1. Left?", "answer": "3", "type": "Subtraction"},
        {"prompt": asked("Ben had 4 and ate 1. Left?"), "answer": "3", "id": "chal-0", "type": "Subtraction"},
    ),
    (
        {"question": "How many?", "answer": "9 (apples)", "number": "9", "formula": "7+2=9", "grade": 1},
        {"prompt": asked("How many?"), "answer": "9", "formula": "7+2=9", "grade": 1},
    ),
    (
        {"problem": "Halve one.", "solution": r"So $\boxed{\frac{1}{2}}$.", "level": "Level 1"},
        {
            "prompt": asked("Halve one."),
            "answer": r"\frac{1}{2}",
            "derivation": r"So $\boxed{\frac{1}{2}}$.",
            "solution": r"So $\boxed{\frac{1}{2}}$.",
            "level": "Level 1",
        },
    ),
    (
        {"question": "2 + 2?", "options": ["A)3", "B)4"], "rationale": "count", "correct": "B"},
        {"prompt": asked("2 + 2?\nA)3\nB)4"), "answer": "B", "rationale": "count"},
    ),
    (
        {"question": "2 + 2?", "choices": ["3", "4"], "labels": ["A", "B"], "answer": "B"},
        {"prompt": asked("2 + 2?\nA) 3\nB) 4"), "answer": "B"},
    ),
    (
        {"question": "2 + 2?", "choices": ["3", "4"], "answer": 1},
        {"prompt": asked("2 + 2?\nA) 3\nB) 4"), "answer": "B"},
    ),
    ({"prompt": asked("Seven?"), "answer": 7, "completion": "7"}, {"prompt": asked("Seven?"), "answer": "7"}),
    # ARC, with letters and with digits; OpenBookQA; CommonsenseQA, also as its makers publish it
    ({**WHICH, "choices": {"text": ["ice", "fire"], "label": ["A", "B"]}, "answerKey": "B"}, HOT),
    ({**WHICH, "choices": {"text": ["ice", "fire"], "label": ["1", "2"]}, "answerKey": "2"}, HOT),
    (
        {**WHICH, "choices": {"label": ["1", "2"], "text": ["1", "2"]}, "answer": "2"},
        {"prompt": asked("What is hot?\nA) 1\nB) 2"), "answer": "B"},
    ),
    ({**WHICH, "choices": ["ice", "fire"], "labels": [1, 2], "answer": 2}, HOT),
    ({**WHICH, "choices": [{"text": "ice", "label": "a"}, {"text": "fire", "label": "b"}], "answerKey": "b"}, HOT),
    (
        {
            "question_stem": "What is hot?",
            "choices": {"text": ["ice", "fire"], "label": ["A", "B"]},
            "answerKey": "B",
            "id": "7",
        },
        {**HOT, "id": "7"},
    ),
    (
        {
            "question": {
                "stem": "What is hot?",
                "choices": [{"label": "A", "text": "ice"}, {"label": "B", "text": "fire"}],
            },
            "answerKey": "B",
        },
        HOT,
    ),
    ({**WHICH, "choices": {"text": ["ice", "fire"], "label": ["A", "B"]}, "answerKey": ""}, {**HOT, "answer": None}),
    # MedQA, also as Arrow fills rows with fewer options; MedMCQA; MMLU by letter, by text of the index, MMLU-Pro
    ({**WHICH, "options": {"A": "ice", "B": "fire", "C": None}, "answer": "fire", "answer_idx": "B"}, HOT),
    ({**WHICH, "options": [{"key": "A", "value": "ice"}, {"key": "B", "value": "fire"}], "answer": "fire"}, HOT),
    (
        {**WHICH, "opa": "ice", "opb": "fire", "opc": "mud", "opd": "air", "cop": 1},
        {"prompt": asked("What is hot?\nA) ice\nB) fire\nC) mud\nD) air"), "answer": "B"},
    ),
    ({**WHICH, "choices": ["ice", "fire"], "answer": "B"}, HOT),
    ({**WHICH, "choices": ["ice", "fire"], "answer": "(b)"}, HOT),
    ({**WHICH, "choices": ["ice", "fire"], "answer": 1.0}, HOT),
    ({**WHICH, "choices": ["ice", "fire"], "answer": None}, {**HOT, "answer": None}),
    (
        {**WHICH, "options": [*"zyxwvutsrq"], "answer": "J", "answer_index": 9},
        {
            "prompt": asked(
                "What is hot?\n" + "\n".join(f"{x}) {t}" for x, t in zip("ABCDEFGHIJ", "zyxwvutsrq", strict=True))
            ),
            "answer": "J",
        },
    ),
    # PIQA, HellaSwag, SciQ
    ({"goal": "What is hot?", "sol1": "ice", "sol2": "fire", "label": 1}, HOT),
    ({"ctx": "What is hot?", "endings": ["ice", "fire"], "label": "1", "ind": 4}, {**HOT, "ind": 4}),
    (
        {
            **WHICH,
            "correct_answer": "fire",
            "distractor1": "ice",
            "distractor2": "mud",
            "distractor3": "air",
            "support": "",
        },
        {"prompt": asked("What is hot?\nA) air\nB) fire\nC) ice\nD) mud"), "answer": "B", "support": ""},
    ),
    (
        {**WHICH, "answer": "4", "choices": None, "options": [], "labels": None},
        {"prompt": asked("What is hot?"), "answer": "4", "choices": None, "options": [], "labels": None},
    ),
    # TRL's sets and DeepMath; NuminaMath and OpenR1-Math; BigMath; DAPO and verl
    (
        {"prompt": asked("Half?"), "solution": r"$\frac12$"},
        {"prompt": asked("Half?"), "answer": r"$\frac12$", "solution": r"$\frac12$"},
    ),
    (
        {"prompt": "Half?", "solution": r"So \boxed{\frac12}."},
        {
            "prompt": asked("Half?"),
            "answer": r"\frac12",
            "solution": r"So \boxed{\frac12}.",
            "derivation": r"So \boxed{\frac12}.",
        },
    ),
    (
        {"question": "Half?", "final_answer": "1/2", "r1_solution_1": "x"},
        {"prompt": asked("Half?"), "answer": "1/2", "final_answer": "1/2", "r1_solution_1": "x"},
    ),
    (
        {"problem": "Half?", "solution": "Cut it.", "answer": "1/2", "messages": asked("Half?")},
        {"prompt": asked("Half?"), "answer": "1/2", "solution": "Cut it.", "derivation": "Cut it."},
    ),
    (
        {"problem": "Half?", "answer": "1/2", "llama8b_solve_rate": 0.5},
        {"prompt": asked("Half?"), "answer": "1/2", "llama8b_solve_rate": 0.5},
    ),
    (
        {"prompt": asked("34?"), "reward_model": {"ground_truth": "34", "style": "rule"}, "extra_info": {"index": 1}},
        {
            "prompt": asked("34?"),
            "answer": "34",
            "reward_model": {"ground_truth": "34", "style": "rule"},
            "extra_info": {"index": 1},
        },
    ),
    (
        {"prompt": asked("34?"), "extra_info": {"answer": "30 + 4\n#### 34"}},
        {"prompt": asked("34?"), "answer": "34", "derivation": "30 + 4", "extra_info": {"answer": "30 + 4\n#### 34"}},
    ),
    (
        {"prompt": asked("Make 5."), "reward_model": {"ground_truth": {"target": 5, "numbers": [2, 3]}}},
        {"prompt": asked("Make 5."), "nums": [2, 3], "target": 5},
    ),
    # Answers as they are written
    *[
        ({**WHICH, "answer": value}, {"prompt": asked("What is hot?"), "answer": text})
        for value, text in [
            (72.0, "72"),
            (-0.0, "0"),
            (72.5, "72.5"),
            (0.1, "0.1"),
            (2**70, str(2**70)),
            (True, "true"),
            (False, "false"),
            (datetime(1879, 3, 14), "1879-03-14"),
            (datetime(1879, 3, 14, 10, 30), "1879-03-14 10:30:00"),
            (date(1879, 3, 14), "1879-03-14"),
            (Decimal("1.10"), "1.10"),
            ("007", "007"),
            (" 1.50", " 1.50"),
            ("true", "true"),
        ]
    ],
]


@pytest.mark.parametrize(("row", "problem"), ROWS, ids=[f"{i} {sorted(row)}" for i, (row, _) in enumerate(ROWS)])
def test_rows_of_known_data_sets(row, problem):
    assert problem_row(row) == problem


def test_examples_in_the_documents_are_problems():
    page = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    section = page.partition("## Reasoning tuning: GRPO")[2].partition("\n## ")[0]
    examples = [json.loads(text) for text in re.findall(r"\| `(\{.*\})` \|$", section, re.M)]
    assert len(examples) >= 14
    for row in examples:
        problem = problem_row(row)
        assert problem["prompt"][-1]["role"] == "user" and (
            problem.get("answer") or problem.get("nums") or problem["tests"]
        ), row


def test_countdown_asks_with_its_numbers():
    problem = problem_row({"target": 24, "nums": [2, 3, 4], "solution": "2 * 3 * 4"})
    text = problem["prompt"][0]["content"]
    assert "2, 3, 4" in text and "make 24" in text and "answer" not in problem
    assert (problem["nums"], problem["target"], problem["solution"]) == ([2, 3, 4], 24, "2 * 3 * 4")


def test_a_system_prompt_stands_before_that_of_the_row():
    row = {"prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}], "answer": "4"}
    prompt = problem_row(row, "Think first.")["prompt"]
    assert prompt == [{"role": "system", "content": "Think first.\n\nBe brief."}, {"role": "user", "content": "2+2?"}]
    assert problem_row({"system": "Be brief.", "question": "2+2?", "answer": "4"}, "Think first.")["prompt"] == prompt


def test_a_system_prompt_comes_first():
    problem = problem_row({"question": "2 + 2?", "answer": "4"}, "Think first.")
    assert problem["prompt"] == [{"role": "system", "content": "Think first."}, *asked("2 + 2?")]


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"text": "a"}, "hold no prompt"),
        ({"question": "a", "answer": ["4"]}, "column 'answer' holds list"),
        ({"question": "a", "answer": {"value": "4"}}, "column 'answer' holds dict, {'value': '4'}"),
        (
            {"question": "a", "answer": 2.0**60},
            "holds 1.15.*e.18, a whole number that is no longer exact; write it as text",
        ),
        ({"prompt": "a", "reward_model": {"ground_truth": ["4"]}}, "column 'reward_model.ground_truth' holds list"),
        (
            {"question": {"text": "a"}, "answer": "4"},
            "column 'question' holds a mapping of .'text'.; expected text, or stem",
        ),
        ({**WHICH, "choices": {"a": 1, "b": 2}, "answer": "A"}, "column 'choices' holds a mapping of .'a', 'b'."),
        ({**WHICH, "choices": [{"id": 1}, {"id": 2}], "answer": "A"}, "column 'choices' holds .{'id': 1}"),
        ({**WHICH, "choices": "A) ice", "answer": "A"}, "column 'choices' holds 'A. ice'"),
        ({**WHICH, "choices": [["ice"], ["fire"]], "answer": "A"}, "column 'choices' holds .*expected texts"),
        ({**WHICH, "choices": ["ice"], "answer": "A"}, "has 1 choices; expected 2 to 10"),
        ({**WHICH, "options": [*"abcdefghijk"], "answer": "A"}, "has 11 choices; expected 2 to 10"),
        ({**WHICH, "choices": ["ice", "fire"], "labels": ["A"], "answer": "A"}, "has 2 choices and 1 labels"),
        ({**WHICH, "choices": ["ice", "fire"], "answer": 2}, "column 'answer' holds 2, which is none of the 2 choices"),
        (
            {**WHICH, "choices": ["ice", "fire"], "answer": "C"},
            "holds 'C', which is none of the 2 choices of column 'choices'",
        ),
        ({**WHICH, "choices": ["ice", "fire"], "answer": -1}, "holds -1, which is none of the 2"),
        (
            {**WHICH, "options": {"A": "ice", "B": "fire"}, "answer": "ice", "answer_idx": "B"},
            "'answer_idx' and 'answer' name different",
        ),
        ({"question": "a", "answer": float("nan")}, "holds nan"),
    ],
)
def test_rows_that_are_no_problems(row, why):
    with pytest.raises(ValueError, match=why):
        problem_row(row)


def test_rows_left_out():
    assert problem_row({"question": " ", "answer": "4"}) is None
    assert "one number" in problem_row({"question": "When?", "answer": "2:30", "number": None, "formula": "x"})


def test_a_solution_without_a_box_is_a_row_without_a_gold():
    row = problem_row({"problem": "Halve one.", "solution": "One half."})
    assert row["answer"] is None and gold_check([verifiers.math], "drop")(row) == "not verifiable by math"
    last = problem_row({"problem": "Halve one.", "solution": r"\boxed{1} no, \boxed{\frac12}"})
    assert last["answer"] == r"\frac12"


# Golds


def test_a_gold_that_its_verifier_rejects_is_an_error_or_left_out():
    row = {"prompt": asked("How many?"), "answer": "about a dozen"}
    with pytest.raises(ValueError, match=r"'about a dozen' cannot be read by its own verifier number.*--unverifiable"):
        gold_check([verifiers.number], "error")(row)
    assert gold_check([verifiers.number], "drop")(row) == "not verifiable by number"
    assert gold_check([verifiers.number], "error")({**row, "answer": "12"}) is None
    assert gold_check([verifiers.exact], "error")(row) is None


def test_a_verifier_with_options_checks_golds_too():
    row = {"prompt": asked("How many?"), "answer": "about a dozen"}
    for function in (functools.partial(verifiers.number), checked(verifiers.number, name="gold")):
        with pytest.raises(ValueError, match="cannot be read by its own verifier number"):
            gold_check([function], "error")(row)


def test_which_of_several_right_answers_counts():
    row = {
        "question": "4?",
        "answer": "4",
        "final_answer": "5",
        "reward_model": {"ground_truth": "6"},
        "solution": "#### 7",
    }
    places = ["answer", "final_answer", "reward_model.ground_truth", "solution"]
    assert list(golds_of(row)) == places and problem_row(row)["answer"] == "4"
    for count, gold in ((1, "5"), (2, "6"), (3, "7")):
        gone = ("answer", "final_answer", "reward_model")[:count]
        left = {key: value for key, value in row.items() if key not in gone}
        assert problem_row(left)["answer"] == gold


def test_a_wrong_countdown_solution():
    row = {"nums": [2, 3], "target": 6, "solution": "2 + 3"}
    with pytest.raises(ValueError, match=r"'2 \+ 3' is wrong to its own verifier countdown"):
        gold_check([verifiers.countdown], "error")(row)
    check = gold_check([verifiers.countdown], "error")
    assert check({**row, "solution": "2 * 3"}) is None
    assert check({"nums": [2, 3], "target": 6}) is None  # it needs no solution to be a problem


def test_data_without_answers():
    with pytest.raises(ValueError, match=r"number needs the column 'answer', found \['prompt'\]"):
        gold_check([verifiers.number], "drop")({"prompt": asked("How many?")})


def test_a_bad_gold_is_named_by_its_row(tmp_path):
    data = [{"question": f"{i} + 1?", "answer": "many" if i == 3 else str(i + 1)} for i in range(20)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in data))
    data_args = DataArguments(dataset_name=str(tmp_path / "sums.jsonl"), test_split_size=0.2)
    settings = SimpleNamespace(unverifiable="error", system_prompt=None)
    with pytest.raises(ValueError, match="row 4: the right answer 'many'"):
        load_problems(data_args, 0, [verifiers.number], settings)
    settings.unverifiable = "drop"
    train, test = load_problems(data_args, 0, [verifiers.number], settings)
    assert len(train) + len(test) == 19 and "many" not in [*train["answer"], *test["answer"]]
    convert = problem_format([verifiers.number], settings.unverifiable, settings.system_prompt)
    assert list(held_out_rows("grpo", None, data_args, 0, convert)) == list(test)


@pytest.mark.parametrize("streaming", [False, True])
def test_no_problem_is_on_both_sides(tmp_path, streaming):
    data = [{"question": f"{i % 20} + 1?", "answer": str(i % 20 + 1)} for i in range(60)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in data))
    args = DataArguments(dataset_name=str(tmp_path / "sums.jsonl"), test_split_size=0.3, dataset_streaming=streaming)
    settings = SimpleNamespace(unverifiable="error", system_prompt=None)
    train, test = load_problems(args, 0, [verifiers.number], settings)
    sides = [{row["prompt"][0]["content"] for row in part} for part in (train, test)]
    assert sides[0].isdisjoint(sides[1]) and len(sides[0] | sides[1]) == 20


# The embedded problems


def test_embedded_problems_are_right_and_apart():
    """Answers and steps against Python's own arithmetic on the text of the question."""
    train, test = demo_rows("grpo")
    assert len(test) >= 1_000 and len(train) >= 5_000
    for row in train[:300] + test:
        start, *changes = (
            word.strip("?.") for word in row["prompt"][0]["content"].split() if word[0] in "+-0123456789"
        )
        value, steps = int(start), []
        for sign, size in zip(changes[::2], changes[1::2], strict=True):
            after = value + int(size) if sign == "+" else value - int(size)
            steps.append(f"{value} {sign} {size} = {after}.")
            value = after
        assert (row["answer"], row["derivation"]) == (str(value), " ".join(steps))
    assert set(sums.triples(True)).isdisjoint(sums.triples(False))


# Generated tasks


def test_a_generated_task_with_a_curriculum():
    pytest.importorskip("reasoning_gym")
    levels = '{"max_digits": 1, "levels": [{"min_terms": 2, "max_terms": 2}, {"min_terms": 4, "max_terms": 4}]}'
    args = DataArguments(
        dataset_name="reasoning-gym/chain_sum", task_settings=levels, task_size=40, test_split_size=0.2
    )
    settings = SimpleNamespace(unverifiable="error", system_prompt=None)
    train, test = load_problems(args, 0, [verifiers.number], settings)
    assert (len(train), len(test)) == (40, 8)
    questions = [row["prompt"][0]["content"] for row in train]
    terms = [
        question.rpartition(":")[2].count("+") + question.rpartition(":")[2].count("-") + 1 for question in questions
    ]
    assert terms == [2] * 20 + [4] * 20
    assert {row["prompt"][0]["content"] for row in test}.isdisjoint(questions)


@pytest.mark.parametrize(
    ("name", "task_settings", "why"),
    [
        ("sudoku", None, "no task 'sudoku'.*chain_sum"),
        ("chain_sum", '{"terms": 2}', "no setting terms; it has .*min_terms"),
        ("chain_sum", "{terms", "must be a mapping, in JSON"),
    ],
)
def test_tasks_that_cannot_be_made(name, task_settings, why):
    pytest.importorskip("reasoning_gym")
    with pytest.raises(ValueError, match=why):
        args = DataArguments(dataset_name=f"reasoning-gym/{name}", task_settings=task_settings)
        load_problems(args, 0, [verifiers.number], SimpleNamespace(unverifiable="error", system_prompt=None))
