"""Procedural tasks: every answer against a computation that reasoning-gym had no part in."""

import ast
import itertools
import json
import math
import operator
import os
import random
import re
import subprocess
import sys
from collections import Counter
from decimal import Decimal
from fractions import Fraction

import pytest
from helpers import ROOT

from fourstage import verifiers
from fourstage.data.reasoning_gym import TASKS, task_rows, task_split

pytest.importorskip("reasoning_gym", reason='pip install "fourstage[tasks]"')

OPERATIONS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def value(text, **names):
    """An arithmetic expression as a fraction, by Python's grammar; `names` are the values of variables."""

    def of(node):
        if isinstance(node, ast.BinOp):
            return OPERATIONS[type(node.op)](of(node.left), of(node.right))
        if isinstance(node, ast.UnaryOp):
            assert isinstance(node.op, ast.USub)
            return -of(node.operand)
        return names[node.id] if isinstance(node, ast.Name) else Fraction(str(node.value))

    return of(ast.parse(text.strip(), mode="eval").body)


def integers(text):
    return [int(number) for number in re.findall(r"\d+", text)]


def after(question, words):
    assert words in question
    return question.partition(words)[2]


def chain(question, number):
    """Left to right, as + and - are."""
    first, *rest = after(question, "problem: ").removesuffix("=").split()
    total = number(first)
    for sign, term in zip(rest[::2], rest[1::2], strict=True):
        total += {"+": 1, "-": -1}[sign] * number(term)
    return total


def base(name):
    return {"binary": 2, "hexadecimal": 16}.get(name) or int(name.removeprefix("base-"))


def converted(question, answer):
    source, number, target = re.search(r"convert the (\S+) number (\S+) to (\S+)", question).groups()
    return int(number, base(source)) == int(answer, base(target)) and answer == answer.lstrip("0")


def rolled(question, answer):
    sides = [int(size) for size in re.findall(r"1d(\d+)[,.]", question)]
    least = int(re.search(r"rolling (\d+) or higher", question)[1])
    totals = [sum(roll) for roll in itertools.product(*(range(1, size + 1) for size in sides))]
    return Fraction(answer) == Fraction(sum(total >= least for total in totals), len(totals))


def solved(question, answer):
    """Equal at the answer, and, linear as it is, nowhere else: the difference of both sides is not constant."""
    left, right = re.search(r"[-\d*+a-z ()]+=[-\d ]+$", question)[0].split("=")
    variable = re.search(r"(?:for|of) ([a-z])\b", question)[1]
    values = [value(left.rpartition(":")[2], **{variable: int(answer) + i}) - value(right) for i in range(3)]
    return values[0] == 0 and values[1] != 0 and values[2] == 2 * values[1]


def primes(question):
    low, high = integers(question)
    return sum(n > 1 and all(n % d for d in range(2, math.isqrt(n) + 1)) for n in range(low, high + 1))


def letters(question):
    letter, text = re.search(r'letter "(.)" appear in the text: "(.*)"\?$', question).groups()
    return text.lower().count(letter)


CHECKS = {
    "base_conversion": lambda question, answer, row: converted(question, answer),
    "basic_arithmetic": lambda q, a, row: value(after(q, "Calculate ").removesuffix(".")) == int(a),
    "chain_sum": lambda question, answer, row: chain(question, int) == int(answer),
    "count_bits": lambda question, answer, row: bin(integers(question)[-1]).count("1") == int(answer),
    "count_primes": lambda question, answer, row: primes(question) == int(answer),
    "countdown": lambda question, answer, row: (
        value(answer) == row["target"]
        and Counter(integers(answer)) == Counter(row["nums"])
        and Counter([*row["nums"], row["target"]]) <= Counter(integers(question))
    ),
    "decimal_chain_sum": lambda question, answer, row: chain(question, Decimal) == Decimal(answer),
    "dice": lambda question, answer, row: rolled(question, answer),
    "gcd": lambda question, answer, row: math.gcd(*integers(question)) == int(answer),
    "lcm": lambda question, answer, row: math.lcm(*integers(question)) == int(answer),
    "letter_counting": lambda question, answer, row: letters(question) == int(answer),
    "products": lambda question, answer, row: math.prod(integers(question)) == int(answer),
    "simple_equations": lambda question, answer, row: solved(question, answer),
    "spell_backward": lambda question, answer, row: question.endswith(" " + answer[::-1]),
    "word_sequence_reversal": lambda q, a, row: after(q, "of words: ").split(", ") == a.split(", ")[::-1],
}
SMALL = {
    "base_conversion": {"max_value": 20},
    "dice": {"num_dice": 3},
    "countdown": {"min_numbers": 3, "max_numbers": 4},
    "count_primes": {"max_n": 2000},
}


def verdicts(name, completions, rows):
    columns = ("nums", "target") if TASKS[name] == "countdown" else ("answer",)
    return getattr(verifiers, TASKS[name])(completions, **{column: [row[column] for row in rows] for column in columns})


def test_every_task_is_checked():
    assert CHECKS.keys() == TASKS.keys()


@pytest.mark.parametrize("name", TASKS)
def test_answers_are_right_and_their_verifier_says_so(name):
    rows = task_rows(name, 100, 5, **SMALL.get(name, {}))
    wrong = [row for row in rows if not CHECKS[name](row["question"], row["answer"], row)]
    assert not wrong, wrong[:3]
    assert verdicts(name, [row["answer"] for row in rows], rows) == [1.0] * 100


@pytest.mark.parametrize("name", TASKS)
def test_other_answers_are_wrong_to_the_verifier(name):
    rows = task_rows(name, 30, 6, **SMALL.get(name, {}))
    pairs = [(one["answer"], two) for one in rows for two in rows if one["answer"] != two["answer"]]
    pairs = [(answer, row) for answer, row in pairs if not same(name, answer, row)]
    assert len(pairs) > 300
    assert set(verdicts(name, [answer for answer, _ in pairs], [row for _, row in pairs])) == {0.0}


def same(name, answer, row):
    """Whether another row's answer is right after all: 7.10 is 7.1, and two targets may be equal."""
    return TASKS[name] == "number" and Fraction(answer) == Fraction(row["answer"])


def test_rows_depend_on_the_seed_and_nothing_else():
    random.seed(1)
    before = random.getstate()
    first = task_rows("chain_sum", 50, 3)
    assert random.getstate() == before
    assert task_rows("chain_sum", 50, 3) == first
    assert task_rows("chain_sum", 20, 3) == first[:20]


def test_neighbouring_seeds_share_few_rows():
    """reasoning-gym's own seeds 3 and 4 share 199 of 200."""
    one, two = ({row["question"] for row in task_rows("gcd", 200, seed)} for seed in (3, 4))
    assert len(one & two) < 5


def test_settings_reach_the_task():
    rows = task_rows("chain_sum", 50, 0, min_terms=3, max_terms=3, max_digits=1)
    assert {len(integers(row["question"])) for row in rows} == {3}
    assert max(max(integers(row["question"])) for row in rows) == 9


def test_levels_are_equal_parts_in_order():
    levels = [{"min_terms": n, "max_terms": n} for n in (2, 3, 5)]
    rows = task_rows("chain_sum", 8, 0, levels=levels, max_digits=1)
    assert [len(integers(row["question"])) for row in rows] == [2, 2, 2, 3, 3, 3, 5, 5]


def test_levels_of_the_tasks_own_curriculum():
    """That of chain_sum: level n has n + 2 terms of n + 1 digits. A setting given holds at every level."""
    rows = task_rows("chain_sum", 40, 0, levels=4)
    numbers = [integers(row["question"]) for row in rows]
    assert [len(terms) for terms in numbers] == [n for n in (2, 3, 4, 5) for _ in range(10)]
    assert [len(str(max(terms))) for terms in numbers] == [n for n in (1, 2, 3, 4) for _ in range(10)]
    rows = task_rows("chain_sum", 40, 0, levels=4, min_digits=2, max_digits=2)
    assert {len(str(n)) for row in rows for n in integers(row["question"])} == {2}


@pytest.mark.parametrize("levels", [None, 2, [{"max_value": 30}, {"min_value": 20, "max_value": 40}]])
def test_no_training_row_asks_a_held_out_question(levels):
    train, test = task_split("gcd", 400, 150, 0, {"min_value": 1, "max_value": 40, "levels": levels})
    asked = [row["question"] for row in test]
    assert (len(train), len(asked), len(set(asked))) == (400, 150, 150)
    assert not set(asked) & {row["question"] for row in train}
    assert task_split("gcd", 400, 150, 0, {"min_value": 1, "max_value": 40, "levels": levels}) == (train, test)


def test_a_task_out_of_questions():
    with pytest.raises(ValueError, match="too few questions: only 9 of 10 different rows"):
        task_split("gcd", 5, 10, 0, {"max_value": 3})
    with pytest.raises(ValueError, match="too few questions: only 0 of 5 rows"):
        task_split("gcd", 5, 9, 0, {"max_value": 3})


def test_a_countdown_that_cannot_be_made():
    with pytest.raises(ValueError, match="task countdown do not work; change them: Failed to generate"):
        task_rows("countdown", 1, 0, min_numbers=2, max_numbers=2, max_value=2, min_target=500)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("chain_sums", {}, "no task 'chain_sums' of reasoning-gym here; choose one of base_conversion, basic_ar"),
        ("number_sequence", {}, "no task 'number_sequence'"),
        ("gcd", {"max_valu": 3}, "gcd has no setting max_valu; it has min_numbers, max_numbers, min_value, max_value"),
        ("gcd", {"seed": 3}, "gcd has no setting seed"),
        ("basic_arithmetic", {"operators": ["/"]}, "basic_arithmetic has no setting operators; it has min_terms"),
        ("gcd", {"min_numbers": 5}, "settings {'min_numbers': 5} of task gcd do not work; change them: max_numbers"),
        ("gcd", {"max_value": "9"}, "settings {'max_value': '9'} of task gcd do not work"),
        ("gcd", {"levels": []}, r"levels=\[\] of task gcd: expected a number of levels, or a list"),
        ("gcd", {"levels": True}, "levels=True of task gcd"),
        ("gcd", {"levels": 0}, "levels=0 of task gcd"),
        ("gcd", {"levels": 9}, "levels=9: the curriculum of gcd has 4"),
    ],
)
def test_bad_settings(name, settings, message):
    with pytest.raises(ValueError, match=message):
        task_split(name, 3, 3, 0, settings)


def test_missing_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(ValueError, match=re.escape('pip install "fourstage[tasks]"')):
        task_rows("gcd", 1, 0)


WATCH = """
import json, os, sys
seen = []
def hook(event, args):
    writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
    if writes or event.split(".")[0] == "socket" or event in ("os.system", "os.exec", "os.remove", "os.rename"):
        seen.append([event, str(args[0])])
sys.addaudithook(hook)
from fourstage.data.reasoning_gym import TASKS, task_rows
assert "reasoning_gym" not in sys.modules
for name in TASKS:
    task_rows(name, 1, 0)
print(json.dumps(seen))
"""


def test_no_sockets_and_no_files_but_the_font_cache_of_matplotlib(tmp_path):
    """matplotlib comes with reasoning-gym; where it has no list of fonts yet, it writes one."""
    environment = {**os.environ, "MPLCONFIGDIR": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", WATCH]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    other = [(event, what) for event, what in json.loads(done.stdout) if str(tmp_path) not in what]
    assert not [event for event, what in other if what != os.devnull]
