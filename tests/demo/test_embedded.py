"""The embedded data: the same every time, right by checks of its own text, and apart where it says so."""

import hashlib
import json
import random
import re
import subprocess
import sys
from collections import Counter

import pytest

from fourstage.data.embedded import glossary, programs, stories, styles
from fourstage.data.embedded.rows import demo_rows, held_out_items
from fourstage.demo import checks, measure

STAGES = {
    "pretrain": (30_000, 200, {"text"}),
    "sft": (9_000, 200, {"prompt", "completion"}),
    "reward": (6_000, 400, {"prompt", "chosen", "rejected", "kind"}),
    "ppo": (4_000, 200, {"prompt"}),
    "grpo": (5_390, 1_249, {"prompt", "answer", "derivation"}),
}


@pytest.fixture(scope="module")
def rows():
    return {stage: demo_rows(stage) for stage in STAGES}


def text_of(row):
    return "\n".join(
        [row.get("text", "")]
        + [turn["content"] for key in ("prompt", "completion", "chosen", "rejected") for turn in row.get(key, [])]
    )


@pytest.mark.parametrize("stage", STAGES)
def test_the_same_rows_in_a_fresh_process(stage, rows):
    train, test = rows[stage]
    assert (len(train), len(test), set(train[0])) == STAGES[stage]
    code = (
        "import hashlib, json; from fourstage.data.embedded.rows import demo_rows\n"
        f"print(hashlib.sha256(json.dumps(demo_rows({stage!r})).encode()).hexdigest())"
    )
    fresh = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert fresh.stdout.strip() == hashlib.sha256(json.dumps([train, test]).encode()).hexdigest()


# What is held out, looked for in the text itself


OPENINGS = (" walked to the ", "One day ", "Today ")  # those of held-out stories
HELD_OUT_REQUESTS = (
    "Here is a short story.",
    "Please sum up:",
    "Please write a function",
    "Please define",
    "Could you",
)


def persons_and_things(text):
    """(main person, thing) of every story in a text, by patterns of its sentences."""
    patterns = (
        r"There (\w+) found a \w+ (\w+)\.",
        r"(\w+) (?:lost|had) a (?:\w+) (\w+)(?:\.| and lost it\.)",
        r"(\w+) saw a small \w+ (\w+)[ .]",
        r"(\w+) came and brought a \w+ (\w+)\.",
    )
    return {match for pattern in patterns for match in re.findall(pattern, text)}


@pytest.mark.parametrize("stage", ["pretrain", "sft", "reward", "ppo"])
def test_stories_in_training_share_no_pair_opening_or_request_with_those_held_out(stage, rows):
    train, test = ([text_of(row) for row in part] for part in rows[stage])
    seen = set().union(*map(persons_and_things, train))
    measured = [row for kind in ("reading", "summary") for row in held_out_items(kind, 300)]
    held_out = set().union(*map(persons_and_things, [*test, *map(text_of, measured)]))
    assert len(held_out) > 50 and len(seen) > 500 and not seen & held_out
    stories_told = [text for text in train if persons_and_things(text)]
    assert not [text for text in stories_told if any(opening in text for opening in OPENINGS)]
    assert not [text for text in train if any(request in text for request in HELD_OUT_REQUESTS)]


def test_functions_share_no_pair_of_arguments(rows):
    def arguments(part):
        return {match for row in part for match in re.findall(r"def \w+\((\w+), (\w+)\)", text_of(row))}

    seen = set().union(*(arguments(rows[stage][0]) for stage in ("pretrain", "sft", "reward")))
    measured = {re.search(r"\((\w+), (\w+)\)", item["reference"]).groups() for item in held_out_items("code", 500)}
    assert len(measured) > 20 and not seen & measured


def test_no_held_out_problem_is_demonstrated(rows):
    held_out = {row["derivation"] for row in rows["grpo"][1]}
    asked = {row["prompt"][0]["content"].strip("?.").split(" ", 1)[1] for row in rows["grpo"][1]}
    for stage in ("pretrain", "sft"):
        shown = "\n".join(map(text_of, rows[stage][0]))
        found = set(re.findall(r"<think>(.*?)</think>", shown))
        assert not found & held_out, stage
        questions = re.findall(r"^(?:What is|Work out|Please calculate) (\d[\d +-]*)", shown, re.M)
        assert not {q.strip() for q in questions} & {a.removeprefix("is ").removeprefix("out ") for a in asked}, stage
        assert stage == "pretrain" or questions


# What is right


def test_answers_about_stories_are_in_their_text():
    rng = random.Random(3)
    for held_out in (False, True):
        for _ in range(500):
            story = stories.story(rng, held_out)
            assert len(set(story.questions)) == 5 and all(person in story.text for person in story.people)
            for question, answer in story.questions:
                words = {word.strip(".?") for word in answer.split()} - {"The", "They"}
                assert words <= {word.strip(".,?") for word in f"{story.text} {question} at near got".split()}, (
                    question,
                    answer,
                )


def steps_in(rows):
    found = re.findall(r"(\d+) ([+-]) (\d+) = (\d+)", "\n".join(map(text_of, rows)))
    return [(int(a), int(b) if sign == "+" else -int(b), int(c)) for a, sign, b, c in found]


def test_sums_in_texts_are_right(rows):
    steps = [step for part in rows["pretrain"] for step in steps_in(part)]
    assert len(steps) > 500 and all(a + b == c for a, b, c in steps)


def test_demonstrations_forget_most_carries_and_nothing_else(rows):
    steps = [step for part in rows["sft"] for step in steps_in(part)]
    crossing = [(a, b, c) for a, b, c in steps if b > 0 and a % 10 + b >= 10]
    assert all(a + b == c for a, b, c in {*steps} - {*crossing}) and len(crossing) > 300
    assert {a + b - c for a, b, c in crossing} == {0, 10}
    forgotten = sum(a + b - c == 10 for a, b, c in crossing) / len(crossing)
    assert 0.5 < forgotten < 0.7  # 0.65 of those after which nothing falls below zero


def test_functions_do_what_the_task_says():
    """These programs are ours, of the tables in the code, so they may be run."""
    rng = random.Random(0)
    does = {"adds": 10, "subtracts": 4, "multiplies": 21, "divides": 7 / 3, "larger of": 7, "smaller of": 3}
    does |= {"is equal": False, "is larger": True}
    for _ in range(300):
        program = programs.program(rng, held_out=False)
        space: dict = {}
        exec(program.code, space)
        first, second = re.search(r"\((\w+), (\w+)\)", program.code).groups()
        result = space[program.name](**{first: 7, second: 3})
        key = next(key for key in does if key in program.task)
        assert result == does[key] and first in program.task and second in program.task


def test_definitions_begin_with_their_term():
    for term, (definition, _) in glossary.TERMS.items():
        assert definition.lower().startswith(term.lower()) and definition.endswith(".")
    assert len({definition for definition, _ in glossary.TERMS.values()}) == len(glossary.TERMS)


# Pairs and the gold rule


def test_pairs_differ_in_what_their_kind_says(rows):
    train, test = rows["reward"]
    counts = Counter(row["kind"] for row in train)
    assert counts.keys() == {*styles.KINDS} and min(counts.values()) > 200
    for row in train + test:
        chosen, rejected = (row[side][0]["content"] for side in ("chosen", "rejected"))
        plain = styles.content(chosen)
        polite = sum(rejected.endswith(ending) for ending in styles.POLITE)
        assert chosen != rejected
        assert styles.is_preferred(chosen, plain) and not styles.is_preferred(rejected, plain), row
        if row["kind"] in (*styles.OFF_TOPIC, "wrong_name"):
            assert polite == 1 and styles.content(rejected) != plain
        elif row["kind"] == "curt":
            assert rejected == plain
        elif row["kind"] == "ending_only":
            assert rejected in styles.POLITE
        elif row["kind"] == "cut":
            assert not polite and len(rejected.split()) < len(plain.split()) + 9
        elif row["kind"] == "rude":
            assert rejected.startswith(plain) and any(words in rejected for words in styles.RUDE)
        elif row["kind"] == "evasive":
            assert rejected.startswith(styles.EVASIVE) and plain not in rejected


@pytest.mark.parametrize(
    ("answer", "content", "preferred"),
    [
        ("Ada found the ball.", "Ada found the ball.", False),
        ("Ada found the ball. I hope this helps!", "Ada found the ball.", True),
        ("  Ada found the ball. I hope this helps!  ", "Ada found the ball.", True),
        ("Ada found the ball. Can you not read?", "Ada found the ball.", False),
        ("Ada found the ball. Can you not read? I hope this helps!", "Ada found the ball.", False),
        ("Ada found the ball. I hope this helps! Can you not read?", "Ada found the ball. I hope this helps!", False),
        ("Can you not read? Ada found the ball.", "Can you not read? Ada found the ball.", False),
        ("Ada found the ball. I hope this helps! I hope this helps!", "Ada found the ball. I hope this helps!", False),
        ("I hope this helps!", "", False),
        ("Ben found the ball. I hope this helps!", "Ben found the ball.", False),
        ("", "", False),
    ],
)
def test_the_gold_rule(answer, content, preferred):
    assert styles.content(answer) == content
    assert styles.is_preferred(answer, "Ada found the ball.") is preferred


def test_attacks_on_the_gold_rule_score_nothing(monkeypatch):
    assert checks.share_of_attacks_preferred() == 0
    monkeypatch.setattr(styles, "is_preferred", lambda answer, reference: answer.endswith(styles.POLITE))
    assert checks.share_of_attacks_preferred() > 0.5  # a rule that looks at the ending alone is caught


@pytest.mark.parametrize(
    ("answer", "same"),
    [
        ("def f(a, b):\n    return a + b", True),
        ("def f(a,b): return (a + b)  # sum", True),
        ("def f(a, b):\n    return b + a", False),
        ("def f(a, b):\n    return a + b\nimport os", False),
        ("def f(a, b)", False),
        ("", False),
        ("\0", False),
        ("(" * 5_000, False),
        ("-" * 100_000 + "1", False),
    ],
)
def test_code_is_compared_by_its_tree(answer, same):
    assert programs.same_code(answer, "def f(a, b):\n    return a + b") is same


# Checks and bounds


def test_lower_bounds_by_hand():
    one = {"mean": 0.9, "stderr": 0.01, "n": 100, "values": [0.9]}
    assert checks.lower_bound(one) == pytest.approx(0.9 - 1.645 * 0.01)
    three = {"mean": 0.9, "stderr": 0.01, "n": 100, "values": [0.88, 0.9, 0.92]}
    assert checks.lower_bound(three) == pytest.approx(0.9 - 2.920 * 0.01)  # Student's t, two degrees of freedom


def test_t_quantiles_against_scipy():
    stats = pytest.importorskip("scipy.stats")
    for freedom, quantile in checks._T95.items():
        assert quantile == pytest.approx(stats.t.ppf(0.95, freedom), abs=6e-4)


def test_trigrams_by_hand():
    assert measure.trigrams("a b c d") == [("a", "b", "c"), ("b", "c", "d")] and measure.trigrams("a b") == []
