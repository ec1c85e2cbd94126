"""The examples of docs/extending.md, taken from the page and run."""

import json
import re
import runpy

import helpers
import pytest
from helpers import RECIPES, ROOT, SMALL_RUN, TINY, cut_off, record_of, run_here, tensors_of, write_texts
from transformers import AutoModelForCausalLM, AutoTokenizer

from fourstage import arguments, resolve, verifiers
from fourstage.arguments import DataArguments
from fourstage.data import formats
from fourstage.data.loading import load_conversations
from fourstage.models import families
from fourstage.models.sizing import count_parameters, sized_config
from fourstage.rl.rewards import load_reward_func
from fourstage.stages import STAGES, Stage, parents_of

TEXT = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
# {the file that the first line of a block names: the block}
BLOCKS = {re.match(r"# ([\w./]+)", code)[1]: code for code in re.findall(r"^```python\n(.*?)^```", TEXT, re.M | re.S)}
TWO_STEPS = [*SMALL_RUN, "--max_steps=2", "--eval_steps=1", "--save_steps=1", "--save_total_limit=2"]


def names_in(file, **known):
    """What the block of `file` defines, run among the names `known`."""
    names = dict(known)
    exec(compile(BLOCKS[file], file, "exec"), names)
    return {name: value for name, value in names.items() if name not in known and name != "__builtins__"}


def add(monkeypatch, module, file):
    """Adds what the block of `file` defines to the module of this file."""
    for name, value in names_in(file, **vars(module)).items():
        monkeypatch.setattr(module, name, value, raising=False)


def value_in(file, **known):
    """The value of a block that is one expression."""
    return eval(BLOCKS[file], known)


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A finished base of 43,000 parameters."""
    folder = tmp_path_factory.mktemp("extending")
    texts = write_texts(folder / "texts.jsonl")
    run_here("pretrain", "--dataset_name", texts, "--max_length=64", "--output_dir", folder / "base", *TINY, *SMALL_RUN)
    return folder / "base"


def test_every_block_is_run_here():
    assert len(BLOCKS) == TEXT.count("```python\n")
    ours = {file for file in BLOCKS if (ROOT / file).exists()}
    assert {*BLOCKS} - ours == {"recipes/dpo.py", "my_rewards.py", "convert.py"}
    assert {file for file in ours if not file.startswith("tests/")} == {
        "fourstage/stages.py",
        "fourstage/arguments.py",
        "fourstage/resolve.py",
        "fourstage/verifiers/__init__.py",
        "fourstage/models/families.py",
        "fourstage/data/formats.py",
    }


# A stage


@pytest.fixture
def dpo(monkeypatch, tmp_path):
    """The package and the recipes with DPO among them."""
    (row,) = value_in("fourstage/stages.py", Stage=Stage)
    monkeypatch.setitem(STAGES, row.name, row)
    add(monkeypatch, arguments, "fourstage/arguments.py")
    monkeypatch.setattr(resolve, "DPORunConfig", arguments.DPORunConfig, raising=False)
    add(monkeypatch, resolve, "fourstage/resolve.py")
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "dpo.py").write_text(BLOCKS["recipes/dpo.py"], encoding="utf-8")
    monkeypatch.setattr(helpers, "RECIPES", tmp_path / "recipes")
    return row


@pytest.mark.parametrize("flags", [[], ["--use_peft"]], ids=["whole", "adapter"])
def test_a_stage(dpo, base, tmp_path, capsys, flags):
    pairs = [{"prompt": f"Is {i} odd?", "chosen": f"It is {i}.", "rejected": f"No {i}!"} for i in range(40)]
    data = ["--dataset_name", write_rows(tmp_path / "pairs.jsonl", pairs), "--learning_rate=1e-3"]
    command = ["dpo", "--model_name_or_path", base, "--output_dir", tmp_path / "run", *data, *TWO_STEPS, *flags]
    run_here(*command)
    record = record_of(tmp_path / "run")
    assert (record["status"], record["stage"], record["steps"]) == ("finished", "dpo", 2)
    assert record["arguments"]["training"]["max_length"] == 64 and record["resolved"] == ["max_length"]
    assert record["tokens"] > 0 and 0 <= record["metrics"]["eval_rewards/accuracies"] <= 1
    card = (tmp_path / "run" / "README.md").read_text()
    assert dpo.makes in card and "AutoModelForCausalLM" in card
    assert f"recipes/grpo.py --model_name_or_path {tmp_path / 'run'}" in capsys.readouterr().out

    trained, parent = (AutoModelForCausalLM.from_pretrained(folder) for folder in (tmp_path / "run", base))
    assert any(not a.equal(b) for a, b in zip(trained.parameters(), parent.parameters(), strict=True))
    assert AutoTokenizer.from_pretrained(tmp_path / "run").chat_template
    weights = tensors_of(tmp_path / "run")
    cut_off(tmp_path / "run", 1)
    run_here(*command)
    assert "from checkpoint-1" in capsys.readouterr().out
    assert all(value.equal(weights[name]) for name, value in tensors_of(tmp_path / "run").items())
    with pytest.raises(SystemExit) as stopped:  # finished
        run_here(*command)
    assert stopped.value.code == 0


def test_a_stage_refuses_wrong_input(dpo, base, tmp_path):
    assert parents_of("dpo") == ["sft"]
    with pytest.raises(ValueError, match="model_name_or_path.*runs/sft"):
        run_here("dpo", "--dataset_name=pairs.jsonl", "--output_dir", tmp_path / "run")
    with pytest.raises(ValueError, match="dataset_name"):
        run_here("dpo", "--model_name_or_path", base, "--output_dir", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_recipe_keeps_to_the_order_and_the_budgets():
    example = BLOCKS["recipes/dpo.py"]
    assert example.count("\n") <= 120
    comments = re.compile(r"^    # .*", re.M)
    assert comments.findall(example) == comments.findall((RECIPES / "sft.py").read_text())


# A verifier


def test_a_verifier(monkeypatch):
    add(monkeypatch, verifiers, "fourstage/verifiers/__init__.py")
    monkeypatch.setattr(verifiers, "__all__", [*verifiers.__all__, "yes_no"])
    assert load_reward_func("yes_no") is verifiers.yes_no
    names_in("tests/verifiers/test_verifiers.py", yes_no=verifiers.yes_no)["test_yes_no"]()


# A reward function


def test_a_reward_function(monkeypatch, base, tmp_path):
    (tmp_path / "my_rewards.py").write_text(BLOCKS["my_rewards.py"], encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    rows = [{"prompt": f"Write {i} words about the sea.", "word": "sea"} for i in range(20)]
    flags = ["--dataset_name", write_rows(tmp_path / "prompts.jsonl", rows), "--max_completion_length=8"]
    flags += ["--reward_funcs", "my_rewards.mentions", "--output_dir", tmp_path / "run", *TWO_STEPS]
    run_here("ppo", "--model_name_or_path", base, *flags)
    lines = (tmp_path / "run" / "completions.jsonl").read_text().splitlines()
    assert lines and all(json.loads(line)["rewards"]["mentions"] in (0.0, 1.0) for line in lines)
    mentions = load_reward_func("my_rewards.mentions")
    assert mentions(["The sea.", [{"role": "assistant", "content": "No."}]], word=["sea", "sea"]) == [1.0, 0.0]


# An architecture


def test_an_architecture(monkeypatch):
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    wanted = {"vocab_size": 512, "max_position_embeddings": 128, "special_token_ids": ids}
    monkeypatch.delitem(families._FAMILIES, "diffllama")
    with pytest.raises(ValueError, match="diffllama.*even"):
        sized_config("diffllama", 3_000_000, **wanted)
    for name, rule in value_in("fourstage/models/families.py").items():
        monkeypatch.setitem(families._FAMILIES, name, rule)
    config = sized_config("diffllama", 3_000_000, **wanted)
    assert config.num_attention_heads % 2 == config.num_key_value_heads % 2 == 0
    assert count_parameters(config) == pytest.approx(3_000_000, rel=0.03)


# A data format


def test_a_converted_file(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "quiz.jsonl", [{"q": f"{i} + 2?", "a": str(i + 2)} for i in range(20)])
    (tmp_path / "convert.py").write_text(BLOCKS["convert.py"], encoding="utf-8")
    runpy.run_path("convert.py")
    train, test = load_conversations(DataArguments(dataset_name="chats.jsonl"), seed=0)
    assert len(train) + len(test) == 20 and train.column_names == ["prompt", "completion"]


def test_a_data_format(monkeypatch, tmp_path):
    add(monkeypatch, formats, "fourstage/data/formats.py")
    known = formats.conversation_row
    monkeypatch.setattr(formats, "conversation_row", lambda row: known(formats._quiz(row)))  # its first line

    def turn(role):
        return lambda content: {"role": role, "content": content}

    names = {"conversation_row": formats.conversation_row, "user": turn("user"), "assistant": turn("assistant")}
    names_in("tests/data/test_formats.py", **names)["test_quiz_rows"]()
    data = write_rows(tmp_path / "quiz.jsonl", [{"q": f"{i} + 2?", "a": str(i + 2)} for i in range(20)])
    train, test = load_conversations(DataArguments(dataset_name=str(data)), seed=0)
    assert len(train) + len(test) == 20
