"""What runs within the sandbox: a program that a model wrote, and what its tests give.

`sandbox.run` hands this file's text to an interpreter that sees nothing else of fourstage. `canonical` is
used on both sides, so that values are compared as texts and nothing that the program wrote is ever parsed outside.
"""

import json
import os
import resource
import sys
from collections.abc import Mapping, Sequence, Set

LONGEST = 100_000  # signs of a value


def canonical(value: object) -> str:
    """One text for all values of Python's plain types that are equal: [1.0, True] and [1, 1] are "[1,1]".

    Subclasses are what they derive from: a Counter is its dict, a named tuple a tuple.
    Raises:
        TypeError: for any other type.
    """
    if isinstance(value, bool | int):
        return str(int(value))
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else repr(float(value))
    if isinstance(value, str):
        return repr(str.__str__(value))
    if value is None or isinstance(value, bytes):
        return repr(value)
    if isinstance(value, list):
        return f"[{','.join(map(canonical, value))}]"
    if isinstance(value, tuple):
        return f"({','.join(map(canonical, value))})"
    if isinstance(value, Set):
        return f"<{','.join(sorted(map(canonical, value)))}>"
    if isinstance(value, Mapping):
        return f"{{{','.join(sorted(f'{canonical(key)}:{canonical(value[key])}' for key in value))}}}"
    raise TypeError(f"{type(value).__name__} is none of Python's plain types")


class _Nowhere:
    """For what a program prints."""

    encoding = "utf-8"

    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return False


def _values(code: str, setup: str, tests: Sequence[tuple[str, str]]) -> list[str | None]:
    """What each test gives: the canonical value of an expression, "" for a statement that ends; None for an error."""
    names: dict = {"__name__": "__main__", "__builtins__": __builtins__}
    exec(compile(setup, "setup", "exec"), names)
    exec(compile(code, "program", "exec"), names)
    return [_value(kind, source, names) for kind, source in tests]


def _value(kind: str, source: str, names: dict) -> str | None:
    try:
        if kind == "value":
            return canonical(eval(compile(source, "test", "eval"), names))[:LONGEST]
        exec(compile(source, "test", "exec"), names)
        return ""
    except BaseException:  # also SystemExit
        return None


def _main() -> None:
    asked = json.loads(sys.stdin.buffer.read())
    for name, amount in asked["limits"].items():
        resource.setrlimit(getattr(resource, name), (amount, amount))
    answering = os.dup(1)
    for number in (0, 1, 2):
        os.close(number)
    sys.stdin, sys.stdout, sys.stderr = None, _Nowhere(), _Nowhere()
    write, dumps, leave = os.write, json.dumps, os._exit  # a program may replace them
    try:
        values = _values(asked["code"], asked["setup"], asked["tests"])
    except BaseException:
        values = []
    content = dumps([asked["token"], values]).encode()
    while content:
        content = content[write(answering, content) :]
    leave(0)


if __name__ == "__main__":
    _main()
