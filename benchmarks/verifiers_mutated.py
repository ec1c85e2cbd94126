r"""Does a verifier ever raise? Answers that people wrote, changed at random, against right answers changed at random.

    python benchmarks/verifiers_mutated.py [--count 200000] [--seed 0]

The answers are those of tests/verifiers/labelled_answers*.jsonl. Each verifier but `math` gets its share of the pairs,
each pair once alone and once in a batch. The program fails (status 1) where a verifier raised, where a reward was not a
number from -1 to 1, where it depended on the batch, or where a completion decided whether the row can be scored.
"""

import argparse
import json
import random
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from fourstage import verifiers

ROOT = Path(__file__).parents[1]
NAMES = ("number", "choice", "exact", "countdown", "steps", "think_format", "length")
FILES = ("labelled_answers.jsonl", "labelled_answers_second.jsonl")
PIECES = re.split(
    r"\s+",
    r"""0 7 12 1/2 0.5 1,000 1,0 1.2.3 1e5 1e999 e5 .5 5. -4 +4 n x i a A B I J k % $ # #### \boxed{ \boxed{7} } {
    ( ) [ ] = == != >= <= => < > ~ ^ ^2 _ _1 * ** / + - \frac{1}{2} \frac12 \sqrt{4} \pi \cdot \times \approx \le \ne
    \to \text{ \, \\ <think> </think> <answer> </answer> <|im_end|> <<3+4=7>> or and not to of out is so because which
    answer Answer: six hundred twenty point half dozen million percent dollars cents hours minutes feet in. ca.
    wait wrong Option correct""",
)
PIECES += [" ", "\n", "\t", ", ", ". ", " - ", "answer is ", "The final answer is ", "3 out of 5", "\u00bd", "\u0664"]
PIECES += ["\u2212", "\u2013", "\u221a", "\u2264", "\u00b2", "\uff17", "\u200b", "\x00", "\ud800", "\u7b54\u6848\u662f"]


def labelled() -> list[dict]:
    return [json.loads(line) for file in FILES for line in (ROOT / "tests/verifiers" / file).read_text().splitlines()]


def changed(rng: random.Random, text: str, others: list[str]) -> str:
    """The text after one to four changes: a piece put in, a stretch left out or doubled, two texts joined."""
    for _ in range(rng.randint(1, 4)):
        at = rng.randint(0, len(text))
        to = min(at + rng.randint(0, 6), len(text))
        text = rng.choice(
            [
                text[:at] + rng.choice(PIECES) + text[at:],
                text[:at] + rng.choice(PIECES) + text[to:],
                text[:at] + text[to:],
                text[:to] + text[at:],
                text[:at] + rng.choice(others)[:80],
                text.swapcase(),
            ]
        )
    return text[:600]


def rows(count: int, seed: int) -> Iterator[dict]:
    """`count` rows with every column that a verifier reads, the same for the same seed."""
    rng = random.Random(seed)
    written = labelled()
    completions, golds = ([str(row.get(key)) for row in written] for key in ("completion", "answer"))
    for _ in range(count):
        row = rng.choice(written)
        completion = changed(rng, row["completion"], completions)
        gold = str(row.get("answer"))
        gold = gold if rng.random() < 0.5 else changed(rng, gold, golds)
        numbers = row.get("nums", [2, "4", 6]) if rng.random() < 0.8 else [gold, rng.choice(PIECES), 7.5]
        target = row.get("target", 36) if rng.random() < 0.8 else gold
        yield {"completions": completion, "answer": gold, "derivation": gold, "prompts": gold} | {
            "nums": numbers,
            "target": target,
        }


def reward(name: str, batch: list[dict]) -> list[float | None]:
    columns = {key: [row[key] for row in batch] for key in batch[0]}
    return getattr(verifiers, name)(**columns)


def faults(name: str, batch: list[dict]) -> Iterator[str]:
    """What is wrong with a verifier's rewards of a batch."""
    alone = []
    for row in batch:
        try:
            alone += reward(name, [row])
        except Exception as error:
            alone.append(None)
            yield f"{name}: {type(error).__name__}: {error}: {row}"
    blank = reward(name, [row | {"completions": "nothing"} for row in batch])
    for row, one, all_, empty in zip(batch, alone, reward(name, batch), blank, strict=True):
        if one != all_ or (one is None) != (empty is None) or not (one is None or -1 <= one <= 1):
            yield f"{name}: alone {one}, in a batch {all_}, of another completion {empty}: {row}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200_000, help="pairs over all verifiers (default 200,000)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    failed = False
    for k, name in enumerate(NAMES):
        start, pairs = time.process_time(), list(rows(args.count // len(NAMES), args.seed + k))
        rewards: list[float | None] = []
        for i in range(0, len(pairs), 50):
            for fault in faults(name, pairs[i : i + 50]):
                failed = True
                print(ascii(fault)[:600])
            rewards += reward(name, pairs[i : i + 50]) if not failed else []
        share = sum(r == 1.0 for r in rewards) / max(len(rewards), 1)
        print(f"{name}: {len(pairs):,} pairs, 1.0 for {share:.3f}, {time.process_time() - start:.0f} s", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
