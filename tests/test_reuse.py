"""Existing models in every recipe: a GGUF file through the YAMLs of configs/smollm2-135m, with LoRA and with QLoRA.

PEFT is the judge: adapter/ is put on the base by PEFT itself. The model is tiny, random and not ours.
"""

import json
import math
from pathlib import Path

import pytest
import torch
from helpers import RECIPES, record_of, run_here, write_chats, write_texts
from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedTokenizerFast,
)
from trl.chat_template_utils import has_generation_markers

import fourstage.models.adapters as adapters
from fourstage.arguments import ModelArguments
from fourstage.models.loading import load_causal_lm, load_tokenizer
from fourstage.models.tokenizer import mark_generation, repair_pad_token

pytest.importorskip("gguf")
pytest.importorskip("bitsandbytes")
from gguf_helpers import CHAT_TEMPLATE, EOS, write_tiny_gguf

CONFIGS = RECIPES / "configs" / "smollm2-135m"
# Few steps and short rows; everything else is as the YAML says.
QUICK = ["--max_steps=2", "--report_to=none", "--per_device_train_batch_size=4", "--gradient_accumulation_steps=1"]
OWN = {
    "pretrain": ["--dataset_streaming=false", "--max_length=64"],
    "sft": [],
    "reward": [],
    "ppo": ["--max_completion_length=8", "--max_eval_rows=4"],
    "grpo": ["--max_completion_length=8", "--max_eval_rows=4", "--num_generations=4"],
}
BITS = {"lora": [], "4bit": ["--load_in_4bit"], "8bit": ["--load_in_8bit"], "bf16": ["--bf16"]}


def write_pairs(path):
    rows = [{"prompt": f"What is {i}?", "chosen": f"It is {i}.", "rejected": f"No {i} idea."} for i in range(60)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """A GGUF file, and data of each stage."""
    folder = tmp_path_factory.mktemp("elsewhere")
    write_tiny_gguf(folder / "tiny.gguf", "Q8_0")
    chats, pairs = write_chats(folder / "chats.jsonl"), write_pairs(folder / "pairs.jsonl")
    texts = write_texts(folder / "texts.jsonl")
    data = {"pretrain": texts, "sft": chats, "reward": pairs, "ppo": pairs, "grpo": chats}
    return folder / "tiny.gguf", data, folder


def run_stage(elsewhere, stage, kind, folder, *more):
    model, data, _ = elsewhere
    flags = ["--config", CONFIGS / f"{stage}.yaml", "--model_name_or_path", model, "--dataset_name", data[stage]]
    if stage == "grpo":
        flags += ["--reward_funcs", "length", "--control", "random_reward"]  # a spread in every group
    if stage == "ppo":
        flags += ["--reward_model_name_or_path", more[0]]
        more = more[1:]
    run_here(stage, *flags, *QUICK, *OWN[stage], *BITS[kind], "--output_dir", folder, *more)
    return folder


@pytest.fixture(scope="module")
def reward_model(elsewhere, tmp_path_factory):
    return run_stage(elsewhere, "reward", "lora", tmp_path_factory.mktemp("reward") / "run")


def outputs(model, ids):
    """Of the entries of the file's model: transformers' tokenizer of a GGUF file has one more, and it gets a row."""
    with torch.no_grad():
        return model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[..., :320]


CASES = [(stage, kind) for kind in ("lora", "4bit") for stage in OWN] + [("sft", "8bit"), ("sft", "bf16")]


@pytest.mark.parametrize("stage, kind", CASES, ids=lambda value: value)
def test_a_stage_leaves_the_merged_model_and_its_adapter(elsewhere, reward_model, tmp_path, stage, kind):
    more = [reward_model] if stage == "ppo" else []
    run = run_stage(elsewhere, stage, kind, tmp_path / "run", *more, "--learning_rate=0.01")
    auto = AutoModelForSequenceClassification if stage == "reward" else AutoModelForCausalLM
    base, merged = auto.from_pretrained(run / "base", num_labels=1), auto.from_pretrained(run)
    ids = torch.arange(3, 63)[None]
    plain = outputs(base, ids)
    adapted = outputs(PeftModel.from_pretrained(base, run / "adapter"), ids)
    assert merged.dtype == torch.float32
    note = record_of(run)["adapter"]
    assert note["merge_difference"] <= note["tolerance"] == 1e-3
    torch.testing.assert_close(outputs(merged, ids), adapted, rtol=0, atol=1e-3)
    assert (adapted - plain).abs().max() > 1e-3  # it learned something
    assert ("quantisation_difference" in note) is (kind in ("4bit", "8bit"))
    for value in record_of(run)["metrics"].values():
        assert not isinstance(value, float) or math.isfinite(value)
    if stage == "ppo":  # an adapter of the same base and a head
        assert (run / "value" / "value_head.safetensors").is_file()
        assert (run / "value" / "value" / "adapter_config.json").is_file()


def test_the_rounding_of_four_bits_is_what_the_note_says(elsewhere, tmp_path):
    """The adapter on a base that bitsandbytes quantises here again, against the merged model."""
    run = run_stage(elsewhere, "sft", "4bit", tmp_path / "run")
    tokenizer = AutoTokenizer.from_pretrained(run)
    four = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    base = AutoModelForCausalLM.from_pretrained(run / "base", quantization_config=four)
    adapters.keep_layout(base)
    trained = PeftModel.from_pretrained(base, run / "adapter")
    merged = AutoModelForCausalLM.from_pretrained(run)
    apart = [adapters.outputs_on_probe(model, tokenizer) for model in (trained, merged)]
    note = record_of(run)["adapter"]
    assert note["quantisation_difference"] == pytest.approx((apart[0] - apart[1]).abs().max().item(), abs=0.05)
    assert note["mean_quantisation_difference"] > 1e-4


def test_four_bits_still_learn_after_an_evaluation(elsewhere, tmp_path):
    """bitsandbytes repacks weights while evaluating on some CPUs: training on would see others (`keep_layout`)."""
    flags = ["--max_steps=6", "--eval_steps=1", "--learning_rate=1e-5", "--lr_scheduler_type=constant"]
    run = run_stage(elsewhere, "sft", "4bit", tmp_path / "run", *flags)
    history = json.loads((run / "trainer_state.json").read_text())["log_history"]
    losses = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    assert len(losses) >= 6
    assert max(losses) - min(losses) < 0.05  # a small rate: none may jump


@pytest.mark.parametrize(
    "stage, file", [("sft", "optimizer.pt"), ("ppo", "optimizer.pt"), ("ppo", "value_optimizer.pt")]
)
def test_eight_bit_adamw(elsewhere, reward_model, tmp_path, stage, file):
    """The optimizer's state is bytes, for the policy and for PPO's critic alike."""
    more = [reward_model] if stage == "ppo" else []
    run = run_stage(elsewhere, stage, "lora", tmp_path / "run", *more, "--optim=adamw_bnb_8bit", "--lora_r=64")
    (path,) = (run / "checkpoints").glob(f"checkpoint-*/{file}")
    state = torch.load(path, weights_only=True)["state"]
    assert torch.uint8 in {leaf.dtype for entry in state.values() for leaf in leaves(entry) if torch.is_tensor(leaf)}


def leaves(entry):
    """Values of a nested mapping: bitsandbytes keeps its state one level down."""
    return [leaf for value in entry.values() for leaf in (leaves(value) if isinstance(value, dict) else [value])]


def test_a_gguf_parent_is_kept_and_named(elsewhere, tmp_path):
    """Its tokenizer and template are as the file has them; the run's next stage needs no repair."""
    run = run_stage(elsewhere, "sft", "lora", tmp_path / "run")
    record = record_of(run)
    assert record["parent"]["path"] == str(elsewhere[0])
    assert len(record["parent"]["sha256"]) == 64
    saved = AutoTokenizer.from_pretrained(run)
    assert saved.chat_template == CHAT_TEMPLATE
    assert [note.split(":")[0] for note in record["tokenizer_repairs"]] == ["chat_template"]
    assert (run / "base" / "model.safetensors").is_file()


# Repairs


@pytest.fixture
def foreign(elsewhere, tmp_path):
    """A tokenizer from elsewhere, of which pad is eos and the template has no marks."""
    tokenizer = AutoTokenizer.from_pretrained(elsewhere[2], gguf_file="tiny.gguf")
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def test_pad_becomes_a_token_of_its_own(foreign):
    (note,) = repair_pad_token(foreign)
    assert foreign.pad_token == "<|pad|>" and foreign.eos_token == EOS  # a special token that is there
    assert EOS in note and "<|pad|>" in note
    assert repair_pad_token(foreign) == []


def test_a_tokenizer_without_a_spare_token_gets_a_new_one_and_the_model_a_row(tokenizer, tmp_path, model):
    bare = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|eos|>", bos_token="<|bos|>"
    )
    bare.chat_template = tokenizer.chat_template
    names = {"<|pad|>", "reserved"}
    spare = [t for t in bare.get_vocab() if any(name in t for name in names)]
    model.resize_token_embeddings(len(bare))
    model.save_pretrained(tmp_path)
    bare.save_pretrained(tmp_path)
    found, repairs = load_tokenizer(ModelArguments(model_name_or_path=str(tmp_path)), chats=True)
    assert len(repairs) == 1
    assert found.pad_token in spare and len(found) == len(bare)
    loaded = load_causal_lm(ModelArguments(model_name_or_path=str(tmp_path)), found)
    assert loaded.config.pad_token_id == loaded.generation_config.pad_token_id == found.pad_token_id

    found.add_special_tokens({"pad_token": "<|another|>"})
    grown = load_causal_lm(ModelArguments(model_name_or_path=str(tmp_path)), found)
    assert grown.get_input_embeddings().num_embeddings == len(found) == len(bare) + 1
    assert torch.equal(grown.get_input_embeddings().weight[:-1], loaded.get_input_embeddings().weight)


TRL_TEMPLATES = sorted(
    path
    for path in (Path(adapters.get_peft_config.__code__.co_filename).parents[1] / "chat_templates").glob("*.jinja")
    if "training" not in path.stem
)
CONVERSATIONS = [
    [{"role": "user", "content": "hello you"}, {"role": "assistant", "content": "yes sir"}],
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": "yes sir"}, {"role": "user", "content": "b"}],
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": "one"}] * 3,
    [{"role": "system", "content": "s"}, {"role": "user", "content": " a\n"}, {"role": "assistant", "content": " b\n"}],
]


@pytest.mark.parametrize("path", TRL_TEMPLATES, ids=lambda path: path.stem)
def test_marks_leave_the_text_of_known_templates_as_it_is(foreign, path):
    """The templates of 40 model families, as TRL ships them."""
    own = foreign.chat_template = path.read_text()
    mark_generation(foreign)
    assert has_generation_markers(foreign.chat_template)
    for turns in CONVERSATIONS:
        for options in ({"tokenize": False}, {"tokenize": False, "add_generation_prompt": True}):
            try:
                plain = foreign.apply_chat_template(turns, chat_template=own, **options)
            except Exception:  # no system turn, or no text but lists of parts
                continue
            assert foreign.apply_chat_template(turns, **options) == plain


def test_marks_are_around_the_assistants_turns_and_their_end(foreign):
    mark_generation(foreign)
    turns = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "It is 42."}] * 2
    encoded = foreign.apply_chat_template(turns, return_dict=True, return_assistant_tokens_mask=True)
    kept = [i for i, mask in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if mask]
    assert foreign.decode(kept) == f"It is 42.{EOS}" * 2


# Impossible pairs


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--load_in_4bit"], "load_in_4bit without use_peft"),
        (["--load_in_8bit"], "load_in_8bit without use_peft"),
        (["--use_peft", "--load_in_4bit", "--load_in_8bit"], "8 bit and 4 bit"),
        (["--use_peft", "--load_in_4bit", "--dtype=auto"], "dtype=auto with load_in_4bit"),
    ],
)
def test_impossible_pairs_are_refused_before_anything_is_written(elsewhere, tmp_path, flags, message):
    model, data, _ = elsewhere
    with pytest.raises(ValueError, match=message):
        run_here(
            "sft", "--model_name_or_path", model, "--dataset_name", data["sft"], "--output_dir", tmp_path / "no", *flags
        )
    assert not (tmp_path / "no").exists()


def test_adapters_on_random_weights_are_refused(elsewhere, tmp_path):
    with pytest.raises(ValueError, match="use_peft: .*random weights"):
        run_here("pretrain", "--dataset_name", elsewhere[1]["pretrain"], "--output_dir", tmp_path / "no", "--use_peft")
    assert not (tmp_path / "no").exists()


def test_quantisation_without_bitsandbytes_names_the_extra(elsewhere, monkeypatch):
    monkeypatch.setattr(adapters, "is_bitsandbytes_available", lambda: False)
    with pytest.raises(ValueError, match=r'pip install -e "\.\[quant\]"'):
        adapters.check_adapters(ModelArguments(model_name_or_path="x", use_peft=True, load_in_4bit=True))
