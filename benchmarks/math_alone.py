r"""Does `math` give a pair the same reward alone, in a batch, in another order and on a busy machine?

    python benchmarks/math_alone.py DATA_FOLDER [--pairs 500] [--busy 4]

DATA_FOLDER has `math/train.jsonl.gz`. Half of the pairs are right answers written otherwise, half are other rows'
answers, and every 25th is slow: a sum, an integral or a power that SymPy works out for 0.05 to 2 seconds, or does not
finish. Each way is a process of its own, so nothing is remembered from one to the next. It fails (status 1) where two
differ.
"""

import argparse
import gzip
import json
import multiprocessing
import random
import subprocess
import sys
import time
from pathlib import Path

SLOW = [
    (r"\frac{n(n+1)}{2}", r"\sum_{k=1}^{n} k + %d - %d"),
    ("4501500", r"\sum_{k=1}^{3000} k + %d - %d"),
    (r"\sin(880\pi t)", r"\sin(880\pi t)+%d-%d"),
    ("7", r"(9^9)! + %d - %d"),
    (r"\frac{1}{3}", r"\int_0^1 x^2 dx + %d - %d"),
    ("x^2+2x+1", r"(x+1)^{2} + %d - %d"),
    ("2", r"\left(\sqrt{2}+\sqrt{3}+\sqrt{5}+\sqrt{7}\right)^{9} + %d - %d"),
]


def pairs(folder: Path, count: int) -> list[tuple[str, str]]:
    """(completion, right answer) of each pair, all different."""
    with gzip.open(folder / "math" / "train.jsonl.gz", "rt") as file:
        golds = [json.loads(line)["answer"] for line in file]
    rng = random.Random(0)
    rows = rng.sample(range(len(golds)), count)
    found = []
    for i, row in enumerate(rows):
        gold, other = golds[row], golds[rows[i - 1]]
        if i % 25 == 0:
            gold, answer = SLOW[i // 25 % len(SLOW)]
            answer = answer % (i + 1, i + 1)
        else:
            answer = gold.replace(r"\frac", r"\dfrac") + "+0" if i % 2 else other
        found.append((rf"so it is $\boxed{{{answer}}}$.", gold))
    return found


def rewards(folder: Path, count: int, way: str) -> list[float | None]:
    """The rewards in the order of `pairs`, asked for in one of the ways."""
    from fourstage.verifiers import math

    rows = pairs(folder, count)
    if way == "alone":
        return [math([completion], [gold])[0] for completion, gold in rows]
    order = list(range(count))
    if way == "shuffled":
        random.Random(1).shuffle(order)
    found = math([rows[i][0] for i in order], [rows[i][1] for i in order])
    return [reward for _, reward in sorted(zip(order, found, strict=True))]


def spin() -> None:
    while True:
        sum(range(1000))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pairs", type=int, default=500)
    parser.add_argument("--busy", type=int, default=4, help="processes that keep the machine busy (default 4)")
    parser.add_argument("--way", choices=["alone", "batch", "shuffled"], help="prints the rewards of one way as JSON")
    args = parser.parse_args()
    if args.way:
        print(json.dumps(rewards(args.folder, args.pairs, args.way)))
        return
    found = {}
    for way in ("alone", "batch", "shuffled", "busy"):
        others = [multiprocessing.Process(target=spin, daemon=True) for _ in range(args.busy if way == "busy" else 0)]
        for other in others:
            other.start()
        words = [args.folder, "--pairs", str(args.pairs), "--way", "batch" if way == "busy" else way]
        start = time.monotonic()
        done = subprocess.run([sys.executable, "-W", "ignore", __file__, *words], stdout=subprocess.PIPE, check=True)
        found[way] = json.loads(done.stdout)
        for other in others:
            other.kill()
        counts = {reward: found[way].count(reward) for reward in (1.0, 0.0, None)}
        print(f"{way}: {counts}, {time.monotonic() - start:.0f} s", flush=True)
    differing = [i for i, row in enumerate(zip(*found.values(), strict=True)) if len(set(row)) > 1]
    for i in differing:
        print(pairs(args.folder, args.pairs)[i], {way: found[way][i] for way in found})
    sys.exit(f"{len(differing)} pairs differ" if differing else None)


if __name__ == "__main__":
    main()
