"""The short form of every speed benchmark, one after the other, and one table: `make bench`.

    python benchmarks/bench.py --chain runs/demo --output runs/bench.md

A chain that is not there is made with a few steps a stage. Each row is of one pair, which says
little: quote the long forms, whose commands are in the docstrings of the files. A benchmark that fails has a row that
says so, the others go on, and the exit code is 1.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

HERE = Path(__file__).resolve().parent


def run(*words: object) -> str:
    """The output of a benchmark or recipe."""
    print("$", *words, flush=True)
    return subprocess.run([sys.executable, *map(str, words)], stdout=subprocess.PIPE, text=True, check=True).stdout


def written(file: Path, *words: object) -> list | dict:
    run(*words, "--output", file)
    return json.loads(file.read_text(encoding="utf-8"))


def startup(folder: Path) -> list[tuple]:
    measured = written(folder / "startup.json", HERE / "startup.py", "--rounds", 1)
    return [
        (f"{name}: processor seconds to the first step", row["few_rows"]) for name, row in measured["recipes"].items()
    ]


def data(folder: Path) -> list[tuple]:
    from fourstage.data.embedded.rows import demo_rows

    texts = folder / "texts.jsonl"
    texts.write_text("".join(json.dumps(row) + "\n" for row in demo_rows("pretrain")[0]), encoding="utf-8")
    words = ("--dataset_name", texts, "--pairs", 1)
    measured = written(folder / "data.json", HERE / "data_throughput.py", *words)
    return [
        (f"text {way}: speed over encode_batch's", measured[way]["ratio_processor"][0]) for way in ("on disk", "stream")
    ]


def pretraining(folder: Path) -> list[tuple]:
    words = ("--sizes", "1M", "3M", "--steps", 6, "--rounds", 1)
    rows = written(folder / "pretrain.json", HERE / "pretrain_throughput.py", *words)["rows"]
    names = ("trainer/bare", "shipped/bare", "shipped/compiled")
    return [(f"pre-training at {row['size']}: {name}", row[f"{name} processor"]) for row in rows for name in names]


def stages(folder: Path, chain: Path) -> list[tuple]:
    rows = written(folder / "stages.json", HERE / "stage_speed.py", "--chain", chain, "--pairs", 1)
    return [(f"{row['recipe']}: a step as shipped over one in float32", row["processor_ratio"]) for row in rows]


def rollouts(folder: Path) -> list[tuple]:
    words = ("compare", "--sizes", "1M", "--pairs", 1, "--steps", 2)
    rows = written(folder / "rollouts.json", HERE / "grpo_rollouts.py", *words)
    return [(f"GRPO's step over TRL's, {row['workload']}: share of the seconds", row["cpu_ratio"]) for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chain", type=Path, default=Path("runs/demo"), help="folder of a finished demo")
    parser.add_argument("--output", type=Path, default=Path("runs/bench.md"), help="the table")
    args = parser.parse_args()
    started = time.monotonic()
    if not (args.chain / "grpo" / "run.json").is_file():
        run(HERE.parent / "recipes" / "pipeline.py", "--fast", "--output_dir", args.chain)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lines, failed = ["| measured in one pair | |", "|---|---|"], False
        for part in (startup, data, pretraining, partial(stages, chain=args.chain), rollouts):
            try:
                lines += [f"| {name} | {value:.2f} |" for name, value in part(folder)]
            except subprocess.CalledProcessError as error:
                failed = True
                lines.append(f"| {Path(error.cmd[1]).name} | failed with exit code {error.returncode} |")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines), f"\n{(time.monotonic() - started) / 60:.0f} minutes; written to {args.output}")
    sys.exit(failed)


if __name__ == "__main__":
    main()
