r"""Ways to write an answer, by kind, each labelled by what a careful reader would say: number, choice, countdown.

Each row is (right answer, completion). Every kind has rows that earn 1.0 and rows that look like them and earn 0.0.
"""

import importlib.util
import random

import pytest
from helpers import ROOT

from fourstage.verifiers import choice, countdown, exact, number, steps, think_format
from fourstage.verifiers.letters import LETTERS, final_letter
from fourstage.verifiers.numerals import final_amount
from fourstage.verifiers.text import final_part

# kind: (rows that are right, rows that are wrong)
NUMBER = {
    "sign": (
        [
            ("-4", "#### - 4"),
            ("-4", r"\boxed{- 4}"),
            ("-4", "$- 4$"),
            ("-4", "The answer is - 4."),
            ("-4", "\u2212 4"),
            ("-4", "negative four"),
            ("-0.5", r"\boxed{-\frac{1}{2}}"),
            ("4", "- 4 apples"),
            ("-3", "It makes -3 apples."),
        ],
        [("4", "#### - 4"), ("4", r"\boxed{- 4}"), ("4", "negative four"), ("4", "\u22124"), ("3", "x = - 3")],
    ),
    "relation": (
        [("8", "x = 8"), ("8", "=> 8"), ("8", r"\implies x = 8"), ("8", "She needs at least 8 cans.")],
        [
            ("8", "x <= 8"),
            ("8", "x >= 8"),
            ("8", "x != 8"),
            ("8", "\u2265 8"),
            ("8", "#### > 8"),
            ("8", r"\boxed{x \le 8}"),
            ("8", "more than 8"),
            ("8", "8 or more"),
            ("16", "2x = 16"),
            ("49", r"\boxed{x^2 = 49}"),
        ],
    ),
    "several": (
        [
            ("0.6", "0.60 or 60%"),
            ("9", "It isn't 7, it's 9."),
            ("3", "Hence 3x = 9 and x = 3"),
            ("45", "In 2020, 45 people came."),
        ],
        [
            ("8", "2, 3, or 8"),
            ("8", "2, 3, and 8"),
            ("8", "3 to 8"),
            ("8", "3 ~ 8"),
            ("8", "3\u20138"),
            ("8", "7 apples or 8 apples"),
            ("8", "7 apples and 8 pears"),
            ("7", "The answer is 7, but it could be 8."),
            ("7", "The answer is 7. Or 8."),
            ("7", "The answer is one of 2, 4, 7"),
            ("7", "The answer is between 2 and 7"),
            ("7", "I don't think it is 7."),
            ("8", "neither 7 nor 8"),
            ("8", "not 7 or 8"),
            ("25", "20 or 5*5 = 25"),
            ("8", r"\boxed{3} or \boxed{8}"),
            ("8", r"\boxed{3}, \boxed{8}"),
            ("7", r"\boxed{7} or 8"),
            ("8", "#### 3\n#### 8"),
            ("2", "6 ft 2 in"),
            ("30", "It takes 2 hours and 30 minutes."),
            ("20", "3 h 20"),
            ("7", "5'7\""),
            ("2", r"\left(2, 2\right)"),
        ],
    ),
    "words": (
        [
            ("600", "Six hundred"),
            ("20000", "Twenty thousand"),
            ("6.5", "six point five"),
            ("250", "There are two hundred and fifty birds."),
            ("42", "The answer is forty two."),
            ("4", "The answer is four (4)."),
            ("2.5", "two and a half"),
            ("2/3", "two-thirds of the cake"),
            ("12", "a dozen eggs"),
            ("24", "2 dozen"),
            ("6", "3 + 3 = 9. No: 3 + 3 = 6. So six eggs remain."),
            ("1", "Only one remains."),
        ],
        [
            ("6", "Six hundred"),
            ("6", "six or seven"),
            ("7", "six or seven"),
            ("5", "six point five"),
            ("34", "three four"),
            ("1", "No one knows"),
            ("1", "It is one of them."),
            ("12", "half a dozen"),
            ("10", "half of 10"),
        ],
    ),
    "form": (
        [
            ("7", "9-2 = <<9-2=7>>7 left."),
            ("7", "The answer is ca. 7 km"),
            ("7", "The answer is clear now. It is 7."),
            ("7", "The answer is as follows.\n7 km"),
            ("7", r"\boxed{C) 7}"),
            ("7", r"\boxed{7\textnormal{ km}}"),
            ("1000", r"\boxed{10^3}"),
            ("7", "```\n7\n```"),
            ("26", "A: 26"),
            ("7", "3 apples + 4 apples = 7 apples"),
            ("4", "Each pays $76 / 19 students = $4/student."),
            ("10", "we get 10 = b"),
            ("11", "11 = 5 + 6"),
            ("7", r"\sqrt{49} = 7"),
            ("32", "a_5 = 32"),
            ("1/3", r"\boxed{\frac{1}{3} \approx 0.333}"),
            ("0.67", "So 2/3 = 0.67"),
            ("3/5", "The probability is 3 out of 5."),
            ("3", "She got 3 out of 5 right."),
            ("1500", "1.5k"),
            ("2000000", "$2M"),
            ("1234567", "1'234'567"),
            ("1234.56", "1.234,56 \u20ac"),
            ("15", r"\boxed{15^\circ\text{C}}"),
        ],
        [
            ("7", "3 apples + 7 apples"),
            ("0.25", r"\boxed{\frac13 \approx 0.25}"),
            ("3000", r"\boxed{3k}"),
            ("3000", "n = 3k"),
            ("50", "The answer is 50% of 40, which is 20."),
            ("5", "The answer is 3 times 5"),
            ("125", "12,5 kg"),
            ("2", "#### Step 2: add them\nso it is 5"),
        ],
    ),
    "remark": (
        [
            ("28", "Her change is $28, which is enough for 2 more books"),
            ("30", "She has read 30 pages after 5 days."),
            ("240", "Therefore, Honey saved $1600 - $1360 = $240 in 20 days."),
            ("8", "She needs 8 cans because 7 would not be enough."),
            ("48", "Birgit would take 48 minutes to travel 8 kilometers."),
            ("18", "The total is 18.\n\nYou can check: 18 / 3 = 6."),
            ("18", "So 18. Let me know if you need 2 more examples!"),
            ("18", "#### 18, because 3 * 6 = 18"),
            ("8", "So Tom has **8** apples after 3 days."),
            ("7", "I get 7. I am 90% sure."),
            ("18", "The answer is 16. Wait, that's wrong. It should be 18."),
            ("8", r"\boxed{3}. Wait, that is wrong: the dog counts too. \boxed{8}"),
            ("8", r"\boxed{3}. The final answer is 8."),
            ("5", "5\n\nHuman: What is 3 + 4?\nAssistant: 7"),
            ("7", "The answer is 7.\n\nQuestion: And 2?\nThe answer is 9."),
            ("5", "The answer is 5. They wait 3 hours."),
            ("8", "The answer is not 7. It is 8."),
            ("12", "A: 5 kg\nB: 7 kg\nTotal: 12"),
            ("18", "The answer is 18 (9 x 2)."),
            ("18", "18 dollars\n\nExplanation: She sells 9 eggs for $2 each."),
            ("7", r"\boxed{7}. If I made a mistake, let me know."),
        ],
        [
            ("2", "Her change is $28, which is enough for 2 more books"),
            ("5", "She has read 30 pages after 5 days."),
            ("16", "The answer is 16. Wait, that's wrong. It should be 18."),
            ("3", r"\boxed{3}. That is wrong. It is 8."),
            ("7", "The answer is unknown. It is not 7."),
        ],
    ),
}


NUMBER |= {
    "denied in other languages": (
        [
            ("23", "\u9e21\u4e0d\u662f 12 \u53ea\uff0c\u800c\u662f 23 \u53ea\u3002"),
            ("7", "Es sind nicht 12, sondern 7."),
        ],
        [
            ("12", "\u6240\u4ee5\u9e21\u6709 23 \u53ea\uff0c\u4e0d\u662f 12 \u53ea\u3002"),
            ("12", "Ce n'est pas 12."),
            ("12", "Es sind nicht 12."),
        ],
    ),
    "a part of a whole": (
        [("68", "So he has saved $68 of the $100 he needs."), ("60", "Of the 100 cookies, 60 are left.")],
        [("100", "So he has saved $68 of the $100 he needs."), ("100", "She ate 40 of the 100 cookies.")],
    ),
    "rupees": ([("450", "Cost price = Rs. 450/-"), ("1200", "The answer is Rs 1,200/- only")], [("45", "Rs. 450/-")]),
    "not decided": (
        [("5", "I could not find it at first. It is 5.")],
        [
            ("30", "This can't be determined without knowing how many of the 30 were absent."),
            ("30", "It is impossible to tell, as only 30 students are given."),
            ("30", "There is not enough information: 30 students."),
        ],
    ),
    "repeating decimals": (
        [
            ("1/6", r"\boxed{0.1\overline{6}}"),
            ("2/3", r"0.\overline 6"),
            ("3", r"$2.\overline{9}$"),
            ("4/33", r"0.\overline{12}"),
        ],
        [("0.3", r"0.\overline{3}"), ("3", r"0.\overline{3}"), ("0.16", r"0.1\overline{6}")],
    ),
    "nothing left": (
        [("0", "No marbles are left in the bag."), ("0", "Nothing remains."), ("0", "None of them are left.")],
        [
            ("0", "No marbles were red."),
            ("0", "Tom has 30; no marbles are left for Ann."),
            ("1", "No marbles are left."),
        ],
    ),
}


@pytest.mark.parametrize("kind", NUMBER)
def test_number(kind):
    right, wrong = NUMBER[kind]
    for gold, text in right:
        assert number([text], answer=[gold]) == [1.0], (gold, text, final_amount(text))
    for gold, text in wrong:
        assert number([text], answer=[gold]) == [0.0], (gold, text)


def test_number_of_golds_as_they_are_written():
    for gold in ("x >= 8", "2, 3", "8 or more", "at least 8", "6 ft 2 in", "3 to 8", "> 8", r"\le 8", "n/2", "8 = n^2"):
        assert number(["8"], answer=[gold]) == [None], gold
    for gold in ("- 4", "$- 4$", "x = - 4", "\u22124"):
        assert number(["-4", "4"], answer=[gold, gold]) == [1.0, 0.0], gold
    assert number([r"\boxed{n/2}", "so 9 = n", r"3\cdot 10^n"], answer=["3"] * 3) == [0.0, 0.0, 0.0]  # none raises


def test_decimal_comma():
    completions, golds = (
        ["3,5", "1.234,5 km", "4", "#### 0,25", "3.5", "\u20ac3,50"],
        ["3,5", "1234,5", "4,0", "1/4", "3,5", "3,5"],
    )
    assert number(completions, answer=golds, decimal_comma=True) == [1.0, 1.0, 1.0, 1.0, 0.0, 1.0]
    assert number(["3,5"], answer=["3.5"]) == [0.0]


CHOICE = {
    "label and text": [
        ("C", "(C) A red ball"),
        ("D", "D. Vitamin B is needed"),
        ("D", "(D) A and B only"),
        ("B", "#### B) A and C together"),
        ("G", "#### G"),
        ("I", r"\boxed{I}"),
        ("C", "A. 1\nB. 2\nC. 3\n\nC. 3"),
        (None, "A. 1\nB. 2\nC. 3"),
        (None, "(A) 5 (B) 6 (C) 7"),
        (None, "A. True, True\nB. False, False\nC. True, False"),
        (None, r"\boxed{A} or \boxed{B}"),
    ],
    "said": [
        ("D", "Hence, D."),
        ("C", "That leaves us with C."),
        ("E", "I'd go with E."),
        ("C", "The correct answer is not B but C."),
        ("B", "\u7b54\u6848\u662f B"),
        ("B", "\u6545\u9009B\u3002"),
        ("B", "La respuesta es B."),
        ("B", "I think it's (B)"),
        ("C", "24 km/h, which corresponds to (C)."),
        ("A", "A is the answer"),
        ("B", "The answer is B. Option C gives 14, which is not it."),
        ("B", "The correct option is B. (Option A is a trap.)"),
        ("B", "That makes it B."),
        (None, "Could be A. Could be B."),
        (None, "\u7b54\u6848\u4e0d\u662fC"),
        (None, "I am not sure."),
        (None, "The answer is a dog"),
        (None, "The answer is A = 5"),
    ],
    "explained": [
        ("B", "B\n\nA is too small. C is too big."),
        ("B", "B, because A is too small."),
        ("B", "The answer is B, C is too small."),
        ("B", "(B) 12 because (A) 10 is too small"),
        ("B", "B) 12\n\nI hope this helps!"),
        ("C", "A) 10 - no. B) 20 - no. C) 40 - yes. D) 50 - no."),
        ("C", "A. Incorrect.\nB. Incorrect.\nC. Correct.\nD. Incorrect."),
        ("B", "Neither A nor C works, so B."),
    ],
    "taken back": [
        (None, "The answer is A (or B)"),
        (None, "The answer is A, or maybe B"),
        (None, "The answer is C. Or D."),
        (None, "Either C or D is correct."),
        (None, "I don't choose A"),
        (None, "The answer cannot be C."),
        (None, "C isn't correct."),
        (None, "All except C."),
        (None, "The answer is neither C nor D."),
        (None, "A\nB\nC\nD"),
    ],
}


CHOICE |= {
    "withdrawn": [
        ("D", "The answer is A. Wait, no: least likely. So it must be D."),
        ("B", "Wait, let me check. The answer is B."),
    ],
    "small letters and reasons": [
        ("C", "i pick c, cause the rest make no sense"),
        ("C", "i choose c because it fits"),
        (None, "a c b c"),
    ],
    "other languages": [
        ("D", "La r\u00e9ponse correcte est donc la D."),
        ("B", "Die richtige Antwort ist also B."),
    ],
    "the option at the end": [
        ("H", "As asked, the pressure doubles. **H) 2.0 atm**"),
        (None, "Two look plausible. A) 3 B) 4"),
        (None, "See H) 2.0 atm"),
    ],
}


@pytest.mark.parametrize("kind", CHOICE)
def test_choice(kind):
    for letter, text in CHOICE[kind]:
        assert final_letter(text) == letter, text
        assert choice([text] * len(LETTERS), answer=list(LETTERS)) == [float(gold == letter) for gold in LETTERS]


COUNTDOWN = [
    "(2+4)*6 = 36 (uses 2, 4, 6)",
    "36 = (2+4)*6",
    "so (2+4)*6 works",
    "(2+4)*6 = 6*6 = 36",
    "(2+4)*6 = 36 \u2713",
    "6(2+4) = 36",
    "(2+4)*6 gives us the target.",
    "(2+4)*6 = 36, using 2, 4 and 6 once each.",
    "2+4 = 6, so (2+4)*6 = 36",
    "(2+4)*6 = 36. Check: 2+4 = 6, 6*6 = 36.",
    "1. (2+4)*6 \u2192 36",
]
NO_COUNTDOWN = [
    "not (2+4)*6",
    "(2+4)*600%",
    "(2+4)*6 makes 37",
    "(2+4)*6 does not work",
    "(2+4)*6 or 2+4+6",
    "(2+4)*6 \u2260 36",
    "(2+4)*6 = 36 = 37",
    "eval('(2+4)*6')",
    "(2+4)^2",
    "2 + 4 = 6\n6 * 6 = 36",
]


def test_countdown():
    for text, reward in [(text, 1.0) for text in COUNTDOWN] + [(text, 0.0) for text in NO_COUNTDOWN]:
        assert countdown([text], nums=[[2, 4, 6]], target=[36]) == [reward], text
    assert countdown(["1+2"] * 4, nums=[[1, 2], "12", [1, 2], [None]], target=["", "3", "e5", 3]) == [None] * 4


def test_think_format_wants_something_to_see():
    blank = ["<think>\u200b</think>4", "<think>a</think><|im_end|>", "<think>a</think>\u2060", "<think>a</think></s>"]
    assert think_format([*blank, "<think>a</think><answer></answer>", "<think><b></b></think>4"]) == [0.0] * 6
    assert think_format(["<think>a</think>4<|im_end|>", "<think>a</think>\U0001f642"]) == [1.0, 1.0]


def test_exact_without_dress():
    texts = [
        r"\boxed{\text{Rome}}",
        "\u201cRome\u201d",
        r"\textbf{\text{Rome}}",
        "```text\nRome\n```",
        "$Rome$",
        "\u00abRome\u00bb.",
    ]
    assert exact(texts, answer=["Rome"] * len(texts)) == [1.0] * len(texts)
    assert exact([r"\boxed{Rome} or \boxed{Paris}", "Rome!"], answer=["Rome"] * 2) == [0.0, 0.0]


def test_steps_with_units():
    assert steps(["4 cats + 3 cats = 7 cats", "1 cat + 3 cats = 5 cats", "5 packs * 4 cards = 20"]) == [1.0, 0.0, 1.0]
    assert steps(["4 cats + 3 dogs = 7", "half of 20 + 5 = 15"]) == [0.0, 0.0]


def test_final_parts_that_belong_together():
    parts = {
        r"\boxed{2} and \boxed{3}": "2, 3",
        r"x = \boxed{2}, y = \boxed{3}": "2, 3",
        "<answer>2</answer> or <answer>3</answer>": "2, 3",
        r"\boxed{2}, but the dog counts, so \boxed{3}": "3",
        "#### 2\n#### 2": "2",
        r"<answer>\boxed{2}</answer>": "2",
        "2<|im_end|>": "2",
        "So <|begin_of_box|>2<|end_of_box|>": "2",
    }
    assert {text: final_part(text)[0].strip() for text in parts} == parts


def test_mutated_answers_never_raise():
    spec = importlib.util.spec_from_file_location("mutated", ROOT / "benchmarks" / "verifiers_mutated.py")
    mutated = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(mutated)
    for name in mutated.NAMES:
        pairs = list(mutated.rows(150, random.Random(name).randrange(10**6)))
        assert list(mutated.faults(name, pairs)) == []
