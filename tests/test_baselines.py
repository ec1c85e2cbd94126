"""The n-gram baseline against a brute-force count."""

import importlib.util
import math
import random
from pathlib import Path

import numpy as np
import pytest

SPEC = importlib.util.spec_from_file_location("baselines", Path(__file__).parents[1] / "benchmarks" / "baselines.py")
baselines = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(baselines)


def brute_force(train: list[int], history: list[int], symbol: int, alphabet: int, order: int) -> float:
    """Witten-Bell interpolation read off the definition: look every history up in the training text."""
    probability = 1 / alphabet
    for k in range(1, min(order, len(history) + 1) + 1):
        before = history[len(history) - (k - 1) :]
        after = [train[i + k - 1] for i in range(len(train) - k + 1) if train[i : i + k - 1] == before]
        if after:
            kinds = len(set(after))
            probability = (after.count(symbol) + kinds * probability) / (len(after) + kinds)
    return probability


@pytest.mark.parametrize("order", [1, 2, 5])
def test_ngram_equals_brute_force(order):
    chance = random.Random(0)
    train, test = chance.choices([0, 1, 2, 2, 3], k=200), chance.choices(range(4), k=50)
    nats = -sum(math.log(brute_force(train, test[:i], test[i], 4, order)) for i in range(len(test)))
    assert baselines.ngram_nats(np.array(train), np.array(test), 4, order) == pytest.approx(nats, rel=1e-12)


def test_uniform_text_costs_its_entropy():
    train = np.tile(np.arange(4), 5_000)  # 0 1 2 3 0 1 2 3 ...: unigrams cost 2 bits, bigrams next to nothing
    assert baselines.ngram_nats(train, train[:4_000], 4, order=1) / math.log(2) / 4_000 == pytest.approx(2, abs=1e-3)
    assert baselines.ngram_nats(train, train[:4_000], 4, order=2) / math.log(2) / 4_000 < 0.01
