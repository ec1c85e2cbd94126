"""What a stage leaves behind, and when a run goes on, is done or is refused: the recipes themselves, run in process."""

import hashlib
import json
import shlex
from pathlib import Path

import pytest
import torch
import yaml
from helpers import (
    ROOT,
    SHAPE,
    SMALL_RUN,
    TINY,
    cut_off,
    files_in,
    load_recipe,
    record_of,
    run_here,
    snapshot,
    tensors_of,
    write_chats,
    write_texts,
)
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from fourstage.artifact.record import differences, other_processes, same_updates
from fourstage.parent import check_parent

TOKEN = "hf_" + "abcDEFghiJ" * 3
TOKENIZER = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
MODEL = {"config.json", "generation_config.json", "model.safetensors"}
STATE = {"optimizer.pt", "rng_state.pth", "scheduler.pt", "trainer_state.json", "files.json"}
CHECKPOINTS = {"checkpoints/README.md"} | {f"checkpoints/checkpoint-4/{name}" for name in TOKENIZER | MODEL | STATE}
FINISHED = TOKENIZER | MODEL | CHECKPOINTS | {"README.md", "run.json", "samples.jsonl", "trainer_state.json"}


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """The flags of a finished base and of the model tuned from it; a secret was in the environment and in a flag."""
    folder = tmp_path_factory.mktemp("chain")
    texts, chats = write_texts(folder / "texts.jsonl"), write_chats(folder / "chats.jsonl")
    shared = [*SMALL_RUN, "--run_name", TOKEN]
    base = ["--output_dir", folder / "base", "--dataset_name", texts, "--max_length=64", *TINY, *shared]
    tuned = [
        "--output_dir",
        folder / "tuned",
        "--model_name_or_path",
        folder / "base",
        "--dataset_name",
        chats,
        *shared,
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TOKEN", TOKEN)
        run_here("pretrain", *base)
        run_here("sft", *tuned)
    return {"pretrain": base, "sft": tuned}


def folder_of(flags):
    return Path(flags[1])


stages = pytest.mark.parametrize("stage", ["pretrain", "sft"])


# What is left


@stages
def test_a_finished_folder_holds_these_files(chain, stage):
    assert files_in(folder_of(chain[stage])) == FINISHED


@stages
def test_it_loads_and_answers(chain, stage):
    folder = folder_of(chain[stage])
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.get_input_embeddings().num_embeddings == len(tokenizer) == 384
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert {name: getattr(model.config, name) for name in SHAPE} == SHAPE  # from --config_overrides
    turns = [{"role": "user", "content": "hello"}]
    prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt")
    output = model.generate(**prompt, max_new_tokens=5, do_sample=False)
    assert output.shape[1] > prompt["input_ids"].shape[1]
    answer = tokenizer.decode(output[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    found = pipeline("text-generation", model=str(folder))(turns, max_new_tokens=5, do_sample=False)
    assert found[0]["generated_text"] == [*turns, {"role": "assistant", "content": answer}]
    last = folder / "checkpoints" / "checkpoint-4"  # the last step was saved: the same weights
    assert all(torch.equal(value, tensors_of(last)[name]) for name, value in tensors_of(folder).items())


@stages
def test_the_record(chain, stage):
    folder = folder_of(chain[stage])
    record = record_of(folder)
    assert (record["status"], record["stage"], record["seed"], record["processes"]) == ("finished", stage, 42, 1)
    assert record["versions"]["torch"] == torch.__version__
    assert record["parameters"] == AutoModelForCausalLM.from_pretrained(folder).num_parameters()
    assert record["arguments"]["training"]["max_steps"] == 4
    assert record["data"]["train"].endswith("-57") and record["data"]["test"].endswith("-3")  # 5 % of 60 held out
    state = json.loads((folder / "trainer_state.json").read_text())
    assert state["global_step"] == 4
    assert record["tokens"] == state["num_input_tokens_seen"] > 0
    last = [entry for entry in state["log_history"] if "eval_loss" in entry][-1]
    assert record["metrics"]["eval_loss"] == last["eval_loss"]
    if stage == "pretrain":
        assert record["parent"] is None
        assert record["tokens"] == 4 * 4 * 64  # steps, rows, context
    else:
        weights = folder_of(chain["pretrain"]) / "model.safetensors"
        assert record["parent"]["path"] == str(weights.parent)
        assert record["parent"]["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()


@stages
def test_samples_and_card(chain, stage):
    folder = folder_of(chain[stage])
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert "What is an LLM?" in [sample["prompt"] for sample in samples]
    assert all(isinstance(sample["completion"], str) for sample in samples)
    card = ModelCard.load(folder / "README.md")
    assert card.data.library_name == "transformers"
    assert stage in card.data.tags


def test_the_chain_has_one_tokenizer(chain):
    for name in TOKENIZER:
        files = [folder_of(chain[stage]) / name for stage in ("pretrain", "sft")]
        assert files[0].read_bytes() == files[1].read_bytes()


@stages
def test_no_file_holds_the_token(chain, stage):
    folder = folder_of(chain[stage])
    assert record_of(folder)["arguments"]["training"]["run_name"] == "hf_***"
    assert [name for name in files_in(folder) if TOKEN.encode() in (folder / name).read_bytes()] == []


# The same command again


@stages
def test_a_finished_run_is_left_alone(chain, stage, capsys):
    before = snapshot(folder_of(chain[stage]))
    with pytest.raises(SystemExit) as stopped:
        run_here(stage, *chain[stage], "--logging_steps=3", "--eval_steps=4")  # these change nothing that is learned
    assert stopped.value.code == 0
    assert "is finished" in capsys.readouterr().out
    assert snapshot(folder_of(chain[stage])) == before


@pytest.mark.parametrize(
    "stage, flags, named",
    [
        ("pretrain", ["--learning_rate=0.5"], ["learning_rate was 0.01, now 0.5"]),
        ("pretrain", ["--seed=1", "--use_muon=false"], ["seed was 42, now 1", "use_muon was True, now False"]),
        ("pretrain", ["--dataloader_drop_last=true"], ["dataloader_drop_last was False, now True"]),
        ("sft", ["--use_peft"], ["use_peft was False, now True"]),
    ],
)
def test_another_setting_is_refused(chain, stage, flags, named):
    before = snapshot(folder_of(chain[stage]))
    with pytest.raises(ValueError) as refused:
        run_here(stage, *chain[stage], *flags)
    message = str(refused.value)
    assert all(text in message for text in [*named, "output_dir", str(folder_of(chain[stage]))])
    assert "\n" not in message
    assert snapshot(folder_of(chain[stage])) == before


def test_another_stage_on_the_same_folder_is_refused(chain):
    before = snapshot(folder_of(chain["pretrain"]))
    with pytest.raises(ValueError, match="stage was 'pretrain', now 'sft'"):
        run_here("sft", *chain["sft"], "--output_dir", folder_of(chain["pretrain"]))
    assert snapshot(folder_of(chain["pretrain"])) == before


def test_a_folder_with_foreign_files_is_refused(chain, tmp_path):
    (tmp_path / "thesis.txt").write_text("ten years of work")
    with pytest.raises(ValueError, match="not a fourstage run"):
        run_here("pretrain", *chain["pretrain"], "--output_dir", tmp_path)
    assert files_in(tmp_path) == {"thesis.txt"}


def test_what_cannot_be_a_run_folder_or_a_checkpoint_is_refused(chain, tmp_path):
    (tmp_path / "file").write_text("a")
    with pytest.raises(ValueError, match="output_dir=.*is a file"):
        run_here("sft", *chain["sft"], "--output_dir", tmp_path / "file")
    resumed = [*chain["sft"], "--resume_from_checkpoint", tmp_path / "nowhere"]
    with pytest.raises(ValueError, match="resume_from_checkpoint=.*is not a checkpoint"):
        run_here("sft", *resumed, "--output_dir", tmp_path / "new")
    assert not (tmp_path / "new").exists()


# Refused before anything is written


@pytest.mark.parametrize(
    "flags, named",
    [
        (["--model_type=vit"], "vit"),
        (['--config_overrides={"hidden_sise": 32}'], "hidden_sise"),
        (["--config_overrides={hidden_size: 32"], "config_overrides"),
        (["--use_peft"], "use_peft"),
        (["--vocab_size=400"], "vocab_size=400"),
        (["--load_in_4bit"], "load_in_4bit"),
        (["--push_to_hub"], "offline mode is on"),
    ],
)
def test_an_impossible_model_is_refused_in_one_line(chain, tmp_path, flags, named):
    with pytest.raises(ValueError) as refused:
        run_here("pretrain", *chain["pretrain"], "--output_dir", tmp_path / "run", *flags)
    assert named in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("now", "then", "fix"),
    [
        ('"processes": 1', '"processes": 2', "--num_processes 2, or with --gradient_accumulation_steps 2, or"),
        ('"engine": "none"', '"engine": "fsdp2"', "ran under fsdp2, now none.*resume it with fsdp2"),
    ],
)
def test_a_resumption_with_other_processes_is_refused(chain, tmp_path, now, then, fix):
    flags = [*chain["pretrain"], "--output_dir", tmp_path / "run"]
    run_here("pretrain", *flags)
    cut_off(tmp_path / "run", step=4)
    record = tmp_path / "run" / "run.json"
    record.write_text(record.read_text().replace(now, then))
    with pytest.raises(ValueError, match=fix):
        run_here("pretrain", *flags)


def test_a_mended_command_may_take_the_folder_of_one_that_never_trained(chain, tmp_path):
    flags = [*chain["pretrain"], "--output_dir", tmp_path / "run"]
    with pytest.raises(ValueError):
        run_here("pretrain", *flags, "--dataset_train_split=nope")
    assert files_in(tmp_path / "run") == {"run.json", ".lock"}  # of this process
    run_here("pretrain", *flags, "--max_steps=1")
    assert record_of(tmp_path / "run")["status"] == "finished"


@pytest.mark.parametrize("form", [["--hub_token", TOKEN], [f"--hub_token={TOKEN}"], [f"--hub-token={TOKEN}"]])
@stages
def test_a_token_is_no_argument(chain, tmp_path, stage, form):
    with pytest.raises(ValueError, match="HF_TOKEN") as refused:
        run_here(stage, *chain[stage], "--output_dir", tmp_path / "run", *form)
    assert TOKEN not in str(refused.value)
    assert not (tmp_path / "run").exists()


# Parents


@pytest.mark.parametrize("stage", ["pretrain", "sft"])
def test_a_missing_parent_names_the_command_that_makes_it(chain, tmp_path, stage):
    with pytest.raises(ValueError, match="does not exist") as refused:
        run_here(stage, *chain["sft"], "--output_dir", tmp_path / "run", "--model_name_or_path", tmp_path / "none")
    assert not (tmp_path / "run").exists()
    launch, recipe, flags = str(refused.value).partition("recipes/pretrain.py")
    assert launch.endswith("accelerate launch ")
    arguments = load_recipe("pretrain").parse
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", [recipe, *shlex.split(flags.replace("DATA", "fourstage/demo"))])
        patch.setattr("sys.path", [])
        kinds = list(load_recipe("pretrain").main.__annotations__.values())[:3]
        data_args, training_args, _ = arguments(str(Path("recipes/pretrain.py").resolve()), *kinds)
    assert (data_args.dataset_name, training_args.output_dir) == ("fourstage/demo", str(tmp_path / "none"))


def test_a_missing_demo_parent_is_made_by_the_bare_command():
    configs = ROOT / "recipes" / "configs" / "demo"
    parent = yaml.safe_load((configs / "sft.yaml").read_text())["model_name_or_path"]
    assert yaml.safe_load((configs / "pretrain.yaml").read_text())["output_dir"] == parent
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ValueError, match=r"launch recipes/pretrain\.py$"):
        patch.chdir("/")
        check_parent(parent)


@pytest.mark.parametrize("stage", ["pretrain", "sft", "reward", "ppo", "grpo"])
def test_a_missing_stage_is_made_by_its_own_recipe(tmp_path, monkeypatch, stage):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=rf"launch recipes/{stage}\.py$"):
        check_parent(f"runs/demo/{stage}")
    parent = "" if stage == "pretrain" else " --model_name_or_path PARENT"
    with pytest.raises(
        ValueError, match=rf"recipes/{stage}\.py{parent} --dataset_name DATA --output_dir runs/{stage}$"
    ):
        check_parent(f"runs/{stage}")


def test_an_unfinished_parent_names_the_command_that_finishes_it(chain, tmp_path):
    run_here("pretrain", *chain["pretrain"], "--output_dir", tmp_path / "base")
    cut_off(tmp_path / "base", step=4)
    with pytest.raises(ValueError, match="not finished") as refused:
        run_here("sft", *chain["sft"], "--output_dir", tmp_path / "run", "--model_name_or_path", tmp_path / "base")
    assert record_of(tmp_path / "base")["command"] in str(refused.value)
    assert not (tmp_path / "run").exists()


# Cut off and resumed

GPT2 = ["--model_type=gpt2", "--num_parameters=45K", "--max_length=200"]
GPT2 += ['--config_overrides={"n_embd": 32, "n_layer": 2, "n_head": 2}']


@pytest.mark.parametrize("use_muon", [True, False])
def test_a_resumed_pretraining_equals_an_uninterrupted_one(chain, tmp_path, capsys, use_muon):
    """gpt2 has dropout, so that the weights show the random state too."""
    flags = [*chain["pretrain"], *GPT2, f"--use_muon={use_muon}", "--save_total_limit=5", "--max_steps=6"]
    assert_resumed_equals_straight("pretrain", flags, tmp_path, capsys)


def test_a_resumed_tuning_equals_an_uninterrupted_one(chain, tmp_path, capsys):
    run_here("pretrain", *chain["pretrain"], *GPT2, "--output_dir", tmp_path / "base")
    flags = [*chain["sft"], "--model_name_or_path", tmp_path / "base", "--save_total_limit=5", "--max_steps=6"]
    assert_resumed_equals_straight("sft", flags, tmp_path, capsys)


def assert_resumed_equals_straight(stage, flags, tmp_path, capsys):
    """Also leaves what a cut-off in the middle of saving leaves: checkpoints without a whole trainer_state.json."""
    flags = [*flags, "--output_dir", tmp_path / "run"]
    run_here(stage, *flags)
    straight, record = tensors_of(tmp_path / "run"), record_of(tmp_path / "run")
    cut_off(tmp_path / "run", step=2)
    for name in ("checkpoint-3", "checkpoint-4"):
        (tmp_path / "run" / "checkpoints" / name).mkdir()
        (tmp_path / "run" / "checkpoints" / name / "model.safetensors").write_bytes(b"cut off")
    (tmp_path / "run" / "checkpoints" / "checkpoint-4" / "trainer_state.json").write_text('{"global_st')
    run_here(stage, *flags)
    said = capsys.readouterr().out
    assert "from checkpoint-2" in said
    assert "since it was resumed" in said.rsplit("finished:", 1)[1]  # no rate of all tokens over the last part's time
    resumed = tensors_of(tmp_path / "run")
    assert all(torch.equal(value, resumed[name]) for name, value in straight.items())
    after = record_of(tmp_path / "run")
    assert (after["tokens"], after["metrics"]["eval_loss"]) == (record["tokens"], record["metrics"]["eval_loss"])


def test_other_data_is_no_resumption(chain, tmp_path):
    texts = write_texts(tmp_path / "texts.jsonl")
    flags = [*chain["pretrain"], "--dataset_name", texts, "--output_dir", tmp_path / "run"]
    run_here("pretrain", *flags)
    cut_off(tmp_path / "run", step=4)
    write_texts(texts, count=61)
    with pytest.raises(ValueError, match="the data changed"):
        run_here("pretrain", *flags)


def test_evaluating_and_generating_leave_training_alone(chain, tmp_path):
    """The same weights with evaluations and without: gpt2's dropout would show a random state that they moved."""
    ends = []
    for name, more in (("often", ["--eval_steps=1"]), ("never", ["--eval_strategy=no", "--eval_on_start=false"])):
        run_here("pretrain", *chain["pretrain"], *GPT2, "--output_dir", tmp_path / name, *more)
        ends.append(tensors_of(tmp_path / name))
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


def test_samples_keep_within_a_short_context_of_learned_positions(chain, tmp_path):
    short = [*GPT2, "--max_length=40", "--output_dir", tmp_path / "base"]
    run_here("pretrain", *chain["pretrain"], *short)
    run_here("sft", *chain["sft"], "--model_name_or_path", tmp_path / "base", "--output_dir", tmp_path / "tuned")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tuned")
    for line in (tmp_path / "tuned" / "samples.jsonl").read_text().splitlines():
        turns = [{"role": "user", "content": json.loads(line)["prompt"]}]
        prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)["input_ids"]
        assert json.loads(line)["tokens"] <= max(0, 40 - len(prompt))


@pytest.mark.parametrize(
    ("stage", "engines", "then", "now", "changed", "same"),
    [
        ("sft", ("ddp", "none"), (4, 2), (1, 8), {}, True),
        ("pretrain", ("none", "ddp"), (1, 2), (2, 1), {}, True),
        ("reward", ("ddp", "ddp"), (4, 1), (2, 2), {}, True),
        ("sft", ("ddp", "none"), (4, 2), (1, 4), {}, False),
        ("sft", ("fsdp2", "fsdp2"), (4, 1), (2, 2), {}, False),
        ("sft", ("zero2", "none"), (2, 1), (1, 2), {}, False),
        ("grpo", ("ddp", "none"), (2, 1), (1, 2), {"steps_per_generation": "all"}, True),
        ("ppo", ("none", "ddp"), (1, 4), (2, 2), {"steps_per_generation": "all", "num_iterations": 3}, True),
        ("ppo", ("ddp", "none"), (2, 1), (1, 2), {"steps_per_generation": 4}, False),  # several updates a rollout
        ("grpo", ("ddp", "none"), (2, 1), (1, 2), {"steps_per_generation": "all", "loss_type": "bnpo"}, False),
        ("grpo", ("zero3", "zero3"), (2, 1), (1, 2), {"steps_per_generation": "all"}, False),
        ("sft", ("ddp", "none"), (2, 1), (1, 2), {"train_sampling_strategy": "group_by_length"}, False),
    ],
)
def test_other_processes_take_the_same_updates(stage, engines, then, now, changed, same):
    whole = changed.get("steps_per_generation") == "all"
    old, new = (
        {
            "stage": stage,
            "engine": engine,
            "processes": processes,
            "arguments": {
                "training": {"gradient_accumulation_steps": batches, "seed": 1}
                | changed
                | ({"steps_per_generation": batches} if whole else {})
            },
        }
        for engine, (processes, batches) in zip(engines, (then, now), strict=True)
    )
    assert same_updates(old, new) is same
    names = ["gradient_accumulation_steps"] + ["steps_per_generation"] * whole
    assert differences(old, new) == ([] if same else [f"{name} was {then[1]}, now {now[1]}" for name in names])
    said = other_processes(Path("run"), old, new)
    assert (f"or with --gradient_accumulation_steps {now[1]}, or choose" in said) is same
    new["arguments"]["training"]["seed"] = 2
    assert "seed was 1, now 2" in differences(old, new)
