"""Processor seconds that a recipe takes before its first step, and what of them the libraries' imports are.

    python benchmarks/startup.py [--rounds 5] [--output FILE]

Every round starts each program once, in turn, so that a busy machine slows all of them alike; the figures are medians
of user and system time, which waiting does not change. A recipe is timed from its start until it prints its overview,
which it does when training begins, and is then ended; evaluation before the first step is off. It reads a few rows,
so that the figure is start-up alone, and once more the demo's rows. The parents are made first, with a few steps each.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
LIMIT = 5.0  # for each recipe on a few rows
IMPORTS = {
    "torch": "import torch",
    "transformers' Trainer": "from transformers import Trainer",
    "peft": "import peft",
    "TRL's SFTTrainer": "from trl import SFTTrainer",
    "TRL's GRPOTrainer": "from trl import GRPOTrainer",
    "accelerate launch": "from accelerate.commands import launch",
}
PARENTS = {"pretrain": "", "sft": "pretrain", "reward": "sft", "ppo": "sft", "grpo": "sft"}
FEW, STEPS = 64, 8  # rows; steps, a whole update of PPO
ROWS = {
    "pretrain": {"text": "The old man looked at the sea, and the sea looked at number {}."},
    "sft": {"prompt": "What is {} and 1?", "completion": "One more than {}."},
    "reward": {"prompt": "What is {} and 1?", "chosen": "One more than {}.", "rejected": "No idea."},
    "ppo": {"prompt": "What is {} and 1?"},
    "grpo": {"question": "What is {} and 0?", "answer": "{}"},
}


def command(stage: str, folder: Path, output: Path, few: bool) -> list[str]:
    """The recipe with the demo's settings, a few steps, no evaluation before them."""
    words = ["--config", ROOT / "recipes" / "configs" / "demo" / f"{stage}.yaml", "--output_dir", output]
    words += ["--max_steps", STEPS, "--eval_on_start", "false", "--eval_strategy", "no", "--report_to", "none"]
    if PARENTS[stage]:
        words += ["--model_name_or_path", folder / PARENTS[stage]]
    if stage == "ppo":
        words += ["--reward_model_name_or_path", folder / "reward"]
    if few:
        words += ["--dataset_name", folder / f"{stage}.jsonl"]
    return [str(word) for word in [sys.executable, ROOT / "recipes" / f"{stage}.py", *words]]


def write_rows(folder: Path) -> None:
    for stage, row in ROWS.items():
        lines = [json.dumps({key: text.format(i, i) for key, text in row.items()}) for i in range(FEW)]
        (folder / f"{stage}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def seconds_to_first_step(words: list[str]) -> float:
    """Processor time of a recipe until its overview is there; the rest of the run is not waited for."""
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=ENVIRONMENT)
    with process:
        if not any(line.startswith("  device ") for line in process.stdout):
            raise SystemExit(f"{' '.join(words)} did not come to its first step")
        times = psutil.Process(process.pid).cpu_times()
        process.kill()
    return times.user + times.system


def seconds_of(words: list[str]) -> float:
    """Processor time of a program that has to succeed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(words, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(rounds: int, folder: Path) -> dict:
    write_rows(folder)
    for stage in ("pretrain", "sft", "reward"):
        seconds_of(command(stage, folder, folder / stage, few=False))
    times: dict[tuple, list[float]] = {}
    for i in range(rounds):
        for name, code in IMPORTS.items():
            times.setdefault(("import", name), []).append(seconds_of([sys.executable, "-c", code]))
        for stage in PARENTS:
            for few in (True, False):
                words = command(stage, folder, folder / f"{stage}-{few}-{i}", few)
                times.setdefault((stage, few), []).append(seconds_to_first_step(words))
    middle = {key: round(statistics.median(values), 2) for key, values in times.items()}
    recipes = {stage: {"few_rows": middle[stage, True], "demo_rows": middle[stage, False]} for stage in PARENTS}
    return {
        "rounds": rounds,
        "limit": LIMIT,
        "imports": {name: middle["import", name] for name in IMPORTS},
        "recipes": recipes,
        "ok": all(row["few_rows"] < LIMIT for row in recipes.values()),
    }


def table(measured: dict) -> str:
    lines = ["| import in a fresh process | s |", "|---|---|"]
    lines += [f"| {name} | {seconds:.2f} |" for name, seconds in measured["imports"].items()]
    lines += ["", f"| recipe, to its first step | {FEW} rows, s | the demo's rows, s |", "|---|---|---|"]
    lines += [
        f"| {name} | {row['few_rows']:.2f} | {row['demo_rows']:.2f} |" for name, row in measured["recipes"].items()
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="starts of every program (default: 5)")
    parser.add_argument("--output", type=Path, help="also write the figures as JSON to this file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measured = measure(args.rounds, Path(folder))
    print(table(measured))
    if args.output:
        args.output.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
