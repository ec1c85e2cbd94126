"""What a file of choices tells, by hand: win rates, position, agreement, steadiness, and a reward model beside it."""

import argparse
import json
import math
import shutil

import pytest
from datasets import load_dataset

from fourstage.prefer.record import read_choices
from fourstage.prefer.scored import score
from fourstage.prefer.statistics import describe, export, run_statistics, statistics
from tests.helpers import SMALL_RUN, record_of, run_here
from tests.prefer.test_choice_file import choice, filled, turn
from tests.prefer.test_picks import MIXED, side, tie, undo

OLD, NEW = {"name": "runs/old", "weights": "0ld0ld0ld0"}, {"name": "runs/new", "weights": "3e33e33e33"}


def kinds(words, person="Ada", start=0, **more):
    """A row for each word, each about a pair of its own: L, R, G (both good), B (both bad) or S (skip)."""
    made = {
        "L": lambda i: side(i, person=person, **more),
        "R": lambda i: side(i, person=person, choice="right", chosen=turn(f"b{i}"), rejected=turn(f"a{i}"), **more),
        "G": lambda i: tie(i, "both_good", person=person, **more),
        "B": lambda i: tie(i, "both_bad", person=person, **more),
        "S": lambda i: tie(i, "skip", person=person, **more),
    }
    return [made[word](number) for number, word in enumerate(words, start)]


def wilson(wins, n, z=1.959964):
    """The interval as Wilson wrote it in 1927."""
    share, spread = wins / n, z * math.sqrt(wins / n * (1 - wins / n) / n + z * z / (4 * n * n))
    return [(share + z * z / (2 * n) + sign * spread) / (1 + z * z / n) for sign in (-1, 1)]


def test_counts_by_hand():
    found = statistics(MIXED)
    # stand: both_good, skip, both_bad, left of 3 by Ada (the second time) and Bo, of 5, the repeat 6, a tie, right of 8
    assert found["choices"] == {
        "left": 3,
        "right": 1,
        "both_good": 2,
        "both_bad": 1,
        "skip": 1,
        "undone": 2,
        "repeated": 1,
    }
    assert (found["ready"], found["left_out"]) == (4, {"ties": 3, "skipped": 1, "repeated pairs": 1})
    assert found["seconds"] == 1.5 and {name: own["choices"] for name, own in found["people"].items()} == {
        "Ada": 7,
        "Bo": 2,
    }
    paced = [side(1, seconds=1), side(2, seconds=9), side(3, seconds=None), side(4, person="Bo", seconds=4.0)]
    found = statistics(paced)
    assert (found["seconds"], found["people"]["Ada"]["seconds"], found["people"]["Bo"]["seconds"]) == (4, 5, 4)


def test_win_rates_by_hand():
    there = kinds("LLLLLRGS", models=[NEW, OLD])  # new wins 5, old 1
    back = kinds("LRRB", start=20, models=[OLD, NEW])  # old wins 1, new 2
    repeat = kinds("L", start=30, models=[NEW, OLD], repeat_of="p0")
    own = kinds("LLG", start=40, models=[NEW, NEW])
    odd = kinds("LLLL", start=50, models=None) + kinds("L", start=60, models=[{"name": 1}, "x"])
    found = statistics(there + back + repeat + own + odd)
    (match,) = found["models"]
    assert match["models"] == ["runs/new", "runs/old"] and match["wins"] == [7, 2]
    assert (match["both_good"], match["both_bad"], match["skip"], found["one_model"]) == (1, 1, 1, 3)
    assert match["share"] == 7 / 9
    assert [match["low"], match["high"]] == pytest.approx(wilson(7, 9), abs=1e-6)
    low, high = wilson(2, 9)
    assert f"runs/old wins 2 of 9 (22.2%), 95% interval {low:.1%} to {high:.1%}" in describe(found)
    (only_ties,) = statistics(kinds("GB", models=[NEW, OLD]))["models"]
    assert only_ties["share"] is only_ties["low"] is None


def test_a_model_is_its_weights_whatever_its_name_is():
    again = {**NEW, "name": "./runs/new"}
    later = {"name": "runs/new", "weights": "1a7e1a7e1a"}
    rows = kinds("LL", models=[NEW, OLD]) + kinds("L", start=5, models=[again, OLD])
    rows += kinds("R", start=9, models=[NEW, later])
    first, second = statistics(rows)["models"]
    assert first["wins"] == [3, 0] and first["models"][1] == "runs/old"
    assert second["models"] == ["runs/new (3e33e33e)", "runs/new (1a7e1a7e)"] and second["wins"] == [0, 1]
    nameless = statistics(kinds("LR", models=[{"name": "a", "weights": None}, {"name": "b", "weights": None}]))
    assert nameless["models"][0]["models"] == ["a", "b"]


@pytest.mark.parametrize(("words", "p"), [("LLLLLLLLLR", 2 * 11 / 2**10), ("LR", 1.0), ("RRRGBS", 2 / 2**3)])
def test_whether_the_side_mattered(words, p):
    found = statistics(kinds(words) + kinds("L", start=90, repeat_of="p0"))
    assert found["position"] == {"left": words.count("L"), "sides": words.count("L") + words.count("R"), "p": p}
    assert ("a lean to one side" in describe(found)) is (p < 0.05)


def agreement(*people):
    rows = [row for name, words in zip("abc", people, strict=False) for row in kinds(words, person=name)]
    found = statistics(rows)
    return found["agreement"], describe(found)


def test_agreement_of_two_by_hand():
    found, text = agreement("LLRR" + "S" + "L", "LLRL" + "L" + "S")  # skips are no judgement
    assert found["pairs"] == 4 and found["between"][0]["alike"] == 3
    assert found["kappa"] == pytest.approx((3 / 4 - 1 / 2) / (1 - 1 / 2))
    assert "two people chose alike in 3 of 4 (75.0%), on 4 shared pairs; Cohen's kappa 0.50" in text
    found, _ = agreement("LRGB", "LRBG")  # each kind once by each: 4 / 16 by chance
    assert found["kappa"] == pytest.approx((2 / 4 - 1 / 4) / (1 - 1 / 4))


def test_agreement_of_three_is_the_mean_of_any_two():
    found, text = agreement("LLRR", "LLRL", "LLL")
    # a and b: 0.5; a and c about three: alike 2/3, by chance 2/3 -> 0; b and c: the same 2 of 3
    assert [each["kappa"] for each in found["between"]] == pytest.approx([0.5, 0.0, 0.0])
    assert found["pairs"] == 4 and found["kappa"] == pytest.approx(0.5 / 3)
    assert "7 of 10 (70.0%), on 4 shared pairs; mean Cohen's kappa of 3 pairs of people 0.17" in text


def test_agreement_that_is_not_defined_is_said_to_be():
    found, text = agreement("LLLL", "LLLL")
    assert found["kappa"] is None and "kappa is undefined" in text and "nan" not in text
    found, text = agreement("LLR", "LLR", "LL")
    assert found["kappa"] == 1.0 and "(undefined for 2 more, who all chose the same)" in text
    found, text = agreement("LLR")
    assert found["between"] == [] and "agreement" not in text


def test_who_chooses_alike_when_the_sides_are_swapped():
    first = kinds("LLRGBGS")
    again = kinds("RLLGGGL", start=10)
    repeats = [row | {"repeat_of": f"p{number}"} for number, row in enumerate(again)]
    # alike: left -> right, right -> left, both good twice; not: left -> left, both bad -> both good; a skip is none
    strangers = [side(40, repeat_of="p99"), side(41, repeat_of="p0", person="Bo"), side(42), undo(42)]
    strangers.append(side(43, repeat_of="p42"))
    found = statistics(first + repeats + strangers)
    assert found["steady"] == {"alike": 4, "repeats": 6}
    assert "steady: 4 of 6 (66.7%)" in describe(found)


def test_what_others_wrote_into_the_file_is_harmless_in_a_terminal():
    evil = "\x1b[2JEve\n\u202eadmin" + "x" * 200
    rows = kinds("L", person=evil, models=[{"name": evil, "weights": None}, OLD]) + kinds("L", start=3)
    lines = describe(statistics(rows)).split("\n")
    assert all(line.isprintable() for line in lines) and sum("\\x1b[2JEve \\u202eadmin" in line for line in lines) == 3
    assert max(map(len, lines)) < 200


def test_rows_that_a_reward_model_could_not_read_are_counted():
    rows = kinds("LL") + [side(7, chosen=turn("b7")), side(8, chosen=turn(" ")), side(9, chosen=turn("x", "user"))]
    found = statistics(rows)
    assert found["ready"] == 2
    assert found["left_out"] == {"equal in chosen and rejected": 1, "without a chosen answer": 1, "unreadable": 1}


def run(path, capsys, reward_model=None, export=None):
    arguments = argparse.Namespace(stats=path, reward_model=reward_model, export=export)
    status = run_statistics(arguments)
    return status, capsys.readouterr().out


def test_the_pairs_for_other_tools(tmp_path, capsys):
    path = filled(tmp_path / "prefs.jsonl", *MIXED)
    out = tmp_path / "new" / "pairs.jsonl"
    status, said = run(path, capsys, export=out)
    assert status == 0 and said.endswith(f"{out}: 4 pairs of prompt, chosen and rejected\n")
    rows = list(load_dataset("json", data_files=str(out), split="train"))
    assert all({*row} == {"prompt", "chosen", "rejected"} for row in rows)
    pairs = [(row["prompt"][0]["content"], row["chosen"][0]["content"]) for row in rows]
    assert sorted(pairs) == [("q3", "a3"), ("q3", "a3"), ("q5", "a5"), ("q8", "b8")]
    before = out.read_bytes()
    with pytest.raises(ValueError, match="pairs.jsonl is there already and is not overwritten; name another"):
        run(path, capsys, export=out)
    assert out.read_bytes() == before and capsys.readouterr().out == ""
    with pytest.raises(ValueError, match="cannot be written .*name another with --export"):
        export(MIXED, out / "below")
    with pytest.raises(ValueError, match="no choice is ready"):
        export(kinds("GS"), tmp_path / "none.jsonl")
    assert not (tmp_path / "none.jsonl").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "holds no choices yet; make some with `fourstage prefer MODEL --output"),
        ('{"prompt": "Hi", "chosen": "a", "rejected": "b"}\n', "line 1 is not a choice of `fourstage prefer`: it has"),
    ],
)
def test_a_file_of_something_else_takes_one_line(tmp_path, capsys, content, said):
    path = tmp_path / "prefs.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError, match=f"prefs.jsonl.*{said}"):
        run(path, capsys)


def test_nothing_but_undone_choices_is_no_error(tmp_path, capsys):
    _, said = run(filled(tmp_path / "prefs.jsonl", side(1), undo(1)), capsys)
    assert said.splitlines()[:2] == ["0 choices", "  1 more were undone"] and "ready for a reward model: 0\n" in said


def test_a_reward_model_beside_the_people(base, tmp_path, capsys):
    rows = [row for i in range(4) for row in kinds("LRLRLRLRG", person=f"{i}", start=10 * i)]
    path = filled(tmp_path / "prefs.jsonl", *rows, *kinds("LR", person="x"))
    flags = ["--model_name_or_path", base, "--dataset_name", path, "--test_split_size=0.4", *SMALL_RUN]
    run_here("reward", *flags, "--output_dir", tmp_path / "reward")
    metrics = record_of(tmp_path / "reward")["metrics"]
    found = score(str(tmp_path / "reward"), path)
    assert (found["pairs"], found["share"]) == (metrics["reward_pairs"], pytest.approx(metrics["reward_accuracy"]))
    assert found["stderr"] == pytest.approx(metrics["reward_accuracy_stderr"])
    assert found["which"] == "those that its own training held out" and found["pairs"] < 34
    _, said = run(path, capsys, reward_model=str(tmp_path / "reward"))
    last = said.splitlines()[-1]
    assert last.startswith("reward model ") and last.endswith(
        "as the people chose; those that its own training held out"
    )
    moved = shutil.copy(path, tmp_path / "moved.jsonl")
    assert score(str(tmp_path / "reward"), moved) == found

    filled(path, choice("new", prompt=turn("new", "user")))
    grown = score(str(tmp_path / "reward"), path)
    assert grown["pairs"] == 35 and "trained on some of these" in grown["which"]
    other = filled(tmp_path / "other.jsonl", *read_choices(path), *kinds("L", start=70))
    assert score(str(tmp_path / "reward"), other)["which"] == "its run names other data"
    shutil.copytree(tmp_path / "reward", tmp_path / "saved", ignore=shutil.ignore_patterns("run.json"))
    assert "not known" in score(str(tmp_path / "saved"), other)["which"]
    with pytest.raises(ValueError, match="cannot score; name a reward model"):
        score(str(base), path)
    assert json.loads(path.read_text().splitlines()[0])["pair"] == "p0"  # and the file is as it was
