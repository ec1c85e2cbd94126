"""The recipes as a person starts them: own programs, launched, killed, started again, in two processes."""

import json
import signal
import subprocess
import sys
import time

import pytest
import torch
from helpers import (
    ACCELERATE,
    RECIPES,
    ROOT,
    SMALL_RUN,
    TINY,
    environment,
    files_in,
    load_recipe,
    record_of,
    run_here,
    run_program,
    snapshot,
    tensors_of,
    write_chats,
    write_texts,
)
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

TOKEN = "hf_" + "zyxWVUtsrQ" * 3
CONFIGS = ROOT / "accelerate_configs"


# Two stages by `accelerate launch`, on the embedded data


@pytest.mark.slow
def test_two_launched_stages_and_their_evaluation(tmp_path):
    demo = ["--dataset_name", "fourstage/demo", "--run_name", TOKEN, *SMALL_RUN]
    pretrain = [RECIPES / "pretrain.py", "--output_dir", tmp_path / "base", "--max_length=128", *TINY, *demo]
    tune = [RECIPES / "sft.py", "--output_dir", tmp_path / "sft", "--model_name_or_path", tmp_path / "base", *demo]
    for stage in (pretrain, tune):
        done = run_program(*ACCELERATE, "--config_file", CONFIGS / "cpu.yaml", *stage, HF_TOKEN=TOKEN)
        assert TOKEN not in done.stdout
    again = snapshot(tmp_path)
    done = run_program(*ACCELERATE, "--config_file", CONFIGS / "cpu.yaml", *tune)
    assert "is finished" in done.stdout
    assert snapshot(tmp_path) == again

    names = files_in(tmp_path)
    assert not [name for name in names if "training_args" in name]
    assert not [name for name in names if TOKEN.encode() in (tmp_path / name).read_bytes()]
    records = [record_of(tmp_path / stage) for stage in ("base", "sft")]
    assert [record["status"] for record in records] == ["finished", "finished"]
    assert records[0]["tokens"] == 4 * 4 * 128
    assert records[1]["parent"]["path"] == str(tmp_path / "base")
    assert records[1]["command"].startswith("accelerate launch ")
    answer = pipeline("text-generation", model=str(tmp_path / "sft"), max_new_tokens=4)("What is an LLM?")
    assert answer[0]["generated_text"].startswith("What is an LLM?")

    run_program(sys.executable, RECIPES / "measure.py", tmp_path / "base", "--max_rows=4")
    row = json.loads((tmp_path / "base" / "evaluation.json").read_text())
    assert {"model", "stage", "parameters", "rows", "window", "bits_per_byte"} == row.keys()
    assert (row["stage"], row["rows"], row["window"]) == ("pretrain", 4, 128)
    run_program(sys.executable, RECIPES / "measure.py", tmp_path / "sft", "--max_rows=4", "--max_new_tokens=8")
    row = json.loads((tmp_path / "sft" / "evaluation.json").read_text())
    assert {"model", "stage", "parameters", "rows", "answers", "ended", "ended_stderr", "mean_tokens"} <= row.keys()
    assert (row["stage"], row["rows"], row["answers"]) == ("sft", 4, 4)
    assert 0 <= row["ended"] <= 1 and 0 < row["mean_tokens"] <= 8


def test_instruction_tuning_by_muon(base, tmp_path):
    """Matrices have Muon's state and the others AdamW's; adapters are refused before anything is written."""
    chats = write_chats(tmp_path / "chats.jsonl")
    flags = ["--dataset_name", chats, "--model_name_or_path", base, "--use_muon", *SMALL_RUN]
    with pytest.raises(ValueError, match="use_muon with use_peft"):
        run_here("sft", *flags, "--use_peft", "--output_dir", tmp_path / "no")
    assert not (tmp_path / "no").exists()
    floor = ["--lr_scheduler_type=cosine_with_min_lr", '--lr_scheduler_kwargs={"min_lr": 1e-5}']
    run_here("sft", *flags, *floor, "--output_dir", tmp_path / "sft")
    (file,) = (tmp_path / "sft" / "checkpoints").glob("checkpoint-*/optimizer.pt")
    state = torch.load(file, weights_only=True)
    for group in state["param_groups"]:
        names = {name for index in group["params"] for name in state["state"][index]}
        assert names == ({"momentum_buffer"} if group["use_muon"] else {"step", "exp_avg", "exp_avg_sq"})
    assert {group["use_muon"] for group in state["param_groups"]} == {True, False}


# Two processes


@pytest.mark.slow
def test_two_processes_train_as_one_does_on_the_same_batches(tmp_path):
    """Plain gradient descent, whose weights show the gradients: an optimizer that rescales them would magnify noise."""
    texts = write_texts(tmp_path / "texts.jsonl", count=200)
    flags = ["--dataset_name", texts, "--max_length=64", *TINY, "--max_steps=6", "--eval_steps=3", "--save_steps=6"]
    flags += ["--use_muon=false", "--optim=sgd", "--learning_rate=0.5", "--report_to=none", "--max_eval_rows=4"]
    flags += ["--per_device_eval_batch_size=1"]
    run_here("pretrain", *flags, "--per_device_train_batch_size=8", "--output_dir", tmp_path / "one")
    launch = [*ACCELERATE, "--config_file", CONFIGS / "ddp.yaml", "--num_processes", "2"]
    two = ["--per_device_train_batch_size=4", "--output_dir", tmp_path / "two"]
    run_program(*launch, RECIPES / "pretrain.py", *flags, *two)

    one, two = record_of(tmp_path / "one"), record_of(tmp_path / "two")
    assert (one["processes"], two["processes"]) == (1, 2)
    random_states = {name for name in files_in(tmp_path / "two") if "rng_state" in name}
    assert {name.rsplit("/")[-1] for name in random_states} == {"rng_state_0.pth", "rng_state_1.pth"}  # transformers'
    assert two["tokens"] == one["tokens"] == 6 * 8 * 64
    assert two["metrics"]["eval_loss"] == pytest.approx(one["metrics"]["eval_loss"], rel=1e-5)
    for name, value in tensors_of(tmp_path / "one").items():
        torch.testing.assert_close(tensors_of(tmp_path / "two")[name], value, rtol=1e-5, atol=1e-6, msg=name)


# Killed


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["pretrain", "sft"])
def test_killed_and_started_again_equals_uninterrupted(base, tmp_path, stage):
    """The kill comes after a checkpoint is whole; a later one looks as if the kill had come while it was written."""
    flags = ["--max_steps=60", "--save_steps=20", "--eval_steps=15", "--per_device_train_batch_size=4"]
    if stage == "pretrain":
        flags += ["--dataset_name", write_texts(tmp_path / "data.jsonl"), "--max_length=64", *TINY]
    else:
        flags += ["--dataset_name", write_chats(tmp_path / "data.jsonl"), "--model_name_or_path", base]
    run_here(stage, *flags, "--output_dir", tmp_path / "straight")

    run = tmp_path / "run"
    command = [sys.executable, RECIPES / f"{stage}.py", *flags, "--output_dir", run]
    kill_after(run / "checkpoints" / "checkpoint-20" / "files.json", command)
    assert record_of(run)["status"] == "running"
    kept = {path.name for path in (run / "checkpoints").glob("checkpoint-*") if (path / "files.json").exists()}
    partial = run / "checkpoints" / "checkpoint-59"
    partial.mkdir()
    (partial / "model.safetensors").write_bytes(b"cut off")
    done = run_program(*command)
    assert "Resuming" in done.stdout and any(f"from {name}" in done.stdout for name in kept)
    for name, value in tensors_of(tmp_path / "straight").items():
        torch.testing.assert_close(tensors_of(run)[name], value, rtol=0, atol=1e-6, msg=name)
    assert record_of(run)["tokens"] == record_of(tmp_path / "straight")["tokens"]


def kill_after(file, command):
    """Starts `command` and kills it as soon as `file` is there."""
    program = subprocess.Popen(
        list(map(str, command)), cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    until = time.monotonic() + 200
    while not file.exists() and program.poll() is None and time.monotonic() < until:
        time.sleep(0.002)
    program.kill()
    assert program.wait() == -signal.SIGKILL, "it ended before it could be killed"


# measure.py, in this process


def evaluate(monkeypatch, *flags):
    recipe = load_recipe("measure")
    monkeypatch.setattr(sys, "argv", ["measure.py", *map(str, flags)])
    monkeypatch.setattr(sys, "path", list(sys.path))
    recipe.main(recipe.arguments())


def test_evaluate_asks_what_to_measure_on_a_model_from_elsewhere(base, tmp_path, monkeypatch):
    AutoModelForCausalLM.from_pretrained(base).save_pretrained(tmp_path / "plain")
    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path / "plain")
    with pytest.raises(ValueError, match="--stage"):
        evaluate(monkeypatch, tmp_path / "plain")
    with pytest.raises(ValueError, match="--dataset_name"):
        evaluate(monkeypatch, tmp_path / "plain", "--stage=pretrain")
    texts = write_texts(tmp_path / "texts.jsonl", count=5)
    evaluate(monkeypatch, tmp_path / "plain", "--stage=pretrain", "--dataset_name", texts)
    row = json.loads((tmp_path / "plain" / "evaluation.json").read_text())
    assert (row["stage"], row["rows"]) == ("pretrain", 5)
    assert row["bits_per_byte"] > 0


def test_evaluate_refuses_a_folder_that_is_not_there(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="does not exist"):
        evaluate(monkeypatch, tmp_path / "none")
