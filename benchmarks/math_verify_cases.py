r"""How many of math-verify's own tests does the verifier `math` decide as they say, and as math-verify's defaults do?

    pip download --no-binary :all: --no-deps math-verify==0.9.0 && tar xzf math_verify-0.9.0.tar.gz
    python benchmarks/math_verify_cases.py math_verify-0.9.0/tests [--show]

The rows are read from the test files, which are not executed: every literal row (gold, prediction, expected, ...) of
`pytest.mark.parametrize`. `--show` prints each row that `math` decides otherwise, with its gold and the end of its
prediction.
"""

import argparse
import ast
from pathlib import Path

from math_verify import parse, verify

from fourstage.verifiers import math


def cases(folder: Path) -> list[tuple[str, str, bool]]:
    """(gold, prediction, whether they are equal) of each row, file by file."""
    found = []
    for path in sorted(folder.glob("test_*.py")):
        for call in ast.walk(ast.parse(path.read_text())):
            if isinstance(call, ast.Call) and getattr(call.func, "attr", "") == "parametrize":
                names = [name.strip() for name in ast.literal_eval(call.args[0]).split(",")]
                if names[:2] == ["gold", "pred"] and isinstance(call.args[1], ast.List):
                    right = next(i for i, name in enumerate(names) if name in ("expected", "result"))
                    rows = [literal(row) for row in call.args[1].elts]
                    found += [(row[0], row[1], bool(row[right])) for row in rows if row]
    return found


def literal(row: ast.expr) -> tuple | None:
    """A row of literals; None for one that has to be computed."""
    try:
        return ast.literal_eval(row)
    except ValueError:
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--show", action="store_true")
    args = parser.parse_args()
    rows = cases(args.folder)
    rewards = math([prediction for _, prediction, _ in rows], [gold for gold, _, _ in rows])
    agree = [reward == float(right) for reward, (_, _, right) in zip(rewards, rows, strict=True)]
    theirs = sum(verify(parse(gold), parse(prediction)) == right for gold, prediction, right in rows)
    wrong = sum(reward == 1.0 and not right for reward, (_, _, right) in zip(rewards, rows, strict=True))
    print(f"{len(rows)} rows; math agrees on {sum(agree)} ({sum(agree) / len(rows):.3f}), accepts {wrong} wrong ones")
    print(f"math-verify's defaults agree on {theirs}")
    for reward, agrees, (gold, prediction, right) in zip(rewards, agree, rows, strict=True):
        if args.show and not agrees:
            print(f"{reward} for {right}: {gold[-150:]!r} | {prediction[-200:]!r}")


if __name__ == "__main__":
    main()
