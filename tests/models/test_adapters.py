"""Tuning with an adapter: what is trained, what is left, and that TRL's fused head sees all of it.

PEFT and plain logits are the judges: the adapter in adapter/ is put on the base by PEFT itself.
"""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from helpers import SHAPE, SMALL_RUN, cut_off, files_in, run_here, tensors_of, write_chats, write_texts
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from trl.trainer.utils import add_fused_lm_head

from fourstage.evaluation.generation import answer_questions
from fourstage.models.adapters import complete_tied_head, finished_model, template_token_ids

ROWS = [1, 2, 4, 5]


@pytest.fixture(scope="module", params=["tied", "untied"])
def tuned(request, tmp_path_factory):
    """A finished base and a finished tuning of it with an adapter; the flags of the latter."""
    folder = tmp_path_factory.mktemp(request.param)
    texts, chats = write_texts(folder / "texts.jsonl"), write_chats(folder / "chats.jsonl")
    tied = str(request.param == "tied").lower()
    shape = f'--config_overrides={{"n_embd": 32, "n_layer": 2, "n_head": 2, "tie_word_embeddings": {tied}}}'
    base = ["--model_type=gpt2", "--num_parameters=50K", "--vocab_size=384", "--max_length=200", shape, *SMALL_RUN]
    run_here("pretrain", "--dataset_name", texts, "--output_dir", folder / "base", *base)
    flags = ["--dataset_name", chats, "--model_name_or_path", folder / "base", "--use_peft", "--learning_rate=0.01"]
    flags += [*SMALL_RUN, "--save_total_limit=5", "--max_steps=6"]
    run_here("sft", *flags, "--output_dir", folder / "run")
    return folder / "base", folder / "run", flags


def logits(model, ids):
    model.eval()
    with torch.no_grad():
        return model(input_ids=ids).logits


def test_the_folder_holds_the_merged_model_and_the_adapter(tuned):
    base, run, _ = tuned
    assert {"adapter/adapter_config.json", "adapter/adapter_model.safetensors", "model.safetensors"} <= files_in(run)
    assert {name for name in files_in(run) if name.endswith((".bin", ".pkl"))} == set()
    ids = torch.arange(60).view(2, 30)
    start = AutoModelForCausalLM.from_pretrained(base)
    plain = logits(start, ids)
    adapted = logits(PeftModel.from_pretrained(start, run / "adapter"), ids)
    merged = logits(AutoModelForCausalLM.from_pretrained(run), ids)
    torch.testing.assert_close(merged, adapted, rtol=0, atol=1e-5)
    assert (merged - plain).abs().max() > 0.01


def test_only_the_templates_rows_of_the_embedding_moved(tuned):
    base, run, _ = tuned
    tokenizer = AutoTokenizer.from_pretrained(base)
    names = ["<|bos|>", "<|eos|>", "<|user|>", "<|assistant|>"]
    trained = sorted(tokenizer.convert_tokens_to_ids(names))
    assert template_token_ids(tokenizer) == trained
    before, after = tensors_of(base), tensors_of(run)
    moved = (before["transformer.wte.weight"] != after["transformer.wte.weight"]).any(dim=1)
    # No row is predicted from <|eos|>, which is last, so an untied row of it gets no gradient.
    tied = "lm_head.weight" not in before
    assert moved.nonzero().flatten().tolist() == [i for i in trained if tied or i != tokenizer.eos_token_id]
    if not tied:  # of a head of its own the row by which a turn ends
        moved = (before["lm_head.weight"] != after["lm_head.weight"]).any(dim=1)
        assert moved.nonzero().flatten().tolist() == [tokenizer.eos_token_id]
    for name in ("transformer.wpe.weight", "transformer.ln_f.weight", "transformer.h.0.ln_1.weight"):
        assert torch.equal(before[name], after[name])
    assert not torch.equal(before["transformer.h.0.attn.c_attn.weight"], after["transformer.h.0.attn.c_attn.weight"])


def test_a_resumed_adapter_equals_an_uninterrupted_one(tuned, tmp_path, capsys):
    """The adapter's dropout shows the random state."""
    _, run, flags = tuned
    run_here("sft", *flags, "--output_dir", tmp_path / "run")
    cut_off(tmp_path / "run", step=2)
    run_here("sft", *flags, "--output_dir", tmp_path / "run")
    assert "from checkpoint-2" in capsys.readouterr().out
    straight, resumed = tensors_of(run), tensors_of(tmp_path / "run")
    assert straight.keys() == resumed.keys()
    assert all(torch.equal(value, resumed[name]) for name, value in straight.items())


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("model_type", ["qwen3", "llama", "gpt2"])
def test_the_fused_head_equals_plain_logits_and_their_gradients(model_type, tied):
    """Trainable rows count in a tied head too. TRL 1.16 alone stops here: PEFT's wrapper of the head has no bias."""
    torch.manual_seed(0)
    shape = SHAPE if model_type != "gpt2" else {"n_embd": 32, "n_layer": 2, "n_head": 2}
    config = AutoConfig.for_model(model_type, vocab_size=384, tie_word_embeddings=tied, **shape)
    settings = LoraConfig(r=4, target_modules="all-linear", trainable_token_indices=ROWS, task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_config(config), settings).eval()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        torch.nn.init.normal_(parameter, std=0.2)
    add_fused_lm_head(model.get_base_model(), outputs=("log_probs", "entropy", "is_top1"))
    complete_tied_head(model)

    ids = torch.randint(0, 384, (2, 12))
    ids[:, 3:7] = torch.tensor(ROWS)
    fused = model(input_ids=ids, labels=ids, fused_lm_head=True)
    distribution = model(input_ids=ids).logits[:, :-1].log_softmax(dim=-1)
    plain = distribution.gather(-1, ids[:, 1:, None]).squeeze(-1)
    torch.testing.assert_close(fused.log_probs, plain, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fused.entropy, -(distribution.exp() * distribution).sum(-1), rtol=1e-4, atol=1e-5)
    ours, theirs = (torch.autograd.grad(p.sum(), trained) for p in (fused.log_probs, plain))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def test_an_existing_chat_model_keeps_its_embedding(tuned, tmp_path):
    """Trainable rows are for a base that never saw the markers: tuned again, the embedding stays."""
    _, run, flags = tuned
    run_here("sft", *flags, "--model_name_or_path", run, "--output_dir", tmp_path / "again")
    before, after = tensors_of(run), tensors_of(tmp_path / "again")
    assert torch.equal(before["transformer.wte.weight"], after["transformer.wte.weight"])
    assert not torch.equal(before["transformer.h.0.attn.c_attn.weight"], after["transformer.h.0.attn.c_attn.weight"])
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (Path(run) / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


@pytest.mark.parametrize("tied", ["true", "false"])
def test_a_base_model_learns_to_stop(tmp_path, tied):
    """Its documents are long, so that it hardly ever ended anything; its answers have to end."""
    documents = [" ".join(f"What is {k * i % 97} and {k % 7}? It is {k}." for k in range(1, 60)) for i in range(1, 60)]
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    quick = ["--eval_strategy=no", "--report_to=none", "--save_steps=0.5"]
    shape = f"--config_overrides={json.dumps({**SHAPE, 'tie_word_embeddings': tied == 'true'})}"
    base = ["--num_parameters=43K", "--vocab_size=384", shape, "--max_length=64", "--max_steps=100", *quick]
    run_here("pretrain", "--dataset_name", texts, *base, "--output_dir", tmp_path / "base")
    chats = write_chats(tmp_path / "chats.jsonl", 200)
    tune = ["--use_peft", "--learning_rate=3e-3", "--max_steps=150", "--per_device_train_batch_size=16", *quick]
    flags = ["--dataset_name", chats, "--model_name_or_path", tmp_path / "base", *tune]
    run_here("sft", *flags, "--output_dir", tmp_path / "tuned")
    questions = [f"What is {i} and {i % 7}?" for i in range(200, 240)]
    stopped = []
    for folder in (tmp_path / "base", tmp_path / "tuned"):
        model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        answers = answer_questions(model, tokenizer, questions, max_new_tokens=40)
        stopped.append(sum(answer["stopped"] for answer in answers) / len(answers))
    assert stopped[0] < 0.1 and stopped[1] > 0.9


def test_the_merge_is_measured_without_flash_attention(tokenizer, tmp_path):
    """Its kernels refuse float32, which the merged weights are outside of mixed precision: a run would end in that."""
    config = AutoConfig.for_model("llama", vocab_size=len(tokenizer), **SHAPE, attn_implementation="sdpa")
    model = get_peft_model(AutoModelForCausalLM.from_config(config), LoraConfig(target_modules="all-linear"))
    run = SimpleNamespace(folder=tmp_path, is_main=True, record={})
    parts = {"accelerator": Accelerator(cpu=True), "args": SimpleNamespace(deepspeed_plugin=None)}
    trainer = SimpleNamespace(model=model, processing_class=tokenizer, **parts)
    asked = SimpleNamespace(attn_implementation="flash_attention_2", load_in_4bit=False, load_in_8bit=False)
    merged = finished_model(run, trainer, None, asked)
    assert merged.config._attn_implementation == "eager"
    assert run.record["adapter"]["merge_difference"] < 1e-5 and (tmp_path / "adapter").is_dir()
