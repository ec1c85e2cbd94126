"""The chain of recipes/configs/small on rows with the columns of its Hub data sets, at toy size."""

import json
import math

import pytest
from helpers import RECIPES, record_of, run_here

pytestmark = pytest.mark.slow

CONFIGS = RECIPES / "configs" / "small"
WORDS = ["river", "stone", "light", "answer", "garden", "winter", "bridge", "market", "letter", "engine"]


def turn(role, content):
    return {"role": role, "content": content}


def web_page(i):
    text = " ".join(WORDS[(i * k) % 10] for k in range(1, 40)) + f" {i}."
    more = {"dump": "CC-MAIN-2024-10", "url": f"https://example.org/{i}", "file_path": "s3://x", "language": "en"}
    return {
        "text": text,
        "id": f"<urn:{i}>",
        **more,
        "language_score": 0.9,
        "token_count": 40,
        "score": 3.1,
        "int_score": 3,
    }


def conversation(i):
    first = [turn("user", f"Where is the {WORDS[i % 10]}?"), turn("assistant", f"Beside the {WORDS[i % 7]}.")]
    second = [turn("user", "And then?"), turn("assistant", f"Behind the {WORDS[i % 3]}.")]
    return {"messages": first + second * (i % 2), "source": "everyday-conversations"}


def pair(i):
    question = turn("user", f"Tell me of the {WORDS[i % 10]} {i}.")
    answers = [[question, turn("assistant", text)] for text in (f"It is a {WORDS[i % 7]}.", f"I do not know {i}.")]
    return {"chosen": answers[0], "rejected": answers[1], "score_chosen": 8.0, "score_rejected": 4.0}


def problem(i):
    return {"question": f"Ann has {i} and gets {i % 5} more. How many?", "answer": f"{i} + {i % 5}\n#### {i + i % 5}"}


ROWS = {"pretrain": web_page, "sft": conversation, "reward": pair, "ppo": pair, "grpo": problem}
TOY = ["--max_steps=2", "--per_device_train_batch_size=4", "--gradient_accumulation_steps=1", "--report_to=none"]
OWN = {
    "pretrain": ["--dataset_streaming=false", "--num_parameters=60k", "--vocab_size=384", "--max_length=128"],
    "sft": ["--max_length=128"],
    "reward": ["--max_length=128"],
    "ppo": ["--max_completion_length=8", "--max_eval_rows=4"],
    "grpo": ["--max_completion_length=8", "--max_eval_rows=4", "--num_generations=4"],
}
PARENTS = {"sft": "pretrain", "reward": "sft", "ppo": "sft", "grpo": "ppo"}


def test_every_stage_reads_its_rows_and_follows_the_one_before(tmp_path):
    for stage, row in ROWS.items():
        data = tmp_path / f"{stage}.jsonl"
        data.write_text("".join(json.dumps(row(i)) + "\n" for i in range(200 if stage == "pretrain" else 60)))
        flags = ["--config", CONFIGS / f"{stage}.yaml", "--dataset_name", data, "--output_dir", tmp_path / stage]
        flags += ["--model_name_or_path", tmp_path / PARENTS[stage]] if stage in PARENTS else []
        flags += ["--reward_model_name_or_path", tmp_path / "reward"] if stage == "ppo" else []
        run_here(stage, *flags, *TOY, *OWN[stage])
        record = record_of(tmp_path / stage)
        assert record["status"] == "finished"
        numbers = [value for value in record["metrics"].values() if isinstance(value, float)]
        assert numbers and all(map(math.isfinite, numbers))
