"""A healthy tiny model on disk which each test spoils in one place."""

import shutil

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification


@pytest.fixture(scope="session")
def healthy(tmp_path_factory, tokenizer):
    """A folder with `model`, a language model from elsewhere, and `reward`, a model of one score."""
    folder = tmp_path_factory.mktemp("healthy")
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    config = {"vocab_size": len(tokenizer), "max_position_embeddings": 256, **ids, **shape}
    LlamaForCausalLM(LlamaConfig(**config)).save_pretrained(folder / "model")
    LlamaForSequenceClassification(LlamaConfig(**config, num_labels=1)).save_pretrained(folder / "reward")
    for name in ("model", "reward"):
        tokenizer.save_pretrained(folder / name)
    return folder


@pytest.fixture
def spoilt(healthy, tmp_path):
    """Copies `model` or `reward` to where a test may spoil it."""

    def copied(name="model"):
        return shutil.copytree(healthy / name, tmp_path / name)

    return copied
