"""Small Python functions of one line. Held out by the pair of their arguments, a fifth of all pairs."""

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
    """`task` says in words what the function called `name` does; `code` is it."""

    name: str
    task: str
    code: str


def program(chance: random.Random, held_out: bool) -> Program:
    """A random function, its pair of arguments on the side asked for."""
    while True:
        a, b = chance.sample(ARGUMENTS, 2)
        if is_held_out(a, b) == held_out:
            break
    name, (task, result) = chance.choice(FUNCTIONS), chance.choice(list(OPERATIONS.items()))
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
