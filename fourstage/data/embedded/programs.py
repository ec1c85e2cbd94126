"""Small Python functions with a body of one line. A fifth of all pairs of arguments is held out."""

import ast
import random
from dataclasses import dataclass

from fourstage.data.embedded.stories import is_held_out, words

FUNCTIONS = words("total score area price mix level result speed cost rank value share check combine power count")
ARGUMENTS = words("x y a b rate width height left right first last size weight time days")
OPERATIONS = {
    "adds {a} and {b}": "{a} + {b}",
    "subtracts {b} from {a}": "{a} - {b}",
    "multiplies {a} by {b}": "{a} * {b}",
    "divides {a} by {b}": "{a} / {b}",
    "returns the larger of {a} and {b}": "max({a}, {b})",
    "returns the smaller of {a} and {b}": "min({a}, {b})",
    "says whether {a} is equal to {b}": "{a} == {b}",
    "says whether {a} is larger than {b}": "{a} > {b}",
}


@dataclass(frozen=True)
class Program:
    """A Python function: its name, what it does in words (`task`), and its source (`code`)."""

    name: str
    task: str
    code: str


def program(rng: random.Random, held_out: bool) -> Program:
    """A random function; its pair of arguments is held out, or is not, as `held_out` says."""
    while True:
        a, b = rng.sample(ARGUMENTS, 2)
        if is_held_out(a, b) == held_out:
            break
    name = rng.choice(FUNCTIONS)
    task, result = rng.choice(list(OPERATIONS.items()))
    code = f"def {name}({a}, {b}):\n    return {result.format(a=a, b=b)}"
    return Program(name, task.format(a=a, b=b), code)


def same_code(answer: str, reference: str) -> bool:
    """Whether two programs have the same syntax tree; nothing is executed.

    Example: "def f(a):\\n  return (a+1)" is the same as "def f(a):\\n    return a + 1".
    """
    try:
        return ast.dump(ast.parse(answer)) == ast.dump(ast.parse(reference))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
