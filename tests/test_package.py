"""The package as a stranger has it: what it offers, how quickly, typed; and a wheel that is enough to train."""

import inspect
import json
import subprocess
import sys
import venv
import zipfile

import pytest
from helpers import ROOT, TINY, environment, run_program, write_texts

import fourstage
from fourstage.cli import main
from fourstage.shipped import copy_recipes


def test_the_trainers_and_their_settings_are_offered():
    from fourstage import GRPOConfig, GRPOTrainer, PPOConfig, PPOTrainer

    assert (
        {"GRPOConfig", "GRPOTrainer", "PPOConfig", "PPOTrainer", "__version__"}
        == set(fourstage.__all__)
        == set(dir(fourstage))
    )
    from fourstage.grpo.trainer import GRPOTrainer as grpo
    from fourstage.ppo.trainer import PPOTrainer as ppo

    assert (GRPOTrainer, PPOTrainer) == (grpo, ppo)
    assert GRPOConfig(output_dir="x", use_cpu=True).epsilon_high == 0.28
    assert PPOConfig(output_dir="x", use_cpu=True, per_device_train_batch_size=2).num_generations == 1
    with pytest.raises(AttributeError, match="DPOTrainer"):
        _ = fourstage.DPOTrainer


def test_importing_it_brings_nothing_heavy():
    code = "import sys, fourstage; print([m for m in ('torch', 'transformers', 'trl', 'datasets') if m in sys.modules])"
    assert run_program(sys.executable, "-c", code).stdout.strip() == "[]"


def test_public_parameters_are_typed():
    from fourstage import GRPOTrainer, PPOTrainer

    for trainer in (GRPOTrainer, PPOTrainer):
        parameters = list(inspect.signature(trainer.__init__).parameters.values())[1:]
        assert all(p.annotation is not inspect.Parameter.empty for p in parameters), trainer
    assert (ROOT / "fourstage" / "py.typed").is_file()


def test_recipes_are_copied_and_nothing_is_overwritten(tmp_path, capsys):
    assert main(["recipes", str(tmp_path)]) == 0
    assert "accelerate launch" in capsys.readouterr().out
    shipped = {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()}
    tracked = [*ROOT.glob("recipes/**/*"), *ROOT.glob("accelerate_configs/*"), ROOT / "constraints.txt"]
    assert shipped == {path.relative_to(ROOT) for path in tracked if path.is_file() and "__pycache__" not in path.parts}
    (tmp_path / "recipes/sft.py").write_text("mine")
    with pytest.raises(ValueError, match="recipes is there already"):
        copy_recipes(tmp_path)
    assert (tmp_path / "recipes/sft.py").read_text() == "mine"


@pytest.mark.slow
def test_a_wheel_is_enough_to_train(tmp_path):
    """Built, installed beside the libraries that are here, its recipes copied out and one of them launched."""
    pytest.importorskip("hatchling")
    run_program(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path / "dist")
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    (metadata,) = [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith("METADATA")]
    text = zipfile.ZipFile(wheel).read(metadata).decode()
    assert f"Version: {fourstage.__version__}\n" in text and "Typing :: Typed" in text
    venv.create(tmp_path / "venv", with_pip=False)
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    zipfile.ZipFile(wheel).extractall(site)
    here = next(path for path in sys.path if path.endswith("site-packages"))
    (site / "libraries.pth").write_text(here + "\n")
    python, work = tmp_path / "venv/bin/python", tmp_path / "work"
    run = {"cwd": tmp_path, "env": environment(PYTHONPATH=""), "capture_output": True, "text": True, "timeout": 280}
    done = subprocess.run([python, "-m", "fourstage.cli", "recipes", work], **run)
    assert done.returncode == 0, done.stderr
    flags = ["--dataset_name", write_texts(tmp_path / "texts.jsonl"), "--max_length=64", "--max_steps=2", *TINY]
    flags += ["--report_to=none", "--output_dir", tmp_path / "base"]
    launch = [python, "-m", "accelerate.commands.launch", "--quiet", work / "recipes/pretrain.py", *flags]
    done = subprocess.run(list(map(str, launch)), **run)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    record = json.loads((tmp_path / "base/run.json").read_text())
    assert record["status"] == "finished" and record["git_sha"] is None
