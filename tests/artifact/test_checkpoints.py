"""Whole checkpoints, by real faults in real files; and the order in which a run removes older ones."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from helpers import SMALL_RUN, TINY, cut_off, files_in, record_of, run_here, tensors_of, write_texts
from safetensors.torch import save_file
from transformers import TrainerControl, TrainerState, TrainingArguments

from fourstage.artifact import checkpoints
from fourstage.artifact.run import Run
from fourstage.artifact.saving import CleanRun
from fourstage.atomic import write_through

FLAGS = ["--max_length=64", "--save_total_limit=5", "--max_steps=6", "--lr_scheduler_type=constant"]
NAMES = ["config.json", "model.safetensors", "optimizer.pt", "rng_state.pth", "scheduler.pt", "tokenizer.json"]
FAULTS = {
    "cut in half": lambda file: os.truncate(file, file.stat().st_size // 2),
    "empty": lambda file: os.truncate(file, 0),
    "missing": lambda file: file.unlink(),
    "zeros": lambda file: file.write_bytes(bytes(file.stat().st_size)),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run of six steps with checkpoints at 2, 4 and 6, and its flags."""
    folder = tmp_path_factory.mktemp("whole")
    texts = write_texts(folder / "texts.jsonl")
    flags = ["--dataset_name", texts, *TINY, *SMALL_RUN, *FLAGS]
    run_here("pretrain", *flags, "--output_dir", folder / "run")
    return folder / "run", flags


@pytest.fixture
def unfinished(trained, tmp_path):
    """A copy that was killed after its last checkpoint, and its flags."""
    shutil.copytree(trained[0], tmp_path / "run")
    cut_off(tmp_path / "run", step=6)
    return tmp_path / "run", [*trained[1], "--output_dir", tmp_path / "run"]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", [*NAMES, "trainer_state.json", "files.json"])
def test_every_fault_of_every_file_is_found_and_named(unfinished, name, fault):
    folder, _ = unfinished
    checkpoint, record = folder / "checkpoints" / "checkpoint-6", record_of(folder)
    assert checkpoints.damage(checkpoint, record) is None
    FAULTS[fault](checkpoint / name)
    if (name, fault) == ("files.json", "missing"):  # as an older version left it
        assert checkpoints.damage(checkpoint, record) is None
        return
    assert name in checkpoints.damage(checkpoint, record)
    found, flaws = checkpoints.newest_whole(folder, record)
    assert found == folder / "checkpoints" / "checkpoint-4"
    assert len(flaws) == 1 and flaws[0].startswith("checkpoint-6") and name in flaws[0]


@pytest.mark.parametrize("fault", ["cut in half", "empty", "missing"])
@pytest.mark.parametrize("name", [name for name in NAMES if name != "tokenizer.json"])
def test_a_checkpoint_of_an_older_version_is_opened_file_by_file(unfinished, name, fault):
    folder, _ = unfinished
    checkpoint = folder / "checkpoints" / "checkpoint-6"
    (checkpoint / "files.json").unlink()
    FAULTS[fault](checkpoint / name)
    assert checkpoints.damage(checkpoint, record_of(folder)).startswith(name)


def test_what_each_engine_and_stage_needs(tmp_path):
    """DeepSpeed and FSDP have no optimizer.pt; each process has its random state; PPO has its critic beside."""

    def first_lack(files, **more):
        shutil.rmtree(tmp_path / "c", ignore_errors=True)
        (tmp_path / "c").mkdir()
        for name in files:
            path = tmp_path / "c" / name
            if path.suffix == ".json":
                path.write_text("{}")
            elif path.suffix == ".safetensors":
                save_file({"a": torch.ones(2)}, path)
            else:
                torch.save({}, path)
        record = {"stage": "sft", "processes": 1, "engine": "none", "arguments": {"model": {"use_peft": False}}}
        return checkpoints.damage(tmp_path / "c", record | more)

    state = ["trainer_state.json", "scheduler.pt"]
    alone = [*state, "rng_state.pth", "optimizer.pt", "config.json", "model.safetensors"]
    assert first_lack(alone) is None
    assert first_lack(alone, stage="ppo") == "value_model.safetensors is missing"
    assert first_lack([*alone, "value_model.safetensors", "value_optimizer.pt"], stage="ppo") is None
    peft = {"arguments": {"model": {"use_peft": True}}}
    assert first_lack(alone, **peft) == "adapter_config.json is missing"
    assert first_lack([*alone[:4], "adapter_config.json", "adapter_model.safetensors"], **peft) is None
    two = [*state, "rng_state_0.pth", "rng_state_1.pth"]
    assert first_lack(two, processes=2, engine="fsdp2") is None
    assert first_lack(two[:3], processes=2, engine="fsdp2") == "rng_state_1.pth is missing"
    assert first_lack(["trainer_state.json", *two[2:]], processes=2, engine="zero3") is None
    assert first_lack(two, processes=2, engine="ddp") == "config.json is missing"
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    assert first_lack([*alone[:-1], "model-1.safetensors"]) == "model.safetensors is missing"
    (tmp_path / "c" / "model.safetensors.index.json").write_text(json.dumps(index))
    record = {"stage": "sft", "processes": 1, "engine": "none", "arguments": {"model": {}}}
    assert checkpoints.damage(tmp_path / "c", record) == "model-2.safetensors is missing"


def test_a_file_that_is_whole_but_shorter_than_it_was(unfinished):
    """Only the list knows: the file opens."""
    folder, _ = unfinished
    checkpoint = folder / "checkpoints" / "checkpoint-6"
    torch.save({}, checkpoint / "optimizer.pt")
    assert "optimizer.pt has" in checkpoints.damage(checkpoint, record_of(folder))


# A run that is started again


def test_a_damaged_checkpoint_gives_way_to_the_one_before(trained, unfinished, capsys):
    folder, flags = unfinished
    os.truncate(folder / "checkpoints" / "checkpoint-6" / "optimizer.pt", 1000)
    run_here("pretrain", *flags)
    said = capsys.readouterr().out
    assert "checkpoint-6 is not whole: optimizer.pt" in said and "goes on from checkpoint-4" in said
    for name, value in tensors_of(trained[0]).items():
        assert torch.equal(tensors_of(folder)[name], value)
    assert checkpoints.damage(folder / "checkpoints" / "checkpoint-6", record_of(folder)) is None


def test_nothing_is_started_anew_where_work_was_lost(unfinished):
    folder, flags = unfinished
    for checkpoint in (folder / "checkpoints").glob("checkpoint-*"):
        (checkpoint / "optimizer.pt").unlink()
    before = files_in(folder)
    with pytest.raises(ValueError, match="no checkpoint is whole any more") as refused:
        run_here("pretrain", *flags)
    assert str(folder / "checkpoints") in str(refused.value) and "optimizer.pt is missing" in str(refused.value)
    assert "\n" not in str(refused.value) and files_in(folder) - {".lock"} == before
    shutil.rmtree(folder / "checkpoints")  # as it says
    run_here("pretrain", *flags)
    assert record_of(folder)["status"] == "finished"


def test_a_run_killed_in_its_first_save_starts_anew_and_tells(unfinished, capsys):
    folder, flags = unfinished
    for step in (4, 6):
        shutil.rmtree(folder / "checkpoints" / f"checkpoint-{step}")
    checkpoints.unseal(folder / "checkpoints" / "checkpoint-2")
    run_here("pretrain", *flags)
    assert "checkpoint-2 is not whole: trainer_state.json is missing; it starts anew" in capsys.readouterr().out


def test_a_checkpoint_asked_for_by_name_has_to_be_whole(unfinished):
    folder, flags = unfinished
    checkpoint = folder / "checkpoints" / "checkpoint-4"
    (checkpoint / "scheduler.pt").unlink()
    with pytest.raises(ValueError, match=r"resume_from_checkpoint=.*scheduler\.pt is missing; give another"):
        run_here("pretrain", *flags, "--resume_from_checkpoint", checkpoint)


def test_what_a_kill_at_the_start_leaves_is_no_run_of_another(trained, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json.tmp").write_text('{"status": "runn')
    run_here("pretrain", *trained[1], "--output_dir", tmp_path / "run")
    assert record_of(tmp_path / "run")["status"] == "finished"


def test_a_mended_command_may_take_the_folder_of_a_run_without_a_checkpoint(unfinished):
    folder, flags = unfinished
    for checkpoint in (folder / "checkpoints").glob("checkpoint-*"):
        checkpoints.unseal(checkpoint)
    (folder / "completions.jsonl").write_text("{")
    run_here("pretrain", *flags, "--max_steps=2")
    assert record_of(folder)["steps"] == 2
    assert {path.name for path in (folder / "checkpoints").glob("c*")} == {"checkpoint-2"}


def test_another_command_may_not_take_the_folder_of_damaged_checkpoints(unfinished):
    folder, flags = unfinished
    for checkpoint in (folder / "checkpoints").glob("checkpoint-*"):
        (checkpoint / "optimizer.pt").unlink()
    with pytest.raises(ValueError, match="holds another run: max_steps was 6, now 2"):
        run_here("pretrain", *flags, "--max_steps=2")


# Saving


def test_a_checkpoint_is_on_the_disk_before_it_counts(trained, tmp_path, monkeypatch):
    """The real fsync, and what of the checkpoint it had been asked for when the list appeared."""
    synced, fsync = [], os.fsync

    def watched(descriptor):
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        synced.append((path, (path.parent / "files.json").exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    run_here("pretrain", *trained[1], "--output_dir", tmp_path / "run")
    checkpoint = tmp_path / "run" / "checkpoints" / "checkpoint-4"
    before = {path.name for path, listed in synced if path.parent == checkpoint and not listed}
    assert before >= {*NAMES, "trainer_state.json"}
    own = [path.name for path, _ in synced if path.parent == tmp_path / "run"]
    assert own[-1] == "run.json.tmp" and {"model.safetensors", "trainer_state.json"} <= {*own}


def test_a_folder_that_cannot_be_synced_is_no_failure(tmp_path, monkeypatch):
    (tmp_path / "a").write_text("a")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    fsync = os.fsync

    refused, synced = [], []

    def as_on_some_network(descriptor):
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            refused.append(os.readlink(f"/proc/self/fd/{descriptor}"))
            raise OSError(22, "Invalid argument")
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", as_on_some_network)
    write_through(tmp_path)
    assert str(tmp_path) in refused and synced == [str(tmp_path / "a")]


def test_a_checkpoint_about_to_be_written_over_does_not_count(unfinished):
    """Else a kill in the middle leaves new files under the old list."""
    folder, _ = unfinished
    args = TrainingArguments(output_dir=str(folder / "checkpoints"), save_total_limit=1, use_cpu=True)
    callback = CleanRun(Run(folder, record_of(folder), None, True), args)
    assert args.save_total_limit is None  # the trainer removes none
    for step, save in ((4, False), (6, True)):
        callback.on_step_end(args, TrainerState(global_step=step), TrainerControl(should_save=save))
    whole = [path.name for path in checkpoints.numbered(folder) if checkpoints.was_whole(path)]
    assert whole == ["checkpoint-2", "checkpoint-4"]


def left_after(tmp_path, steps, newest, limit, best=None):
    shutil.rmtree(tmp_path / "checkpoints", ignore_errors=True)
    for age, step in enumerate(steps):
        (tmp_path / "checkpoints" / f"checkpoint-{step}").mkdir(parents=True)
        os.utime(tmp_path / "checkpoints" / f"checkpoint-{step}", (2e9 - age, 2e9 - age))  # the older, the newer
    checkpoints.rotate(tmp_path, newest, limit, best)
    return [int(path.name.split("-")[1]) for path in checkpoints.numbered(tmp_path)]


def test_the_oldest_is_removed_by_its_step_whatever_the_clock_said(tmp_path):
    assert left_after(tmp_path, [3, 6, 9, 12], newest=12, limit=2) == [9, 12]
    assert left_after(tmp_path, [900, 1000], newest=1000, limit=1) == [1000]
    assert left_after(tmp_path, [3, 6, 9, 12], newest=12, limit=None) == [3, 6, 9, 12]
    assert left_after(tmp_path, [3, 6, 9, 12], newest=12, limit=2, best="x/checkpoint-3") == [3, 12]
    assert left_after(tmp_path, [3, 6, 9, 12], newest=12, limit=1, best="x/checkpoint-3") == [3, 12]
    assert left_after(tmp_path, [3, 6, 9, 12], newest=6, limit=2) == [3, 6]  # 9 and 12 were damaged
    assert left_after(tmp_path, [3], newest=3, limit=1) == [3]


def test_a_checkpoint_from_the_future_does_not_outlive_the_new_ones(trained, tmp_path):
    flags = [*trained[1], "--save_total_limit=1", "--output_dir", tmp_path / "run"]
    shutil.copytree(trained[0], tmp_path / "run")
    cut_off(tmp_path / "run", step=2)
    os.utime(tmp_path / "run" / "checkpoints" / "checkpoint-2", (4e9, 4e9))
    run_here("pretrain", *flags)
    assert {path.name for path in (tmp_path / "run" / "checkpoints").glob("c*")} == {"checkpoint-6"}
