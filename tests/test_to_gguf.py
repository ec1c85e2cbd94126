"""recipes/to_gguf.py: the split it claims, what it tells llama.cpp's converter; the real one if LLAMA_CPP names it."""

import json
import os
import sys

import pytest
import torch
from helpers import RECIPES, load_recipe, run_program
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, pre_tokenizers
from transformers import AutoModelForCausalLM

LLAMA_CPP = os.environ.get("LLAMA_CPP")
# What llama.cpp's src/llama-vocab.cpp lists for "smollm"; it splits by one after the other.
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"


@given(st.text(max_size=60) | st.text(alphabet="ab1½٣ \n'strdvm!漢é", max_size=60))
@settings(max_examples=300, deadline=None)
def test_a_tokenizer_trained_here_splits_as_llama_cpp_s_smollm(tokenizer, text):
    patterns = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in (r"\p{N}", GPT2)]
    theirs = pre_tokenizers.Sequence([*patterns, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    ours = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)
    assert [piece for piece, _ in ours] == [piece for piece, _ in theirs.pre_tokenize_str(text)]


def pre_tokenizer_of(folder, change):
    content = json.loads((folder / "tokenizer.json").read_text())
    change(content)
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return load_recipe("to_gguf").splits_like_smollm(folder / "tokenizer.json")


@pytest.mark.parametrize(
    "change, same",
    [
        (lambda c: None, True),
        (lambda c: c["pre_tokenizer"]["pretokenizers"][0].update(individual_digits=False), False),
        (lambda c: c["pre_tokenizer"]["pretokenizers"][1].update(add_prefix_space=True), False),
        (lambda c: c["pre_tokenizer"]["pretokenizers"].pop(0), False),
        (lambda c: c.update(pre_tokenizer={"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}), False),
        (lambda c: c.update(pre_tokenizer=None), False),
        (lambda c: c.update(normalizer={"type": "NFC"}), False),
    ],
)
def test_other_splits_are_told_apart(tokenizer, tmp_path, change, same):
    tokenizer.save_pretrained(tmp_path)
    assert pre_tokenizer_of(tmp_path, change) is same


def converter_of_paper(folder):
    """A folder laid out as llama.cpp is; its converter prints what it would write."""
    (folder / "conversion").mkdir(parents=True)
    (folder / "conversion" / "base.py").write_text(
        "class TextModel:\n    def get_vocab_base_pre(self, tokenizer):\n        return 'unknown'\n"
    )
    (folder / "convert_hf_to_gguf.py").write_text(
        "import sys\nfrom conversion.base import TextModel\n"
        "print(TextModel().get_vocab_base_pre(None), *sys.argv[1:])\n"
    )
    return folder


@pytest.mark.parametrize("digits, named", [(True, "smollm"), (False, "unknown")])
def test_the_converter_gets_the_name_and_its_own_arguments(tokenizer, tmp_path, digits, named):
    tokenizer.save_pretrained(tmp_path)
    pre_tokenizer_of(tmp_path, lambda c: c["pre_tokenizer"]["pretokenizers"][0].update(individual_digits=digits))
    llama_cpp = converter_of_paper(tmp_path / "llama.cpp")
    done = run_program(sys.executable, RECIPES / "to_gguf.py", llama_cpp, tmp_path, "--outtype", "q8_0")
    assert done.stdout.split() == [named, str(tmp_path), "--outtype", "q8_0"]


def test_a_folder_without_the_converter(tmp_path):
    with pytest.raises(ValueError, match="no conversion/base.py"):
        load_recipe("to_gguf").main(tmp_path, tmp_path, [])


@pytest.mark.skipif(not LLAMA_CPP, reason="LLAMA_CPP names no checkout of llama.cpp")
def test_the_real_converter_and_llama_cpp(model, tokenizer, tmp_path):
    """Equal logits read back by transformers; with llama-cpp-python, llama.cpp's own token ids and greedy answer."""
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    file = tmp_path / "model.gguf"
    command = [
        sys.executable,
        RECIPES / "to_gguf.py",
        LLAMA_CPP,
        tmp_path / "model",
        "--outtype=f32",
        "--outfile",
        file,
    ]
    run_program(*command, PYTHONPATH=os.environ.get("PYTHONPATH", ""))
    back = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=file.name, dtype=torch.float32)
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "bab 12 kof né"}], add_generation_prompt=True)
    prompt = torch.tensor([ids["input_ids"]])
    with torch.no_grad():
        torch.testing.assert_close(back(prompt).logits, model(prompt).logits, rtol=1e-5, atol=1e-5)
    llama_cpp = pytest.importorskip("llama_cpp")
    engine = llama_cpp.Llama(str(file), n_ctx=256, n_threads=1, verbose=False)
    text = "bab kof 1234\n  né 漢 'll"
    assert engine.tokenize(text.encode(), add_bos=True, special=True) == tokenizer(text)["input_ids"]
    expected = model.generate(prompt, max_new_tokens=20, do_sample=False)[0, prompt.shape[1] :].tolist()
    found = engine.generate(prompt[0].tolist(), temp=0.0, repeat_penalty=1.0)
    assert [token for token, _ in zip(found, expected, strict=False)] == expected
