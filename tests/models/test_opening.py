"""Models and tokenizers from elsewhere: GGUF files against the weights they were written from, and what is refused."""

import hashlib
import json
import pickle
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from fourstage.models.opening import dequantised, loading_options, open_tokenizer, opening
from fourstage.parent import is_gguf, weights_hash

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
    tokenizer = open_tokenizer(str(file.path))
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


def opened(name):
    options = loading_options(SimpleNamespace(model_revision="main", trust_remote_code=False))
    with opening(str(name)):
        tokenizer = AutoTokenizer.from_pretrained(str(name), **options)
        return AutoModelForCausalLM.from_pretrained(str(name), use_safetensors=True, **options), tokenizer


@pytest.fixture
def plain(file, tmp_path):
    """A folder of safetensors and a tokenizer that opens; each test spoils one thing in it."""
    folder = dequantised(str(file.path), tmp_path / "plain")
    assert opened(folder)[0].num_parameters() == file.model.num_parameters()
    return folder


def spoil_config(folder, **entries):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | entries))


@pytest.mark.parametrize("read", [open_tokenizer, lambda path: dequantised(path, Path(path).with_suffix(".d"))])
def test_a_missing_gguf_file(tmp_path, read):
    message = refusal(read, str(tmp_path / "none.gguf"))
    assert message.startswith(f"{tmp_path / 'none.gguf'}: no such GGUF file")
    assert "hf download OWNER/NAME none.gguf" in message


@pytest.mark.parametrize("size, named", [(0, "broken or cut off"), (20, "broken or cut off"), (-999, "cut off")])
def test_a_gguf_file_that_was_cut_off(file, tmp_path, size, named):
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(file.path.read_bytes()[:size])
    assert named in refusal(open_tokenizer, str(cut))
    message = refusal(dequantised, str(cut), tmp_path / "plain")
    assert message.startswith(str(cut)) and named in message
    assert {path.name for path in tmp_path.iterdir()} == {"cut.gguf"}  # no half folder that would be taken for whole


def test_a_file_that_is_no_gguf(tmp_path):
    (tmp_path / "text.gguf").write_text("not a model " * 9)
    assert "not a GGUF file" in refusal(open_tokenizer, str(tmp_path / "text.gguf"))


def test_without_the_extra(file, monkeypatch):
    monkeypatch.setattr("fourstage.models.opening.find_spec", lambda name: None)
    assert 'pip install -e ".[gguf]"' in refusal(open_tokenizer, str(file.path))


def test_an_architecture_that_transformers_cannot_read(file, tmp_path):
    foreign = tmp_path / "foreign.gguf"
    foreign.write_bytes(file.path.read_bytes().replace(b"llama", b"lamma"))
    assert "architecture lamma is not supported" in refusal(dequantised, str(foreign), tmp_path / "plain")


def test_pickled_weights_are_not_opened(plain):
    ran = plain / "ran"

    class Trap:
        def __reduce__(self):
            return (Path.touch, (ran,))

    (plain / "model.safetensors").unlink()
    (plain / "pytorch_model.bin").write_bytes(pickle.dumps(Trap()))
    message = refusal(opened, plain)
    assert message.startswith(f"{plain}: its weights are pickles") and "save_pretrained" in message
    assert not ran.exists()
    pickle.loads((plain / "pytorch_model.bin").read_bytes())
    assert ran.exists()  # it would have


def test_no_weights_at_all(plain):
    (plain / "model.safetensors").unlink()
    assert "no safetensors weights" in refusal(opened, plain)


def test_weights_that_were_cut_off(plain):
    weights = plain / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    assert "broken or cut off" in refusal(opened, plain)


def test_code_of_the_repository_is_not_run(plain):
    for name in ("configuration.py", "modeling.py"):
        (plain / name).write_text("from pathlib import Path\n(Path(__file__).parent / 'ran').touch()\n")
    spoil_config(plain, model_type="theirs", auto_map={"AutoConfig": "configuration.C", "AutoModelForCausalLM": "m.M"})
    message = refusal(opened, plain)
    assert message.startswith(str(plain)) and "--trust_remote_code true" in message
    assert not list(plain.glob("**/ran"))


def test_an_unknown_architecture_keeps_the_reason(plain):
    """Offline mode is on in every test; a folder that is there is not said to be missing."""
    spoil_config(plain, model_type="of_next_year")
    assert "of_next_year" in refusal(opened, plain)


@pytest.mark.parametrize("name", ["owner/name", "name", "runs/none", "../none"])
def test_what_is_nowhere_while_offline(name):
    message = refusal(opened, name)
    assert message.startswith(f"{name}: not on this machine") and "HF_HUB_OFFLINE" in message
