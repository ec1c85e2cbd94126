"""Faults of run folders, each planted in a copy of a finished run; and rows shown token by token."""

import json
import shutil

import pytest
import torch
from doctor_helpers import data, healthy_rows, lines, only, write_rows
from helpers import SMALL_RUN, record_of, run_here
from safetensors.torch import load_file, save_file

from fourstage.cli import main
from fourstage.doctor import runs, texts
from fourstage.doctor.command import _open_run
from fourstage.doctor.masks import masked_rows, shown


@pytest.fixture(scope="module")
def tuned(base, tmp_path_factory):
    """A finished base with its tuned child, and the conversations of the latter."""
    folder = tmp_path_factory.mktemp("tuned")
    file = write_rows(folder / "chats.jsonl", healthy_rows("conversations"))
    flags = ["--model_name_or_path", base, "--dataset_name", file, "--output_dir", folder / "run"]
    run_here("sft", *flags, *SMALL_RUN)
    return folder / "run"


@pytest.fixture
def copied(tuned, tmp_path):
    """A copy of the tuned run that a test may spoil."""
    return shutil.copytree(tuned, tmp_path / "run")


def edit(file, change):
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def test_healthy_runs_raise_nothing(base, tuned, capsys):
    for folder in (base, tuned):
        assert main(["doctor", str(folder)]) == 0
        out = capsys.readouterr().out
        assert "0 failed, 0 warnings" in out and "as the run read them" in out
        assert "checkpoints: 1 whole" in out and "model.safetensors: all finite" in out
    assert f"parent: {base} is as it was" in out


def test_a_run_that_is_not_finished(copied):
    edit(copied / "run.json", lambda record: record.update(status="running"))
    level, text = only(runs.status(_open_run(str(copied))))
    assert level == "warning" and text.startswith("it is running; finish it with: accelerate launch")


def test_a_checkpoint_that_was_cut(copied):
    (file,) = copied.glob("checkpoints/*/optimizer.pt")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    level, text = only(runs.checkpoints(_open_run(str(copied))))
    assert level == "FAIL" and "checkpoint-4: optimizer.pt" in text


def test_weights_that_are_not_numbers(copied):
    weights = load_file(copied / "model.safetensors")
    name = next(name for name in weights if "mlp" in name)
    weights[name][0, 0] = torch.nan
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    level, text = only(runs.weights(_open_run(str(copied))))
    assert level == "FAIL" and f"NaN or infinite numbers in {name}" in text


def test_a_finished_run_without_weights(copied):
    (copied / "model.safetensors").unlink()
    assert only(runs.weights(_open_run(str(copied)))) == ("FAIL", "a finished run has no weights; make it again")


def test_an_embedding_of_another_size_than_the_vocabulary(copied):
    edit(copied / "config.json", lambda config: config.update(vocab_size=512))
    level, text = only(runs.weights(_open_run(str(copied))))
    assert level == "FAIL" and "has 384 rows, config.json says vocab_size 512" in text


def test_a_parent_that_was_changed(copied, tmp_path):
    before = record_of(copied)["parent"]["path"]
    parent = shutil.copytree(before, tmp_path / "parent")
    edit(copied / "run.json", lambda record: record["parent"].update(path=str(parent)))
    assert lines(runs.parents(_open_run(str(copied)))) == []
    weights = load_file(parent / "model.safetensors")
    save_file({name: weight + 1 for name, weight in weights.items()}, parent / "model.safetensors")
    level, text = only(runs.parents(_open_run(str(copied))))
    assert level == "FAIL" and f"the weights of {parent} are" in text


def test_rows_that_were_changed(copied, tmp_path):
    rows = healthy_rows("conversations")
    rows[30]["completion"] = "Something else."
    file = write_rows(tmp_path / "changed.jsonl", rows)
    edit(copied / "run.json", lambda record: record["arguments"]["data"].update(dataset_name=file))
    level, text = only(runs.data(_open_run(str(copied))))
    assert level == "FAIL" and f"{file} changed since the run" in text


def test_a_row_that_was_changed_behind_the_first_thousand(copied):
    """The first hash is of a thousand rows, the second of all."""
    assert not lines(runs.data(_open_run(str(copied))))
    edit(copied / "run.json", lambda record: record["row_hashes"].update(train="0123456789abcdef"))
    level, text = only(runs.data(_open_run(str(copied))))
    assert level == "FAIL" and "changed since the run" in text


def test_a_tuned_run_that_does_not_stop(copied):
    edit(copied / "generation_config.json", lambda config: config.update(eos_token_id=9))
    level, text = only(texts.stops(_open_run(str(copied))))
    assert level == "FAIL" and "the template's turns at <|eos|>" in text


def test_a_record_that_is_not_one(copied, capsys):
    (copied / "run.json").write_text('{"status": "finished", "stage": "sft"}')
    assert main(["doctor", str(copied)]) == 1
    assert "is not one of fourstage" in capsys.readouterr().err


# Rows token by token

ROWS = {
    "pretrain": {"text": "one two"},
    "sft": {"messages": [{"role": r, "content": c} for r, c in zip(["user", "assistant"] * 2, "abcd", strict=True)]},
    "reward": {"prompt": "a", "chosen": "b", "rejected": "cd"},
    "ppo": {"prompt": "a"},
    "grpo": {"question": "a", "answer": "1"},
}
SHOWN = {
    "sft": ["- <|bos|>|<|user|>|a|<|assistant|>", "+ b|<|eos|>", "- <|user|>|c|<|assistant|>", "+ d|<|eos|>"],
    "reward": ["- <|bos|>|<|user|>|a|<|assistant|>|b", "+ <|eos|>"]
    + ["- <|bos|>|<|user|>|a|<|assistant|>|c|d", "+ <|eos|>"],
    "ppo": ["- <|bos|>|<|user|>|a|<|assistant|>"],
    "grpo": ["- <|bos|>|<|user|>|a|<|assistant|>"],
}


@pytest.mark.parametrize("stage", SHOWN)
def test_what_is_trained_on_is_shown(stage, healthy, tmp_path):
    file = write_rows(tmp_path / "rows.jsonl", [ROWS[stage]] * 2)
    subject = data(stage, file, "--model_name_or_path", healthy / "model")
    out = [line.removeprefix("  ") for line in shown(masked_rows(subject, 1)) if line.startswith("  ")]
    assert out == SHOWN[stage]


def test_documents_are_shown_with_what_packing_adds(tmp_path, capsys):
    rows = [{"text": "ab \x1b[2J|\n" + "c" * i} for i in range(1, 30)]
    file = write_rows(tmp_path / "rows.jsonl", rows)
    flags = ["--num_parameters=43K", "--vocab_size=384", "--dataset_name", file, "--output_dir", str(tmp_path / "run")]
    assert main(["doctor", "pretrain", *flags, "--show_mask", "1"]) == 0
    out = capsys.readouterr().out
    (line,) = [line for line in out.splitlines() if line.startswith("  + ")]
    text = line.removeprefix("  + ").replace("\\|", "BAR").replace("|>", ">").replace("<|", "<").replace("|", "")
    assert text == "<bos>ab \\x1b[2JBAR\\nc<eos>" and "\x1b" not in out
