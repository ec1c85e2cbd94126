"""recipes/measure.py on folders from anywhere: what their run.json names is not run, and its own file is whole."""

import json
import os
import shutil
import sys

import pytest
from helpers import load_recipe

from fourstage.artifact.lineage import evaluation_of, summary
from fourstage.parent import find_parent

PROBLEMS = [{"question": f"{i}+1?", "answer": str(i + 1)} for i in range(4)]

CANARY = """
open("sang", "w").close()

def reward(completions, **kwargs):
    return [0.0 for _ in completions]

def one(completions, **kwargs):
    return [0.0]
"""


@pytest.fixture
def measured(tmp_path, monkeypatch, model, tokenizer):
    """Runs measure.py on a model whose run.json says that it was tuned with these reward functions."""
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in PROBLEMS))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "canary.py").write_text(CANARY)

    def run(reward_funcs, *flags):
        arguments = {"data": {"dataset_name": str(rows)}, "training": {"reward_funcs": reward_funcs}, "model": {}}
        record = {"status": "finished", "stage": "grpo", "seed": 0, "arguments": arguments, "versions": {}}
        (folder / "run.json").write_text(json.dumps(record))
        recipe = load_recipe("measure")
        words = ["measure.py", "model", "--dataset_name", str(rows), "--max_new_tokens=2", "--samples=1", *flags]
        monkeypatch.setattr(sys, "argv", words)
        recipe.main(recipe.arguments())
        return json.loads((folder / "evaluation.json").read_text())

    return run


def test_code_that_a_run_json_names_is_not_imported_unasked(measured, tmp_path):
    with pytest.raises(ValueError, match=r"names the reward function canary\.reward.*--verifier"):
        measured(["canary.reward"])
    assert measured(["number", "canary.reward"])["verifier"] == "number"
    assert measured(["canary.reward", "number"], "--verifier=number")["verifier"] == "number"
    assert not (tmp_path / "sang").exists() and "canary" not in sys.modules
    assert measured(["canary.reward"], "--verifier=canary.reward")["verifier"] == "canary.reward"
    assert (tmp_path / "sang").exists()
    with pytest.raises(ValueError, match="one gave 1 rewards for 4 answers; each needs one"):
        measured(["number"], "--verifier=canary.one")


def test_the_row_is_written_in_one_step(measured, tmp_path, monkeypatch):
    """A disk that is full while it is written leaves the former row."""
    former = measured(["number"])
    monkeypatch.setattr(os, "replace", lambda *paths: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(ValueError, match=r"evaluation\.json cannot be written \(No space left on device\)"):
        measured(["number"], "--samples=2")
    assert json.loads((tmp_path / "model" / "evaluation.json").read_text()) == former


def test_a_broken_row_is_named(measured, tmp_path):
    measured(["number"])
    (tmp_path / "model" / "evaluation.json").write_text('{"rows": 4, ')
    with pytest.raises(ValueError, match=r"evaluation\.json is broken .*; delete it, or measure the model again"):
        summary(find_parent(str(tmp_path / "model")))
    (tmp_path / "model" / "evaluation.json").write_text("[]")
    assert evaluation_of(tmp_path / "model") == {}


@pytest.mark.parametrize("arguments", [5, {"data": 5}, ["x"]])
def test_settings_that_are_none_are_of_another_program(measured, tmp_path, arguments):
    measured(["number"])
    record = json.loads((tmp_path / "model" / "run.json").read_text()) | {"arguments": arguments}
    (tmp_path / "model" / "run.json").write_text(json.dumps(record))
    assert find_parent(str(tmp_path / "model")).record is None
    shutil.rmtree(tmp_path / "model")
