"""A run that was killed ends as one in one piece: its steps, its log, its answers, its metrics."""

import importlib.util
import json
import shutil
import sys

import pytest
from datasets import Dataset, IterableDataset
from helpers import ROOT, SMALL_RUN, TINY, cut_off, record_of, run_here, run_program, write_chats, write_texts

from fourstage.data.loading import rows_hash

GPT2 = ["--model_type=gpt2", "--num_parameters=45K", "--max_length=200", "--vocab_size=384"]
GPT2 += ['--config_overrides={"n_embd": 32, "n_layer": 2, "n_head": 2}']
# Checkpoints between lines of the log, and a rate that never is 0, so that one step too many shows.
UNEVEN = ["--save_steps=2", "--logging_steps=3", "--eval_steps=4", "--lr_scheduler_type=constant", "--report_to=none"]
UNEVEN += ["--per_device_train_batch_size=4", "--save_total_limit=5"]
RL = ["--num_generations=4", "--gradient_accumulation_steps=2", "--max_completion_length=8", "--max_eval_rows=4"]


def load_benchmark():
    spec = importlib.util.spec_from_file_location("kill_resume", ROOT / "benchmarks" / "kill_resume.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


kill_resume = load_benchmark()
outcome, vowels = kill_resume.outcome, kill_resume.vowels


def cut_and_run_again(stage, flags, folder, step):
    """What the run in one piece left, and what the one did that was cut off after the checkpoint of `step`."""
    run_here(stage, *flags, "--output_dir", folder)
    straight, completions = outcome(folder), folder / "completions.jsonl"
    answers = completions.read_bytes() if completions.is_file() else None
    cut_off(folder, step)
    if answers is not None:  # with what came after the checkpoint, and a line that was being written
        completions.write_bytes(answers + b'{"step": 2, "held_out": fal')
    run_here(stage, *flags, "--output_dir", folder)
    return straight, outcome(folder)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return write_texts(folder / "texts.jsonl"), write_chats(folder / "chats.jsonl")


@pytest.mark.parametrize("step", [2, 4, 5])
def test_pretraining(data, tmp_path, step):
    flags = ["--dataset_name", data[0], *GPT2, *UNEVEN, "--max_steps=5", "--learning_rate=1e-2"]
    straight, resumed = cut_and_run_again("pretrain", flags, tmp_path / "run", step)
    assert resumed == straight
    assert straight["steps"] == 5 and "metrics train_loss" in straight
    assert not (tmp_path / "run" / "checkpoints" / "checkpoint-6").exists()


def test_epochs_that_were_all_trained(base, tmp_path):
    """After 57 rows, 4 a step, a half epoch has 8 steps. TRL's count of tokens goes on."""
    chats = write_chats(tmp_path / "chats.jsonl")
    flags = ["--dataset_name", chats, "--model_name_or_path", base, *UNEVEN, "--num_train_epochs=0.5"]
    straight, resumed = cut_and_run_again("sft", flags, tmp_path / "run", step=8)
    assert resumed == straight and straight["steps"] == 8


def test_a_whole_epoch_of_sampled_answers(base, tmp_path):
    """The trainer's loop is empty then, and restores no random state: the final evaluation shows that it was."""
    chats = write_chats(tmp_path / "chats.jsonl", count=13)
    flags = ["--dataset_name", chats, "--model_name_or_path", base, *UNEVEN, *RL, "--num_train_epochs=1"]
    flags += ["--reward_funcs", "test_resuming.vowels", "--learning_rate=1e-3"]
    straight, resumed = cut_and_run_again("grpo", flags, tmp_path / "run", step=6)  # 12 rows, 2 a step
    assert resumed == straight and straight["steps"] == 6


@pytest.mark.parametrize("step", [2, 5])
def test_answers_of_grpo(base, data, tmp_path, step):
    """The final metrics are of sampled answers: they show the random state."""
    flags = ["--dataset_name", data[1], "--model_name_or_path", base, *UNEVEN, *RL, "--max_steps=5"]
    flags += ["--reward_funcs", "test_resuming.vowels", "--learning_rate=1e-3"]
    straight, resumed = cut_and_run_again("grpo", flags, tmp_path / "run", step)
    assert resumed == straight
    assert straight["completions.jsonl"].count(b'"step": 5') > 4
    assert len({row["loss"] for row in straight["curves"] if "loss" in row}) > 1  # there is something to learn


def test_completions_beside_a_checkpoint_of_an_older_version(base, data, tmp_path):
    """Its list does not say how long the file was: the steps up to its own are kept."""
    flags = ["--dataset_name", data[1], "--model_name_or_path", base, *UNEVEN, *RL, "--max_steps=4"]
    flags += ["--reward_funcs", "test_resuming.vowels", "--learning_rate=1e-3", "--output_dir", tmp_path / "run"]
    run_here("grpo", *flags)
    completions = tmp_path / "run" / "completions.jsonl"
    answers = completions.read_bytes()
    cut_off(tmp_path / "run", step=2)
    (tmp_path / "run" / "checkpoints" / "checkpoint-2" / "files.json").unlink()
    completions.write_bytes(answers[:-20])
    run_here("grpo", *flags)
    assert completions.read_bytes() == answers


def test_without_a_log_the_mean_loss_of_a_resumed_run_is_left_out(data, tmp_path):
    flags = ["--dataset_name", data[0], *GPT2, *UNEVEN, "--max_steps=4", "--logging_strategy=no"]
    straight, resumed = cut_and_run_again("pretrain", flags, tmp_path / "run", step=2)
    assert "metrics train_loss" in straight and "metrics train_loss" not in resumed
    assert resumed["model.safetensors"] == straight["model.safetensors"]


def test_the_mean_loss_is_that_of_every_step(data, tmp_path):
    """By hand from the log: means over 3, 1 and 1 steps."""
    flags = ["--dataset_name", data[0], *GPT2, *UNEVEN, "--max_steps=5", "--save_steps=4"]
    _, resumed = cut_and_run_again("pretrain", flags, tmp_path / "run", step=4)
    means = [row["loss"] for row in resumed["curves"] if "loss" in row]
    assert [row["step"] for row in resumed["curves"] if "loss" in row] == [3, 4, 5]
    assert resumed["metrics train_loss"] == pytest.approx((3 * means[0] + means[1] + means[2]) / 5, rel=1e-6)


# The data


def test_every_row_counts(tmp_path):
    rows = [{"text": f"document {i}", "turns": [{"role": "user", "n": i}]} for i in range(2_500)]
    whole = rows_hash(Dataset.from_list(rows))
    assert whole == rows_hash(Dataset.from_list(rows * 2).select(range(2_500)))
    assert whole != rows_hash(Dataset.from_list(rows[:-1]))
    assert whole != rows_hash(Dataset.from_list([rows[1], rows[0], *rows[2:]]))
    rows[2_400]["turns"][0]["n"] = -1
    assert whole != rows_hash(Dataset.from_list(rows))
    assert rows_hash(Dataset.from_list(rows).to_iterable_dataset()) is None
    assert isinstance(Dataset.from_list(rows).to_iterable_dataset(), IterableDataset)


def test_a_row_changed_far_behind_is_no_resumption(tmp_path):
    texts = write_texts(tmp_path / "texts.jsonl", count=1_500)
    flags = ["--dataset_name", texts, *TINY, *SMALL_RUN, "--max_length=64", "--output_dir", tmp_path / "run"]
    run_here("pretrain", *flags)
    cut_off(tmp_path / "run", step=2)
    lines = texts.read_text().splitlines(keepends=True)
    lines[1_450] = lines[1_450].replace("1450", "1 450")  # which stays among the rows to train on
    texts.write_text("".join(lines))
    with pytest.raises(ValueError, match=r"the data changed since this run began \(\{'train': '[0-9a-f]{16}',"):
        run_here("pretrain", *flags)


def test_a_run_of_an_older_version_goes_on(base, tmp_path):
    shutil.copytree(base, tmp_path / "run")
    cut_off(tmp_path / "run", step=2)
    record = record_of(tmp_path / "run")
    del record["row_hashes"]
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    for checkpoint in (tmp_path / "run" / "checkpoints").glob("checkpoint-*"):
        (checkpoint / "files.json").unlink()
    given = record["arguments"]["data"]["dataset_name"]
    run_here(
        "pretrain", "--dataset_name", given, "--max_length=64", "--output_dir", tmp_path / "run", *TINY, *SMALL_RUN
    )
    assert record_of(tmp_path / "run")["status"] == "finished"
    assert record_of(tmp_path / "run")["row_hashes"]["train"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"arguments": None}, "has no 'arguments'"),
        ({"processes": None}, "has no 'processes'"),
        ({"finished": None}, "has no 'finished'"),
        ({"status": None}, "not a fourstage run"),
    ],
)
def test_a_damaged_record_is_named_in_one_line(base, tmp_path, change, named):
    shutil.copytree(base, tmp_path / "run")
    record = {key: value for key, value in record_of(base).items() if key not in change}
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    given = record_of(base)["arguments"]["data"]["dataset_name"]
    flags = ["--dataset_name", given, "--max_length=64", "--output_dir", tmp_path / "run", *TINY, *SMALL_RUN]
    with pytest.raises(ValueError, match=named) as refused:
        run_here("pretrain", *flags)
    assert "\n" not in str(refused.value)


def test_a_finished_run_without_its_weights_is_not_called_finished(base, tmp_path):
    shutil.copytree(base, tmp_path / "run")
    (tmp_path / "run" / "model.safetensors").unlink()
    given = record_of(base)["arguments"]["data"]["dataset_name"]
    flags = ["--dataset_name", given, "--max_length=64", "--output_dir", tmp_path / "run", *TINY, *SMALL_RUN]
    with pytest.raises(ValueError, match="its weights are gone"):
        run_here("pretrain", *flags)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["pretrain", "sft", "reward", "ppo", "grpo"])
def test_a_kill_before_any_file_event(tmp_path, recipe):
    """The short form of the benchmark: every 41st event."""
    script = ROOT / "benchmarks" / "kill_resume.py"
    done = run_program(sys.executable, script, "--work", tmp_path, "--recipes", recipe, "--every", "41")
    assert f"| {recipe} |" in done.stdout
