"""Mistakes that PPO code is known for, made on purpose: for each a test must fail.

    python benchmarks/ppo_mutants.py
    python benchmarks/ppo_mutants.py --only "shift"

Each mutant is an edit of a copy of the sources; the named test runs on that copy, and the table says whether it failed.
First every named test runs on an unchanged copy, where it must pass.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
FUNCTIONAL, TRAINER = "fourstage/ppo/functional.py", "fourstage/ppo/trainer.py"
SAVING, PTX = "fourstage/ppo/saving.py", "fourstage/ppo/ptx.py"
NUMPY = "test_ppo_trainer.py::test_a_rollout_equals_numpy_on_unpadded_rows"


class Mutant(NamedTuple):
    """`edits` are (file, text that stands there once, text in its place)."""

    name: str
    edits: tuple[tuple[str, str, str], ...]
    test: str


MUTANTS = (
    Mutant("KL with the wrong sign", ((FUNCTIONAL, "0.0) - beta * kl", "0.0) + beta * kl"),), NUMPY),
    Mutant(
        "KL counted twice: in the reward and in the loss",
        (
            (TRAINER, "self.beta = 0.0", "self.beta = args.beta"),
            (
                TRAINER,
                "            scores = batch",
                '            batch["ref_per_token_logps"] = self._ref_logps(batch)\n            scores = batch',
            ),
        ),
        "test_ppo_trainer.py::test_the_loss_of_the_policy_is_the_clipped_one_and_knows_no_beta",
    ),
    Mutant(
        "score on the padding after the end token",
        (
            (
                FUNCTIONAL,
                "== last_token(mask)[:, None]",
                "== (last_token(mask)[:, None] + 1).clamp(max=mask.size(1) - 1)",
            ),
            (FUNCTIONAL, "- beta * kl).masked_fill(~mask, 0.0)", "- beta * kl)"),
        ),
        NUMPY,
    ),
    Mutant(
        "padding in the whitening",
        ((FUNCTIONAL, "mean = masked_mean(x.double(), mask, reduce)", "mean = x.double().mean()"),),
        NUMPY,
    ),
    Mutant(
        "no clipping of the value",
        ((FUNCTIONAL, "0.5 * torch.maximum(losses, near_losses)", "0.5 * losses"),),
        "test_ppo_trainer.py::test_the_loss_of_the_critic_is_the_clipped_one",
    ),
    Mutant(
        "old log-probabilities other than the sampler's (its temperature left out)",
        ((TRAINER, "plain_head(model, logits_to_keep, self.temperature,", "plain_head(model, logits_to_keep, 1.0,"),),
        NUMPY,
    ),
    Mutant("values shifted by one token", ((TRAINER, "[:, first:-1]", "[:, first + 1 :]"),), NUMPY),
    Mutant(
        "GAE that bootstraps from the token itself",
        ((FUNCTIONAL, "gamma * following - values", "gamma * values[:, t] - values"),),
        NUMPY,
    ),
    Mutant(
        "a reference that moves",
        ((TRAINER, "self.ref_model = frozen_copy(self)", "self.ref_model = self.model"),),
        "test_ppo_trainer.py::test_policy_and_critic_learn_and_the_reference_stays",
    ),
    Mutant(
        "a rank's gradient left out of the critic",
        ((TRAINER, "if self.accelerator.num_processes > 1 and not shards(self):", "if False:"),),
        "test_ppo_runs.py::test_two_processes_equal_one",
    ),
    Mutant(
        "whitening of each rank by itself",
        ((TRAINER, "F.masked_whiten(x, mask, shift_mean, self._reduce)", "F.masked_whiten(x, mask, shift_mean)"),),
        "test_ppo_runs.py::test_two_processes_equal_one",
    ),
    Mutant(
        "what cannot be scored counted as 0",
        ((TRAINER, '["completion_mask"] * scorable[:, None]', '["completion_mask"]'),),
        "test_ppo_trainer.py::test_what_cannot_be_scored_is_in_no_mean_and_no_gradient",
    ),
    Mutant(
        "positions that count the padding",
        ((TRAINER, "**positions(base, attention_mask))", ")"),),
        "test_ppo_trainer.py::test_learned_positions_are_those_of_generation",
    ),
    Mutant(
        "the critic's optimizer not resumed",
        ((SAVING, "optimizer.load_state_dict(", "(lambda state: None)("),),
        "test_ppo_runs.py::test_a_resumed_run_equals_an_uninterrupted_one_to_the_last_bit",
    ),
    Mutant(
        "PPO-ptx begins its rows anew after a resume",
        ((TRAINER, "first = self.state.global_step * parts", "first = self._step // parts * parts"),),
        "test_ppo_runs.py::test_a_resumed_run_equals_an_uninterrupted_one_to_the_last_bit",
    ),
    Mutant(
        "PPO-ptx learns the same rows in each process",
        (
            (
                TRAINER,
                "self._step % parts * processes + self.accelerator.process_index",
                "self._step % parts * processes",
            ),
        ),
        "test_ppo_runs.py::test_two_processes_equal_one",
    ),
    Mutant(
        "PPO-ptx counted once for each micro-batch",
        (
            (
                TRAINER,
                "rows.tokens(first, self.current_gradient_accumulation_steps * processes)",
                "rows.tokens(first, processes)",
            ),
        ),
        "test_ppo_ptx.py::test_the_gradient_is_that_of_ppo_and_a_share_of_that_of_the_rows",
    ),
    Mutant(
        "PPO-ptx learns the prompts too",
        ((PTX, ".logits[:, :-1], labels[:, 1:]", ".logits[:, :-1], ids[:, 1:]"),),
        "test_ppo_ptx.py::test_the_loss_is_that_of_transformers_and_of_each_row_alone",
    ),
)


def copy_sources(folder: Path) -> None:
    for name in ("fourstage", "tests", "recipes"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)


def mutate(folder: Path, mutant: Mutant) -> None:
    for file, old, new in mutant.edits:
        source = (folder / file).read_text(encoding="utf-8")
        assert source.count(old) == 1, f"{mutant.name}: {old!r} stands {source.count(old)} times in {file}"
        (folder / file).write_text(source.replace(old, new), encoding="utf-8")


def failure(folder: Path, tests: list[str]) -> str:
    """What pytest says of a failing test, nothing if none fails; any other trouble, such as no test, is an error."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        *(f"tests/ppo/{test}" for test in tests),
    ]
    env = {**os.environ, "PYTHONPATH": str(folder), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    if done.returncode not in (0, 1):
        raise SystemExit(done.stdout[-2000:] + done.stderr[-2000:])
    return done.stdout[-6000:] if done.returncode else ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="mutants with this text in their name")
    chosen = [mutant for mutant in MUTANTS if parser.parse_args().only in mutant.name]
    alive = 0
    with tempfile.TemporaryDirectory() as temporary:
        original = Path(temporary) / "original"
        copy_sources(original)
        if trouble := failure(original, sorted({mutant.test for mutant in chosen})):
            raise SystemExit(f"{trouble}\na named test fails on the unchanged sources")
        print("| mutant | test | killed |\n|---|---|---|")
        for number, mutant in enumerate(chosen):
            folder = Path(temporary) / str(number)
            copy_sources(folder)
            mutate(folder, mutant)
            killed = bool(failure(folder, [mutant.test]))
            alive += not killed
            print(f"| {mutant.name} | `{mutant.test}` | {'yes' if killed else '**no**'} |", flush=True)
    return alive


if __name__ == "__main__":
    raise SystemExit(main())
