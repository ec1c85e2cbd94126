"""Processor and wall seconds of a training step of every recipe, as shipped over another way or another checkout.

    python benchmarks/stage_speed.py --chain runs/demo --pairs 3 --output FILE
    python benchmarks/stage_speed.py --chain runs/demo --against ../older-checkout

Each recipe runs on the demo's data with the demo's settings from the models of a finished chain, with few steps and
with more: the difference is steps alone, whatever start-up takes. Without --against the other way is this checkout in
float32. The two alternate, a ratio is taken for each pair, and the median is reported.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
STEPS = {"pretrain": (10, 50), "sft": (20, 80), "reward": (10, 40), "ppo": (16, 48), "grpo": (4, 12)}
PARENTS = {"sft": "pretrain", "reward": "sft", "ppo": "sft", "grpo": "sft"}
QUIET = ["--eval_strategy", "no", "--eval_on_start", "false", "--save_strategy", "no", "--report_to", "none"]


def seconds(checkout: Path, recipe: str, chain: Path, steps: int, more: list[str]) -> tuple[float, float]:
    """(processor, wall) seconds of a run."""
    words = ["--config", f"recipes/configs/demo/{recipe}.yaml", "--max_steps", steps, *QUIET, *more]
    if recipe in PARENTS:
        words += ["--model_name_or_path", chain / PARENTS[recipe]]
    if recipe == "ppo":
        words += ["--reward_model_name_or_path", chain / "reward"]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, f"recipes/{recipe}.py", *map(str, words), "--output_dir", f"{folder}/run"]
        before, started = used(), time.monotonic()
        done = subprocess.run(
            command,
            cwd=checkout,
            env={**os.environ, "PYTHONPATH": str(checkout), "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        sys.exit(f"{recipe} in {checkout} failed\n{done.stderr[-2000:]}")
    return used() - before, time.monotonic() - started


def used() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def step_seconds(checkout: Path, recipe: str, chain: Path, more: list[str]) -> tuple[float, float]:
    few, many = STEPS[recipe]
    short, long = (seconds(checkout, recipe, chain, steps, more) for steps in (few, many))
    return (long[0] - short[0]) / (many - few), (long[1] - short[1]) / (many - few)


def measure(recipe: str, other: Path, chain: Path, pairs: int) -> dict:
    ways = {"here": (HERE, []), "other": (other, ["--bf16", "false"] if other == HERE else [])}
    rows = []
    for pair in range(pairs):
        order = list(ways) if pair % 2 == 0 else list(ways)[::-1]
        rows.append({name: step_seconds(ways[name][0], recipe, chain, ways[name][1]) for name in order})
        print(f"{recipe} pair {pair + 1}/{pairs}: {rows[-1]}", flush=True)
    result: dict = {"recipe": recipe, "pairs": pairs}
    for place, kind in enumerate(("processor", "wall")):
        result[kind] = {name: statistics.median(row[name][place] for row in rows) for name in ways}
        result[f"{kind}_ratio"] = statistics.median(row["other"][place] / row["here"][place] for row in rows)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chain", type=Path, required=True, help="folder of a finished demo, such as runs/demo")
    parser.add_argument("--against", type=Path, default=HERE, help="another checkout (default: this one in float32)")
    parser.add_argument("--recipes", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--output", type=Path, help="write the rows as JSON")
    args = parser.parse_args()
    chain, other = args.chain.resolve(), args.against.resolve()
    rows = [measure(recipe, other, chain, args.pairs) for recipe in args.recipes]
    for row in rows:
        print(
            f"{row['recipe']}: {row['processor_ratio']:.2f} times as fast in processor seconds, "
            f"{row['wall_ratio']:.2f} in wall seconds, {row['pairs']} pairs"
        )
    if args.output:
        args.output.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
