"""Embedded problems with checkable steps: a number, and two more added to it or taken from it.

A problem is the triple (start, first change, second change); a fifth of all triples are held out, by a hash, from
instruction tuning and from reasoning tuning. Each single step, such as 12 + 7, occurs on both sides.
"""

import functools
import hashlib
import random

HIGHEST_START, HIGHEST_CHANGE = 24, 9
QUESTIONS = ("What is {}?", "Work out {}.", "Please calculate {}.")

Triple = tuple[int, int, int]


@functools.cache
def triples(held_out: bool) -> tuple[Triple, ...]:
    """All triples of one side, none of whose results is below zero: 5,390 to learn from and 1,249 held out."""
    changes = [sign * size for size in range(1, HIGHEST_CHANGE + 1) for sign in (1, -1)]
    every = [(a, b, c) for a in range(1, HIGHEST_START + 1) for b in changes for c in changes]
    return tuple(t for t in every if t[0] + t[1] >= 0 and sum(t) >= 0 and _is_held_out(t) == held_out)


def _is_held_out(triple: Triple) -> bool:
    return int.from_bytes(hashlib.sha256(repr(triple).encode()).digest()[:4]) % 5 == 0


def problem(triple: Triple, chance: random.Random) -> dict:
    """A row with `prompt`, `answer` and `derivation`.

    Example: (9, -5, 3) -> "What is 9 - 5 + 3?", "7", "9 - 5 = 4. 4 + 3 = 7."
    """
    start, *changes = triple
    asked, derivation, value = str(start), [], start
    for change in changes:
        term = f"{'+' if change > 0 else '-'} {abs(change)}"
        asked += f" {term}"
        derivation.append(f"{value} {term} = {value + change}.")
        value += change
    question = chance.choice(QUESTIONS).format(asked)
    return {
        "prompt": [{"role": "user", "content": question}],
        "answer": str(value),
        "derivation": " ".join(derivation),
    }


def demonstration(row: dict) -> dict:
    """A problem as an instruction to learn from: the steps between think tags, then the answer."""
    answer = f"<think>{row['derivation']}</think> {row['answer']}"
    return {"prompt": row["prompt"], "completion": [{"role": "assistant", "content": answer}]}


def facts(chance: random.Random, number: int = 5) -> str:
    """Single steps in a row, for pre-training: "12 + 7 = 19. 5 - 2 = 3." and so on."""
    done = []
    while len(done) < number:
        a, b = chance.randint(0, HIGHEST_START + HIGHEST_CHANGE), chance.randint(1, HIGHEST_CHANGE)
        if chance.random() < 0.5:
            done.append(f"{a} + {b} = {a + b}.")
        elif a >= b:
            done.append(f"{a} - {b} = {a - b}.")
    return " ".join(done)
