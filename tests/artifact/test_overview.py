"""The block that a run prints before its first step, against numbers worked out by hand."""

import json
import re

import pytest
from helpers import SMALL_RUN, TINY, run_here, write_chats, write_texts


def block(printed):
    """{name: text} of the block among what was printed."""
    lines = printed.split("\n\n")
    (found,) = [part for part in lines if re.search(r"^\w+: .*\n  model  ", part, re.M)]
    return dict(re.split(r"  +", line.strip(), maxsplit=1) for line in found.splitlines()[1:] if "  " in line.strip())


def test_pre_training(tmp_path, capsys):
    texts = write_texts(tmp_path / "texts.jsonl")
    flags = [*TINY, *SMALL_RUN, "--max_length=64", "--gradient_accumulation_steps=3", "--seed=7", "--warmup_steps=2"]
    run_here("pretrain", "--dataset_name", texts, *flags, "--output_dir", tmp_path / "base")
    said = block(capsys.readouterr().out)
    assert re.match(
        r"qwen3: 4\d,\d{3} parameters \(asked for 43,000, [+-]\d\.\d%\); num_hidden_layers=2", said["model"]
    )
    assert said["starts from"] == "random weights, seed 7"
    assert said["vocabulary"] == "384 tokens" and said["context"] == "64 tokens; rows of at most 64"
    assert said["batch"] == "4 rows x 3 accumulated x 1 process = 12 rows a step"
    assert said["steps"].startswith("4, ") and said["steps"].endswith(f" passes over the data, {4 * 12 * 64:,} tokens")
    assert said["rates"] == (
        "0.01 *, warmup_stable_decay, warm-up 2 steps; Muon, and AdamW for the rest: embedding x 20 *, head x 0.7 *"
    )
    assert (said["precision"], said["device"]) == ("float32 weights", "cpu, 1 thread a process")
    rows = int(re.search(r"packed \(wrapped\) into ([\d,]+) rows", said["data"])[1].replace(",", ""))
    passes = float(re.search(r"([\d.e-]+) passes", said["steps"])[1])
    assert passes == pytest.approx(4 * 12 / rows, rel=0.01)
    assert said["data"].startswith("texts.jsonl: 57 rows to train on, 3 rows held out")


def test_tuning_with_adapters(base, tmp_path, capsys):
    chats = write_chats(tmp_path / "chats.jsonl")
    flags = ["--model_name_or_path", base, "--dataset_name", chats, "--use_peft", "--lora_r=2", *SMALL_RUN]
    run_here("sft", *flags, "--output_dir", tmp_path / "sft")
    said = block(capsys.readouterr().out)
    parameters = json.loads((base / "run.json").read_text())["parameters"]
    assert said["model"].startswith(f"qwen3: {parameters:,} parameters;")  # those of the base, less the adapter's
    assert said["starts from"] == f"{base} (pretrain)"
    assert re.fullmatch(r"LoRA, rank 2, alpha 32: [\d,]+ parameters are trained", said["adapter"])
    assert said["context"] == "64 tokens; rows of at most 64 *" and "tokens" not in said["steps"]


def test_reinforcement_learning(base, tmp_path, capsys):
    chats = write_chats(tmp_path / "chats.jsonl")
    flags = ["--model_name_or_path", base, "--dataset_name", chats, "--reward_funcs=length", *SMALL_RUN]
    flags += ["--gradient_accumulation_steps=2", "--max_completion_length=8", "--max_eval_rows=4"]
    run_here("ppo", *flags, "--output_dir", tmp_path / "ppo")
    said = block(capsys.readouterr().out)
    assert said["batch"] == (
        "4 completions x 2 accumulated x 1 process = 8 completions a step; 4 passes over each rollout"
    )
    assert said["context"] == "64 tokens; completions of at most 8" and "critic 1e-05" in said["rates"]
    run_here("grpo", *flags, "--num_generations=4", "--output_dir", tmp_path / "grpo")
    said = block(capsys.readouterr().out)
    assert said["batch"] == "4 completions x 2 accumulated x 1 process = 8 completions a step, 4 for each prompt"
    assert " *, constant_with_warmup, warm-up 5 steps" in said["rates"]
