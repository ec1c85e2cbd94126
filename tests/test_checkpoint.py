"""Models and tokenizers from elsewhere: GGUF files against the weights they were written from, and what is refused."""

import hashlib
import subprocess
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from fourstage.checkpoint import dequantised, is_gguf, load_gguf_tokenizer, opening, weights_hash

pytest.importorskip("gguf", reason="needs the extra gguf")
from gguf_helpers import BOS, CHAT_TEMPLATE, EOS, PAD, write_tiny_gguf

QUESTION = [{"role": "user", "content": "What is 12 plus 30?"}]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A GGUF file of 8-bit matrices, and the model and tokenizer that it stands for."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.Q8_0.gguf"
    return SimpleNamespace(path=path, **dict(zip(("model", "tokenizer"), write_tiny_gguf(path, "Q8_0"), strict=True)))


def logits_of(model):
    with torch.no_grad():
        return model(input_ids=torch.arange(3, 103).view(2, 50)).logits


# GGUF


@pytest.mark.parametrize("kind, untied", [("F32", False), ("F32", True), ("Q8_0", False), ("Q4_1", True)])
def test_a_dequantised_folder_computes_what_the_file_means(tmp_path, kind, untied):
    expected, _ = write_tiny_gguf(tmp_path / "tiny.gguf", kind, untied)
    folder = dequantised(str(tmp_path / "tiny.gguf"), tmp_path / "plain")
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.float32 and not hasattr(model.config, "quantization_config")
    assert model.config.tie_word_embeddings is not untied
    wanted = logits_of(expected)
    assert wanted.std() > 0.1  # a comparison that could fail
    torch.testing.assert_close(logits_of(model), wanted, rtol=1e-5, atol=1e-5)
    assert {path.suffix for path in folder.iterdir()} <= {".json", ".jinja", ".safetensors"}


def test_the_folder_holds_the_tokenizer_and_its_template(file, tmp_path):
    folder = dequantised(str(file.path), tmp_path / "plain")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (BOS, EOS, PAD)
    for text in ("The lazy dog, 1234  né 漢\n", f"{BOS}user\nWhat?{EOS}"):
        assert tokenizer(text)["input_ids"] == file.tokenizer.encode(text).ids
    asked = tokenizer.apply_chat_template(QUESTION, tokenize=False, add_generation_prompt=True)
    assert asked == f"{BOS}user\nWhat is 12 plus 30?{EOS}\n{BOS}assistant\n"


def test_a_tokenizer_from_the_file_alone(file):
    tokenizer = load_gguf_tokenizer(str(file.path))
    assert tokenizer.chat_template == CHAT_TEMPLATE
    assert tokenizer("The quick fox")["input_ids"] == file.tokenizer.encode("The quick fox").ids


def test_it_is_done_once(file, tmp_path, capsys):
    folder = dequantised(str(file.path), tmp_path / "plain")
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert "dequantised" in capsys.readouterr().out
    assert dequantised(str(file.path), folder) == folder
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert capsys.readouterr().out == "" and [path.name for path in tmp_path.iterdir()] == ["plain"]


def test_what_a_cut_off_left_is_written_anew(file, tmp_path):
    (tmp_path / "plain.tmp").mkdir()
    (tmp_path / "plain.tmp" / "model.safetensors").write_bytes(b"cut off")
    folder = dequantised(str(file.path), tmp_path / "plain")
    assert AutoModelForCausalLM.from_pretrained(folder).num_parameters() == file.model.num_parameters()


def test_the_weights_know_nothing_of_who_reads_them(file, tmp_path):
    """The hash of a GGUF file is that of its bytes, of a folder that of its safetensors in name order."""
    sha256sum = subprocess.run(["sha256sum", file.path], capture_output=True, text=True, check=True).stdout.split()[0]
    assert weights_hash(str(file.path)) == sha256sum
    (tmp_path / "b.safetensors").write_bytes(b"second")
    (tmp_path / "a.safetensors").write_bytes(b"first")
    (tmp_path / "run.json").write_text("{}")
    assert weights_hash(str(tmp_path)) == hashlib.sha256(b"firstsecond").hexdigest()
    assert weights_hash("owner/name") is None and weights_hash(str(tmp_path / "none.gguf")) is None


def test_the_name_tells_a_gguf_file():
    assert is_gguf("models/tiny.Q4_1.gguf") and not is_gguf("owner/name-GGUF") and not is_gguf("runs/base")


# What is refused, each in one line


def refusal(action, *args):
    with pytest.raises(ValueError) as refused:
        action(*args)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def opened(name, **options):
    with opening(str(name)):
        AutoTokenizer.from_pretrained(str(name))
        return AutoModelForCausalLM.from_pretrained(str(name), use_safetensors=True, **options)


@pytest.mark.parametrize("read", [load_gguf_tokenizer, lambda path: dequantised(path, path.parent / "x")])
def test_a_missing_gguf_file(tmp_path, read):
    message = refusal(lambda: load_gguf_tokenizer(str(tmp_path / "none.gguf")))
    assert message.startswith(f"{tmp_path / 'none.gguf'}: no such GGUF file")
    assert "hf download OWNER/NAME none.gguf" in message
