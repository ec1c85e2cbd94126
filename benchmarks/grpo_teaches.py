"""Does GRPO teach, and how much of it does the reward teach? Sums of two steps, 1M parameters, with its control.

    python benchmarks/grpo_teaches.py runs/teaches --seeds 10 11 12

A base model is trained once. Then for each seed: instruction tuning on 90 demonstrations of the task among 100 other
conversations, which teaches the format but only some of the skill; GRPO on problems of which only the final answer is
known; and the same GRPO with coin flips as rewards. All three are measured on the same held-out problems: greedily,
greedily with the format forced, sampled at temperature 1, and by wholly right derivations. Nothing is wrong in the
demonstrations. Finished runs are not repeated, so the command can be cut off and given again; `--jobs 2` runs two
seeds at once. Task, difficulty and steps were fixed on seed 0.
"""

import argparse
import json
import os
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fourstage import demo
from fourstage.demo import chains
from fourstage.metrics import standard_error

ROOT = Path(__file__).parents[1]
SHAPE = ["--num_parameters", "1M", "--vocab_size", "1024", "--max_length", "128", "--max_steps", "500"]
SFT = ["--learning_rate", "1e-3", "--per_device_train_batch_size", "16", "--max_steps", "500"]
GRPO = ["--reward_funcs", "number", "--max_completion_length", "40", "--learning_rate", "4e-4", "--max_steps", "60"]
ARMS = ("sft", "grpo", "control")
MEASURES = ("right", "forced_right", "derivation_right", "forced_derivation_right", "in_format", "sampled")


def write(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_texts(folder: Path) -> None:
    """Half single steps, a fifth numbers said three times over, else the embedded texts."""
    chance = random.Random(1)

    def document() -> dict:
        kind = chance.random()
        if kind < 0.5:
            return {"text": chains.facts(chance, 8)}
        if kind < 0.7:
            numbers = " ".join(str(chance.randint(0, 40)) for _ in range(6))
            return {"text": f"{numbers}. {numbers}. {numbers}."}
        return {"text": embedded.pop()["text"]}

    embedded = demo.demo_rows("pretrain")[0] * 3
    write(folder / "train.jsonl", [document() for _ in range(16_000)])
    write(folder / "test.jsonl", [document() for _ in range(200)])


def write_demonstrations(folder: Path, seed: int, number: int) -> None:
    chance = random.Random(f"demonstrations {seed}")
    others = [row for row in demo.demo_rows("sft")[0] if "<think>" not in row["completion"][0]["content"]]
    shown = chance.sample(chains.triples(held_out=False), number + 100)
    rows = [chains.demonstration(chains.problem(triple, chance)) for triple in shown]
    write(folder / "train.jsonl", rows[:number] + chance.sample(others, 100))
    write(folder / "test.jsonl", rows[number:])


def recipe(stage: str, folder: Path, *flags) -> None:
    """Runs a recipe to its end, on one thread, unless it is finished."""
    launch = [str(Path(sys.executable).with_name("accelerate")), "launch", "--config_file"]
    command = [*launch, "accelerate_configs/cpu.yaml", f"recipes/{stage}.py", "--output_dir", folder]
    command += ["--report_to", "none", *flags]
    with folder.with_suffix(".log").open("a") as log:
        subprocess.run(list(map(str, command)), cwd=ROOT, env=environment(), stdout=log, stderr=log, check=True)


def environment() -> dict:
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def measure(model: Path) -> dict[str, list[float]]:
    """For each measure one value per held-out problem."""
    answers = model.with_suffix(".answers.jsonl")
    if not answers.exists():
        command = [sys.executable, "recipes/evaluate.py", model, "--stage", "grpo", "--dataset_name", "fourstage/demo"]
        command += ["--verifier", "number", "--format_func", "think_format", "--begin", "<think>", "--samples", "4"]
        command += ["--max_rows", "100000", "--max_new_tokens", "40", "--answers", answers]
        subprocess.run(list(map(str, command)), cwd=ROOT, env=environment(), check=True, capture_output=True)
    rows = [json.loads(line) for line in answers.read_text(encoding="utf-8").splitlines()]
    return {
        name: [row["samples_right"] / 4 if name == "sampled" else float(row[name]) for row in rows] for name in MEASURES
    }


def run_seed(folder: Path, seed: int, demonstrations: int) -> dict[str, dict[str, list[float]]]:
    write_demonstrations(folder / f"demonstrations-{seed}", seed, demonstrations)
    here = {arm: folder / f"{arm}-{seed}" for arm in ARMS}
    data, seeded = ["--dataset_name", folder / f"demonstrations-{seed}"], ["--seed", seed]
    recipe("sft", here["sft"], "--model_name_or_path", folder / "base", *data, *seeded, *SFT)
    parent = ["--model_name_or_path", here["sft"], "--dataset_name", "fourstage/demo"]
    recipe("grpo", here["grpo"], *parent, *seeded, *GRPO)
    recipe("grpo", here["control"], *parent, *seeded, *GRPO, "--control", "random_reward")
    return {arm: measure(path) for arm, path in here.items()}


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def show(results: dict[int, dict[str, dict[str, list[float]]]]) -> None:
    """Each arm's means by seed, then GRPO minus its control, paired by problem."""
    seeds = list(results)
    problems = len(results[seeds[0]]["sft"]["right"])
    print(f"{problems} held-out problems, seeds {', '.join(map(str, seeds))}; means in %, +- standard error over seeds")
    for name in MEASURES:
        cells = []
        for arm in ARMS:
            values = [100 * mean(results[seed][arm][name]) for seed in seeds]
            shown = " ".join(f"{v:.1f}" for v in values)
            cells.append(f"{arm} {mean(values):5.1f} +- {standard_error(values):.1f} ({shown})")
        print(f"{name:24} " + "   ".join(cells))
    for other in ("sft", "control"):
        print(f"GRPO minus {other} in points, paired by problem; one-sided 95 % lower bounds: together, then by seed")
        for name in MEASURES:
            print(f"{name:24} {compare(results, other, name)}")


def compare(results: dict[int, dict[str, dict[str, list[float]]]], other: str, name: str) -> str:
    """How much better GRPO is than another arm; together, a problem's difference is its mean over seeds."""
    differences = [
        [100 * (a - b) for a, b in zip(arms["grpo"][name], arms[other][name], strict=True)] for arms in results.values()
    ]
    together = [mean(list(some)) for some in zip(*differences, strict=True)]
    gains = [mean(some) for some in differences]
    each = ", ".join(f"{mean(some):+.1f} (above {lower_bound(some):+.1f})" for some in differences)
    return f"{mean(gains):+.1f} +- {standard_error(gains):.1f} over seeds, above {lower_bound(together):+.1f}; {each}"


def lower_bound(values: list[float]) -> float:
    return mean(values) - 1.645 * standard_error(values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[10, 11, 12])
    parser.add_argument("--demonstrations", type=int, default=90)
    parser.add_argument("--jobs", type=int, default=1)
    args = parser.parse_args()
    folder = args.folder.resolve()
    write_texts(folder / "texts")
    recipe("pretrain", folder / "base", "--dataset_name", folder / "texts", *SHAPE)
    with ThreadPoolExecutor(args.jobs) as pool:
        done = pool.map(lambda seed: run_seed(folder, seed, args.demonstrations), args.seeds)
        show(dict(zip(args.seeds, done, strict=True)))


if __name__ == "__main__":
    main()
