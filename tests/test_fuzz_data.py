"""Odd data files, drawn anew from a seed: each is rightly read or refused in one line (benchmarks/fuzz_data.py)."""

import json
import random

import pytest

from benchmarks.fuzz_data import KINDS, ROWS, STAGES, Case, fuzz, make_case, read


def test_small_count(tmp_path):
    bad = [line for line in fuzz(60, seed=1, stages=[*STAGES], folder=tmp_path) if line[2] not in ("read", "refused")]
    assert not bad


@pytest.mark.parametrize("stage", STAGES)
def test_good_files_are_read(tmp_path, stage):
    """Else a reader that refuses all would pass."""
    good = STAGES[stage][1]
    rows = [good(i) for i in range(ROWS)]
    case = Case("a.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    case.texts.update(tuple(row.values()) for row in rows)
    for streaming in (False, True):
        assert read(stage, case, tmp_path, streaming, "error") == ("read", "")
    case.texts[tuple(good(ROWS).values())] += 1
    assert read(stage, case, tmp_path, False, "error")[0] == "wrong"


def test_a_shifted_table_would_be_seen(tmp_path):
    """What pandas made of a surplus field, as a file: answers where questions were."""
    rows = [{"question": f"a {i}", "answer": "x"} for i in range(ROWS)]
    case = Case("a.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    case.texts.update((f"q {i}", f"a {i}") for i in range(ROWS))
    assert read("sft", case, tmp_path, False, "error")[0] == "wrong"


def test_the_seed_makes_the_files():
    made = [make_case("grpo", kind, random.Random(f"3 {kind}")) for kind in KINDS * 2]
    assert made[: len(KINDS)] == made[len(KINDS) :]
    assert made[0] != make_case("grpo", KINDS[0], random.Random("4"))
