"""Models to talk to, and the command line run in this process."""

import io
import json
import sys

import pytest
import torch
from chat_helpers import HOSTILE, chain, parrot
from transformers import LlamaConfig, LlamaForSequenceClassification

from fourstage.cli import main


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tokenizer):
    """Saved models: one that answers, one that says hostile things, one that never stops, a base, a reward model."""
    root = tmp_path_factory.mktemp("talk")
    question = tokenizer("dim", add_special_tokens=False)["input_ids"][-1]
    kinds = {
        "answers": parrot(tokenizer, chain(tokenizer, "bab, gef!")),
        "hostile": parrot(tokenizer, chain(tokenizer, HOSTILE)),
        "endless": parrot(tokenizer, chain(tokenizer, " bab gef", end=False), context=100_000),
        "narrow": parrot(tokenizer, chain(tokenizer, "bab, gef!"), context=32),
        "base": parrot(tokenizer, chain(tokenizer, " fut.", first=tokenizer.convert_ids_to_tokens(question))),
    }
    torch.manual_seed(1)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, num_labels=1, **shape)
    kinds["reward"] = LlamaForSequenceClassification(config)
    for name, model in kinds.items():
        model.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    record = {"status": "finished", "stage": "pretrain"}
    (root / "base" / "run.json").write_text(json.dumps(record))
    return root


@pytest.fixture
def cli(monkeypatch, capsys):
    """Runs the command line here: (status, stdout, stderr)."""

    def run(*words, stdin=""):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode()), encoding="utf-8"))
        status = main([str(word) for word in words])
        return status, *capsys.readouterr()

    return run
