"""Do the verifiers agree with the world? Every right answer of real data sets, against itself and against others.

    python benchmarks/verifier_agreement.py DATA_FOLDER --pairs 4

DATA_FOLDER holds gsm8k, svamp, mawps, asdiv, math, aqua and countdown_made, each a folder with .jsonl.gz files.
`right`: each answer as a completion is right to its own verifier. `wrong`: the answer of another row, which an exact
check that shares no code with the verifier calls different, is wrong. Half of the other rows are drawn at random, the
rest are those whose answers are next when sorted, by first characters and by last. `same`: pairs that it calls the same
though they are written otherwise; `same right`: those of them that the verifier accepts. `worked`: the data's own
worked solution as a completion, where it has one.

The check: Fraction for numbers; for countdown Fraction over Python's grammar; for math SymPy, in a process that is
killed when an answer takes too long. It leaves a pair undecided if it cannot read one, or if the two are the same but
for their brackets, a number base left out, or a percent sign.
"""

import argparse
import ast
import gzip
import json
import math
import multiprocessing
import operator
import random
import re
import sys
from collections import Counter
from fractions import Fraction
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from fourstage import verifiers
from fourstage.data.problems import problem_row

# set: verifier, column of the worked solution
SETS = {
    "gsm8k": ("number", "answer"),
    "svamp": ("number", None),
    "mawps": ("number", None),
    "asdiv": ("number", "answer"),
    "math": ("math", "solution"),
    "aqua": ("choice", "rationale"),
    "countdown_made": ("countdown", None),
}
SECONDS = 10.0  # for SymPy to read one answer of MATH
OPERATIONS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


# Rows


def problems(folder: Path, name: str) -> tuple[list[dict], int]:
    """Problems with `gold`, text of a right answer, and `worked`; how many rows have no one answer."""
    column = SETS[name][1]
    found, left_out = [], 0
    for file in sorted((folder / name).glob("*.jsonl.gz")):
        for line in gzip.decompress(file.read_bytes()).splitlines():
            row = json.loads(line)
            problem = problem_row(row)
            if not isinstance(problem, dict):
                left_out += 1
                continue
            gold = row["solution"] if SETS[name][0] == "countdown" else problem["answer"]
            found.append({**problem, "gold": gold, "worked": row[column] if column else None})
    return found, left_out


def judge(name: str, completions: list[str], rows: list[dict]) -> list[float | None]:
    function = getattr(verifiers, SETS[name][0])
    columns = ("nums", "target") if function is verifiers.countdown else ("answer",)
    rewards: list[float | None] = []
    for i in range(0, len(rows), 64):  # as many as a training step has, which `math` gives a budget
        part = rows[i : i + 64]
        rewards += function(completions[i : i + 64], **{column: [row[column] for row in part] for column in columns})
    return rewards


def pairs_of(rows: list[dict], count: int) -> list[tuple[int, int]]:
    """(row whose answer is given, row that it is given to): at random, and neighbours in two orders of the texts."""
    chance, size = random.Random(0), len(rows)
    found = {(i, chance.randrange(size)) for i in range(size) for _ in range(count - count // 2)}
    for k in range(count // 2):
        key = (lambda i: rows[i]["gold"]) if k % 2 == 0 else (lambda i: rows[i]["gold"][::-1])
        order = sorted(range(size), key=key)
        texts = [rows[i]["gold"] for i in order]
        later = [next((n for n in range(at + 1, size) if texts[n] != text), None) for at, text in enumerate(texts)]
        found |= {(order[at], order[(n + k // 2) % size]) for at, n in enumerate(later) if n is not None}
    return sorted((i, j) for i, j in found if i != j and rows[i]["gold"] != rows[j]["gold"])


# The exact checks: True for different, False for the same, None for undecided


def different_numbers(one: dict, other: dict) -> bool | None:
    try:
        return Fraction(one["gold"].replace(",", "")) != Fraction(other["gold"].replace(",", ""))
    except (ValueError, ZeroDivisionError):
        return None


def different_letters(one: dict, other: dict) -> bool:
    return one["gold"] != other["gold"]


def different_countdowns(one: dict, other: dict) -> bool:
    numbers = [int(n) for n in re.findall(r"\d+", one["gold"])]
    return value(one["gold"]) != other["target"] or Counter(numbers) != Counter(other["nums"])


def value(text: str) -> Fraction:
    """Of a solution of the data, + - * / and parentheses."""

    def of(node: ast.AST) -> Fraction:
        if isinstance(node, ast.BinOp):
            return OPERATIONS[type(node.op)](of(node.left), of(node.right))
        return Fraction(node.value)

    return of(ast.parse(text, mode="eval").body)


def different_mathematics(one: dict, other: dict) -> bool | None:
    return differ(one["read"], other["read"])


# MATH's answers, read into (kind, brackets, percent, base, the same thing as text, numbers)


def read(answer: str) -> dict | None:
    """What an answer is, and its parts as plain arithmetic for SymPy; None where that fails."""
    text = re.sub(r"\\left|\\right|(?<!\\)\\[!,;: ]|\\\$|\$|\{,\}(?=\d{3})", "", answer).strip().rstrip(".")
    bare = re.sub(r"\\(?:text|mbox)\s*\{[^{}]*\}(?:\^\{?\d\}?)?", "", text)
    if bare != text and not re.search(r"\d|\\pi|\\sqrt", bare):
        said = re.sub(r"\\(?:text|mbox)|[^A-Za-z0-9]", "", text)
        return {"kind": "words", "as": said.lower(), "parts": []}
    percent, text = "%" in bare, bare.replace("\\%", "").strip()
    text = re.sub(r"\^\{?\\circ\}?", "", text).strip()
    based = re.fullmatch(r"(\w+)_\{?(\d+)\}?", text)
    if based:
        return {"kind": "one", "as": based[1], "parts": [str(int(based[1], int(based[2])))], "percent": percent}
    found = shape(text)
    parts = [arithmetic(part) for part in found.pop("parts")]
    return (
        None
        if None in parts or not parts
        else found | {"as": re.sub(r"\s", "", text), "parts": parts, "percent": percent}
    )


def shape(text: str) -> dict:
    """Which kind of thing a text is, and the texts of its parts."""
    matrix = re.fullmatch(r"\\begin\{[pbv]matrix\}(.*)\\end\{[pbv]matrix\}", text, re.S)
    if matrix:
        lines = [line.split("&") for line in matrix[1].split("\\\\") if line.strip()]
        return {"kind": f"matrix {len(lines)}", "parts": [part for line in lines for part in line]}
    if "\\cup" in text:
        parts = [part.strip(" ()[]") for piece in text.split("\\cup") for part in piece.split(",")]
        return {"kind": "union " + "".join(re.findall(r"[][()]", text)), "parts": parts}
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))(?!.*[])])", "", text)
    inside = re.fullmatch(r"([(\[]|\\\{)(.*,.*)([)\]]|\\\})", text)
    if inside:
        return {"kind": "brackets " + inside[1] + inside[3], "parts": inside[2].split(",")}
    if "," in text:
        return {"kind": "list", "parts": text.split(",")}
    left, equals, right = text.partition("=")
    if equals and not re.fullmatch(r"\s*(?:[A-Za-z]|[a-z]\([a-z]\))\s*", left):
        return {"kind": "equation", "parts": [f"{left}-({right})"]}
    return {"kind": "one", "parts": [right if equals else text]}


def arithmetic(text: str) -> str | None:
    """LaTeX as plain arithmetic, with each product written; None for what has something else in it."""
    text = re.sub(r"\\[dtc]?frac", r"\\frac", text).replace("\\infty", "oo")
    text = re.sub(r"\\sqrt\s*(\d)", r"\\sqrt{\1}", re.sub(r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}", text))
    text = re.sub(r"\\frac\s*(\d)\s*\{", r"\\frac{\1}{", text)
    text = re.sub(r"\\frac\s*(\{[^{}]*\})\s*(\d)", r"\\frac\1{\2}", text)
    while True:  # from the innermost braces outwards
        done = re.sub(r"\\frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}", r"((\1)/(\2))", text)
        done = re.sub(r"\\sqrt\s*\[(\d+)\]\s*\{([^{}]*)\}", r"((\2)^(1/\1))", done)
        done = re.sub(r"\\sqrt\s*\{([^{}]*)\}", r"sqrt(\1)", done)
        done = re.sub(r"\^\s*\{([^{}]*)\}", r"^(\1)", done)
        if done == text:
            break
        text = done
    text = re.sub(r"\\(pi|sin|cos|tan|sec)\b", r" \1 ", re.sub(r"\\cdot|\\times", "*", text))
    if re.search(r"\d\s+\d|[A-Za-z]{3}(?<!sin)(?<!cos)(?<!tan)(?<!sec)(?<!qrt)(?<!sqr)", text.replace("pi", "#")):
        return None
    tokens = re.findall(r"\d+\.?\d*|\.\d+|sqrt|sin|cos|tan|sec|pi|oo|[A-Za-z]|[-+*/^()]", text)
    if re.sub(r"\s", "", "".join(tokens)) != re.sub(r"\s", "", text):
        return None
    written, functions = "", ("sqrt", "sin", "cos", "tan", "sec")
    for before, token in zip(["(", *tokens], tokens, strict=False):
        product = before not in (*"-+*/^(", *functions) and token not in tuple("-+*/^)")
        if before in functions and token != "(":
            return None
        written += "*" * product + token.replace("^", "**")
    return written


def points(parts: list[str]) -> list[list[complex]]:
    """Each part's value at three points. Runs in the process that can be killed; the parts are of the data set."""
    import sympy

    names = {letter: sympy.Symbol(letter) for letter in "abcdfghjklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"}
    names |= {"e": sympy.E, "i": sympy.I}
    found = []
    for part in parts:
        expression = sympy.sympify(part, locals=names)
        at = [{names[x]: sympy.Rational(ord(x) * k + 7, 53 + k) for x in names if x not in "ei"} for k in (3, 5, 11)]
        found.append([complex(expression.subs(point).evalf(30)) for point in at])
    return found


def serve(pipe) -> None:
    while True:
        try:
            parts = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(points(parts))
        except Exception:  # of SymPy, of any kind
            pipe.send(None)


def read_all(rows: list[dict]) -> None:
    """Adds `read` to each row; a process that takes too long over an answer is killed, and the answer unread."""
    process = None
    for row in rows:
        row["read"] = read(row["gold"])
        if row["read"] is None or not row["read"]["parts"]:
            continue
        if process is None:
            here, there = multiprocessing.Pipe()
            process = multiprocessing.get_context("spawn").Process(target=serve, args=(there,), daemon=True)
            process.start()
        here.send(row["read"]["parts"])
        values = here.recv() if here.poll(SECONDS + 20 * (row is rows[0])) else None
        if values is None:
            process.kill()
            process = None
        row["read"] = None if values is None else row["read"] | {"values": values}


def differ(one: dict | None, other: dict | None) -> bool | None:
    """Whether two answers that were read are different; None if it cannot be told."""
    if one is None or other is None:
        return None
    if "words" in (one["kind"], other["kind"]):
        if one["as"].lower() != other["as"].lower():
            return True
        return False if one["kind"] == other["kind"] else None
    if len(one["values"]) != len(other["values"]):
        return True
    if one["as"] == other["as"]:
        return False if one["values"] == other["values"] else None
    kinds = {one["kind"], other["kind"]}
    if "equation" in kinds:
        return None if len(kinds) > 1 else apart(*(scaled(x["values"][0]) for x in (one, other)))
    ordered = len(kinds) == 1 and one["kind"].split()[0] in ("matrix", "union", "brackets", "one")
    ordered = ordered and "{" not in one["kind"]
    values = [x["values"] if ordered else sorted(x["values"], key=str) for x in (one, other)]
    found = [apart(a, b) for a, b in zip(*values, strict=True)]
    if any(found) and one["percent"] != other["percent"]:
        ratio = abs(values[0][0][0] / values[1][0][0]) if values[1][0][0] else 0.0
        return None if min(abs(ratio - 100), abs(ratio - 0.01)) < 1e-9 else True
    return True if any(found) else None if None in found or len(kinds) > 1 else False


def scaled(values: list[complex]) -> list[complex]:
    """The sides of an equation may both be multiplied."""
    return [x / values[0] for x in values] if values[0] else values


def apart(one: list[complex], other: list[complex]) -> bool | None:
    gaps = [0.0 if a == b else abs(a - b) / max(abs(a), abs(b), 1e-30) for a, b in zip(one, other, strict=True)]
    gaps = [1.0 if math.isnan(gap) else gap for gap in gaps]
    return True if max(gaps) > 1e-9 else False if max(gaps) < 1e-12 else None


# The measurement


CHECKS = {
    "number": different_numbers,
    "math": different_mathematics,
    "choice": different_letters,
    "countdown": different_countdowns,
}


def measure(folder: Path, name: str, count: int) -> tuple[dict, list[str], list[str]]:
    """(counts of a set, every failure, every undecided pair)."""
    rows, left_out = problems(folder, name)
    verifier = SETS[name][0]
    if verifier == "math":
        read_all(rows)
    own = judge(name, [row["gold"] for row in rows], rows)
    failures = [
        f"{name}: {row['gold']!r} against itself: {got}" for row, got in zip(rows, own, strict=True) if got != 1
    ]
    pairs = [(rows[i], rows[j]) for i, j in pairs_of(rows, count)]
    verdicts = [CHECKS[verifier](one, other) for one, other in pairs]
    wanted = [pair for pair, verdict in zip(pairs, verdicts, strict=True) if verdict]
    got = judge(name, [one["gold"] for one, _ in wanted], [other for _, other in wanted])
    shown = ("nums", "target") if verifier == "countdown" else ("answer",)
    failures += [
        f"{name}: {one['gold']!r} against {[other[key] for key in shown]}: {reward}"
        for (one, other), reward in zip(wanted, got, strict=True)
        if reward != 0.0
    ]
    undecided = [f"{a['gold']} | {b['gold']}" for (a, b), v in zip(pairs, verdicts, strict=True) if v is None]
    same = [pair for pair, verdict in zip(pairs, verdicts, strict=True) if verdict is False]
    accepted = judge(name, [one["gold"] for one, _ in same], [other for _, other in same])
    worked = [row for row in rows if row["worked"] is not None]
    solved = judge(name, [row["worked"] for row in worked], worked)
    counts = {"rows": len(rows), "left out": left_out, "right": own.count(1.0), "pairs": len(wanted)}
    counts |= {
        "wrong": got.count(0.0),
        "undecided": len(undecided),
        "same": len(same),
        "same right": accepted.count(1.0),
    }
    return counts | {"worked": len(worked), "worked right": solved.count(1.0)}, failures, undecided


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--pairs", type=int, default=4, help="other answers for each row (default 4)")
    args = parser.parse_args()
    totals: Counter = Counter()
    for name in args.sets:
        counts, failures, undecided = measure(args.folder, name, args.pairs)
        totals.update(counts)
        print(name, SETS[name][0], *(f"{key}={number:,}" for key, number in counts.items()), flush=True)
        print(*(f"  FAILED {line}" for line in failures), sep="\n", end="\n" if failures else "")
        print(
            *(f"  undecided {line}" for line in list(dict.fromkeys(undecided))[:20]),
            sep="\n",
            end="\n" if undecided else "",
            flush=True,
        )
    print("all", *(f"{key}={number:,}" for key, number in totals.items()))
    print(f"right {totals['right'] / totals['rows']:.5f}, wrong {totals['wrong'] / totals['pairs']:.6f}")


if __name__ == "__main__":
    main()
