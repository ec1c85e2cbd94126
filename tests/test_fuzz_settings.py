"""Mutated settings of all five recipes: refused in one line with nothing written, or accepted by every check."""

from collections import Counter

import pytest
from helpers import run_here

from benchmarks.fuzz_settings import Accepted, Case, fuzz, judge, outcome, prepare, small_run, yaml_of

# Settings that their stage alone can judge, by the parent or the data: (stage, setting, value, words of the refusal)
SENSELESS = [
    ("pretrain", "model_type", "banana", "model_type='banana' is not a causal language model"),
    ("pretrain", "config_overrides", {"vocab_size": 5}, "vocab_size=5 comes from the tokenizer"),
    ("pretrain", "config_overrides", {"eos_token_id": 5}, "eos_token_id=5 comes from the tokenizer"),
    ("pretrain", "config_overrides", {"hidden": 5}, "hidden=5 is not a field of qwen3 configs"),
    ("pretrain", "num_parameters", "many", "num_parameters='many' must be a positive whole number"),
    ("pretrain", "max_length", None, "max_length=None must be at least 2"),
    ("sft", "dataset_name", "nowhere.jsonl", "dataset_name=nowhere.jsonl: no such file or folder"),
    ("sft", "dataset_name", 5, "dataset_name=5: no such file or folder"),
    ("sft", "lora_target_modules", "nonsense", "lora_target_modules='nonsense' names nothing in this model"),
    ("sft", "lora_target_modules", ["q_proj", "qproj"], "lora_target_modules='qproj' names nothing"),
    ("sft", "lora_modules_to_save", ["lm_heads"], "lora_modules_to_save='lm_heads' names nothing"),
    ("reward", "lora_target_parameters", ["weights"], "lora_target_parameters='weights' names nothing"),
    ("ppo", "max_completion_length", 100_000, "max_completion_length=100000 leaves no room"),
    ("ppo", "reward_funcs", [5], "reward function '5' is unknown"),
    ("grpo", "max_completion_length", 64, "max_completion_length=64 leaves no room"),
    ("grpo", "max_completion_length", None, "max_completion_length=None must be at least 1"),
    ("grpo", "reward_funcs", "numbers", "reward function 'numbers' is unknown"),
]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("home")
    prepare(folder, run_here)
    return folder


def test_mutated_settings_are_refused_in_one_line_or_accepted(home):
    rows = fuzz(home, count=100, number=0)
    wrong = [row for row in rows if row[2] not in ("refused", "accepted")]
    kinds = Counter(kind for _, _, kind, _ in rows)
    assert not wrong and min(kinds["refused"], kinds["accepted"]) > 10


@pytest.mark.parametrize(("stage", "name", "value", "words"), SENSELESS)
def test_what_only_the_stage_can_judge_is_refused_before_it_starts(home, stage, name, value, words):
    more = {"use_peft": True} if name.startswith("lora") else {}
    kind, message = outcome(Case(stage, yaml_of(small_run(stage, home) | more | {name: value}), (), ""))
    assert kind == "refused" and words in message


@pytest.mark.parametrize(
    ("stage", "more"),
    [
        *((stage, {}) for stage in ("pretrain", "sft", "reward", "ppo", "grpo")),
        (
            "sft",
            {"use_peft": True, "lora_target_modules": ["q_proj", "mlp.up_proj"], "lora_modules_to_save": "lm_head"},
        ),
        ("sft", {"use_peft": True, "lora_target_modules": r".*layers\.0\..*_proj"}),
        ("reward", {"use_peft": True, "lora_target_modules": "all-linear", "lora_modules_to_save": ["score"]}),
        ("reward", {"use_peft": True, "lora_target_parameters": ["mlp.down_proj.weight"]}),
        ("pretrain", {"config_overrides": {"hidden_size": 32, "max_position_embeddings": 128}}),
        ("ppo", {"max_completion_length": 63}),
    ],
)
def test_what_means_something_is_accepted(home, stage, more):
    assert outcome(Case(stage, yaml_of(small_run(stage, home) | more), (), "")) == ("accepted", "")


def test_the_judge_tells_a_refusal_from_all_else():
    refused = SystemExit(2)
    assert judge(refused, "a warning\nerror: seed: takes a number\n", []) == ("refused", "error: seed: takes a number")
    assert judge(refused, "error: seed: takes\na number\n", [])[0] == "not one line"
    assert judge(refused, "error: \x1b[2J\n", [])[0] == "not one line"
    assert judge(refused, "error: seed: takes a number\n", ["run/run.json"])[0] == "refused late"
    assert judge(SystemExit(1), "", [])[0] == "exit 1" and judge(refused, "usage: ...\n", [])[0] == "exit 2"
    assert judge(TypeError("no len()"), "", []) == ("exception", "TypeError: no len()")
    assert judge(OSError("x"), "", ["run/run.json"])[0] == "late exception"
    assert judge(Accepted(), "", []) == ("accepted", "") and judge(Accepted(), "", ["a"])[0] == "wrote"
    assert judge(None, "", ["run/model.safetensors"])[0] == "ran"
