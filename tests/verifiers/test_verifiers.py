"""Verifiers by hand, against Python's fractions, SymPy and trl.rewards, and on text that was not meant well."""

import json
import random
import subprocess
import sys
from fractions import Fraction

import pytest
import sympy
from helpers import ROOT, environment
from hypothesis import given
from hypothesis import strategies as st
from trl.rewards import get_soft_overlong_punishment, think_format_reward

from fourstage import verifiers
from fourstage.rl.rewards import load_reward_func
from fourstage.verifiers import __all__, choice, countdown, exact, length, number, steps, think_format
from fourstage.verifiers.arithmetic import equations, expression
from fourstage.verifiers.numerals import final_number


def turns(text):
    return [{"role": "assistant", "content": text}]


def test_found_by_name():
    assert load_reward_func("exact") is exact
    assert {name: load_reward_func(name).__name__ for name in __all__} == {name: name for name in __all__}
    with pytest.raises(ValueError, match="'exakt' is unknown.*exact, number, math"):
        load_reward_func("exakt")


def test_stand_alone():
    """The package without third parties: what it imports is Python's own, or its own."""
    code = (
        "import sys; from fourstage.verifiers import number; print(number(['It is 7.'], answer=['7'])); "
        "known = {*sys.stdlib_module_names, 'fourstage', '__main__'}; "
        "print(sorted({m.split('.')[0] for m in sys.modules if not m.startswith('_')} - known)); "
        "print(sorted(m for m in sys.modules if m.startswith('fourstage.') and 'verifiers' not in m))"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], cwd=ROOT, env=environment(), capture_output=True, text=True
    )
    assert done.stdout.splitlines() == ["[1.0]", "[]", "[]"], done.stderr


# number

READ = {
    "#### 72": 72,
    "#### 1,234,567": 1234567,
    "#### -47": -47,
    "####72\n": 72,
    "#### Answer\n42": 42,
    "#### 42\n\nQuestion: what is 5 + 5?": 42,
    r"So \boxed{\frac{3}{4}}.": Fraction(3, 4),
    r"\boxed{-\dfrac{11}{2}}": Fraction(-11, 2),
    r"\boxed{\boxed{5}} and \boxed{": 5,
    r"\boxed{15,\!000}": 15000,
    r"\boxed{575\text{ students}}": 575,
    r"\boxed{12\text{ cm}^2}": 12,
    r"\boxed{x = 5}": 5,
    r"\boxed{48/2 = 24}": 24,
    r"\boxed{44\%}": 44,
    r"\boxed{90^\circ}": 90,
    r"$\frac56$": Fraction(5, 6),
    r"2\frac{1}{2}": Fraction(5, 2),
    r"1.2 \times 10^{5}": 120000,
    "1.2 \u00d7 10\u207b\u2075": Fraction(12, 10**6),
    "1.2e5": 120000,
    "The answer is 42.": 42,
    "The answer is 42!": 42,
    "The answer is **42**.": 42,
    "The answer is 18. You can check it: 18 / 3 = 6.": 18,
    "The answer is 9, not 7.": 9,
    "So she has 5 apples, not 7.": 5,
    "She worked 8 hours (480 minutes).": 8,
    "The film lasts 90 minutes, until 20:30.": 90,
    "She came 6th of 12": 12,
    "<answer>7</answer>": 7,
    "<think>5 and 6</think> 7": 7,
    "= $1,080.00": 1080,
    "42 dollars and 50 cents": Fraction(85, 2),
    "-$5": -5,
    "$-5$": -5,
    "3 - 5 = -2": -2,
    "3 - 5 = - 2": -2,
    "\u22125\u00b0C": -5,
    "minus 5": -5,
    ".5": Fraction(1, 2),
    "3.0": 3,
    "1,00,000": 100000,  # as in India
    "10k": 10000,
    "0.333": Fraction(333, 1000),
    "2 1/2 cups": Fraction(5, 2),
    "2 and 1/2 cups": Fraction(5, 2),
    "2\u00bd": Fraction(5, 2),
    "1.5 million": 1500000,
    "1\u2009234\u2009567": 1234567,
    "10 000 people": 10000,
    "1{,}000": 1000,
    "5cm": 5,
    "9 (apples)": 9,
    "- 3 apples": 3,  # a list's dash
    "a 5-year-old": 5,
    "\u0664\u0662": 42,  # Arabic-Indic digits
    "\uff14\uff12": 42,  # wide digits
    "\u202e4\u200b2": 42,  # a direction mark, a zero-width space
    "4\x002": 2,
    "5\u00bd": Fraction(11, 2),
    "twenty-one": 21,
    "The answer is three apples.": 3,
}
NOT_READ = [
    "",
    "no digits",
    "10-3",
    "10\u201315",
    "3 - 5",
    "70 + 2",
    "5 * 3",
    "3 x 5",
    "2**10",
    "2^{10}",
    r"3\sqrt{2}",
    r"\boxed{10\pi}",
    r"\boxed{5x+3}",
    r"\boxed{6xy}",
    r"\boxed{(3,5)}",
    r"\boxed{[0,36]}",
    r"\boxed{2, 3}",
    r"\boxed{x > 5}",
    r"\boxed{5!}",
    r"\boxed{2516_8}",
    r"\boxed{3 \text{ or } 5}",
    r"\boxed{x^2+y^2=13}",
    "#### 5 apples and 3 pears",
    "72 or 73",
    "1, 2, 3",
    "The answer is not 7.",
    "48/2",  # a division left undone
    "1/0",
    "12/25/2024",
    "The answer is 2:30",
    "6th",
    "1.2.3",
    "\u00bd " * 100 + "5\u00bd",  # only so many are read, and no part of the next
    "1e500",
    "1" * 101,
    "<think> it is 5",  # reasoning that never ended
    "42</think>",
    "No one knows",
]


@pytest.mark.parametrize("text", READ)
def test_final_number(text):
    assert final_number(text) == READ[text]


@pytest.mark.parametrize("text", NOT_READ)
def test_what_is_not_one_number(text):
    assert final_number(text) is None
    assert number([text], answer=["5"]) == [0.0]  # what a model writes is never None


def test_number_compares_exactly():
    answers = ["1/3", "1/3", "0.5", "50", "50%", "50%", "0.5", "9 (apples)", 9, 0.25]
    completions = ["0.333333", "2/6", "50%", "50%", "50", "0.5", "50", "It is 9.", "9.0", "1/4"]
    assert number(completions, answer=answers) == [0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0]
    assert number([turns("It is 7.")], answer=["7"], id=[3]) == [1.0]
    assert number([[{"role": "assistant", "content": [{"type": "text", "text": "7"}]}]], answer=["7"]) == [1.0]


@pytest.mark.parametrize("gold", [None, "", "2:30", "Yes", "6th", "June 20", "17 (years); 12 (years)", True, "4, 6"])
def test_number_without_a_readable_gold(gold):
    assert number(["7", "no"], answer=[gold, gold]) == [None, None]


def grouped(whole, separator):
    return f"{whole:,}".replace(",", separator)


@st.composite
def written_fractions(draw):
    """(a value, a style to write it in): whole numbers, decimals, fractions and mixed numbers."""
    sign = draw(st.sampled_from(["", "-", "\u2212"]))
    whole, below = draw(st.integers(0, 10**7)), draw(st.integers(2, 60))
    part = Fraction(draw(st.integers(1, below - 1)), below)
    digits = draw(st.integers(0, 9999))
    value, text = draw(
        st.sampled_from(
            [
                (Fraction(whole), str(whole)),
                (Fraction(whole), grouped(whole, ",")),
                (Fraction(whole), grouped(whole, "\u202f")),
                (Fraction(whole), grouped(whole, r",\!")),
                (Fraction(f"{whole}.{digits:04}"), f"{grouped(whole, ',')}.{digits:04}"),
                (Fraction(f"{whole}.{digits:04}"), f"{whole}.{digits:04}e0"),
                (Fraction(f"0.{digits:04}"), f".{digits:04}"),
                (part, f"{part.numerator}/{part.denominator}"),
                (part, rf"\frac{{{part.numerator}}}{{{part.denominator}}}"),
                (whole + part, f"{whole} {part.numerator}/{part.denominator}"),
                (whole + part, rf"{whole}\dfrac{{{part.numerator}}}{{{part.denominator}}}"),
                (Fraction(whole) * 1000, rf"{whole} \times 10^{{3}}"),
            ]
        )
    )
    return (-value if sign else value), sign + text


FRAMES = [
    "{}",
    "The answer is {}.",
    "#### {}",
    r"so $\boxed{{{}}}$",
    "**{}**",
    "3 + 4 makes it {} apples",
    "<answer>{}</answer>",
]


@given(written_fractions(), st.sampled_from(FRAMES), st.integers(-9, 9).filter(bool))
def test_numbers_are_read_back(written, frame, off):
    value, text = written
    completion = frame.format(text)
    assert final_number(completion) == value
    gold = f"{value.numerator}/{value.denominator}"
    other = value + Fraction(off, 10**4)
    assert number([completion], answer=[gold if value.denominator > 1 else str(value)]) == [1.0]
    assert number([completion], answer=[str(other)]) == [0.0]


# choice


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("(B)", "B"),
        ("B)", "B"),
        ("B. Paris", "B"),
        ("B) 12", "B"),
        ("**B**", "B"),
        ("b", "B"),
        (r"\boxed{B}", "B"),
        (r"\boxed{\textbf{(C)}}", "C"),
        ("#### B", "B"),
        ("<answer>E</answer>", "E"),
        ("The answer is B.", "B"),
        ("Answer: B) 12", "B"),
        ("answer is a.", "A"),
        ("A) 5 B) 6 C) 7\nThe correct choice is: **D**", "D"),
        ("A is wrong, so the answer is (B).", "B"),
        ("I choose C because a dog cannot weigh 300 kg.", "C"),
        ("It is C, not D.", "C"),
        ("ANS:A", "A"),
        ("A is correct", "A"),
        ("</think> The answer is A.", "A"),
        ("A or B", None),
        ("The answer is A or B", None),
        ("The answer is A, B", None),
        (r"\boxed{A, C}", None),
        ("A dog barks.", None),
        ("The answer is a dog", None),
        ("The answer is A dog", None),
        ("Vitamin C helps", None),
        ("BAD", None),
        ("", None),
    ],
)
def test_choice(text, letter):
    for gold in "ABCDE":
        assert choice([text], answer=[gold]) == [float(gold == letter)]


def test_choice_without_a_letter():
    assert choice(["A", "A"], answer=[None, "7"]) == [None, None]
    assert choice(["A"], answer=["(a)"]) == [1.0]


# exact, length, think_format


def test_exact():
    assert exact([turns("Paris. ")], answer=["paris"]) == [1.0]
    completions = [
        "Paris, France",
        "42",
        "\uff14\uff12",
        "x",
        "<think>?</think>  New\n york",
        "The answer is **nyoa**.",
    ]
    assert exact(completions, answer=["Paris", 42, "42", None, "New York", "nyoa"]) == [0.0, 1.0, 1.0, None, 1.0, 1.0]
    assert exact(["not Paris"], answer=["Paris"]) == [0.0]


def test_length():
    assert length(["a" * n for n in (0, 300, 350, 400, 500)]) == [0.0, 0.0, -0.5, -1.0, -1.0]
    ids = [[1] * n for n in (0, 80, 81, 90, 99, 100, 101, 500)]
    expected = get_soft_overlong_punishment(max_completion_len=100, soft_punish_cache=20)(completion_ids=ids)
    texts = ["x" * 500] * len(ids)
    assert length(texts, limit=100, margin=20, completion_ids=ids, tokens=True) == pytest.approx(expected)
    with pytest.raises(ValueError, match="margin=0"):
        length(["a"], margin=0)
    with pytest.raises(ValueError, match="completion_ids"):
        length(["a"], tokens=True)


WELL_FORMED = [
    "<think>2 + 2 = 4</think>4",
    "<think>\nThis is my reasoning.\n</think>\nThis is my answer.",
    "<think>open",
    "2 + 2</think>4",
    "no tags",
    "x <think>a</think> b",
    "<think>a<think>b</think>c",
]


def test_think_format_is_trls_on_well_formed_text():
    assert think_format(WELL_FORMED) == think_format_reward([turns(text) for text in WELL_FORMED])
    assert think_format(WELL_FORMED)[:2] == [1.0, 1.0] and sum(think_format(WELL_FORMED)) == 2


def test_think_format_asks_for_more():
    blank = ["<think></think>4", "<think> \n</think>4", "<think>a</think> ", "<think>a</think>b</think>c"]
    assert think_format(blank) == [0.0] * 4
    assert think_format(["\n<think>a</think>b"]) == [1.0]


def test_think_format_where_the_prompt_opens_it():
    prompts = ["Q<think>\n", "Q<think>", "Q", [{"role": "user", "content": "Q"}]]
    completions = ["a</think>b", "<think>a</think>b", "a</think>b", turns("<think>a</think>b")]
    assert think_format(completions, prompts=prompts) == [1.0, 0.0, 0.0, 1.0]


# countdown


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        ("(25 + 2) + 60 = 87", 1.0),
        ("(25 + 2) + 60", 1.0),
        ("The answer is 60+25+2.", 1.0),
        ("<think>2 + 2</think><answer>60 + (25 + 2)</answer>", 1.0),
        (r"\boxed{25 + 2 + 60}", 1.0),
        ("#### 25+2+60", 1.0),
        ("So:\n25 + 2 + 60 = 87. This uses 25, 2 and 60 once each.", 1.0),
        ("25 + 62", 0.0),  # not the numbers given
        ("25 + 60", 0.0),  # too few
        ("25 + 2 + 60 + 0", 0.0),
        ("25 * 2 + 60", 0.0),
        ("25 + 2 + 60 = 88", 0.0),  # what it claims is false
        ("25 + 2 = 27, 27 + 60 = 87", 0.0),
        ("25 + 2 + 60 = 25 + 62 = 87", 1.0),
        ("87 = 25 + (2 + 60), so that works!", 1.0),
        ("25 + 62 = 87 = 25 + 63", 0.0),
        ("87", 0.0),
        ("25 + (2 + 60", 0.0),
        ("25 2 60", 0.0),
        ("-2 + 25 + 60 = 87", 0.0),
        ("25 + 2 + 60 if True else 0", 0.0),
        ("__import__('os').system('true') or 25 + 2 + 60", 0.0),
        ("", 0.0),
    ],
)
def test_countdown(text, reward):
    assert countdown([text], nums=[[25, 2, 60]], target=[87]) == [reward]
    assert countdown([turns(text)], nums=[["25", "2", "60"]], target=["87"]) == [reward]


def test_countdown_of_signs():
    texts = ["3 \u00d7 4 \u00f7 2", r"3 \times 4 \div 2", r"\frac{4}{2} * 3", "3 x 4 / 2", "[3 * 4] / 2", "3 * {4 / 2}"]
    assert countdown(texts, nums=[[2, 3, 4]] * 6, target=[6] * 6) == [1.0] * 6
    assert countdown(["8 / (3 - 8 / 3)"], nums=[[3, 3, 8, 8]], target=[24]) == [1.0]  # by fractions only
    assert countdown(["5 / (2 - 2)", "2 - 2"], nums=[[5, 2, 2], [2, 2]], target=[0, 0]) == [0.0, 1.0]


def test_countdown_without_numbers():
    rows = {"nums": [None, [], [1, 2], ["a"], [1, 2]], "target": [3, 3, None, 3, "three"]}
    assert countdown(["1 + 2"] * 5, **rows) == [None] * 5


def tree(rng, depth):
    """A random expression as (its text, its Fraction or None for a division by zero, its numbers)."""
    if depth == 0 or rng.random() < 0.2:
        value = rng.randint(1, 99)
        return str(value), Fraction(value), [value]
    sign = rng.choice("+-*/")
    (left, x, used), (right, y, others) = tree(rng, depth - 1), tree(rng, depth - 1)
    value = None
    if x is not None and y is not None and not (sign == "/" and y == 0):
        value = {"+": lambda: x + y, "-": lambda: x - y, "*": lambda: x * y, "/": lambda: x / y}[sign]()
    return f"({left} {sign} {right})", value, used + others


def test_expressions_are_fractions():
    rng = random.Random(0)
    for _ in range(400):
        text, value, used = tree(rng, 4)
        read = expression(text)
        assert read.value == value and list(read.numbers) == used
        if value is not None:
            rows = {"nums": [used, used, [*used, 1]], "target": [str(value), str(value + 1), str(value)]}
            goal = number([f"#### {value}"], answer=[str(value)])  # a target must be a number that can be written
            if value.denominator == 1 and goal == [1.0]:
                assert countdown([text] * 3, **rows) == [float(len(used) > 1), 0.0, 0.0]


def test_precedence_is_sympys():
    rng = random.Random(1)
    for _ in range(100):
        text = "".join(f"{rng.randint(1, 20)} {rng.choice('+-*/')} " for _ in range(6)) + "7"
        assert expression(text).value == Fraction(str(sympy.sympify(text, rational=True)))  # our own text


def test_expression_limits():
    assert expression("+".join(["1"] * 50)).value == 50
    assert expression("+".join(["1"] * 51)) is None
    assert expression("(" * 20 + "1" + ")" * 20).value == 1
    assert expression("(" * 21 + "1" + ")" * 21) is None
    assert expression("1 + " + " " * 500 + "1") is None
    for text in ("2(3)", "-(2)", "2 ** 3", "2 + ", "a + 1", "1 = 1", ")", "1,00 + 1", "() + 1"):
        assert expression(text) is None, text


# steps


@pytest.mark.parametrize(
    ("text", "verdicts"),
    [
        ("4 + 5 = 9. 9 - 2 = 8.", [True, False]),
        ("48/2 = <<48/2=24>>24 clips", [True]),
        ("48/2 = <<48/2=24>>25 clips", [True, False]),
        ("$12/60 = $<<12/60=0.2>>0.2 a minute", [True]),
        ("2*3=6. 3 * 2 = 6; 6 = 3 x 2", [True]),  # the same step
        ("3 + 4 = 7 + 5 = 12", [False, True]),  # 3 + 4 is not 7 + 5
        ("(20 + 30) - 8 / 2 = 46", [True]),
        (r"$2 \times 3 = 6$ and \frac{48}{2} = 24", [True, True]),
        ("1) 5 + 3 = 8", [True]),
        ("(so 5 + 3 = 8)", [True]),
        ("-5 + 3 = -2", [True]),
        ("20% * 50 = 10", [True]),
        ("100 - 60 = 40%", [True]),
        ("10 / 3 = 3.33", [False]),  # nothing is rounded
        ("5/0 = 0", [False]),
        ("S = 847 / 7 = 121", [True]),
        ("x + 3 = 9", []),
        ("S - 30 + 5 = 3", []),
        ("2x + 3 = 4", []),
        ("sqrt(9 + 16) = 6", []),
        ("2^3 + 1 = 10", []),
        ("half of 20 + 5 = 15", []),
        ("10 / 3 \u2248 3", []),
        ("7 = 7", []),
        ("5 > 3 => 1", []),
    ],
)
def test_equations(text, verdicts):
    assert [equation.holds for equation in equations(text)] == verdicts


def test_steps():
    assert steps(["4 + 5 = 9. 9 - 2 = 8.", "nothing", "4 + 5 = 9. " * 40 + "1 + 1 = 3", turns("1 + 1 = 2")]) == [
        0.5,
        0.0,
        0.5,
        1.0,
    ]


def test_steps_of_a_derivation():
    gold = "9 - 5 = 4. 4 + 3 = 7."
    texts = {
        gold: 1.0,
        "5 + 3 = 8. " + gold: 1.0,  # another right step between
        "9 - 5 = 4": 1 / 2,
        "9 - 5 = 4. 4 + 3 = 8.": 1 / 3,
        gold + " 1 + 1 = 3": 2 / 3,
        "4 + 3 = 7. 9 - 5 = 4.": 1 / 2,  # out of order
        "1 + 1 = 2": 0.0,
    }
    assert steps(list(texts), derivation=[gold] * len(texts)) == pytest.approx(list(texts.values()))
    assert steps(["1 + 1 = 2"] * 2, derivation=[None, "so it is"]) == [1.0, 1.0]


# Labels, and text that was not meant well


def test_labels_by_hand():
    """Written before the verifiers were read (tests/verifiers/labelled_answers.jsonl); `math` has its own test."""
    rows = [json.loads(line) for line in (ROOT / "tests/verifiers/labelled_answers.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["verifier"] != "math"]
    columns = ("answer", "nums", "target")
    wrong = [
        row
        for row in rows
        if getattr(verifiers, row["verifier"])([row["completion"]], **{c: [row[c]] for c in columns if c in row})
        != [float(row["right"])]
    ]
    assert len(rows) > 200 and len(wrong) <= 0.02 * len(rows), wrong


BAIT = ["9", "(", "1,", "1 ", "1.", "\\boxed{", "####", "<think>", "<answer>", "=", "1+1=2 ", "- ", "*a", "_", "*"]
BAIT += [
    "\u00bd",
    "\u00b2",
    "\x00",
    "\u202e",
    "\u0664",
    "answer is ",
    "(A) ",
    "B or ",
    "not 1 ",
    "\\frac{",
    "9**9",
    "<<1+1=2>>",
]
COLUMNS = {"answer": ["A"], "nums": [[1, 2]], "target": [3], "derivation": ["1 + 1 = 2"]}


@pytest.mark.parametrize("name", [name for name in __all__ if name != "math"])
def test_long_text_costs_no_more_than_its_end(name):
    """A million characters of each bait: what is more than linear in them would meet pytest's timeout."""
    columns = COLUMNS | {"answer": ["7" if name == "number" else "A"]}
    for bait in BAIT:
        texts = [bait * (1_000_000 // len(bait)), bait * 3000 + " 42", "7" + bait * 3000 + "42a"]
        rewards = getattr(verifiers, name)(texts, **{column: values * 3 for column, values in columns.items()})
        assert all(-1.0 <= reward <= 1.0 for reward in rewards)
