"""A recipe without arguments makes the stages of the demo that it starts from; and the table of the stages itself."""

import json
import shutil
import subprocess
from contextlib import nullcontext

import pytest
import yaml
from helpers import ACCELERATE, RECIPES, SHAPE, environment, write_chats, write_texts

from fourstage import chain
from fourstage.stages import STAGES, parents_of

CONFIGS = RECIPES / "configs" / "demo"


def finish(name):
    """Marks a stage of the demo below the working folder as finished."""
    folder = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())["output_dir"]
    path = chain.Path(folder)
    path.mkdir(parents=True)
    (path / "run.json").write_text(json.dumps({"status": "finished", "stage": name}))


# The table


def test_every_stage_has_its_recipe_and_comes_after_its_parents():
    names = list(STAGES)
    assert names[0] == "pretrain" and {"sft", "reward", "ppo", "grpo", "control"} <= {*names}
    for name, stage in STAGES.items():
        assert (
            stage.name == name
            and (RECIPES / f"{stage.recipe}.py").is_file()
            and (CONFIGS / f"{stage.recipe}.yaml").is_file()
        )
        assert all(names.index(parent) < names.index(name) for parent in parents_of(name))
    assert sum(stage.share for stage in STAGES.values()) == 100
    assert parents_of("ppo") == ["sft", "reward"] and parents_of("pretrain") == []


def test_the_demo_s_settings_name_the_parents_of_the_table():
    for name, stage in STAGES.items():
        settings = yaml.safe_load((CONFIGS / f"{stage.recipe}.yaml").read_text())
        named = [settings.get("model_name_or_path"), settings.get("reward_model_name_or_path")]
        assert [path for path in named if path] == [f"runs/demo/{parent}" for parent in parents_of(name)]


# What is missing


def test_missing_stages_in_the_order_to_make_them(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert chain.missing_stages("pretrain", CONFIGS) == []
    assert chain.missing_stages("ppo", CONFIGS) == ["pretrain", "sft", "reward"]
    assert chain.missing_stages("grpo", CONFIGS) == ["pretrain", "sft", "reward", "ppo"]
    finish("pretrain")
    assert chain.missing_stages("ppo", CONFIGS) == ["sft", "reward"]
    finish("sft")
    assert chain.missing_stages("reward", CONFIGS) == [] and chain.missing_stages("ppo", CONFIGS) == ["reward"]
    (tmp_path / "runs/demo/sft/run.json").write_text('{"status": "running", "stage": "sft"}')
    assert chain.missing_stages("reward", CONFIGS) == ["sft"]


def test_several_processes_are_told_the_command(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"recipes/pipeline\.py --stages pretrain sft$"):
        chain.make_missing_parents(RECIPES / "reward.py")


def test_what_is_made_is_told_with_its_minutes(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    commands = []
    monkeypatch.setattr(
        chain, "child", lambda words, **_: nullcontext(commands.append(words) or subprocess.CompletedProcess(words, 0))
    )
    chain.make_missing_parents(RECIPES / "reward.py")
    said = capsys.readouterr().out
    assert "starts from pretrain, sft: made first, about 3 minutes" in said  # 36 + 17 of 100 of 6 minutes
    assert [words[1:] for words in commands] == [
        [str(RECIPES / f"{name}.py"), "--config", str(CONFIGS / f"{name}.yaml")] for name in ("pretrain", "sft")
    ]
    monkeypatch.setattr(chain, "child", lambda words, **_: nullcontext(subprocess.CompletedProcess(words, 2)))
    with pytest.raises(SystemExit) as stopped:
        chain.make_missing_parents(RECIPES / "reward.py")
    assert stopped.value.code == 2


def test_a_stage_that_is_made_first_is_not_launched_as_this_one_is(monkeypatch):
    launched = {"ACCELERATE_MIXED_PRECISION": "no", "MASTER_PORT": "1", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    for name, value in {**launched, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "MINE": "a"}.items():
        monkeypatch.setenv(name, value)
    environment = chain.environment_without_launcher()
    assert not launched.keys() & environment.keys() and "OMP_NUM_THREADS" not in environment
    assert (environment["ACCELERATE_USE_CPU"], environment["MINE"]) == ("true", "a")
    for name in [*launched, "ACCELERATE_USE_CPU"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert chain.environment_without_launcher().get("OMP_NUM_THREADS") == "1"  # a person's own


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_bare_launch_on_a_fresh_clone(tmp_path):
    """`accelerate launch recipes/reward.py` and nothing else; the demo's settings are cut to small data and 4 steps."""
    shutil.copytree(RECIPES, tmp_path / "recipes", ignore=shutil.ignore_patterns("__pycache__"))
    pairs = [{"prompt": f"Is {i} odd?", "chosen": f"It is {i}.", "rejected": f"No {i}!"} for i in range(40)]
    (tmp_path / "reward.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    write_texts(tmp_path / "pretrain.jsonl")
    write_chats(tmp_path / "sft.jsonl")
    for name in ("pretrain", "sft", "reward"):
        path = tmp_path / "recipes/configs/demo" / f"{name}.yaml"
        small = {"dataset_name": f"{name}.jsonl", "max_steps": 4, "report_to": "none"}
        small |= {"num_parameters": "43K", "vocab_size": 384, "config_overrides": SHAPE} if name == "pretrain" else {}
        path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | small))
    run = {"cwd": tmp_path, "env": environment(), "capture_output": True, "text": True}
    done = subprocess.run([*ACCELERATE, "recipes/reward.py"], **run)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert "starts from pretrain, sft: made first" in done.stdout
    for name in ("pretrain", "sft", "reward"):
        assert json.loads((tmp_path / f"runs/demo/{name}/run.json").read_text())["status"] == "finished"
    again = subprocess.run([*ACCELERATE, "recipes/reward.py"], **run)
    assert again.returncode == 0 and "is finished" in again.stdout and "made first" not in again.stdout
