"""How long `--help` of each recipe takes beyond importing TRL's config class, as JSON.

    python benchmarks/help_time.py [--rounds 5] [--output FILE]

Each round starts every program once, in turn, so that a busy machine slows all of them alike. The numbers are seconds
of processor time (which waiting does not change), the least of all rounds; `beyond` is to stay at most half a second.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIMIT = 0.5


def cpu_seconds(command: list[str]) -> float:
    """Processor time of a program that has to succeed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(rounds: int) -> dict:
    recipes = [path for path in sorted((ROOT / "recipes").glob("*.py")) if "parse(__file__" in path.read_text()]
    commands = {"import": [sys.executable, "-c", "from trl import ModelConfig, SFTConfig, TrlParser"]}
    commands |= {path.stem: [sys.executable, str(path), "--help"] for path in recipes}
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            times[name].append(cpu_seconds(command))
    least = {name: min(values) for name, values in times.items()}
    base = least.pop("import")
    rows = {name: {"help": time, "beyond": time - base, "ratio": time / base} for name, time in least.items()}
    return {
        "rounds": rounds,
        "limit": LIMIT,
        "import": base,
        "recipes": rows,
        "ok": max(least.values()) - base <= LIMIT,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="starts of every program (default: 5)")
    parser.add_argument("--output", type=Path, help="also write the JSON to this file")
    args = parser.parse_args()
    text = json.dumps(measure(args.rounds), indent=1)
    print(text)
    if args.output:
        args.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
