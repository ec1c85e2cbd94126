"""Real signals to real runs: they stop with a checkpoint, and what they print resumes them to the same weights."""

import json
import os
import shlex
import signal
import subprocess
import sys

import pytest
import torch
from helpers import (
    ACCELERATE,
    RECIPES,
    ROOT,
    TINY,
    environment,
    record_of,
    run_here,
    run_program,
    tensors_of,
    write_chats,
    write_texts,
)

# The recipe as a program, which gets a signal while it takes the step after so many, as `STEP SIGNAL` says.
SIGNALLED = """
import os, runpy, signal, sys
from transformers import Trainer
step, plan = Trainer.training_step, [word.split() for word in sys.argv[1].split(",")]
def taken(trainer, *given, **named):
    if plan and os.environ.get("RANK", "1") == "1" and trainer.state.global_step == int(plan[0][0]):
        os.kill(os.getpid(), getattr(signal, plan.pop(0)[1]))
    return step(trainer, *given, **named)
Trainer.training_step = taken
recipe, sys.argv = sys.argv[2], sys.argv[2:]
runpy.run_path(recipe, run_name="__main__")
"""
RUN = ["--max_steps=12", "--save_steps=100", "--eval_steps=6", "--per_device_train_batch_size=4", "--report_to=none"]


def digits(prompts, completions, **kwargs):
    """A reward: the share of digits."""
    texts = [completion[0]["content"] for completion in completions]
    return [sum(letter.isdigit() for letter in text) / (len(text) + 1) for text in texts]


def signalled(plan, stage, *flags, launcher=(sys.executable,), **env):
    """(status, the last lines on stderr) of a recipe that is signalled."""
    program = run_program(*launcher, "-c", SIGNALLED, plan, RECIPES / f"{stage}.py", *flags, ok=False, **env)
    return program.returncode, program.stderr.rstrip().splitlines()


def checkpoints(folder):
    return sorted(int(path.name.split("-")[1]) for path in (folder / "checkpoints").glob("checkpoint-*"))


def resumes_to_the_straight_weights(tmp_path, stage, flags, command):
    """Whether the command that was printed ends the run in `cut` as the run in `straight` ends."""
    assert record_of(tmp_path / "cut")["status"] == "running"
    program, recipe, *words = shlex.split(command)
    assert (program, recipe) == ("python", str(RECIPES / f"{stage}.py"))
    run_here(stage, *words)
    run_here(stage, *flags, "--output_dir", tmp_path / "straight")
    for name, value in tensors_of(tmp_path / "straight").items():
        assert torch.equal(tensors_of(tmp_path / "cut")[name], value), name
    return True


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return write_texts(tmp_path_factory.mktemp("data") / "texts.jsonl")


def pretrain_flags(texts):
    return ["--dataset_name", texts, "--max_length=64", *TINY, *RUN]


def test_sigterm_leaves_a_checkpoint_and_the_command_that_goes_on(texts, tmp_path):
    flags = pretrain_flags(texts)
    status, said = signalled("3 SIGTERM", "pretrain", *flags, "--output_dir", tmp_path / "cut")
    assert status == 143 and said[-2] == "stopped by SIGTERM after step 4 of 12, with a checkpoint; it goes on with:"
    assert checkpoints(tmp_path / "cut") == [4] and not any("Traceback" in line for line in said)
    assert resumes_to_the_straight_weights(tmp_path, "pretrain", flags, said[-1])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGHUP", 129)])
def test_other_signals_with_accumulation(texts, tmp_path, name, status):
    """The signal comes in the first half of a step, which is taken to its end."""
    flags = [*pretrain_flags(texts), "--gradient_accumulation_steps=2"]
    got, said = signalled(f"5 {name}", "pretrain", *flags, "--output_dir", tmp_path / "cut")
    assert got == status and checkpoints(tmp_path / "cut") == [6]
    assert resumes_to_the_straight_weights(tmp_path, "pretrain", flags, said[-1])


@pytest.mark.slow
def test_before_the_first_step_it_ends_at_once(texts, tmp_path):
    flags = pretrain_flags(texts)
    status, said = signalled("0 SIGTERM", "pretrain", *flags, "--output_dir", tmp_path / "cut")
    assert status == 143 and said[-1].startswith("ended by SIGTERM; from its last checkpoint the run goes on with: ")
    assert checkpoints(tmp_path / "cut") == [] and not any("Traceback" in line for line in said)
    assert resumes_to_the_straight_weights(tmp_path, "pretrain", flags, said[-1].split(": ", 1)[1])


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["ppo", "grpo"])
@pytest.mark.parametrize("step", [4, 8])
def test_a_rollout_is_trained_on_to_its_end_first(base, tmp_path, monkeypatch, stage, step):
    """A rollout serves for two steps: the signal comes in the first, and the checkpoint after the second. At the end of
    the first epoch (of GRPO), and in the second: the rows of each have an order of their own."""
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "artifact"))
    chats = write_chats(tmp_path / "chats.jsonl")
    flags = ["--model_name_or_path", base, "--dataset_name", chats, "--reward_funcs", "test_interrupts.digits", *RUN]
    flags += ["--max_completion_length=8", "--max_eval_rows=4", "--num_iterations=2"]
    flags += ["--num_generations=2"] if stage == "grpo" else []
    path = f"{ROOT / 'tests' / 'artifact'}{os.pathsep}{ROOT / 'tests'}{os.pathsep}{ROOT}"
    status, said = signalled(f"{step} SIGTERM", stage, *flags, "--output_dir", tmp_path / "cut", PYTHONPATH=path)
    assert status == 143 and f"after step {step + 2} of 12" in said[-2]
    assert checkpoints(tmp_path / "cut") == [step + 2]
    assert resumes_to_the_straight_weights(tmp_path, stage, flags, said[-1])
    answers = [(tmp_path / name / "completions.jsonl").read_text() for name in ("straight", "cut")]
    steps = [[json.loads(line)["step"] for line in text.splitlines()] for text in answers]
    assert steps[0][-1] == steps[1][-1] == 12


@pytest.mark.slow
def test_all_processes_stop_at_the_step_where_one_got_it(texts, tmp_path):
    """The second alone does: a signal of its own, as a node that is preempted."""
    program = tmp_path / "recipe.py"
    program.write_text(SIGNALLED)
    launcher = [*ACCELERATE, "--config_file", ROOT / "accelerate_configs" / "ddp.yaml", "--num_processes", "2"]
    flags = [*pretrain_flags(texts), "--per_device_train_batch_size=2", "--output_dir", tmp_path / "cut"]
    done = run_program(*launcher, program, "3 SIGTERM", RECIPES / "pretrain.py", *flags, ok=False)
    assert "stopped by SIGTERM after step 4 of 12" in done.stderr and checkpoints(tmp_path / "cut") == [4]
    assert "exitcode  : 143" in done.stderr and "Traceback" not in done.stderr.split("stopped by")[0]
    run_program(*launcher, RECIPES / "pretrain.py", *flags)
    flags[-1] = tmp_path / "straight"
    run_program(*launcher, RECIPES / "pretrain.py", *flags)
    for name, value in tensors_of(tmp_path / "straight").items():
        assert torch.equal(tensors_of(tmp_path / "cut")[name], value), name


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM"])
def test_a_run_stops_with_a_checkpoint_where_its_launcher_alone_is_ended(texts, tmp_path, name):
    flags = [*pretrain_flags(texts), "--max_steps=1000000", "--output_dir", tmp_path / "run", "--logging_steps=1"]
    command = [*ACCELERATE, "--config_file", ROOT / "accelerate_configs" / "cpu.yaml", RECIPES / "pretrain.py", *flags]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen(list(map(str, command)), cwd=ROOT, env=environment(PYTHONUNBUFFERED="1"), **streams)
    for line in process.stdout:
        if "step 2/1000000" in line:
            break
    process.send_signal(getattr(signal, name))
    said = process.stdout.read().splitlines()  # until the recipe has closed it
    assert "stopped by SIGTERM after step" in said[-2] and said[-1].startswith("accelerate launch --config_file ")
    (step,) = checkpoints(tmp_path / "run")
    assert step >= 2 and record_of(tmp_path / "run")["status"] == "running"


def test_the_same_command_twice_at_once(texts, tmp_path):
    """While the first trains, as a test that asks at its first step shows."""
    from fourstage.artifact.lock import lock_folder, unlock_folder

    lock_folder(tmp_path / "run")  # as another process does, of which this one is the number
    try:
        done = run_program(
            sys.executable, RECIPES / "pretrain.py", *pretrain_flags(texts), "--output_dir", tmp_path / "run", ok=False
        )
    finally:
        unlock_folder(tmp_path / "run")
    assert done.returncode == 2 and f"is in use by process {os.getpid()};" in done.stderr.rstrip().splitlines()[-1]
    assert not (tmp_path / "run" / "run.json").exists()
