"""Does a GPU give the CPU's numbers? The first steps of the five recipes in float32, and greedy answers.

    python benchmarks/gpu_parity.py --models FOLDER        with the stages pretrain, sft and reward of a chain in it

Each recipe runs 5 steps on the CPU and on the GPU, from the same weights with the same rows; losses, gradient norms,
rewards and lengths of answers are equal where they differ by less than 0.1 %, as the tokens of PPO and GRPO are chosen
by the same random numbers. 64 greedy answers of the sft model are compared token by token, on both devices by the plain
loop and by the quick one.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from fourstage.data.embedded.rows import held_out_items
from fourstage.evaluation.generation import generate
from fourstage.models.checkpoint import open_causal_lm
from fourstage.models.encoding import conversation_ids
from fourstage.models.opening import open_tokenizer
from fourstage.rl.decoding import quick_generation

HERE = Path(__file__).resolve().parents[1]
PARENTS = {"pretrain": None, "sft": "pretrain", "reward": "sft", "ppo": "sft", "grpo": "sft"}
FIGURES = ("loss", "grad_norm", "reward", "completions/mean_length")
SMALLEST = 0.01  # a figure below is compared as if it were this: it is a difference of larger ones
QUIET = {"eval_strategy": "no", "eval_on_start": "false", "save_strategy": "no", "report_to": "none"}


def figures(recipe: str, models: Path, on_cpu: bool, out: str) -> list[float]:
    """Those of every step, in a row."""
    flags = {**QUIET, "max_steps": 5, "logging_steps": 1, "bf16": "false", "use_cpu": str(on_cpu).lower()}
    if PARENTS[recipe]:
        flags["model_name_or_path"] = models / PARENTS[recipe]
    if recipe == "ppo":
        flags["reward_model_name_or_path"] = models / "reward"
    words = [str(word) for name, value in flags.items() for word in (f"--{name}", value)]
    command = [sys.executable, f"recipes/{recipe}.py", "--config", f"recipes/configs/demo/{recipe}.yaml", *words]
    done = subprocess.run(
        [*command, "--output_dir", out],
        cwd=HERE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{recipe} failed\n{done.stderr[-2000:]}")
    rows = json.loads(Path(out, "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    return [row[name] for row in rows if "loss" in row for name in FIGURES if name in row]


def compare_steps(recipe: str, models: Path) -> str:
    with tempfile.TemporaryDirectory() as out:
        here, there = (figures(recipe, models, on_cpu, f"{out}/{on_cpu}") for on_cpu in (True, False))
    worst = max(abs(a - b) / max(abs(a), SMALLEST) for a, b in zip(here, there, strict=True))
    return f"{recipe}: {'equal' if worst < 1e-3 else 'differ'}, at most {worst:.1e} apart in {len(here)} figures"


def compare_answers(models: Path) -> str:
    tokenizer = open_tokenizer(str(models / "sft"))
    prompts = [conversation_ids(tokenizer, item["prompt"], add_generation_prompt=True) for item in items()]
    written = []
    for device in ("cpu", "cuda" if torch.cuda.is_available() else "cpu"):
        model = open_causal_lm(str(models / "sft"), dtype=torch.float32).to(device)
        written.append(generate(model, tokenizer, prompts, 36))
        with quick_generation(model):
            written.append(generate(model, tokenizer, prompts, 36))
    same = [sum(a == b for a, b in zip(written[0], other, strict=True)) for other in written[1:]]
    word = "equal" if min(same) == len(prompts) else "differ"
    return f"greedy answers: {word}, {same} of {len(prompts)} as the CPU's plain loop (quick CPU, plain GPU, quick GPU)"


def items() -> list[dict]:
    return held_out_items("reading", 64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True)
    models = parser.parse_args().models.resolve()
    print(compare_answers(models), flush=True)
    for recipe in PARENTS:
        print(compare_steps(recipe, models), flush=True)


if __name__ == "__main__":
    main()
