"""Are two checkouts the same to the last bit? Tiny runs of all five recipes, a line of hashes for each.

    python benchmarks/same_results.py CHECKOUT OUTPUT_DIR

Run it once for each checkout, on one machine, and compare what it prints with diff. The recipes are those of CHECKOUT,
started as programs of their own with one thread; data are embedded ones. Hashed are the weights, the log of training
less its times, and tokenizer with samples. A folder that is finished is not run again.
"""

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

TIMES = re.compile(r"runtime|per_second|step_time|total_flos")
DEMO = ["--dataset_name=fourstage/demo", "--report_to=none", "--seed=3"]
BASE = ["pretrain", "--num_parameters=300K", "--vocab_size=512", "--max_length=128", "--max_eval_rows=8"]
RL = ["--max_completion_length=16", "--max_eval_rows=8"]


def commands(out: Path) -> dict[str, list[str]]:
    """{name: recipe and flags}, in the order to run them."""
    base, tuned, polite = (f"--model_name_or_path={out / name}" for name in ("pretrain", "sft", "ppo"))
    scored = f"--reward_model_name_or_path={out / 'reward'}"
    grpo = ["grpo", polite, "--reward_funcs=number", "--max_steps=3", *RL]
    return {
        "pretrain": [*BASE, "--max_steps=20"],
        "pretrain-adamw": [*BASE, "--max_steps=10", "--no_use_muon", "--model_type=llama", "--dataset_streaming"],
        "sft": ["sft", base, "--max_steps=16", "--use_muon", "--learning_rate=3e-3"],
        "sft-lora": ["sft", base, "--max_steps=8", "--use_peft"],
        "reward": ["reward", tuned, "--max_steps=8", "--learning_rate=1e-3"],
        "reward-lora": ["reward", tuned, "--max_steps=4", "--use_peft"],
        "ppo": ["ppo", tuned, scored, "--max_steps=8", "--learning_rate=1e-4", *RL],
        "ppo-lora": ["ppo", tuned, scored, "--max_steps=4", "--use_peft", "--gold_func=think_format", *RL],
        "grpo": grpo,
        "grpo-control": [*grpo, "--control=random_reward"],
        "grpo-lora": [
            "grpo",
            tuned,
            "--reward_funcs",
            "number",
            "steps",
            "--max_steps=2",
            "--use_peft",
            "--beta=0.01",
            *RL,
        ],
    }


def run(checkout: Path, folder: Path, recipe: str, flags: list[str]) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(checkout)}
    program = str(checkout / "recipes" / f"{recipe}.py")
    words = [sys.executable, program, *flags, *DEMO, f"--output_dir={folder}"]
    done = subprocess.run(words, cwd=checkout, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{folder.name}: {done.stderr[-3000:]}")


def hashes(folder: Path) -> list[str]:
    history = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    rows = [{key: value for key, value in row.items() if not TIMES.search(key)} for row in history]
    contents = [
        (folder / "model.safetensors").read_bytes(),
        json.dumps(rows, sort_keys=True).encode(),
        b"".join((folder / name).read_bytes() for name in ("tokenizer.json", "samples.jsonl")),
    ]
    return [hashlib.sha256(content).hexdigest()[:16] for content in contents]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="a folder with recipes/ and fourstage/")
    parser.add_argument("output_dir", type=Path, help="where the runs go")
    args = parser.parse_args()
    out = args.output_dir.resolve()
    for name, (recipe, *flags) in commands(out).items():
        if not (out / name / "README.md").is_file():
            run(args.checkout.resolve(), out / name, recipe, flags)
        weights, log, rest = hashes(out / name)
        print(f"{name:<15} weights {weights}  log {log}  tokenizer and samples {rest}", flush=True)


if __name__ == "__main__":
    main()
