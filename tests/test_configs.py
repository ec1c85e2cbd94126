"""Every shipped YAML goes through the parser of the recipe that its first line launches; --help tells our fields."""

import dataclasses
import re
import shlex
import sys

import pytest
import yaml
from helpers import RECIPES, ROOT, load_recipe

from fourstage.arguments import DataArguments, ModelArguments, PretrainConfig

CONFIGS = sorted((RECIPES / "configs").rglob("*.yaml"))
STAGES = sorted(path.stem for path in RECIPES.glob("*.py") if hasattr(load_recipe(path.stem), "parse"))


def name(path):
    return str(path.relative_to(ROOT))


def kinds_of(stage):
    return list(load_recipe(stage).main.__annotations__.values())[:3]


def parse(monkeypatch, stage, *flags):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", [f"recipes/{stage}.py", *flags])
    monkeypatch.setattr(sys, "path", list(sys.path))
    return load_recipe(stage).parse(str(RECIPES / f"{stage}.py"), *kinds_of(stage))


@pytest.mark.parametrize("path", CONFIGS, ids=name)
def test_a_config_parses_by_the_command_on_its_first_line(monkeypatch, path):
    first = path.read_text().splitlines()[0]
    launch = re.fullmatch(r"# (accelerate launch .*?)(recipes/(\w+)\.py)( .*)", first)
    assert launch, f"{name(path)}: the first line is no launch command: {first}"
    stage, flags = launch[3], shlex.split(launch[4])
    assert stage == path.stem.split("_")[0].split("-")[0], f"{name(path)} launches another recipe: {first}"
    assert flags[flags.index("--config") + 1] == name(path)
    for config in re.findall(r"--config_file (\S+)", launch[1]):
        assert (ROOT / config).is_file()
    parsed = parse(monkeypatch, stage, *flags)
    written = yaml.safe_load(path.read_text())
    values = {key: value for part in parsed for key, value in vars(part).items()}
    for key, value in written.items():  # what is written is what is used, but for the types that YAML leaves open
        got = values[key]
        same = got == value or str(got) == str(value) or (isinstance(got, float) and got == float(value))
        assert same, f"{name(path)}: {key} is {value!r}, parsed as {got!r}"


@pytest.mark.parametrize("stage", STAGES)
def test_a_bare_command_uses_the_demo_config(monkeypatch, capsys, stage):
    monkeypatch.setattr("fourstage.arguments.make_missing_parents", lambda recipe: None)  # tests/test_chain.py
    demo = yaml.safe_load((RECIPES / "configs" / "demo" / f"{stage}.yaml").read_text())
    data_args, training_args, _ = parse(monkeypatch, stage)
    assert (data_args.dataset_name, training_args.output_dir) == (demo["dataset_name"], demo["output_dir"])
    assert f"configs/demo/{stage}.yaml" in capsys.readouterr().out


def test_the_command_line_wins_over_yaml_and_yaml_over_defaults(monkeypatch, tmp_path):
    file = tmp_path / "file.yaml"
    file.write_text("dataset_name: a.jsonl\nmax_steps: 7\nlearning_rate: 5e-4\n")
    data_args, training_args, _ = parse(monkeypatch, "pretrain", "--config", str(file), "--max_steps=9")
    assert data_args.dataset_name == "a.jsonl"
    assert (training_args.max_steps, training_args.learning_rate) == (9, 5e-4)
    assert training_args.max_length == PretrainConfig.max_length


@pytest.mark.parametrize(
    "line, named", [("learning_rat: 1", "learning_rate"), ("hub_token: abc", "HF_TOKEN"), ("- a list", "key: value")]
)
def test_a_wrong_line_of_yaml_is_named(monkeypatch, tmp_path, line, named):
    file = tmp_path / "file.yaml"
    file.write_text(line + "\n")
    with pytest.raises(ValueError, match=named) as refused:
        parse(monkeypatch, "pretrain", "--config", str(file))
    assert str(file) in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "flag",
    ["--no_such_flag", "--learning_rat=1", "--hub_tok=abc"],
)
def test_an_unknown_flag_is_refused(monkeypatch, capsys, flag):
    with pytest.raises((SystemExit, ValueError)) as refused:
        parse(monkeypatch, "pretrain", "--dataset_name=a.jsonl", flag)
    assert flag.split("=")[0] in str(refused.value) + capsys.readouterr().err


@pytest.mark.parametrize("flags, named", [(["--learning_rate=fast"], "learning_rate"), (["--config"], "--config")])
def test_a_value_of_the_wrong_type_takes_one_line(monkeypatch, capsys, flags, named):
    """argparse alone would print the whole usage, and exit."""
    with pytest.raises(ValueError, match=named) as refused:
        parse(monkeypatch, "pretrain", "--dataset_name=a.jsonl", *flags)
    assert "\n" not in str(refused.value) and "usage" not in capsys.readouterr().err


@pytest.mark.parametrize("stage", STAGES)
def test_help_tells_what_our_fields_do(monkeypatch, capsys, stage):
    with pytest.raises(SystemExit) as stopped:
        parse(monkeypatch, stage, "--help")
    assert stopped.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for kind in kinds_of(stage):
        for field in dataclasses.fields(kind):
            if field.name in kind.__dict__.get("__annotations__", {}) and not field.name.startswith("_"):
                assert f"--{field.name}" in text
                assert field.metadata.get("help"), f"{kind.__name__}.{field.name} has no help text"
    assert {DataArguments, ModelArguments} & set(kinds_of(stage))


def test_evaluate_has_help(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["measure.py", "--help"])
    with pytest.raises(SystemExit) as stopped:
        load_recipe("measure").arguments()
    assert stopped.value.code == 0
    assert all(flag in capsys.readouterr().out for flag in ["--stage"])
