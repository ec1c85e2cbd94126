"""Parents as they are found, through the programs: what is trained, measured and talked to is what the parent means."""

import json
import shutil
import sys

import pytest
import torch
from helpers import (
    ACCELERATE,
    SMALL_RUN,
    TINY,
    cut_off,
    files_in,
    record_of,
    run_here,
    run_program,
    tensors_of,
    write_chats,
    write_texts,
)
from peft import PromptTuningConfig, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from fourstage.models.checkpoint import open_causal_lm

FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
QUICK = [*SMALL_RUN, "--max_steps=2", "--save_steps=1", "--eval_strategy=no"]
RL = [*QUICK, "--gradient_accumulation_steps=2", "--max_completion_length=8", "--max_eval_rows=4"]


def write_fp8(source, folder):
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("run.json", "checkpoints", "adapter"))
    weights = {}
    for name, value in tensors_of(source).items():
        if name.endswith("proj.weight"):
            scale = value.abs().max() / 448
            weights |= {name: (value / scale).to(torch.float8_e4m3fn), f"{name}_scale_inv": scale.view(1, 1)}
        else:
            weights[name] = value
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": FP8}))


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A base, a tuning of it with an adapter that learned something, a reward model on that with another; data."""
    folder = tmp_path_factory.mktemp("parents")
    texts, chats = write_texts(folder / "texts.jsonl"), write_chats(folder / "chats.jsonl")
    pairs = [{"prompt": f"Is {i} odd?", "chosen": f"It is {i}.", "rejected": f"No {i}!"} for i in range(60)]
    problems = [{"question": f"What is {i} + 1?", "answer": str(i + 1)} for i in range(60)]
    for name, rows in (("pairs", pairs), ("problems", problems)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lora = ["--use_peft", "--learning_rate=0.02"]
    run_here("pretrain", "--dataset_name", texts, "--max_length=200", *TINY, *QUICK, "--output_dir", folder / "base")
    run_here("sft", *parent(folder / "base", chats), *lora, *QUICK, "--output_dir", folder / "chat")
    of_chat = parent(folder / "chat" / "adapter", folder / "pairs.jsonl")
    run_here("reward", *of_chat, *lora, *QUICK, "--output_dir", folder / "reward")
    write_fp8(folder / "chat", folder / "fp8")
    return folder


def parent(model, data):
    return ["--model_name_or_path", model, "--dataset_name", data]


FLAGS = {
    "pretrain": ["texts.jsonl", "--max_length=64", "--use_muon=false", *QUICK],
    "sft": ["chats.jsonl", *QUICK],
    "reward": ["pairs.jsonl", *QUICK],
    "grpo": ["problems.jsonl", "--reward_funcs=number", *RL],
    "ppo": ["problems.jsonl", "--reward_funcs=number", *RL],
}


def flags_of(places, stage, model, out):
    data, *rest = FLAGS[stage]
    return [*parent(model, places / data), *rest, "--output_dir", out]


@pytest.mark.parametrize("model", ["chat/adapter", "fp8"])
@pytest.mark.parametrize("stage", FLAGS)
def test_a_run_starts_from_what_the_parent_means(places, tmp_path, capsys, stage, model):
    """With a rate of 0 the weights that it leaves are those that it started from."""
    run_here(stage, *flags_of(places, stage, places / model, tmp_path / "run"), "--learning_rate=0")
    said = f"{places / model}: " + ("fp8 weights dequantised to float32" if model == "fp8" else "an adapter of")
    assert said in capsys.readouterr().out
    left, meant = tensors_of(tmp_path / "run"), open_causal_lm(str(places / model), dtype=torch.float32).state_dict()
    assert all(torch.equal(value, meant[name]) for name, value in left.items() if name != "score.weight")
    assert len(left) > 20 and "quantization" not in (tmp_path / "run" / "config.json").read_text()
    assert not files_in(tmp_path / "run") & {"adapter_config.json", "adapter_model.safetensors"}
    kept = record_of(tmp_path / "run")["parent"]
    assert kept["path"] == str(places / model) and kept["sha256"]
    if model == "fp8":
        assert kept["quantisation"] == "fp8"
    else:
        assert kept["base"]["path"] == str(places / "base") and kept["base"]["sha256"]


def test_an_adapter_of_ours_brings_the_tokenizer_of_its_run(places, tmp_path):
    run_here("sft", *flags_of(places, "sft", places / "chat" / "adapter", tmp_path / "run"))
    assert (tmp_path / "run" / "tokenizer.json").read_bytes() == (places / "chat" / "tokenizer.json").read_bytes()
    assert [entry["stage"] for entry in record_of(tmp_path / "run")["lineage"]] == ["pretrain", "sft"]


@pytest.mark.parametrize("model", ["chat/adapter", "fp8"])
def test_a_new_adapter_is_trained_on_it_and_resumed(places, tmp_path, capsys, model):
    flags = [*flags_of(places, "sft", places / model, tmp_path / "run"), "--use_peft", "--learning_rate=0.02"]
    flags += ["--save_total_limit=5"]
    run_here("sft", *flags)
    straight = tensors_of(tmp_path / "run")
    start = open_causal_lm(str(places / model), dtype=torch.float32).state_dict()
    moved = {name for name, value in straight.items() if not torch.equal(value, start[name])}
    assert moved and all("proj" in name or "lm_head" in name for name in moved)
    added = open_causal_lm(str(tmp_path / "run" / "adapter"), dtype=torch.float32).state_dict()
    assert all(torch.allclose(value, added[name], atol=1e-6) for name, value in straight.items())
    cut_off(tmp_path / "run", step=1)
    run_here("sft", *flags)
    assert "from checkpoint-1" in capsys.readouterr().out
    assert all(torch.equal(value, straight[name]) for name, value in tensors_of(tmp_path / "run").items())


def test_four_bits_of_its_own_are_trained_on_as_they_are(places, tmp_path, capsys):
    config = pytest.importorskip("transformers").BitsAndBytesConfig(load_in_4bit=True)
    pytest.importorskip("bitsandbytes")
    AutoModelForCausalLM.from_pretrained(places / "chat", quantization_config=config).save_pretrained(tmp_path / "bnb4")
    AutoTokenizer.from_pretrained(places / "chat").save_pretrained(tmp_path / "bnb4")
    quantised = ["--use_peft", "--load_in_4bit", "--learning_rate=0.02"]
    run_here("sft", *flags_of(places, "sft", tmp_path / "bnb4", tmp_path / "run"), *quantised)
    assert record_of(tmp_path / "run")["adapter"]["quantisation_difference"] < 1e-3  # merged into the same weights
    assert "quantization" not in (tmp_path / "run" / "config.json").read_text()
    run_here("sft", *flags_of(places, "sft", tmp_path / "bnb4", tmp_path / "whole"))
    assert "4-bit bitsandbytes weights dequantised" in capsys.readouterr().out


def test_rewards_and_values_of_an_adapter(places, tmp_path, capsys):
    scored = [*parent(places / "chat" / "adapter", places / "problems.jsonl"), *RL]
    scored += ["--reward_model_name_or_path", places / "reward" / "adapter"]
    scored += ["--value_model_name_or_path", places / "reward" / "adapter"]
    run_here("ppo", *scored, "--output_dir", tmp_path / "run")
    assert record_of(tmp_path / "run")["reward_model"]["base"]["path"] == str(places / "chat" / "adapter")
    assert capsys.readouterr().out.count(f"{places / 'reward' / 'adapter'}: an adapter of") == 2
    again = flags_of(places, "reward", places / "reward" / "adapter", tmp_path / "again")
    run_here("reward", *again, "--learning_rate=0")  # its head too
    left, whole = tensors_of(tmp_path / "again"), tensors_of(places / "reward")
    assert all(torch.allclose(value, whole[name], atol=1e-6) for name, value in left.items())


def gptq(places, folder):
    shutil.copytree(places / "chat", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(config | {"quantization_config": {"quant_method": "gptq", "bits": 4}})
    )


def prompt_tuning(places, folder):
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    get_peft_model(AutoModelForCausalLM.from_pretrained(places / "chat"), config).save_pretrained(folder)


def without_base(places, folder):
    shutil.copytree(places / "chat" / "adapter", folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "runs/gone"}))


def without_a_shard(places, folder):
    shutil.copytree(places / "chat", folder)
    AutoModelForCausalLM.from_pretrained(places / "chat").save_pretrained(folder, max_shard_size="50KB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    sorted(folder.glob("model-*.safetensors"))[0].unlink()


def classifier(places, folder):
    shutil.copytree(places / "reward", folder)


def value_model(places, folder):
    shutil.copytree(places / "chat", folder)
    save_file({"weight": torch.zeros(1, 32)}, folder / "value_head.safetensors")


REFUSED = {
    gptq: "gptq weights",
    prompt_tuning: "prompt tuning",
    without_base: "runs/gone",
    without_a_shard: "lacks model-",
    classifier: "sequence classifier",
    value_model: "value model",
}


# A reward model may be trained on as one.
EACH = [(stage, make) for stage in FLAGS for make in REFUSED if not (stage == "reward" and make is classifier)]


@pytest.mark.parametrize(("stage", "make"), EACH)
def test_what_is_refused_leaves_nothing(places, tmp_path, stage, make):
    make(places, tmp_path / "model")
    with pytest.raises(ValueError, match=REFUSED[make]) as refused:
        run_here(stage, *flags_of(places, stage, tmp_path / "model", tmp_path / "run"))
    assert str(tmp_path / "model") in str(refused.value) and "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("model", ["chat/adapter", "fp8"])
def test_an_adapter_or_fp8_weights_are_not_quantised(places, tmp_path, model):
    flags = flags_of(places, "sft", places / model, tmp_path / "run")
    with pytest.raises(ValueError, match=r"^load_in_4bit: .* leave --load_in_4bit out"):
        run_here("sft", *flags, "--use_peft", "--load_in_4bit")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("make", [without_base, gptq, value_model])
def test_reward_and_value_models_are_refused_as_early(places, tmp_path, make):
    make(places, tmp_path / "model")
    own = flags_of(places, "ppo", places / "chat", tmp_path / "run")
    fields = ["reward_model_name_or_path", *(["value_model_name_or_path"] if make is not value_model else [])]
    for field in fields:
        with pytest.raises(ValueError, match=REFUSED[make]):
            run_here("ppo", *own, f"--{field}", tmp_path / "model")
    assert not (tmp_path / "run").exists()


# As a person starts them


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "reward"])
@pytest.mark.parametrize("model", ["chat/adapter", "fp8"])
def test_a_program_starts_from_it(places, tmp_path, stage, model):
    flags = flags_of(places, stage, places / model, tmp_path / "run")
    done = run_program(*ACCELERATE, f"recipes/{stage}.py", *flags, "--use_peft")
    assert f"{places / model}: " in done.stdout and "UNEXPECTED" not in done.stdout + done.stderr
    assert {"model.safetensors", "adapter/adapter_model.safetensors"} <= files_in(tmp_path / "run")
    assert run_program(*ACCELERATE, f"recipes/{stage}.py", *flags, "--use_peft").stdout.count("nothing to do") == 1


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "grpo"])
@pytest.mark.parametrize("make", [prompt_tuning, gptq])
def test_a_program_refuses_in_one_line(places, tmp_path, stage, make):
    make(places, tmp_path / "model")
    flags = flags_of(places, stage, tmp_path / "model", tmp_path / "run")
    done = run_program(sys.executable, f"recipes/{stage}.py", *flags, ok=False)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and len(errors) == 1 and REFUSED[make] in errors[0] and "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("model", ["chat/adapter", "fp8"])
def test_it_is_measured_and_talked_to(places, model):
    """An adapter of ours is measured as its run is; its merged model answers alike."""
    rows = ["--stage", "sft", "--dataset_name", places / "chats.jsonl", "--max_rows", "4"]
    measured = run_program(sys.executable, "recipes/measure.py", places / model, *rows).stdout
    assert json.loads(measured.splitlines()[-1])["rows"] == 4
    question = ["--prompt", "What is 3 and 4?", "--temperature", "0", "--max_new_tokens", "8"]
    said = run_program(sys.executable, "-m", "fourstage.cli", "chat", places / model, *question)
    assert ("merged" if "adapter" in model else "dequantised") in said.stderr and "merged" not in said.stdout
    both = run_program(
        *(sys.executable, "-m", "fourstage.cli", "compare", places / model, places / "reward" / "adapter"), *question
    )
    assert "score " in both.stdout
    if model == "chat/adapter":
        own = run_program(sys.executable, "-m", "fourstage.cli", "chat", places / "chat", *question)
        assert own.stdout == said.stdout
        alone = run_program(sys.executable, "recipes/measure.py", places / model, "--max_rows", "2").stdout
        assert json.loads(alone.splitlines()[-1])["stage"] == "sft"
