"""`math` on answers as models write them: where the answer stands, how it is written, and what answers nothing.

latex_answers.jsonl has them, labelled by hand. Most were written while the verifier was: they say what it accepts.
"""

import json
import random
from pathlib import Path

import pytest

pytest.importorskip("math_verify")

from fourstage.verifiers import latex
from fourstage.verifiers.latex import math

ROWS = [json.loads(line) for line in Path(__file__).with_name("latex_answers.jsonl").read_text().splitlines()]


def ask(rows):
    return math([row["completion"] for row in rows], [row["answer"] for row in rows])


@pytest.fixture(scope="module")
def rewards():
    """The rewards of all rows, in one call."""
    return ask(ROWS)


@pytest.mark.parametrize("i", range(len(ROWS)), ids=lambda i: ROWS[i]["completion"][-30:])
def test_as_labelled(rewards, i):
    assert rewards[i] == float(ROWS[i]["right"])


def test_a_reward_is_the_same_alone_and_in_any_order(rewards, monkeypatch):
    chosen = random.Random(0).sample(range(len(ROWS)), 40)
    monkeypatch.setattr(latex._worker(), "_verdicts", {})  # nothing is remembered
    assert [ask([ROWS[i]])[0] for i in chosen] == [rewards[i] for i in chosen]
