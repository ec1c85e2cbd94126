"""recipes/grpo.py on tiny models and data: what it leaves, resumes, refuses, and its control."""

import json
import sys

import pytest
import torch
from helpers import (
    ACCELERATE,
    SMALL_RUN,
    TINY,
    cut_off,
    files_in,
    record_of,
    run_here,
    run_program,
    tensors_of,
    write_chats,
    write_texts,
)
from transformers import AutoModelForCausalLM, AutoTokenizer

from fourstage.grpo.config import GRPORunConfig, default_learning_rate
from fourstage.rl.rewards import random_reward

RUN = ["--per_device_train_batch_size=4", "--gradient_accumulation_steps=2", "--num_generations=4", "--max_steps=4"]
RUN += ["--max_completion_length=8", "--eval_steps=2", "--max_eval_rows=8", "--report_to=none", "--learning_rate=1e-3"]
DIGITS = ["--reward_funcs", "test_grpo_recipe.digits"]


def digits(completions, answer, **kwargs):
    """The share of digits; `answer` must come with every row."""
    assert len(answer) == len(completions) and all(text.startswith("It is") for text in answer)
    texts = [completion[0]["content"] for completion in completions]
    return [sum(letter.isdigit() for letter in text) / (len(text) + 1) for text in texts]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A finished base of 43,000 parameters, and the flags of a GRPO run on questions with answers."""
    folder = tmp_path_factory.mktemp("stages")
    texts, chats = write_texts(folder / "texts.jsonl"), write_chats(folder / "chats.jsonl")
    run_here("pretrain", "--dataset_name", texts, "--max_length=96", "--output_dir", folder / "base", *TINY, *SMALL_RUN)
    return folder, ["--model_name_or_path", folder / "base", "--dataset_name", chats, *RUN]


def test_what_a_run_leaves(base, tmp_path):
    folder, flags = base
    run_here("grpo", *flags, *DIGITS, "--gold_func", "length", "--output_dir", tmp_path / "run")
    found = files_in(tmp_path / "run")
    assert {"model.safetensors", "run.json", "samples.jsonl", "README.md", "completions.jsonl"} <= found
    assert not [name for name in found if "training_args" in name]
    record = record_of(tmp_path / "run")
    assert record["status"] == "finished" and record["stage"] == "grpo"
    assert {"eval_reward", "eval_rewards/digits/mean", "eval_rewards/gold/mean"} <= record["metrics"].keys()
    lines = [json.loads(line) for line in (tmp_path / "run" / "completions.jsonl").read_text().splitlines()]
    assert {line["step"] for line in lines} == {0, 1, 2, 3, 4} and {line["held_out"] for line in lines} == {True, False}
    assert set(lines[0]["rewards"]) == {"digits", "gold"}
    AutoTokenizer.from_pretrained(tmp_path / "run")
    before, after = tensors_of(folder / "base"), AutoModelForCausalLM.from_pretrained(tmp_path / "run")
    assert any(not torch.equal(value, before[name]) for name, value in after.state_dict().items())


def test_a_resumed_run_equals_an_uninterrupted_one(base, tmp_path, capsys):
    _, flags = base
    flags = [*flags, *DIGITS, "--save_steps=2", "--save_total_limit=5", "--control=random_reward"]
    for name in ("straight", "cut"):
        run_here("grpo", *flags, "--output_dir", tmp_path / name)
    cut_off(tmp_path / "cut", step=2)
    run_here("grpo", *flags, "--output_dir", tmp_path / "cut")
    assert "from checkpoint-2" in capsys.readouterr().out
    for name, value in tensors_of(tmp_path / "straight").items():
        assert torch.equal(tensors_of(tmp_path / "cut")[name], value), name


def test_the_control_is_trained_on_coin_flips_alone(base, tmp_path):
    """Advantages in the log are those of the coin's rewards, and the true reward is still reported."""
    _, flags = base
    run_here("grpo", *flags, *DIGITS, "--control=random_reward", "--output_dir", tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "completions.jsonl").read_text().splitlines()]
    assert {name for line in lines for name in line["rewards"]} == {"digits", "random_reward"}
    assert {line["rewards"]["random_reward"] for line in lines} == {0.0, 1.0}
    logs = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    for log in (log for log in logs if "reward" in log):
        assert log["reward"] == pytest.approx(log["rewards/random_reward/mean"])
    assert record_of(tmp_path / "run")["arguments"]["training"]["control"] == "random_reward"


def test_coins_are_fair():
    torch.manual_seed(0)
    flips = random_reward(["a"] * 10_000)
    assert set(flips) == {0, 1} and abs(sum(flips) / 10_000 - 0.5) < 0.02  # 4 standard errors


def test_adapters_and_a_system_prompt(base, tmp_path):
    _, flags = base
    flags = [*flags, *DIGITS, "--use_peft", "--beta=0.1", "--num_iterations=2", "--system_prompt", "Think first."]
    run_here("grpo", *flags, "--output_dir", tmp_path / "run")
    assert "adapter/adapter_model.safetensors" in files_in(tmp_path / "run")
    line = json.loads((tmp_path / "run" / "completions.jsonl").read_text().splitlines()[0])
    assert line["prompt"][0] == {"role": "system", "content": "Think first."}


def test_as_a_program_then_evaluated(base, tmp_path):
    """The commands of the README, and measure.py on the very rows that the run held out."""
    _, flags = base
    run = tmp_path / "run"
    data = [{"question": f"{i} + 1?", "answer": str(i + 1)} for i in range(60)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in data))
    flags = [*flags, "--dataset_name", tmp_path / "sums.jsonl", "--reward_funcs", "number", "think_format"]
    launch = [*ACCELERATE, "--config_file", "accelerate_configs/cpu.yaml", "recipes/grpo.py"]
    done = run_program(*launch, *flags, "--reward_weights", "1", "0.1", "--output_dir", run)
    assert "57 rows to train on, 3 rows held out" in done.stdout and "grpo finished" in done.stdout
    options = ["--format_func", "think_format", "--begin", "<think>", "--samples", "2", "--max_new_tokens", "8"]
    done = run_program(sys.executable, "recipes/measure.py", run, *options, "--answers", tmp_path / "answers.jsonl")
    row = json.loads((run / "evaluation.json").read_text())
    assert row["problems"] == 3 and row["verifier"] == "number"
    assert {"right", "right_stderr", "forced_right", "sampled_pass@1", "sampled_pass@2", "in_format"} <= row.keys()
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert all(answer["forced"].startswith("<think>") for answer in answers)
    held_out = {json.dumps(answer["prompt"]) for answer in answers}
    lines = [json.loads(line) for line in (run / "completions.jsonl").read_text().splitlines()]
    trained = {json.dumps(line["prompt"]) for line in lines if not line["held_out"]}
    assert trained.isdisjoint(held_out)
    assert {json.dumps(line["prompt"]) for line in lines if line["held_out"]} <= held_out


# What it refuses


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        ([], "reward_model_name_or_path.*reward_funcs"),
        (["--reward_funcs", "nubmer"], "'nubmer' is unknown.*exact, number"),
        (["--reward_funcs", "exact", "length", "--reward_weights", "1"], "reward_weights=.* must be 2"),
        ([*DIGITS, "--control=coins"], "control='coins' must be random_reward"),
        ([*DIGITS, "--unverifiable=maybe"], "unverifiable='maybe' must be error or drop"),
        ([*DIGITS, "--num_generations=3"], "num_generations=3 must divide the 8 completions .*: 2, 4, 8 would"),
    ],
)
def test_wrong_settings_leave_nothing_behind(base, tmp_path, flags, why):
    with pytest.raises(ValueError, match=why):
        run_here("grpo", *base[1], *flags, "--output_dir", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_data_that_no_verifier_can_use(base, tmp_path):
    _, flags = base
    with pytest.raises(ValueError, match=r"row 1: reward function countdown needs the column 'nums', found"):
        run_here("grpo", *flags, "--reward_funcs", "countdown", "--output_dir", tmp_path / "run")
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps({"prompt": f"Say {i}"}) + "\n" for i in range(9)))
    flags = [*flags, "--dataset_name", tmp_path / "asked.jsonl", "--reward_funcs", "number"]
    with pytest.raises(ValueError, match="number needs the column 'answer'"):
        run_here("grpo", *flags, "--output_dir", tmp_path / "other")


def test_no_number_of_generations_divides_one_completion(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(ValueError, match="raise per_device_train_batch_size"):
        GRPORunConfig(per_device_train_batch_size=1, gradient_accumulation_steps=1, num_generations=1)


def test_default_learning_rates():
    """TRL's 1e-6 for 1e9 parameters and more; a power law below."""
    assert default_learning_rate(7_000_000_000, adapters=False) == default_learning_rate(10**9, False) == 1e-6
    rates = [default_learning_rate(10**n, False) for n in (6, 7, 8, 9)]
    ratios = [a / b for a, b in zip(rates, rates[1:], strict=False)]
    assert ratios == pytest.approx([ratios[0]] * 3) and 5 < ratios[0] < 8
    assert default_learning_rate(10**7, adapters=True) == pytest.approx(10 * rates[1])
