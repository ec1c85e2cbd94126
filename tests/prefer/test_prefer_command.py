"""`fourstage prefer` with wrong input: one line, exit status 1, and no page."""

import json
import re
import socket
import sys

import pytest
import torch
from chat_helpers import chain, parrot
from transformers import LlamaConfig, LlamaForSequenceClassification

from fourstage.cli import main
from fourstage.prefer import run


@pytest.fixture(scope="module")
def models(tmp_path_factory, tokenizer):
    """Saved models: two that answer, one without a template, a base of fourstage, a reward model."""
    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    scorer = LlamaConfig(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, num_labels=1, **shape)
    kinds = {
        "one": parrot(tokenizer, chain(tokenizer, "bab, gef!")),
        "two": parrot(tokenizer, chain(tokenizer, "dim.")),
        "reward": LlamaForSequenceClassification(scorer),
    }
    kinds |= {"plain": kinds["one"], "base": kinds["one"], "same": kinds["one"]}
    for name, model in kinds.items():
        model.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    (root / "plain" / "chat_template.jinja").unlink()
    (root / "base" / "run.json").write_text(json.dumps({"stage": "pretrain", "status": "finished"}))
    return root


@pytest.fixture
def at_work(tmp_path, models, monkeypatch):
    """A working folder beside the models, with prompts; a page that would be served fails the test."""
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two", "same", "plain", "base", "reward"):
        (tmp_path / name).symlink_to(models / name)
    (tmp_path / "p.txt").write_text("\ufeffWhy?\r\n\n  How?\u2028So?  \nWhy?\n")
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "long.txt").write_text("bab " * 5000)
    (tmp_path / "half.jsonl").write_text('{"prompt": "a \\ud800 b"}\n')
    (tmp_path / "odd.jsonl").write_text('{"prompt": [{"role": "user", "content": 7}]}\n{"prompt": 3}\n')
    (tmp_path / "notes.jsonl").write_text('{"text": "mine"}\n')
    (tmp_path / "notes.pairs.jsonl").write_text('{"text": "mine"}\n')
    (tmp_path / "latin.txt").write_bytes(b"J\xfcrg")
    (tmp_path / "dir.txt").mkdir()
    monkeypatch.setattr(run, "serve", lambda *_: pytest.fail("served"))
    return tmp_path


PROMPTS = ["--prompts", "p.txt"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ([], "models=.*name one model, or two to compare"),
        (["one", "two", "one", *PROMPTS], "models='one two one': name one model, or two"),
        (["one"], "one has no questions of its own data; name a file of prompts with --prompts"),
        (["one", "--prompts", "none.txt"], "prompts=none.txt cannot be read"),
        (["one", "--prompts", "dir.txt"], "prompts=dir.txt cannot be read"),
        (["one", "--prompts", "latin.txt"], "prompts=latin.txt cannot be read as UTF-8"),
        (["one", "--prompts", "none.jsonl"], "none.jsonl"),
        (["one", "--prompts", "empty.txt"], "empty.txt has no prompt that can be answered; name a file"),
        (["one", "--prompts", "empty.jsonl"], "empty.jsonl is empty"),
        (["one", "--prompts", "long.txt"], "long.txt has no prompt that can be answered"),
        (["one", "--prompts", "half.jsonl"], "half.jsonl line 1: half a surrogate pair"),
        (["one", "--prompts", "odd.jsonl"], "odd.jsonl"),
        (["missing", *PROMPTS], "missing"),
        (["plain", *PROMPTS], "plain has no chat template, so it does not answer; name a model that is tuned"),
        (["base", *PROMPTS], "base is a base model, so it does not answer; name a model that is tuned"),
        (["one", "reward", *PROMPTS], "reward is a reward model: it scores answers and writes none"),
        (["one", *PROMPTS, "--output", "notes.jsonl"], "output=notes.jsonl holds something else: line 1 is not"),
        (["one", *PROMPTS, "--output", "p.txt"], "output=p.txt holds something else: line 1 is not a choice"),
        (["one", *PROMPTS, "--output", "notes"], None),
        (["one", *PROMPTS, "--output", "."], "output=. cannot be written .Is a directory"),
        (["one", *PROMPTS, "--port", "99999"], "port=99999 must be 0 .any free one. to 65535"),
        (["one", *PROMPTS, "--port", "-1"], "port=-1 must be 0"),
        (["one", *PROMPTS, "--host", "203.0.113.7"], "port=0 on 203.0.113.7 cannot be used"),
        (["one", *PROMPTS, "--temperature", "0"], "temperature=0 gives the same answer twice; choose a higher one"),
        (["one", "same", *PROMPTS, "--temperature", "0"], "temperature=0 gives the same answer twice"),
        (["one", *PROMPTS, "--temperature", "-1"], "temperature=-1.0 must be 0 .*or 0.01 to 100"),
        (["one", "two", *PROMPTS, "--temperature", "nan"], "temperature=nan must be"),
        (["one", *PROMPTS, "--max_new_tokens", "0"], "max_new_tokens=0 must be 1 or more"),
        (["one", *PROMPTS, "--pick", "uncertain"], "pick=uncertain needs a reward model that is unsure"),
        (["one", *PROMPTS, "--pick", "uncertain", "--reward_model", "two"], "two has no score head"),
    ],
)  # fmt: skip
def test_wrong_input_is_one_line_and_no_page(at_work, capsys, line, said):
    if said is None:
        (at_work / "notes.pairs").write_text('{"text": "mine"}\n')
        said = "notes.pairs: line 1 is no pair of `fourstage prefer`"
    before = {path.name: path.read_bytes() for path in at_work.iterdir() if path.is_file()}
    assert main(["prefer", *line, *([] if "--port" in line else ["--port", "0"])]) == 1
    output = capsys.readouterr()
    *notes, error = output.err.splitlines()
    assert error.startswith("fourstage: ") and output.out == ""
    assert re.search(said, error), error
    assert not any(line.startswith(("Traceback", " ")) for line in notes)
    assert {name: (at_work / name).read_bytes() for name in before} == before


def test_a_port_in_use_is_said_before_any_model_is_opened(at_work, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["prefer", "missing", "--port", str(port)]) == 1
    assert f"port={port} on 127.0.0.1 cannot be used (Address already in use)" in capsys.readouterr().err


@pytest.mark.parametrize("library", ["starlette", "uvicorn"])
def test_without_the_extra_it_is_named(at_work, capsys, monkeypatch, library):
    for name in [name for name in sys.modules if name.split(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    for name in [name for name in sys.modules if name.startswith(("fourstage.prefer", "fourstage.web"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    assert main(["prefer", "one"]) == 1
    said = rf"fourstage: prefer needs the extra ui, {library}\S* is missing: pip install .*\[ui\].*\n"
    assert re.fullmatch(said, capsys.readouterr().err)


def test_prompts_of_a_text_file_are_its_different_lines(at_work, monkeypatch):
    seen = []
    monkeypatch.setattr(run, "serve", lambda page, routes, *_: seen.append(routes))
    assert main(["prefer", "one", "two", "--prompts", "p.txt", "--port", "0", "--temperature", "0"]) == 0
    lines = [json.loads(line) for line in (at_work / "prefs.pairs.jsonl").read_text().splitlines()]
    asked = {row["prompt"][0]["content"] for row in lines if "prompt" in row}
    assert asked <= {"Why?", "How?\u2028So?"} and seen
