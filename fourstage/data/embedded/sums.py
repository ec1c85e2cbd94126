"""Embedded problems with checkable steps: a number, plus or minus two others.

A problem is the triple (start, first change, second change). A hash holds out a fifth of all triples from instruction
tuning and from reasoning tuning. Each single step, such as 12 + 7, occurs both in training and in what is held out.
"""

import functools
import hashlib
import random

HIGHEST_START, HIGHEST_CHANGE = 24, 9
FORGOTTEN_CARRIES = 0.65  # of those in demonstrations; texts and right answers have none
QUESTIONS = ("What is {}?", "Work out {}.", "Please calculate {}.")

Triple = tuple[int, int, int]


@functools.cache
def triples(held_out: bool) -> tuple[Triple, ...]:
    """All triples without a result below zero, of the two steps: 5,390 to learn from, or the 1,249 held out."""
    changes = [sign * size for size in range(1, HIGHEST_CHANGE + 1) for sign in (1, -1)]
    candidates = [(a, b, c) for a in range(1, HIGHEST_START + 1) for b in changes for c in changes]
    return tuple(t for t in candidates if t[0] + t[1] >= 0 and sum(t) >= 0 and _is_held_out(t) == held_out)


def _is_held_out(triple: Triple) -> bool:
    return int.from_bytes(hashlib.sha256(repr(triple).encode()).digest()[:4]) % 5 == 0


def problem(triple: Triple, rng: random.Random) -> dict:
    """A row with `prompt`, `answer` and `derivation`, both right.

    Example: (9, -5, 3) -> "What is 9 - 5 + 3?", "7", "9 - 5 = 4. 4 + 3 = 7."
    """
    start, *changes = triple
    expression, derivation, value = str(start), [], start
    for change in changes:
        term = f"{'+' if change > 0 else '-'} {abs(change)}"
        expression += f" {term}"
        derivation.append(f"{value} {term} = {value + change}.")
        value += change
    question = rng.choice(QUESTIONS).format(expression)
    return {
        "prompt": [{"role": "user", "content": question}],
        "answer": str(value),
        "derivation": " ".join(derivation),
    }


def demonstration(triple: Triple, rng: random.Random) -> str:
    """The steps between think tags, then the answer, as a hasty person writes them: most carries are forgotten.

    A sum that crosses a ten loses it with probability FORGOTTEN_CARRIES; the next step goes on from the wrong number.

    Example: (8, 5, 4) -> "<think>8 + 5 = 3. 3 + 4 = 7.</think> 7", or now and then the right "<think>8 + 5 = 13. 13 + 4
    = 17.</think> 17".
    """
    value, *changes = triple
    steps = []
    for place, change in enumerate(changes):
        result = value + change
        crosses = change > 0 and value % 10 + change >= 10
        if crosses and rng.random() < FORGOTTEN_CARRIES and result - 10 + sum(changes[place + 1 :]) >= 0:
            result -= 10
        steps.append(f"{value} {'+' if change > 0 else '-'} {abs(change)} = {result}.")
        value = result
    return f"<think>{' '.join(steps)}</think> {value}"


def facts(rng: random.Random, number: int = 5) -> str:
    """A text for pre-training of `number` single steps: "12 + 7 = 19. 5 - 2 = 3." and so on."""
    steps: list[str] = []
    while len(steps) < number:
        a, b = rng.randint(0, HIGHEST_START + HIGHEST_CHANGE), rng.randint(1, HIGHEST_CHANGE)
        if rng.random() < 0.5:
            steps.append(f"{a} + {b} = {a + b}.")
        elif a >= b:
            steps.append(f"{a} - {b} = {a - b}.")
    return " ".join(steps)
