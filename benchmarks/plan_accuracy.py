"""What `fourstage plan` estimates against what two real steps of the recipe hold: the ratio, by stage, size and batch.

    python benchmarks/plan_accuracy.py            # 17 points on a CPU, about ten minutes on two cores
    python benchmarks/plan_accuracy.py sft grpo   # two stages
    python benchmarks/plan_accuracy.py --time     # seconds of a step instead: estimated, timed, and of a run of 60

Rows are as long as the plan takes them to be, and answers fill them. Every figure is of a program of its own.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
RECIPES = ROOT / "recipes"
STEPS = 60  # of the runs whose steps are compared with what was timed
CONTEXT, ANSWER = 128, 64
# stage, size, rows at once, further flags, in which CHATS are rows of sft
POINTS = [
    ("pretrain", "1M", 8, ""),
    ("pretrain", "1M", 16, "--no_use_muon"),
    ("pretrain", "10M", 4, ""),
    ("sft", "1M", 16, ""),
    ("sft", "1M", 16, "--use_peft"),
    ("sft", "10M", 4, "--gradient_accumulation_steps 2"),
    ("sft", "10M", 8, "--use_peft --gradient_checkpointing"),
    ("reward", "1M", 8, ""),
    ("reward", "1M", 8, "--use_peft"),
    ("reward", "10M", 4, ""),
    ("ppo", "1M", 16, ""),
    ("ppo", "1M", 16, "--use_peft"),
    ("ppo", "1M", 16, "--ptx_dataset_name CHATS"),
    ("ppo", "10M", 4, ""),
    ("grpo", "1M", 16, "--beta 0.1"),
    ("grpo", "1M", 16, "--use_peft"),
    ("grpo", "10M", 8, ""),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*")
    parser.add_argument("--time", action="store_true")
    args = parser.parse_args()
    (compare_times if args.time else compare_memory)(args.stages)


def compare_times(stages: list[str]) -> None:
    print("| stage | size | rows | flags | estimated s | timed s | a run's s | estimated / a run's | timed / a run's |")
    print("|---|---|---|---|---|---|---|---|---|")
    ratios: dict[str, list[float]] = {"estimated": [], "timed": []}
    with tempfile.TemporaryDirectory() as folder:
        for stage, size, batch, more in POINTS:
            if stages and stage not in stages:
                continue
            found = point(Path(folder), stage, size, batch, more.split(), "resident")
            real = run_seconds(Path(folder), stage, size, batch, more.split())
            seconds = (found["seconds"], found["measured"]["seconds"], real)
            for name, one in zip(ratios, seconds, strict=False):
                ratios[name].append(one / real)
            last = [f"{of[-1]:.2f}" for of in ratios.values()]
            print(
                "|",
                " | ".join(map(str, (stage, size, batch, more, *(f"{x:.3g}" for x in seconds), *last))),
                "|",
                flush=True,
            )
    for name, of in ratios.items():
        print(f"{name}, {len(of)} points: min {min(of):.2f}, median {statistics.median(of):.2f}, max {max(of):.2f}")


def run_seconds(folder: Path, stage: str, size: str, batch: int, more: list[str]) -> float:
    """Seconds of a step of the recipe in a run of STEPS, everything between its begin and its end counted."""
    out = folder / "run"
    shutil.rmtree(out, ignore_errors=True)
    quick = ["--max_steps", str(STEPS), "--report_to", "none", "--eval_strategy", "no", "--eval_on_start", "false"]
    flags = [*flags_of(folder, stage, size, batch, more), *quick]
    words = [sys.executable, str(RECIPES / f"{stage}.py"), *flags, "--save_strategy", "no", "--output_dir", str(out)]
    subprocess.run(words, check=True, capture_output=True)
    return json.loads((out / "run.json").read_text())["metrics"]["train_runtime"] / STEPS


def compare_memory(stages: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        ratios = []
        print("| stage | size | rows | flags | estimate MB | allocated MB | ratio |\n|---|---|---|---|---|---|---|")
        for stage, size, batch, more in POINTS:
            if stages and stage not in stages:
                continue
            found = point(Path(folder), stage, size, batch, more.split(), "allocated")
            ratios.append(found["estimate"] / found["measured"]["allocated"])
            cells = (
                stage,
                size,
                batch,
                more,
                f"{found['estimate'] / 1e6:.1f}",
                f"{found['measured']['allocated'] / 1e6:.1f}",
            )
            print("|", " | ".join(map(str, cells)), f"| {ratios[-1]:.3f} |", flush=True)
        middle = statistics.median(ratios)
        print(f"{len(ratios)} points: min {min(ratios):.3f}, median {middle:.3f}, max {max(ratios):.3f}")


def point(folder: Path, stage: str, size: str, batch: int, more: list[str], measured: str) -> dict:
    """The estimates and what was measured of one setting, in bytes and seconds."""
    flags = flags_of(folder, stage, size, batch, more)
    words = [
        sys.executable,
        "-m",
        "fourstage.cli",
        "plan",
        stage,
        *flags,
        "--measure",
        measured,
        "--json",
        str(folder / "plan.json"),
    ]
    if stage in ("ppo", "grpo"):
        words += ["--prompt_tokens", str(CONTEXT - ANSWER)]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(words)}\n{done.stdout[-1000:]}{done.stderr[-3000:]}")
    return json.loads((folder / "plan.json").read_text())


def flags_of(folder: Path, stage: str, size: str, batch: int, more: list[str]) -> list[str]:
    chats = {"CHATS": str(rows(folder, "sft"))} if "CHATS" in more else {}
    given = ["--per_device_train_batch_size", str(batch), *(chats.get(word, word) for word in more)]
    return [*begin(folder, stage, size), *given]


def begin(folder: Path, stage: str, size: str) -> list[str]:
    if stage == "pretrain":
        return ["--dataset_name", str(texts(folder)), "--num_parameters", size, "--max_length", str(CONTEXT)]
    flags = ["--dataset_name", str(rows(folder, stage)), "--model_name_or_path", str(made(folder, "pretrain", size))]
    if stage in ("ppo", "grpo"):
        flags += ["--max_completion_length", str(ANSWER), "--gradient_accumulation_steps", "2"]
    if stage == "ppo":
        flags += ["--reward_model_name_or_path", str(made(folder, "reward", size))]
    if stage == "grpo":
        flags += ["--reward_funcs", "number"]
    return flags


def made(folder: Path, stage: str, size: str) -> Path:
    """A finished stage of that size: its weights need not be good."""
    out = folder / f"{stage}-{size}"
    if not out.exists():
        quick = ["--max_steps", "1", "--report_to", "none", "--eval_strategy", "no", "--eval_on_start", "false"]
        words = [sys.executable, str(RECIPES / f"{stage}.py"), *flags_of(folder, stage, size, 2, quick)]
        words += ["--output_dir", str(out)]
        subprocess.run(words, check=True, capture_output=True)
    return out


def texts(folder: Path) -> Path:
    path = folder / "texts.jsonl"
    words = [f"{a}{b}{c}" for a in "bdfghklmnprst" for b in "aeiou" for c in "bdfghklmnprst"]
    lines = (json.dumps({"text": " ".join(words[(i * j) % len(words)] for j in range(1, 300))}) for i in range(1, 300))
    path.write_text("\n".join(lines))
    return path


def rows(folder: Path, stage: str) -> Path:
    """Rows of the longest: a digit is a token, and the rest are markers of the chat template."""
    path, answer = folder / f"{stage}.jsonl", "7" * (CONTEXT - 6)
    if stage == "sft":
        row = {"prompt": "5", "completion": answer}
    elif stage == "reward":
        row = {"prompt": "5", "chosen": answer, "rejected": answer[:-1] + "8"}
    else:
        row = {"question": "5" * (CONTEXT - ANSWER - 4), "answer": "7"}
    key = "question" if "question" in row else "prompt"
    lines = (
        json.dumps({**row, key: row[key][:-3] + f"{i:03d}" if len(row[key]) > 3 else str(i % 10)}) for i in range(400)
    )
    path.write_text("\n".join(lines))
    return path


if __name__ == "__main__":
    main()
