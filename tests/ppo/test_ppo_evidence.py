"""PPO's evidence is kept true: every mutant dies, and the closed form is nearly reached."""

import json
import sys

import pytest
from helpers import ROOT, run_program

from benchmarks.ppo_mutants import MUTANTS

pytestmark = pytest.mark.slow


@pytest.mark.timeout(900)
def test_every_mutant_is_killed():
    run = run_program(sys.executable, ROOT / "benchmarks" / "ppo_mutants.py", timeout=850)
    assert run.stdout.count("| yes |") == len(MUTANTS)


def test_the_best_policy_is_nearly_reached_and_never_passed():
    """A quarter of the updates that the benchmark makes, on one seed: from some of the optimum to most of it."""
    settings = ["--seeds", "1", "--updates", "100", "--learning_rate", "3e-3"]
    run = run_program(sys.executable, ROOT / "benchmarks" / "ppo_optimum.py", *settings)
    row = next(json.loads(line) for line in run.stdout.splitlines() if line.startswith('{"seed"'))
    assert row["J_start"] < 0.65 * row["J_star"]
    assert 0.9 * row["J_star"] < row["J"] <= row["J_star"] + 1e-6
