"""recipes/pipeline.py: what it refuses, what it runs, how it combines seeds; all of it with a few steps (slow)."""

import importlib.util
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import ROOT, SMALL_RUN, TINY, run_here, tensors_of, write_texts

from fourstage.demo import checks, clock, measure, measured, table

PIPELINE = ROOT / "recipes" / "pipeline.py"


@pytest.fixture(scope="module")
def pipeline():
    spec = importlib.util.spec_from_file_location("pipeline", PIPELINE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(*arguments, **options):
    command = [sys.executable, PIPELINE, *map(str, arguments)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, **options)


def arguments_of(pipeline, monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["pipeline.py", *map(str, words)])
    return pipeline.arguments()


# What is refused before anything runs


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--model", "gpt"], "invalid choice: 'gpt'.*demo"),
        (["--stages", "dpo"], "invalid choice: 'dpo'.*pretrain.*control"),
        (["--seeds", "0"], "--seeds: .0. must be a whole number between 1 and"),
        (["--stages", "ppo"], "ppo needs .*reward|ppo needs .*sft"),
    ],
)
def test_bad_arguments(tmp_path, words, why):
    done = run("--output_dir", tmp_path / "runs", *words)
    assert done.returncode and re.search(why, done.stderr, re.S), done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "runs").exists()


def record(folder, **values):
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"seed": 0, "status": "finished", **values}))


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda out: record(out / "sft", seed=3), "sft holds seed 3, asked for 0; choose another --output_dir"),
        (lambda out: record(out / "pretrain", status="running"), "sft needs .*pretrain, which is not finished"),
        (lambda out: (out / "stages.json").write_text('{"seeds": [0'), "stages.json is broken .*mend or remove it"),
        (lambda out: (out / "stages.json").write_text('{"seeds": [7]}'), r"holds seeds \[7\], asked for \[0\]"),
    ],
)
def test_folders_that_do_not_fit(tmp_path, make, why):
    make(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    done = run("--output_dir", tmp_path, "--stages", "sft")
    assert done.returncode and re.search(why, done.stderr) and "Traceback" not in done.stderr, done.stderr
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_a_failing_stage_stops_it_with_the_last_lines(tmp_path):
    (tmp_path / "pretrain").mkdir()
    (tmp_path / "pretrain" / "holiday.txt").write_text("mine")
    done = run("--output_dir", tmp_path, "--fast")
    assert done.returncode and "holds files" in done.stderr and "choose another --output_dir" in done.stderr
    assert re.search(r"pretrain failed with exit code \d+.*logs/pretrain.log", done.stderr)
    assert "sft" not in done.stdout and not (tmp_path / "sft").exists() and not (tmp_path / "stages.json").exists()


# What is run


def test_every_stage_starts_from_the_one_before(pipeline, monkeypatch):
    args = arguments_of(pipeline, monkeypatch, "--seed", "5")
    commands = {s: pipeline.command(args, s, Path("runs/demo"), 5) for s in pipeline.STAGES}

    def after(stage, flag):
        words = commands[stage]
        return words[words.index(flag) + 1] if flag in words else None

    parents = {stage: after(stage, "--model_name_or_path") for stage in commands}
    folder = "runs/demo"
    assert parents == {
        "pretrain": None,
        "sft": f"{folder}/pretrain",
        "reward": f"{folder}/sft",
        "ppo": f"{folder}/sft",
        "grpo": f"{folder}/ppo",
        "control": f"{folder}/ppo",
    }
    assert after("ppo", "--reward_model_name_or_path") == f"{folder}/reward"
    assert after("control", "--control") == "random_reward" and after("grpo", "--control") is None
    assert {after(stage, "--seed") for stage in commands} == {"5"} and "--max_steps" not in commands["sft"]
    assert {*pipeline.FAST} == {*pipeline.CHAIN} and sum(stage.share for stage in pipeline.STAGES.values()) == 100


def test_several_seeds_have_folders_of_their_own(pipeline, monkeypatch):
    args = arguments_of(pipeline, monkeypatch, "--seed", "10", "--seeds", "2", "--output_dir", "runs/x")
    assert pipeline.chain_folders(args) == {10: Path("runs/x/seed-10"), 11: Path("runs/x/seed-11")}
    assert arguments_of(pipeline, monkeypatch, "--fast").output_dir == Path("runs/demo-fast")


def test_only_the_bar_of_the_training_counts_as_steps():
    text = "\r 22%|##  | 6553/30000 [00:08<00:29, 800.1 examples/s]\r 50%|#  | 12/25 [00:01<00:01, 24.3it/s]"
    assert clock._TRAINING_BAR.findall(text) == []
    assert clock._TRAINING_BAR.findall(text + "\r 39%| | 354/900 [01:31<02:18,  3.9it/s, 7,955 tokens/s]") == [
        ("354", "900")
    ]


# The table


def test_stage_0_has_the_weights_that_pre_training_began_with(tmp_path):
    """A run at learning rate 0 keeps them."""
    texts = write_texts(tmp_path / "texts.jsonl")
    flags = ["--dataset_name", texts, "--max_length=64", "--learning_rate=0", "--seed=3", *TINY, *SMALL_RUN]
    run_here("pretrain", *flags, "--output_dir", tmp_path / "pretrain")
    drawn = measured.random_model(tmp_path).state_dict()
    kept = tensors_of(tmp_path / "pretrain")
    assert kept.keys() <= drawn.keys() and all(torch.equal(drawn[name], kept[name]) for name in kept)


def row(stage, mean, n=100):
    metric = {"mean": mean, "stderr": 0.01, "n": n, "values": [mean]}
    shared = {"stage": stage, "title": stage, "tokens": 10, "seconds": mean, "flops": None, "answers": []}
    return {**shared, "metrics": {"reading": metric}, "gains": {"parent": {"reading": metric}}}


def test_seeds_are_combined_over_seeds_and_not_over_items():
    one, other = [row("sft", 0.5)], [row("sft", 0.7)]
    (combined,) = table.combine([one, other])
    reading = combined["metrics"]["reading"]
    assert reading["values"] == [0.5, 0.7] and reading["n"] == 100 and reading["mean"] == pytest.approx(0.6)
    assert reading["stderr"] == pytest.approx(math.sqrt(0.02 / 2))  # variance of 0.5 and 0.7 is 0.02
    assert combined["gains"]["parent"]["reading"] == reading and combined["seconds"] == pytest.approx(0.6)
    assert table.combine([one]) == one


@pytest.mark.parametrize("changed", ["weights_hash", "git_sha", "items"])
def test_what_was_measured_holds_until_weights_code_or_items_change(tmp_path, monkeypatch, changed):
    values = {"weights_hash": "w", "git_sha": "g"}
    for name in values:
        monkeypatch.setattr(measured, name, lambda *_, name=name: values[name])
    assert measured.read_part(tmp_path, "sft", 20) is None
    file = measured.part_file(tmp_path, "sft")
    file.parent.mkdir()
    file.write_text(json.dumps({"key": measured.part_key(tmp_path, "sft", 20), "row": 1}))
    assert measured.read_part(tmp_path, "sft", 20)["row"] == 1
    values[changed] = "other"
    assert measured.read_part(tmp_path, "sft", 40 if changed == "items" else 20) is None


def test_a_stage_is_measured_when_it_has_finished_since(pipeline, tmp_path):
    assert not pipeline.is_unmeasured(tmp_path, "random")
    record(tmp_path / "pretrain", status="running")
    assert not pipeline.is_unmeasured(tmp_path, "pretrain")
    (tmp_path / "pretrain" / "run.json").write_text(json.dumps({"seed": 0, "status": "finished"}))
    assert pipeline.is_unmeasured(tmp_path, "pretrain") and pipeline.is_unmeasured(tmp_path, "random")
    part = tmp_path / "measured" / "pretrain.json"
    part.parent.mkdir()
    part.write_text("{}")
    assert not pipeline.is_unmeasured(tmp_path, "pretrain") and pipeline.is_unmeasured(tmp_path, "random")
    os.utime(part, (1, 1))
    assert pipeline.is_unmeasured(tmp_path, "pretrain")


def test_the_table_as_text():
    columns = [
        {"key": "reading", "title": "reading", "percent": True},
        {"key": "other", "title": "x", "percent": False},
    ]
    scores = {"metrics": {"off_topic": {"mean": 0.5, "stderr": 0.05, "n": 20, "values": [0.5]}}}
    text = table.markdown({"columns": columns, "rows": [row("sft", 0.5)], "seeds": [3], "reward_model": scores})
    assert "| sft | 50.0 ± 1.0 | - |" in text and "n, items a seed: reading 100." in text and "one seed" in text
    assert "| off topic (n = 20) | 50.0 ± 5.0 |" in text


REASONING = ("reasoning_greedy", "derivations")


def stage_rows(**changes):
    """Rows that pass every check, but for `changes`: (stage, part, key) -> mean."""
    good = {
        ("random", "metrics", "bits_per_byte"): 4.0,
        ("pretrain", "metrics", "bits_per_byte"): 0.5,
        ("pretrain", "metrics", "continues"): 1.0,
        **{("random", "metrics", kind): 0.0 for kind in measure.KINDS},
        **{("chance", "metrics", kind): 0.01 for kind in measure.KINDS},
        **{("sft", "metrics", kind): 0.95 for kind in measure.KINDS},
        ("sft", "metrics", "preferred"): 0.4,
        ("ppo", "parent", "preferred"): 0.5,
        **{("ppo", "parent", kind): 0.0 for kind in measure.KINDS},
        **{("grpo", "parent", kind): 0.0 for kind in measure.KINDS},
        **{("grpo", other, key): 0.4 for other in ("parent", "control") for key in REASONING},
        **{(stage, "metrics", key): level for stage, level in (("grpo", 0.95), ("control", 0.5)) for key in REASONING},
        ("control", "parent", "reasoning_greedy"): 0.0,
        ("reward", "metrics", "accuracy"): 0.95,
        ("reward", "metrics", "off_topic"): 0.9,
    }
    good |= {tuple(name.split("__")): value for name, value in changes.items()}
    rows = {}
    for (stage, part, key), mean in good.items():
        here = rows.setdefault(stage, {"stage": stage, "metrics": {}, "gains": {}})
        place = here["metrics"] if part == "metrics" else here["gains"].setdefault(part, {})
        place[key] = {"mean": mean, "stderr": 0.01, "n": 1000, "values": [mean]}
    return list(rows.values())


def failed(**changes):
    rows = stage_rows(**changes)
    scores = next(row for row in rows if row["stage"] == "reward")
    return [check["name"] for check in checks.checks(rows, scores) if not check["passed"]]


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"random__metrics__code": 0.1}, "random weights answer at chance"),
        ({"pretrain__metrics__bits_per_byte": 1.7}, "bits per byte"),
        ({"pretrain__metrics__continues": 0.5}, "continued, not answered"),
        ({"sft__metrics__glossary": 0.81}, "glossary right"),  # the mean is above 0.8, the bound is not
        ({"sft__metrics__preferred": 0.6}, "preferred answers to begin with"),
        ({"reward__metrics__accuracy": 0.91}, "held-out pairs right"),
        ({"reward__metrics__off_topic": 0.84}, "off the topic"),
        ({"ppo__parent__preferred": 0.31}, "gain in preferred"),
        ({"grpo__parent__derivations": 0.25, "grpo__metrics__derivations": 0.91}, "GRPO over its parent: every step"),
        ({"grpo__control__reasoning_greedy": 0.1}, "GRPO over its control: right"),
        ({"control__parent__reasoning_greedy": -0.11}, "coin flips"),
        ({"control__parent__reasoning_greedy": 0.11}, "coin flips"),
        ({"ppo__parent__arithmetic": -0.04}, "PPO: the kind that it costs most (arithmetic)"),
        ({"grpo__parent__summary": -0.031}, "GRPO: the kind that it costs most (summary)"),
    ],
)
def test_each_check_can_fail(change, name):
    assert failed() == []
    assert failed(grpo__parent__derivations=0.1) == failed(grpo__metrics__derivations=0.8) == []  # one of the two does
    assert len(failed(**change)) == 1 and name in failed(**change)[0]


# All of it


@pytest.mark.slow
@pytest.mark.timeout(900)  # eight launches, beside another test process
def test_a_fast_chain_from_nothing_to_the_report(tmp_path):
    out = tmp_path / "chain"
    done = run("--fast", "--output_dir", out, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    stages = json.loads((out / "stages.json").read_text())
    assert [row["stage"] for row in stages["rows"]] == [*table.TUNED, "chance"] and stages["fast"]
    by_stage = {row["stage"]: row["metrics"] for row in stages["rows"]}
    for stage, metrics in by_stage.items():
        wanted = {column["key"] for column in stages["columns"]} - {"reward_score", "kl_to_parent"}
        assert stage == "chance" or wanted <= metrics.keys(), stage
    assert "What is an LLM?" in (out / "report.html").read_text() and "| 0 random weights |" in done.stdout

    weights = {path: path.stat().st_mtime_ns for path in out.rglob("model.safetensors")}
    again = run("--fast", "--check", "--output_dir", out, "--stages", "pretrain", "sft", timeout=300)
    assert again.returncode == 1 and "FAIL" in again.stdout  # nothing is learned in so few steps, and it says so
    assert weights == {path: path.stat().st_mtime_ns for path in out.rglob("model.safetensors")}
    other = run("--fast", "--output_dir", out, "--seed", "1")
    assert other.returncode and "asked for [1]" in other.stderr
