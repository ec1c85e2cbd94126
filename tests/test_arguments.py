"""A value in YAML arrives as the field of its name takes it, for every field of the five training recipes."""

import os
import sys
import types
from dataclasses import fields
from typing import get_args, get_type_hints

import pytest
import yaml
from helpers import RECIPES, load_recipe

from fourstage.settings_file import typed_settings

BOTH = ("include_num_input_tokens_seen", "scale_rewards", "fsdp")  # take true and false beside words
STAGES = ["pretrain", "sft", "reward", "ppo", "grpo"]


def kinds_of(stage):
    return list(load_recipe(stage).main.__annotations__.values())[:3]


def read(monkeypatch, tmp_path, stage, text):
    """The values of all fields after parsing a YAML file with this text."""
    (tmp_path / "a.yaml").write_text(text, encoding="utf-8")
    monkeypatch.setattr(sys, "argv", [f"{stage}.py", "--config", str(tmp_path / "a.yaml")])
    monkeypatch.setattr(sys, "path", list(sys.path))
    parsed = load_recipe(stage).parse(str(RECIPES / f"{stage}.py"), *kinds_of(stage))
    return {name: value for part in reversed(parsed) for name, value in vars(part).items()}


VALUES = [
    # Numbers in nested values, in every way that YAML 1.2 and JSON allow
    (
        "lr_scheduler_kwargs: {min_lr: 1e-6, cycles: 2, list: [1E+3, .5e-2]}",
        {"min_lr": 1e-6, "cycles": 2, "list": [1000.0, 0.005]},
    ),
    ("lr_scheduler_kwargs:\n  min_lr: -1e-6\n  at: {deep: 2.e3}", {"min_lr": -1e-6, "at": {"deep": 2000.0}}),
    ("lr_scheduler_kwargs: '{\"min_lr\": 1e-6}'", {"min_lr": 1e-6}),
    (
        "lr_scheduler_kwargs: {name: '1e-6', model: e5-small, day: 2024-01-31}",
        {"name": "1e-6", "model": "e5-small", "day": "2024-01-31"},
    ),
    ("datasets: [{dataset_name: a, weight: 1e-1}]", [{"dataset_name": "a", "weight": 0.1}]),
    (
        "datasets: [{dataset_name: 7, dataset_config: 2024, dataset_train_split: no, license: 1.0}]",
        [{"dataset_name": "7", "dataset_config": "2024", "dataset_train_split": "no", "license": "1.0"}],
    ),
    ("datasets: {dataset_name: a}", [{"dataset_name": "a"}]),
    (
        "datasets: [{dataset_name: a, task_settings: {levels: [{x: 1e1}]}}]",
        [{"dataset_name": "a", "task_settings": {"levels": [{"x": 10.0}]}}],
    ),
    # Words that YAML 1.1 reads as true, false, numbers, dates
    ("eval_strategy: no", "no"),
    ("eval_strategy: off", "no"),
    ("eval_strategy: False", "no"),
    ("eval_strategy: 'no'", "no"),
    ("save_strategy: no", "no"),
    ("logging_strategy: off", "no"),
    ("include_num_input_tokens_seen: no", "no"),
    ("include_num_input_tokens_seen: yes", "all"),
    ("run_name: yes", "yes"),
    ("run_name: 007", "007"),
    ("run_name: 12:30", "12:30"),
    ("run_name: 1e3", "1e3"),
    ("run_name: 2024-01-31", "2024-01-31"),
    ("num_parameters: 800000", "800000"),
    ("num_parameters: 25M", "25M"),
    ("dataset_config: 2024", "2024"),
    ("dataset_config: no", "no"),
    ("dataset_train_split: 1.10", "1.10"),
    ("model_revision: 0123", "0123"),
    # One where several are meant
    ("report_to: none", []),
    ("report_to: [none]", []),
    ("lora_target_modules: all-linear", "all-linear"),
    ("lora_target_modules: [q_proj, 1]", ["q_proj", "1"]),
    ("lora_modules_to_save: lm_head", ["lm_head"]),
    ("label_names: no", ["no"]),
    # Numbers
    ("max_steps: 1e3", 1000),
    ("max_steps: 20", 20),
    ("max_steps: '20'", 20),
    ("learning_rate: 1e-4", 1e-4),
    ("learning_rate: '1e-4'", 1e-4),
    ("learning_rate: 1", 1),
    ("save_total_limit: null", None),
    ("packing: yes", True),
    ("packing: 0", False),
    ("packing: 'false'", False),
    ("bf16: no", False),
    ("vocab_size: 5.12e2", 512),
]


@pytest.mark.parametrize(("line", "value"), VALUES, ids=[line for line, _ in VALUES])
def test_a_value_is_read_as_its_field_takes_it(monkeypatch, tmp_path, line, value):
    got = read(monkeypatch, tmp_path, "pretrain", line)[line.partition(":")[0]]
    assert got == value and isinstance(got, type(value)) and isinstance(got, bool) == isinstance(value, bool)


def test_text_fields_that_also_take_true_and_false(monkeypatch, tmp_path):
    got = read(monkeypatch, tmp_path, "grpo", "scale_rewards: no\nfsdp: off")
    assert (got["scale_rewards"], got["fsdp"]) == ("none", False)
    assert read(monkeypatch, tmp_path, "grpo", "scale_rewards: batch")["scale_rewards"] == "batch"


@pytest.mark.parametrize("stage", ["ppo", "grpo"])
def test_rewards_by_one_name_and_one_weight(monkeypatch, tmp_path, stage):
    got = read(monkeypatch, tmp_path, stage, "reward_funcs: number\nreward_weights: 1e-1")
    assert (got["reward_funcs"], got["reward_weights"]) == (["number"], [0.1])
    got = read(monkeypatch, tmp_path, stage, "reward_funcs: [number, a.b]\nreward_weights: [1, '0.5']")
    assert (got["reward_funcs"], got["reward_weights"]) == (["number", "a.b"], [1, 0.5])


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("max_steps: 2.5", "max_steps: takes a whole number, got 2.5"),
        ("max_steps: many", "max_steps: takes a whole number, got 'many'"),
        ("seed:", "seed: takes a whole number, got None"),
        ("seed: yes", "seed: takes a whole number, got True"),
        ("learning_rate: [1]", r"learning_rate: takes a number, got \[1\]"),
        ("learning_rate: fast", "learning_rate: takes a number, got 'fast'"),
        ("packing: 2", "packing: takes true or false, got 2"),
        ("packing: maybe", "maybe"),
        ("dataset_name: [a, b]", r"dataset_name: takes text, got \['a', 'b'\]"),
        ("run_name: {a: 1}", "run_name: takes text, got"),
        ("lora_target_modules: {a: 1}", "lora_target_modules: takes a list of text, got"),
        ("lora_target_modules: [[a]]", "lora_target_modules: takes text, got"),
        ("datasets: [{dataset_name: [a]}]", "datasets: dataset_name: takes text"),
        ("lr_scheduler_kwargs: [1]", "lr_scheduler_kwargs: takes a mapping or text"),
        ("env: [1]", "env: takes NAME: value lines"),
    ],
)
def test_a_value_of_another_type_is_refused_in_one_line(monkeypatch, tmp_path, line, words):
    with pytest.raises(ValueError, match=words) as error:
        read(monkeypatch, tmp_path, "pretrain", line)
    assert "\n" not in str(error.value)


def test_environment_variables_are_as_written(monkeypatch, tmp_path):
    for name in ("FOURSTAGE_A", "FOURSTAGE_B"):
        monkeypatch.setenv(name, "")
    read(monkeypatch, tmp_path, "pretrain", "env: {FOURSTAGE_A: no, FOURSTAGE_B: 007}")
    assert (os.environ["FOURSTAGE_A"], os.environ["FOURSTAGE_B"]) == ("no", "007")


@pytest.mark.parametrize("stage", STAGES)
def test_every_default_written_in_yaml_is_the_default(monkeypatch, tmp_path, stage):
    defaults = {
        f.name: f.default
        for kind in kinds_of(stage)
        for f in fields(kind)
        if f.init and f.name not in ("hub_token", "debug")
    }
    plain = {name: value for name, value in defaults.items() if isinstance(value, str | int | float | None)}
    plain = {
        name: str(getattr(value, "value", value)) if isinstance(value, str) else value for name, value in plain.items()
    }
    unset = read(monkeypatch, tmp_path, stage, "dataset_name: a")
    written = read(monkeypatch, tmp_path, stage, yaml.safe_dump(plain | {"dataset_name": "a"}))
    assert {name for name in unset if written[name] != unset[name]} <= {"distributed_state"}


@pytest.mark.parametrize("stage", STAGES)
def test_every_field_for_text_keeps_the_words_and_every_list_takes_one(stage):
    """By the hints alone, as no value is good for all of them."""
    words = {"no": False, "2024": 2024, "1e3": 1000.0}
    kinds = kinds_of(stage)
    hints = {name: hint for kind in kinds for name, hint in get_type_hints(kind).items()}
    texts = [name for name, hint in hints.items() if hint in (str, str | None)]
    lists = [name for name, hint in hints.items() if hint in (list[str], list[str] | None)]
    assert len(texts) > 20 and lists
    for text, value in words.items():
        got = typed_settings(dict.fromkeys(texts + lists, value), dict.fromkeys(texts + lists, text), kinds, "")
        kept = [name for name in texts if got[name] == text or (name in BOTH and got[name] is value)]
        assert kept == texts and all(got[name] == [text] for name in lists)
    assert all(types.NoneType in get_args(hints[name]) for name in ("dataset_name", "run_name"))
