"""lm-eval's numbers on a stage folder against counting and log-likelihoods by hand; what --tasks refuses (slow: none)."""

import json
import math
import statistics
import sys

import pytest
import torch
from helpers import ROOT, load_recipe

pytest.importorskip("lm_eval", reason="needs the extra eval")

TASKS = ROOT / "recipes" / "tasks"
ROWS = [json.loads(line) for line in (TASKS / "sums.jsonl").read_text().splitlines()]


@pytest.fixture
def folder(model, tokenizer, tmp_path, monkeypatch):
    """A saved random model from elsewhere: no run.json. The example's data file is named from the repository's root."""
    monkeypatch.chdir(ROOT)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def evaluate(folder, *flags):
    """Runs the recipe in this process; returns what it left in evaluation.json."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["evaluate.py", str(folder), *map(str, flags)])
        patch.setattr(sys, "path", list(sys.path))
        recipe = load_recipe("evaluate")
        recipe.main(recipe.arguments())
    return json.loads((folder / "evaluation.json").read_text())


def made_by(folder, stage):
    record = {"status": "finished", "stage": stage, "arguments": {"training": {}, "data": {}}, "seed": 0}
    (folder / "run.json").write_text(json.dumps(record))


def asked(tokenizer, question, chat):
    """The token ids of a question, begun with one BOS either way."""
    if chat:
        turns = [{"role": "user", "content": question}]
        return tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)["input_ids"]
    return tokenizer(question)["input_ids"]


# The numbers


@pytest.mark.parametrize("chat", [True, False])
def test_a_choice_is_the_likeliest_answer(folder, model, tokenizer, chat):
    """acc: the sum of the choice's log-probabilities, each choice alone, without padding; acc_norm: per byte."""
    row = evaluate(
        folder, "--tasks=sums_choose", "--include_path", TASKS, f"--{'' if chat else 'no-'}apply_chat_template"
    )
    hits, per_byte = [], []
    for item in ROWS:
        start = asked(tokenizer, item["question"], chat)
        scores = []
        for choice in item["choices"]:
            end = tokenizer(choice if chat else f" {choice}", add_special_tokens=False)["input_ids"]
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([start + end])).logits[0].double().log_softmax(-1)
            scores.append(sum(logits[len(start) + i - 1, token].item() for i, token in enumerate(end)))
        normed = [score / len(choice) for score, choice in zip(scores, item["choices"], strict=True)]
        hits.append(float(scores.index(max(scores)) == item["right"]))
        per_byte.append(float(normed.index(max(normed)) == item["right"]))
    found = row["tasks"]["sums_choose"]
    assert 0 < sum(hits) < len(hits)
    assert found["acc"] == pytest.approx(statistics.fmean(hits))
    assert found["acc_norm"] == pytest.approx(statistics.fmean(per_byte))
    assert found["acc_stderr"] == pytest.approx(statistics.stdev(hits) / math.sqrt(len(hits)))
    assert (found["n"], found["chat"]) == (len(ROWS), chat)
