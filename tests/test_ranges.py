"""What means nothing is refused when it is read, in one line that names the field: from YAML, flags and code alike."""

import argparse
import enum
import os
import sys
import types
from dataclasses import fields
from typing import get_args, get_type_hints

import pytest
from helpers import RECIPES, load_recipe
from transformers.trainer_utils import HubStrategy, IntervalStrategy, SaveStrategy, SchedulerType

from fourstage import GRPOConfig, PPOConfig
from fourstage.ranges import CHOICES, RANGES, check_best_metric, number, plain, whole_number

STAGES = ["pretrain", "sft", "reward", "ppo", "grpo"]
NO_RANGE = {"local_rank", "entropy_coef", "entropy_coef_min", "entropy_coef_max"}  # any number means something
# Thirty lines of aliases that stand for two to the thirtieth values
BOMB = "".join(f"k{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 31))


def parse(monkeypatch, tmp_path, stage, text="", flags=()):
    (tmp_path / "a.yaml").write_text(text, encoding="utf-8")
    monkeypatch.setattr(sys, "argv", [f"{stage}.py", "--config", str(tmp_path / "a.yaml"), *flags])
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(stage)
    return recipe.parse(str(RECIPES / f"{stage}.py"), *list(recipe.main.__annotations__.values())[:3])


def refusal(monkeypatch, tmp_path, stage, text="", flags=()):
    """The message with which the settings are refused, after which the working folder holds nothing but the YAML."""
    with pytest.raises(ValueError) as error:
        parse(monkeypatch, tmp_path, stage, text, flags)
    message = str(error.value)
    assert message.isprintable() and len(message) < 1_200
    assert [path.name for path in tmp_path.iterdir()] == ["a.yaml"]
    return message


# What ran to "finished" at 7e9e677, or ended in a traceback: (stage, setting, value)
SENSELESS = [
    ("pretrain", "learning_rate", "-1e-3"),
    ("pretrain", "learning_rate", ".nan"),
    ("pretrain", "learning_rate", ".inf"),
    ("pretrain", "weight_decay", "-1"),
    ("pretrain", "weight_decay", ".nan"),
    ("pretrain", "warmup_steps", "-1"),
    ("pretrain", "warmup_steps", "2.5"),
    ("pretrain", "max_grad_norm", "-1"),
    ("pretrain", "max_grad_norm", ".inf"),
    ("pretrain", "learning_rate", "1e9"),
    ("pretrain", "weight_decay", "1000"),
    ("pretrain", "adam_epsilon", "0"),
    ("pretrain", "adam_beta1", "1"),
    ("pretrain", "adam_beta2", "-0.1"),
    ("pretrain", "embedding_lr_scale", ".nan"),
    ("pretrain", "head_lr_scale", "-1"),
    ("pretrain", "muon_momentum", ".nan"),
    ("pretrain", "muon_momentum", "2"),
    ("pretrain", "decay_ratio", "-1"),
    ("pretrain", "decay_ratio", "1.5"),
    ("pretrain", "max_eval_rows", "-1"),
    ("pretrain", "max_eval_rows", "0"),
    ("pretrain", "max_length", "0"),
    ("pretrain", "max_length", "1"),
    ("pretrain", "vocab_size", "-128"),
    ("pretrain", "vocab_size", "500"),
    ("pretrain", "max_steps", "0"),
    ("pretrain", "max_steps", "-2"),
    ("pretrain", "num_train_epochs", "0"),
    ("pretrain", "num_train_epochs", "-1"),
    ("pretrain", "gradient_accumulation_steps", "0"),
    ("pretrain", "gradient_accumulation_steps", "-1"),
    ("pretrain", "per_device_train_batch_size", "0"),
    ("pretrain", "per_device_eval_batch_size", "0"),
    ("pretrain", "save_steps", "-1"),
    ("pretrain", "save_steps", "1.5"),
    ("pretrain", "eval_steps", "0"),
    ("pretrain", "logging_steps", "-5"),
    ("pretrain", "save_total_limit", "0"),
    ("pretrain", "seed", "-1"),
    ("pretrain", "data_seed", "4294967296"),
    ("pretrain", "test_split_size", "1"),
    ("pretrain", "task_size", "0"),
    ("pretrain", "dataloader_num_workers", "-1"),
    ("pretrain", "dataset_num_proc", "0"),
    ("pretrain", "pad_to_multiple_of", "0"),
    ("pretrain", "pad_to_multiple_of", "x"),
    ("pretrain", "enable_jit_checkpoint", "true"),
    ("pretrain", "ddp_timeout", "1000000000000"),
    ("pretrain", "optim", "nonsense"),
    ("pretrain", "optim", "lomo"),
    ("pretrain", "report_to", "nonsense"),
    ("pretrain", "report_to", "[none, wandbx]"),
    ("pretrain", "attn_implementation", "1"),
    ("pretrain", "attn_implementation", "flash_attention_2"),
    ("pretrain", "lr_scheduler_type", "nonsense"),
    ("pretrain", "lr_scheduler_kwargs", "'5'"),
    ("pretrain", "lr_scheduler_kwargs", "{min_lr: .nan}"),
    ("pretrain", "accelerator_config", "x"),
    ("pretrain", "accelerator_config", "{x: 1}"),
    ("pretrain", "accelerator_config", "{1: 2}"),
    ("pretrain", "deepspeed", "x"),
    ("pretrain", "fsdp_config", "[1]"),
    ("pretrain", "log_level", "x"),
    ("pretrain", "ddp_backend", "x"),
    ("pretrain", "dtype", "float8"),
    ("pretrain", "eval_strategy", "sometimes"),
    ("pretrain", "hub_strategy", "x"),
    ("pretrain", "packing_strategy", "x"),
    ("pretrain", "torch_compile_mode", "x"),
    ("pretrain", "torch_compile_backend", "x"),
    ("pretrain", "include_num_input_tokens_seen", "x"),
    ("pretrain", "dataset_name", "/"),
    ("pretrain", "dataset_name", "''"),
    ("pretrain", "dataset_name", "y" * 5_000),
    ("pretrain", "dataset_name", '"a\\e[2Jb"'),
    ("sft", "learning_rate", ""),
    ("sft", "loss_type", "grpo"),
    ("sft", "bnb_4bit_quant_storage", "5"),
    ("sft", "dataset_train_split", "''"),
    ("sft", "num_parameters", "many"),
    ("sft", "router_aux_loss_coef", "1e13"),
    ("sft", "chat_template_path", "nowhere.jinja"),
    ("sft", "optim_args", "x"),
    ("sft", "lora_r", "0"),
    ("sft", "lora_alpha", "0"),
    ("sft", "lora_dropout", "1"),
    ("sft", "label_smoothing_factor", "2"),
    ("sft", "neftune_noise_alpha", "-1"),
    ("sft", "overlong", "x"),
    ("sft", "use_liger_kernel", "true"),
    ("reward", "center_rewards_coefficient", "-1"),
    ("reward", "max_length", "-5"),
    ("ppo", "temperature", "0"),
    ("ppo", "temperature", ".nan"),
    ("ppo", "epsilon", "-1"),
    ("ppo", "epsilon", ".nan"),
    ("ppo", "top_p", "0"),
    ("ppo", "top_p", "2"),
    ("ppo", "top_k", "-1"),
    ("ppo", "min_p", "1.5"),
    ("ppo", "repetition_penalty", "0"),
    ("ppo", "beta", "-0.1"),
    ("ppo", "gamma", "1.1"),
    ("ppo", "lam", "-0.1"),
    ("ppo", "cliprange_value", "0"),
    ("ppo", "value_learning_rate", "-1"),
    ("ppo", "critic_warmup_steps", "-1"),
    ("ppo", "missing_eos_penalty", "-1"),
    ("ppo", "reward_clip_range", "[1, .nan]"),
    ("ppo", "reward_clip_range", "[1]"),
    ("ppo", "logging_steps", "-1"),
    ("ppo", "per_device_train_batch_size", "0"),
    ("ppo", "gradient_accumulation_steps", "0"),
    ("ppo", "num_generations", "0"),
    ("ppo", "use_vllm", "true"),
    ("grpo", "num_iterations", "0"),
    ("grpo", "loss_type", "nll"),
    ("grpo", "reward_weights", ".nan"),
    ("grpo", "reward_weights", "[1, .inf]"),
    ("grpo", "epsilon_high", "0"),
    ("grpo", "max_completion_length", "0"),
    ("grpo", "steps_per_generation", "0"),
    ("grpo", "generation_batch_size", "-8"),
    ("grpo", "num_generations", "1000000000"),
    ("grpo", "learning_rate", "-1"),
    ("grpo", "delta", "-1"),
    ("grpo", "unverifiable", "x"),
    ("grpo", "generation_kwargs", "'[1]'"),
]


@pytest.mark.parametrize(("stage", "name", "value"), SENSELESS, ids=[f"{s} {n}: {v[:12]}" for s, n, v in SENSELESS])
def test_what_means_nothing_is_refused(monkeypatch, tmp_path, stage, name, value):
    assert name in refusal(monkeypatch, tmp_path, stage, f"{name}: {value}\n")


def numeric_fields(stage):
    kinds = list(load_recipe(stage).main.__annotations__.values())[:3]
    hints = {f.name: get_type_hints(kind)[f.name] for kind in kinds for f in fields(kind)}
    members = {name: set(get_args(hint)) - {types.NoneType} or {hint} for name, hint in hints.items()}
    return {name for name, of in members.items() if of <= {int, float}}


def test_every_number_has_a_range():
    """By the hints alone: a field that we or a new version of TRL add has to be put into the table."""
    every = set().union(*map(numeric_fields, STAGES))
    assert len(every) > 80 and every - NO_RANGE <= {*RANGES}


@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_what_is_not_a_number_is_refused_for_every_number(monkeypatch, tmp_path, stage):
    for name in sorted(numeric_fields(stage)):
        for value in (".nan", "true", "[1, 2]" if name != "reward_weights" else "x"):
            assert name in refusal(monkeypatch, tmp_path, stage, f"{name}: {value}\n"), value
        assert name in refusal(monkeypatch, tmp_path, stage, "seed: 1\n", [f"--{name}=nan"])
        assert name in refusal(monkeypatch, tmp_path, stage, "seed: 1\n", [f"--{name}", "true"])


def test_values_at_the_ends_of_ranges_are_taken(monkeypatch, tmp_path):
    lines = "learning_rate: 0\nweight_decay: 0\nmax_grad_norm: 0\nwarmup_steps: 0\nadam_beta1: 0\nmax_steps: 1\n"
    lines += "beta: 0\ngamma: 0\nlam: 1\ntop_p: 1\ntop_k: 0\nmin_p: 0\nlogging_steps: 0\nseed: 4294967295\n"
    lines += "cliprange_value:\nreward_clip_range: [-.inf, 3]\nsave_steps: 0.5\neval_steps: 7.0\n"
    training = parse(monkeypatch, tmp_path, "ppo", lines)[1]
    assert (training.learning_rate, training.top_p, training.reward_clip_range) == (0, 1, [float("-inf"), 3])
    assert training.cliprange_value is None and training.seed == 2**32 - 1


def test_configs_made_in_code_have_the_same_ranges(tmp_path):
    for kind, settings in (
        (PPOConfig, {"temperature": 0.0}),
        (PPOConfig, {"beta": True}),
        (PPOConfig, {"lam": float("nan")}),
        (GRPOConfig, {"top_p": 2.0}),
        (GRPOConfig, {"per_device_train_batch_size": 0}),
    ):
        with pytest.raises(ValueError, match=f"{next(iter(settings))}=.* must be"):
            kind(output_dir=str(tmp_path), use_cpu=True, **settings)


def test_choices_are_those_of_the_library():
    for name, members in (
        ("lr_scheduler_type", SchedulerType),
        ("save_strategy", SaveStrategy),
        ("logging_strategy", IntervalStrategy),
        ("eval_strategy", IntervalStrategy),
        ("hub_strategy", HubStrategy),
    ):
        assert issubclass(members, enum.Enum) and set(CHOICES[name]) == {member.value for member in members}


def test_the_metric_of_the_best_checkpoint_is_one_that_is_measured():
    metrics = {"eval_loss": 1.0, "eval_reward": 2.0}
    for wanted in (None, "loss", "eval_reward"):
        check_best_metric(wanted, metrics)
    with pytest.raises(ValueError, match="metric_for_best_model='los' must be one of eval_loss, eval_reward"):
        check_best_metric("los", metrics)


@pytest.mark.parametrize(
    "value", ["''", "' '", "", "~", ".", "./", "..", "/", "a.yaml", "a.yaml/x", "/dev/null", "/dev/null/x"]
)
def test_an_output_dir_that_is_no_folder_of_its_own(monkeypatch, tmp_path, value):
    assert "output_dir" in refusal(monkeypatch, tmp_path, "sft", f"output_dir: {value}\n")


def test_an_output_dir_that_cannot_be_written(monkeypatch, tmp_path):
    for folder in ("/proc/x", "/proc/1/x", "r/" + "y" * 300, "r\\u0000x"):
        assert "output_dir" in refusal(monkeypatch, tmp_path, "sft", f'output_dir: "{folder}"\n')
    assert parse(monkeypatch, tmp_path, "sft", "output_dir: some/deep/folder\n")[1].output_dir == "some/deep/folder"
    assert os.listdir(tmp_path) == ["a.yaml"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("seed: 1\nmax_steps: 3\nseed: 2\n", "seed is there twice, in lines 1 and 3"),
        ("lr_scheduler_kwargs: {min_lr: 1, min_lr: 2}\n", "min_lr is there twice"),
        ("run_name: " + "[" * 5_000, "nested too deep"),
        ("env: &a [*a]\n", "unconstructable recursive"),
        ("run_name: &a0 [x, x]\n" + BOMB, "stand for more than"),
        ("env: {'A=B': x}\n", "env: takes NAME: value lines"),
        ("env: {5: x}\n", "env: takes NAME: value lines"),
        ("run_name: [" + "x, " * 9_000 + "x]\n", "run_name: takes text"),
        ('packing: "a\\e[2J"\n', "packing: takes true or false"),
        ('"a\\e[2J": 1\n', "unknown"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_plain_list_of_settings(monkeypatch, tmp_path, text, words):
    assert words in refusal(monkeypatch, tmp_path, "pretrain", text)


def test_one_key_may_stand_in_several_mappings_and_be_merged(monkeypatch, tmp_path):
    text = "lr_scheduler_kwargs: &a {min_lr: 1}\nmodel_init_kwargs: {<<: *a, min_lr: 2}\n"
    assert parse(monkeypatch, tmp_path, "pretrain", text)[1].lr_scheduler_kwargs == {"min_lr": 1}


def test_flags_of_other_programs():
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--count", type=whole_number(1))
    parser.add_argument("--share", type=number("between 0 and 1", lambda x: 0 <= x <= 1))
    assert parser.parse_args(["--count", "1", "--share", "0.5"]) == argparse.Namespace(count=1, share=0.5)
    for flags in (
        ["--count", "0"],
        ["--count", "10000000000"],
        ["--count", "1.5"],
        ["--count", "x"],
        ["--share", "nan"],
        ["--share", "2"],
    ):
        with pytest.raises(argparse.ArgumentError, match="must be a"):
            parser.parse_args(flags)


def test_a_message_is_printable_and_ends():
    assert plain("a\x1b[2Jb\n") == "a\\x1b[2Jb\\n" and len(plain("é" * 5_000)) == 600
