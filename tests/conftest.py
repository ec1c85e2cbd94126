"""What several test files share: a tokenizer trained here, a tiny random model, and a cache that leaves nothing."""

import atexit
import os
import shutil
import signal
import tempfile

# A shell starts programs in the background with Ctrl-C ignored, and nohup with hang-ups ignored. What tests start would
# ignore them too; a handler of this process is not inherited.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, lambda *ignored: None)):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, handler)

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp(prefix="fourstage-tests-")
atexit.register(shutil.rmtree, os.environ["HF_DATASETS_CACHE"], ignore_errors=True)

import datasets  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from helpers import SMALL_RUN, TINY, run_here, write_texts  # noqa: E402
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM  # noqa: E402

from fourstage.models.tokenizer import train_tokenizer  # noqa: E402

datasets.disable_progress_bars()


@pytest.fixture(scope="session")
def words():
    """Distinct words of three letters: a corpus with plenty of merges."""
    return " ".join(a + b + c for a in "bdfghklmn" for b in "aeiou" for c in "bdfghklmnprst")


@pytest.fixture(scope="session")
def tokenizer(words):
    return train_tokenizer([words] * 3, 512, 256)


@pytest.fixture
def model(tokenizer):
    """Two layers with large random weights, so that no two logits are nearly equal."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=256, initializer_range=0.3, **shape)
    model = LlamaForCausalLM(config).eval()
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    model.generation_config = GenerationConfig(**ids)
    return model


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A finished base of 43,000 parameters, context 64. Each module has its own: measuring one leaves a file in it."""
    folder = tmp_path_factory.mktemp("small")
    texts = write_texts(folder / "texts.jsonl")
    run_here("pretrain", "--dataset_name", texts, "--max_length=64", "--output_dir", folder / "base", *TINY, *SMALL_RUN)
    return folder / "base"
