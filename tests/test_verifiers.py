"""Verifiable rewards by hand."""

import pytest

from fourstage.rewards import load_reward_func
from fourstage.verifiers import __all__, exact, length


def test_exact():
    turns = [[{"role": "assistant", "content": "Paris. "}]]
    assert exact(turns, answer=["paris"]) == [1.0]
    assert exact(["Paris, France", "42", "\uff14\uff12", "x"], answer=["Paris", 42, "42", None]) == [
        0.0,
        1.0,
        1.0,
        None,
    ]


def test_length():
    assert length(["a" * n for n in (0, 300, 350, 400, 500)]) == [0.0, 0.0, -0.5, -1.0, -1.0]


def test_found_by_name():
    assert load_reward_func("exact") is exact
    assert {name: load_reward_func(name).__name__ for name in __all__} == {name: name for name in __all__}
    with pytest.raises(ValueError, match="'exakt' is unknown; want exact, length or a dotted path"):
        load_reward_func("exakt")
