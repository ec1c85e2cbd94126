"""Every setting is decided before the run begins: what run.json holds is what was used, for all five recipes."""

import json

import pytest
from helpers import SMALL_RUN, TINY, cut_off, record_of, run_here, write_chats, write_texts

from fourstage.arguments import DataArguments, ModelArguments, restored

LOGGED = [*SMALL_RUN, "--logging_steps=1"]
RL = [*LOGGED, "--gradient_accumulation_steps=2", "--max_completion_length=8", "--max_eval_rows=4"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Each recipe once with as little said as possible: {stage: folder}."""
    folder = tmp_path_factory.mktemp("resolved")
    texts, chats = write_texts(folder / "texts.jsonl"), write_chats(folder / "chats.jsonl")
    pairs = folder / "pairs.jsonl"
    rows = [{"prompt": f"Is {i} odd?", "chosen": f"It is {i}.", "rejected": f"No {i}!"} for i in range(40)]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    start = [word for word in TINY if not word.startswith("--vocab_size")]
    run_here(
        "pretrain", "--dataset_name", texts, *start, *LOGGED, "--max_length=96", "--output_dir", folder / "pretrain"
    )
    tuned = ["--model_name_or_path", folder / "sft", "--dataset_name"]
    parent = ["--model_name_or_path", folder / "pretrain"]
    run_here("sft", *parent, "--dataset_name", chats, *LOGGED, "--output_dir", folder / "sft")
    run_here("reward", *tuned, pairs, *LOGGED, "--output_dir", folder / "reward")
    run_here("ppo", *tuned, chats, "--reward_funcs=length", *RL, "--output_dir", folder / "ppo")
    grpo = ["--reward_funcs=length", "--num_generations=4", *RL]
    run_here("grpo", *tuned, chats, *grpo, "--output_dir", folder / "grpo")
    return folder


@pytest.mark.parametrize("stage", ["pretrain", "sft", "reward", "ppo", "grpo"])
def test_run_json_holds_the_values_used(runs, stage):
    record = record_of(runs / stage)
    training = record["arguments"]["training"]
    rates = [name for name in training if name.endswith("learning_rate") or name.endswith("_lr_scale")]
    assert "learning_rate" in rates and all(isinstance(training[name], float) for name in rates)
    assert "learning_rate" not in record  # one place
    state = json.loads((runs / stage / "trainer_state.json").read_text())
    peak = max(row["learning_rate"] for row in state["log_history"] if "learning_rate" in row)
    assert 0 < peak <= training["learning_rate"]


def test_what_was_left_open_is_filled_and_named(runs):
    filled = {stage: record_of(runs / stage)["resolved"] for stage in ("pretrain", "sft", "reward", "ppo", "grpo")}
    assert filled["pretrain"] == [
        "embedding_lr_scale",
        "head_lr_scale",
        "learning_rate",
        "packing_strategy",
        "vocab_size",
    ]
    assert (filled["sft"], filled["reward"], filled["ppo"]) == (["max_length"], ["max_length"], [])
    assert filled["grpo"] == ["learning_rate"]
    base, tuned = record_of(runs / "pretrain")["arguments"], record_of(runs / "sft")["arguments"]
    # Scaled weights: 1e-2, the embedding 20 times, the head 0.7 times as fast; sqrt(43,000) = 207, at least 512.
    assert [base["training"][name] for name in filled["pretrain"][:4]] == [20.0, 0.7, 1e-2, "wrapped"]
    assert base["model"]["vocab_size"] == 512 and tuned["training"]["max_length"] == 96
    parameters = record_of(runs / "grpo")["parameters"]
    rate = record_of(runs / "grpo")["arguments"]["training"]["learning_rate"]
    assert rate == pytest.approx(1e-6 * (1e9 / parameters) ** 0.75)


def test_arguments_come_back_as_what_they_were(runs):
    arguments = record_of(runs / "pretrain")["arguments"]
    data, model = restored(DataArguments, arguments["data"]), restored(ModelArguments, arguments["model"])
    assert isinstance(data, DataArguments) and data.test_split_size == 0.05
    assert isinstance(model, ModelArguments) and model.vocab_size == 512 and model.dtype == "float32"
    older = {"dataset_name": "a.jsonl", "a_field_of_another_version": 1}
    assert restored(DataArguments, older) == DataArguments(dataset_name="a.jsonl")


@pytest.mark.parametrize("given", [[], ["--max_length=64"]])
def test_a_run_of_before_settings_were_resolved_goes_on_or_is_refused(runs, tmp_path, given):
    """Its run.json has None where a default was left open: the same command resumes it, another length does not."""
    chats, folder = write_chats(tmp_path / "chats.jsonl"), tmp_path / "sft"
    flags = ["--model_name_or_path", runs / "pretrain", "--dataset_name", chats, *SMALL_RUN, "--output_dir", folder]
    flags.append("--save_total_limit=2")
    run_here("sft", *flags)
    cut_off(folder, 2)
    record = record_of(folder)
    record["arguments"]["training"]["max_length"] = None
    del record["resolved"]
    (folder / "run.json").write_text(json.dumps(record))
    if given:
        with pytest.raises(ValueError, match="max_length was None, now 64"):
            run_here("sft", *flags, *given)
    else:
        run_here("sft", *flags)
        assert record_of(folder)["arguments"]["training"]["max_length"] == 96


@pytest.mark.parametrize("recipe", ["pretrain", "sft", "reward", "ppo", "grpo"])
def test_data_without_a_name_is_refused_before_a_folder_is_made(runs, tmp_path, recipe):
    parent = [] if recipe == "pretrain" else ["--model_name_or_path", runs / "sft"]
    rewards = ["--reward_funcs=length"] if recipe in ("ppo", "grpo") else []
    with pytest.raises(ValueError, match=rf"dataset_name.*configs/demo/{recipe}\.yaml"):
        run_here(recipe, *parent, *rewards, "--max_steps=30", "--output_dir", tmp_path / "none")
    assert not (tmp_path / "none").exists()
