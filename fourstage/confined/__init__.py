"""A verifiable reward for programs: what a model wrote runs against its row's tests, in a sandbox or not at all."""

import ast
import re
from collections.abc import Sequence

from fourstage.confined import sandbox
from fourstage.confined.inside import canonical
from fourstage.verifiers.text import Completions, after_thinking, text_of

__all__ = ["python_tests", "check_confined"]

_FENCED = re.compile(r"^[ \t]*```[ \t]*(?:python3?|py)?[ \t]*\n(.*?)(?:^[ \t]*```|\Z)", re.S | re.M | re.I)
_LONGEST = 100_000  # signs of a program


def python_tests(
    completions: Completions, tests: Sequence[object], setup: Sequence[object] | None = None, **kwargs: object
) -> list[float | None]:
    r"""1.0 where the completion's program passes all of its row's `tests`, each a statement such as an assert.

    The program is the last fenced block of Python after the last `</think>`, or all of that text if there is no block.
    It runs after the row's `setup`, which may be missing, in a sandbox (`sandbox.run`) with 2 seconds of processor
    time. Of a test `assert EXPRESSION == LITERAL` the program's side never sees the literal: the value leaves the
    sandbox as text and is compared outside, so that no object equal to everything and no early exit passes. Other
    tests run beside the program, which could tamper with them. None where `tests` holds no test that can be read.

    Example: tests ["assert double(2) == 4"]: "```python\ndef double(x):\n    return 2 * x\n```" -> 1.0;
    "def double(x): return 5" -> 0.0; "exit(0)" -> 0.0.
    Raises:
        ValueError: where programs cannot be confined.
    """
    check_confined()
    setups = setup or [None] * len(completions)
    golds = [_tests_of(row) for row in tests]
    rows = list(zip(completions, golds, setups, strict=True))
    programs = {(program_of(text_of(completion)), gold, _setup_of(own)): None for completion, gold, own in rows if gold}
    asked = [(code, [(kind, source) for kind, source, _ in gold], own) for code, gold, own in programs]
    found = dict(zip(programs, sandbox.run_all(asked), strict=True))
    return [
        float(found[program_of(text_of(completion)), gold, _setup_of(own)] == [right for _, _, right in gold])
        if gold
        else None
        for completion, gold, own in rows
    ]


def check_confined() -> None:
    """Raises ValueError where this machine cannot confine a program (`sandbox.why_not`)."""
    reason = sandbox.why_not()
    if reason:
        raise ValueError(
            f"reward function python_tests runs programs that a model wrote, in a sandbox only: {reason}; "
            "install bubblewrap on a system that allows user namespaces, or choose other --reward_funcs"
        )


def program_of(text: str) -> str:
    """The program of a completion: its last fenced block of Python, or else all that stands after its thoughts."""
    text = after_thinking(text)
    blocks = _FENCED.findall(text)
    return (blocks[-1] if blocks else text)[:_LONGEST]


def _tests_of(tests: object) -> tuple[tuple[str, str, str], ...] | None:
    """(kind, what is run within, what that must give) for each test; None where there is none, or one is no Python."""
    sources = [tests] if isinstance(tests, str) else tests
    if not isinstance(sources, Sequence) or not all(isinstance(source, str) for source in sources):
        return None
    try:
        return tuple(_split(source) for source in sources if source.strip()) or None
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _split(source: str) -> tuple[str, str, str]:
    """`assert EXPRESSION == LITERAL` as ("value", EXPRESSION, its canonical value); else a statement that must end."""
    body = ast.parse(source.strip()).body
    if len(body) == 1 and isinstance(body[0], ast.Assert) and isinstance(body[0].test, ast.Compare):
        test = body[0].test
        if len(test.ops) == 1 and isinstance(test.ops[0], ast.Eq):
            try:
                return "value", ast.unparse(test.left), canonical(ast.literal_eval(test.comparators[0]))
            except (ValueError, TypeError):  # no literal
                pass
    return "statement", source.strip(), ""


def _setup_of(setup: object) -> str:
    """A row's setup: a text, or lines as in MBPP's `test_imports`."""
    if isinstance(setup, Sequence) and not isinstance(setup, str):
        return "\n".join(str(line) for line in setup)
    return setup if isinstance(setup, str) else ""
