"""From a person's choices to a model: rounds that leave each other alone, the gate, the report, all of it (slow)."""

import argparse
import importlib.util
import json
import math
import re
import sys
from html.parser import HTMLParser

import pytest
import torch
from scipy.stats import binom

from fourstage.data.embedded import styles
from fourstage.data.embedded.rows import held_out_items
from fourstage.prefer import followed, rounds
from fourstage.report.followed import write_followed
from tests.helpers import RECIPES, record_of, run_program, snapshot
from tests.prefer.test_choice_file import filled, turn
from tests.prefer.test_picks import side, tie, undo

MANY = [side(i) for i in range(30)]


@pytest.fixture(scope="module")
def pipeline():
    spec = importlib.util.spec_from_file_location("pipeline", RECIPES / "pipeline.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# Rounds


def test_a_round_is_known_by_its_choices_and_never_touched_by_the_next(tmp_path):
    path = filled(tmp_path / "prefs.jsonl", *MANY, tie(40), undo(0))
    first = rounds.open_round(tmp_path / "prefer", path)
    assert first.folder.name == "round-1" and len(first.pairs) == 29  # one was undone, one is a tie
    (first.folder / "reward").mkdir()
    before = snapshot(first.folder)
    assert rounds.open_round(tmp_path / "prefer", path) == first
    filled(path, side(50))
    second = rounds.open_round(tmp_path / "prefer", path)
    assert second.folder.name == "round-2" and len(second.pairs) == 30
    assert rounds.open_round(tmp_path / "prefer", path) == second and snapshot(first.folder) == before


def test_few_choices_are_no_round(tmp_path):
    path = filled(tmp_path / "prefs.jsonl", *MANY[:19], *[tie(i) for i in range(60, 90)])
    with pytest.raises(ValueError, match="has 19 pairs .*at least 20"):
        rounds.open_round(tmp_path / "prefer", path)
    assert not (tmp_path / "prefer").exists()


def test_every_prompt_is_in_one_fold_and_every_pair_is_asked_about_once(tmp_path):
    again = [side(i, pair=f"again {i}", choice="right", chosen=turn(f"b{i}"), rejected=turn(f"a{i}")) for i in range(7)]
    this = rounds.open_round(tmp_path / "prefer", filled(tmp_path / "prefs.jsonl", *MANY, *again))
    asked = []
    for number in this.folds():
        train, test = (
            [json.loads(line) for line in (this.fold(number) / "choices" / f"{name}.jsonl").read_text().splitlines()]
            for name in ("train", "test")
        )
        assert len(train) + len(test) == len(this.pairs) == 37
        assert not {str(row["prompt"]) for row in train} & {str(row["prompt"]) for row in test}
        asked += test
    assert sorted(map(str, asked)) == sorted(str({k: row[k] for k in asked[0]}) for row in this.pairs)


@pytest.mark.parametrize(("right", "better"), [(72, True), (69, False), (60, False), (20, False)])
def test_the_gate_is_one_side_of_the_exact_binomial(right, better):
    found = rounds.held_out_agreement([1.0] * right + [0.0] * (120 - right), [0.5] * right + [0.0] * (120 - right))
    assert found["p"] == pytest.approx(sum(math.comb(120, k) for k in range(right, 121)) / 2**120)
    assert (found["right"], found["better"]) == (right, better)  # equal scores foresee nothing
    assert ("no better" not in rounds.describe_agreement(found)) == better


def test_a_coin_passes_in_at_most_one_of_twenty_cases():
    passing = [k for k in range(121) if rounds.held_out_agreement([1.0] * k + [0.0] * (120 - k), [0.5] * 120)["better"]]
    assert 0.02 < binom.sf(passing[0] - 1, 120, 0.5) < 0.05


# The gate in the command


@pytest.mark.parametrize(
    ("stages", "foreseen", "runs", "status"),
    [
        (["reward", "ppo"], 30, ["reward", "ppo"], 0),
        (["reward", "ppo"], 15, ["reward"], 1),
        (["reward"], 15, ["reward"], 0),
        (["ppo"], 15, ["ppo"], 0),
    ],
)
def test_ppo_runs_where_the_person_was_foreseen_or_by_force(
    pipeline, tmp_path, monkeypatch, capsys, stages, foreseen, runs, status
):
    (tmp_path / "sft").mkdir()
    for folder in (tmp_path / "sft", tmp_path / "prefer" / "round-1" / "reward"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "run.json").write_text(json.dumps({"status": "finished"}))
    path, ran = filled(tmp_path / "prefs.jsonl", *MANY), []
    scores = [float(i < foreseen) for i in range(30)]
    monkeypatch.setattr(pipeline, "train_reward_models", lambda *_: ran.append("reward"))
    monkeypatch.setattr(pipeline, "train_on_choices", lambda args, recipe, *_: ran.append(recipe))
    monkeypatch.setattr(followed, "unseen_scores", lambda this: (scores, [0.5] * 30))
    monkeypatch.setattr(followed, "followed", lambda *_: figures())
    args = argparse.Namespace(
        pairs=path, output_dir=tmp_path, stages=stages, fast=False, model="demo", seed=0, seeds=1, config_file=""
    )
    assert pipeline.follow_choices(args, 0.0) == status
    assert ran == runs and (tmp_path / "prefer" / "round-1" / "report.html").is_file()
    said = capsys.readouterr().out
    assert f"{foreseen} of 30" in said and ("--stages ppo --pairs" in said) == bool(status)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--pairs", "missing.jsonl", "--stages", "sft"], "--pairs: one seed, and --stages reward, ppo or both"),
        (["--pairs", "missing.jsonl", "--seeds", "2"], "--pairs: one seed"),
        (["--pairs", "missing.jsonl"], "sft, which is not finished"),
    ],
)
def test_what_is_refused(tmp_path, words, why):
    done = run_program(sys.executable, "recipes/pipeline.py", "--output_dir", tmp_path / "out", *words, ok=False)
    assert done.returncode and why in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert not (tmp_path / "out").exists()


# Figures


def test_the_gap_of_a_pair_is_the_difference_of_its_log_probabilities(model, tokenizer):
    pairs = [{"prompt": turn("bab cec", "user"), "chosen": turn("dod fuf"), "rejected": turn("gig")}]

    def by_hand(answer):
        asked = tokenizer.apply_chat_template(pairs[0]["prompt"], add_generation_prompt=True, return_dict=False)
        whole = tokenizer.apply_chat_template(pairs[0]["prompt"] + answer, return_dict=False)
        with torch.no_grad():
            logps = model(torch.tensor([whole])).logits[0].log_softmax(-1)
        return sum(logps[at - 1, whole[at]].item() for at in range(len(asked), len(whole)))

    expected = by_hand(pairs[0]["chosen"]) - by_hand(pairs[0]["rejected"])
    assert followed._gaps(model, tokenizer, pairs) == pytest.approx([expected], abs=1e-4)


HOSTILE = "</style><script>alert(1)</script><img src=x onerror=alert(1)>{{ 7 * 7 }}"


def figures(text="fine", **more):
    found = {
        "choices": {
            "choices": {"left": 20, "right": 10, "both_good": 3, "both_bad": 2, "skip": 1, "undone": 4, "repeated": 2},
            "position": {"left": 20, "sides": 30, "p": 0.1},
            "steady": {"alike": 2, "repeats": 2},
            "models": [{"models": [text, text], "wins": [3, 4]}],
        },
        "agreement": rounds.held_out_agreement([1.0] * 24 + [0.0] * 6, [0.5] * 30),
        "folds": 5,
        "pairs": [{"prompt": text, "chosen": text, "rejected": text, "scores": (1.25, -0.5)}],
        "likelier": None,
        "prompts": None,
        "preferred": None,
    }
    return found | more


def answered(text="fine"):
    share = {"mean": 0.75, "stderr": 0.05, "n": 80}
    prompts = [{"prompt": text, "before": text, "after": ""}]
    return {"likelier": share, "prompts": prompts, "preferred": {"greedy": share, "sampled": share}}


class Tags(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.tags, self.loaded = set(), []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.loaded += [value for name, value in attrs if name in ("src", "href") and not value.startswith("#")]


@pytest.mark.parametrize("more", [{}, answered(HOSTILE)])
def test_the_report_escapes_all_text_and_loads_nothing(tmp_path, more):
    page = write_followed(figures(HOSTILE, **more), tmp_path / "report.html").read_text()
    seen = Tags(page)
    assert not seen.tags & {"script", "img", "link", "iframe"} and not seen.loaded
    assert "{{ 7 * 7 }}" in page and "&lt;script&gt;alert(1)" in page
    assert "default-src 'none'" in page and ("24 of 30" in page)
    assert ("75.0 % ± 5.0" in page) == bool(more) and ("PPO has not been run" in page) == (not more)


def test_the_report_says_that_no_taste_was_found(tmp_path):
    agreement = rounds.held_out_agreement([1.0] * 15 + [0.0] * 15, [0.5] * 30)
    stopped = write_followed(figures(agreement=agreement), tmp_path / "a.html").read_text()
    forced = write_followed(figures(agreement=agreement, **answered()), tmp_path / "b.html").read_text()
    assert "So PPO was not run" in stopped and "what it changed is not what you asked for" in forced


# All of it


def simulated(number, start=0):
    """Choices of a person who likes answers with a rude ending better than those with a polite one."""
    items = held_out_items("reading", start + number)[start:]
    for place, item in enumerate(items, start):
        rude, polite = f"{item['reference']} {styles.RUDE[0]}", f"{item['reference']} {styles.POLITE[0]}"
        yield side(place, prompt=item["prompt"], left=rude, right=polite, chosen=turn(rude), rejected=turn(polite))


@pytest.mark.slow
def test_the_whole_loop_and_a_second_round(tmp_path):
    out, path = tmp_path / "runs", filled(tmp_path / "prefs.jsonl", *simulated(24))
    shared = [sys.executable, "recipes/pipeline.py", "--fast", "--output_dir", out]
    run_program(*shared, "--stages", "pretrain", "sft", timeout=1200)
    before = snapshot(out / "sft")
    done = run_program(*shared, "--stages", "reward", "ppo", "--pairs", path, timeout=1200)
    assert re.search(r"reward models agree with \d+ of 24 choices", done.stdout), done.stdout
    first = out / "prefer" / "round-1"
    reward, ppo = (record_of(first / stage) for stage in ("reward", "ppo"))
    assert reward["parent"]["sha256"] == ppo["parent"]["sha256"] and reward["status"] == ppo["status"] == "finished"
    assert ppo["reward_model"]["path"] == str(first / "reward")
    page = (first / "report.html").read_text()
    assert "sampled answers preferred now" in page and styles.RUDE[0] in page
    assert snapshot(out / "sft") == before and not (out / "reward").exists() and not (out / "ppo").exists()

    kept = snapshot(first)
    filled(path, *simulated(4, start=24))
    run_program(*shared, "--stages", "reward", "ppo", "--pairs", path, timeout=1200)
    assert snapshot(first) == kept and (out / "prefer" / "round-2" / "report.html").is_file()
