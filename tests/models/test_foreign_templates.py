"""Models from elsewhere with a chat template that is not ours, through the recipes: where they stop."""

import json
import shutil

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from fourstage.evaluation.generation import answer_questions
from fourstage.models.facts import stop_ids
from tests.helpers import SHAPE, run_here, write_chats

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QUICK = ["--eval_strategy=no", "--report_to=none", "--save_steps=0.5"]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def chatml(tmp_path_factory):
    """A base of 43,000 parameters that never ended anything, with ChatML, and <|eos|> for an end token as before."""
    folder = tmp_path_factory.mktemp("chatml")
    documents = [" ".join(f"What is {k * i % 97} and {k % 7}? It is {k}." for k in range(1, 60)) for i in range(1, 60)]
    texts = folder / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    shape = f"--config_overrides={json.dumps(SHAPE)}"
    base = ["--num_parameters=43K", "--vocab_size=384", shape, "--max_length=64", "--max_steps=100", *QUICK]
    run_here("pretrain", "--dataset_name", texts, *base, "--output_dir", folder / "own")
    model, tokenizer = (kind.from_pretrained(folder / "own") for kind in (AutoModelForCausalLM, AutoTokenizer))
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHATML
    model.resize_token_embeddings(len(tokenizer))
    for part in (model, tokenizer):
        part.save_pretrained(folder / "base")
    return folder


def end_of(folder):
    return AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids("<|im_end|>")


@pytest.mark.parametrize("peft", [[], ["--use_peft"]], ids=["whole", "lora"])
def test_a_base_with_chatml_learns_to_stop(chatml, peft):
    chats = write_chats(chatml / "chats.jsonl", 200)
    out = chatml / ("lora" if peft else "whole")
    tune = ["--learning_rate=3e-3", "--max_steps=150", "--per_device_train_batch_size=16", *QUICK, *peft]
    run_here("sft", "--dataset_name", chats, "--model_name_or_path", chatml / "base", *tune, "--output_dir", out)
    end = end_of(out)
    assert end in stop_ids(GenerationConfig.from_pretrained(out))
    repairs = json.loads((out / "run.json").read_text())["tokenizer_repairs"]
    assert any("<|im_end|> joins <|eos|>" in repair for repair in repairs)
    model, tokenizer = (kind.from_pretrained(out) for kind in (AutoModelForCausalLM, AutoTokenizer))
    answers = answer_questions(model, tokenizer, [f"What is {i} and {i % 7}?" for i in range(200, 240)], 40)
    assert sum(answer["stopped"] for answer in answers) > 0.9 * len(answers)
    # as generate of transformers has it, without anything of ours
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is 9 and 2?"}], add_generation_prompt=True, return_tensors="pt"
    )
    assert model.generate(**ids, max_new_tokens=60, do_sample=False)[0, -1] == end


@pytest.mark.parametrize("recipe", ["ppo", "grpo"])
def test_rollouts_of_a_chatml_model_end_where_its_turns_do(chatml, recipe):
    """A model that was never told of <|im_end|> as a stop: the recipes find it in the template."""
    tuned = chatml / f"tuned-{recipe}"
    chats = write_chats(chatml / "chats.jsonl", 200)
    flags = ["--learning_rate=3e-3", "--max_steps=150", "--per_device_train_batch_size=16", *QUICK]
    run_here("sft", "--dataset_name", chats, "--model_name_or_path", chatml / "base", *flags, "--output_dir", tuned)
    bare = chatml / f"bare-{recipe}"
    shutil.copytree(tuned, bare, ignore=shutil.ignore_patterns("run.json", "checkpoint*"))
    config = GenerationConfig.from_pretrained(bare)
    config.eos_token_id = AutoTokenizer.from_pretrained(bare).eos_token_id
    config.save_pretrained(bare)
    rows = chatml / "problems.jsonl"
    rows.write_text("".join(json.dumps({"question": f"What is {i}?", "answer": str(i)}) + "\n" for i in range(40)))
    batch = ["--max_steps=2", "--per_device_train_batch_size=8", "--max_completion_length=40", "--report_to=none"]
    batch += ["--num_generations=2", "--eval_strategy=no"] if recipe == "grpo" else ["--eval_strategy=no"]
    run_here(
        recipe, "--model_name_or_path", bare, "--dataset_name", rows, "--reward_funcs=number", *batch,
        "--output_dir", chatml / recipe,
    )  # fmt: skip
    history = json.loads((chatml / recipe / "trainer_state.json").read_text())["log_history"]
    cut = [entry["completions/clipped_ratio"] for entry in history if "completions/clipped_ratio" in entry]
    assert cut and max(cut) < 0.3
    assert end_of(bare) in stop_ids(GenerationConfig.from_pretrained(chatml / recipe))
