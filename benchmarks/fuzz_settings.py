"""Mutated settings of the five recipes: each is refused in one line before anything is written, or it starts.

    python benchmarks/fuzz_settings.py
    python benchmarks/fuzz_settings.py --count 300 --train

A mutation takes the settings of a small run and spoils a value, a name or the YAML itself, in the file or among the
flags. Every one runs in a process of its own, up to where the run folder would be opened; with --train to the end.
"""

import argparse
import contextlib
import importlib.util
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

ROOT = Path(__file__).parents[1]
SHAPE = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
QUICK = {"max_steps": 2, "per_device_train_batch_size": 4, "eval_steps": 2, "save_steps": 2, "report_to": "none"}
STAGES = ("pretrain", "sft", "reward", "ppo", "grpo")
# Settings that leave this process in another state or ask for what is far away.
LEFT_OUT = {"hub_token", "push_to_hub", "resume_from_checkpoint", "full_determinism", "debug"}
NUMBERS = (0, 1, 2, 7, -1, -3, 10**12, 0.5, 2.5, 1.0, -0.5, 1e-30, 1e30, float("nan"), float("inf"), float("-inf"))
WORDS = (
    "",
    " ",
    ".",
    "x",
    "no",
    "none",
    "auto",
    "5",
    "-1",
    "nan",
    "1e6",
    "true",
    "/dev/null/x",
    "a b",
    "é\x1b[2J",
    "{",
)
OTHERS = (None, True, False, [], [5], ["x"], [[1]], {}, {"a": 1}, {"x": None}, "y" * 5_000)
SCRAMBLES = {
    "a line twice": lambda text: text + text.splitlines(True)[0],
    "a tab": lambda text: text.replace(": ", ":\t\t- ", 1),
    "cut off": lambda text: text[: len(text) * 2 // 3] + "{",
    "a list": lambda text: "".join(f"- {line}" for line in text.splitlines(True)),
    "a tag": lambda text: text + "run_name: !!python/object/apply:os.getcwd []\n",
    "an alias to nothing": lambda text: text + "run_name: *there\n",
    "aliases of aliases": lambda text: text + "env: {A: &a [x, x], B: &b [*a, *a], C: [*b, *b]}\n",
    "a number as a key": lambda text: text + "5: 6\n",
    "null as a key": lambda text: text + "~: 6\n",
    "a list as a key": lambda text: text + "[a]: 6\n",
    "an `env` of numbers": lambda text: text + "env: {5: 6}\n",
    "an empty file": lambda text: "",
    "nested deep": lambda text: text + "run_name: " + "[" * 3_000 + "\n",
    "a NUL": lambda text: text + "run_name: \0\n",
}


@dataclass(frozen=True)
class Case:
    """One command: the YAML text, the flags after it, and in words what is wrong with them."""

    stage: str
    text: str
    flags: tuple[str, ...]
    what: str


class Accepted(Exception):
    """All checks before the first write were passed."""


def load_recipe(stage: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"recipe_{stage}", ROOT / "recipes" / f"{stage}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def field_names(stage: str) -> list[str]:
    kinds = list(load_recipe(stage).main.__annotations__.values())[:3]
    return sorted({f.name for kind in kinds for f in fields(kind) if f.init} - LEFT_OUT)


def run_program(stage: str, *flags: Any) -> None:
    words = [sys.executable, ROOT / "recipes" / f"{stage}.py", *flags]
    subprocess.run([str(word) for word in words], check=True, capture_output=True)


def yaml_of(values: dict[str, Any]) -> str:
    return yaml.safe_dump(values)


def small_run(stage: str, home: Path) -> dict[str, Any]:
    """Settings of a run of seconds, from what `prepare` leaves in `home`."""
    common = {**QUICK, "output_dir": "run", "dataset_name": str(home / f"{stage}.jsonl")}
    if stage == "pretrain":
        sizes = {"num_parameters": "43K", "vocab_size": 384, "config_overrides": SHAPE, "max_length": 64}
        return {**common, **sizes, "max_eval_rows": 4}
    common["model_name_or_path"] = str(home / ("base" if stage == "sft" else "sft"))
    if stage in ("ppo", "grpo"):
        common |= {"reward_funcs": ["number"], "max_completion_length": 4, "max_eval_rows": 4}
    return common | ({"gradient_accumulation_steps": 2} if stage == "grpo" else {})


def prepare(home: Path, run: Callable[..., Any] = run_program) -> None:
    """Rows for every stage, and a base and a tuned model of some 20,000 parameters.

    Args:
        run: runs a recipe of a name with flags.
    """
    sums = [(f"What is {i} plus {i % 7}?", str(i + i % 7)) for i in range(60)]
    told = "{} It is {}, as everybody knows who can count."
    rows = {
        "pretrain": [{"text": told.format(question, answer)} for question, answer in sums],
        "sft": [{"question": question, "answer": answer} for question, answer in sums],
        "reward": [{"prompt": question, "chosen": answer, "rejected": "0"} for question, answer in sums],
    }
    rows["ppo"] = rows["grpo"] = rows["sft"]
    for stage, of in rows.items():
        (home / f"{stage}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in of), encoding="utf-8")
    for stage, folder in (("pretrain", "base"), ("sft", "sft")):
        (home / f"{folder}.yaml").write_text(yaml_of(small_run(stage, home)), encoding="utf-8")
        run(stage, "--config", home / f"{folder}.yaml", "--output_dir", home / folder)


@st.composite
def cases(draw: st.DrawFn, home: Path) -> Case:
    """Settings of a small run with one or two of them spoilt."""
    stage = draw(st.sampled_from(STAGES))
    given_settings, flags = small_run(stage, home), []
    kind = draw(st.sampled_from(("value",) * 6 + ("flag",) * 3 + ("name", "structure")))
    if kind == "structure":
        what = draw(st.sampled_from(sorted(SCRAMBLES)))
        return Case(stage, SCRAMBLES[what](yaml_of(given_settings)), (), what)
    if kind == "name":
        name = draw(st.sampled_from(field_names(stage)))
        spoilt = draw(st.sampled_from((name[:-1], name + "s", name.replace("_", "", 1), name.upper(), f"-{name}")))
        return Case(stage, yaml_of(given_settings | {spoilt: 1}), (), f"{spoilt}: 1")
    name = draw(st.sampled_from(field_names(stage)))
    value = draw(
        st.sampled_from(NUMBERS + WORDS + OTHERS) | st.integers(-(2**40), 2**40) | st.floats(allow_subnormal=False)
    )
    if kind == "value":
        given_settings[name] = value
        return Case(stage, yaml_of(given_settings), (), f"{name}: {value!r}"[:200])
    text = value if isinstance(value, str) else json.dumps(value)
    flags = [f"--{name}={text}"] if draw(st.booleans()) else [f"--{name}", text]
    return Case(stage, yaml_of(given_settings), tuple(flags), " ".join(flags)[:200])


def outcome(case: Case, train: bool = False, seconds: float = 60) -> tuple[str, str]:
    """(kind, message) of a command in a process and an empty folder of its own."""
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as answer:
        child = os.fork()
        if child == 0:
            status = 1
            with contextlib.suppress(BaseException):
                os.setsid()
                answer.write(json.dumps(_in_child(case, Path(folder), train)).encode())
                answer.flush()
                status = 0
            os._exit(status)
        if not _ended(child, seconds):
            return "hang", ""
        answer.seek(0)
        kind, message = json.loads(answer.read() or '["died", ""]')
        return kind, message


def _ended(child: int, seconds: float) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if os.waitpid(child, os.WNOHANG)[0]:
            return True
        time.sleep(0.005)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def _in_child(case: Case, folder: Path, train: bool) -> tuple[str, str]:
    import torch

    import fourstage.artifact.run
    from fourstage.errors import reported_errors

    torch.set_num_threads(1)
    os.chdir(folder)
    config = folder.parent / f"{folder.name}.yaml"
    config.write_text(case.text, encoding="utf-8")
    sys.argv = [f"{case.stage}.py", "--config", str(config), *case.flags]
    if not train:
        fourstage.artifact.run.start_run = _accept
    said, error = io.StringIO(), None
    recipe = load_recipe(case.stage)
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 1)
    os.dup2(devnull, 2)
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()), reported_errors():
            kinds = list(recipe.main.__annotations__.values())[:3]
            recipe.main(*recipe.parse(str(ROOT / "recipes" / f"{case.stage}.py"), *kinds))
    except BaseException as raised:
        error = raised
    finally:
        config.unlink(missing_ok=True)
    written = sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
    return judge(error, said.getvalue(), written)


def _accept(*args: Any, **kwargs: Any) -> None:
    raise Accepted


def judge(error: BaseException | None, said: str, written: list[str]) -> tuple[str, str]:
    """What a command came to, by what it raised, what it said on stderr and which files it left."""
    if error is None:
        return "ran", ""
    if isinstance(error, Accepted):
        return ("wrote", str(written)) if written else ("accepted", "")
    last = ([line for line in said.splitlines() if line.startswith("error: ")] or [""])[-1]
    if isinstance(error, SystemExit) and error.code == 2 and last:
        whole = said[said.index(last) :].rstrip("\n")
        if not whole.isprintable():
            return "not one line", whole[:400]
        return ("refused late", f"{last[:300]}") if written else ("refused", last[:400])
    if isinstance(error, SystemExit):
        return f"exit {error.code}", ""
    return ("late " if written else "") + "exception", f"{type(error).__name__}: {error}"[:400]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2_000, help="commands (default: 2000)")
    parser.add_argument("--seed", type=int, default=0, help="of the mutations (default: 0)")
    parser.add_argument("--train", action="store_true", help="run what is accepted to its end, seconds each")
    parser.add_argument("--list", type=Path, help="file for every command and what it came to")
    args = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory() as home:
        os.environ["HF_DATASETS_CACHE"] = str(Path(home) / "cache")
        prepare(Path(home))
        warm_up()
        rows = fuzz(Path(home), args.count, args.seed, args.train)
    if args.list:
        args.list.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    print(table(rows))


def warm_up() -> None:
    """Imports once what every child needs."""
    import trl.trainer.grpo_trainer  # noqa: F401

    import fourstage.ppo
    import fourstage.resolve

    fourstage.ppo.PPOTrainer  # noqa: B018


def fuzz(home: Path, count: int, number: int, train: bool = False) -> list[tuple[str, str, str, str]]:
    """(stage, what is wrong, kind, message) of `count` commands, the same for the same number."""
    rows = []

    @seed(number)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(cases(home))
    def one(case: Case) -> None:
        rows.append((case.stage, case.what, *outcome(case, train)))

    one()
    return rows


def table(rows: list[tuple[str, str, str, str]]) -> str:
    kinds = sorted({kind for _, _, kind, _ in rows})
    counts = Counter((stage, kind) for stage, _, kind, _ in rows)
    lines = ["| stage | " + " | ".join(kinds) + " |", "|---|" + "---|" * len(kinds)]
    for stage in STAGES:
        lines.append(f"| {stage} | " + " | ".join(str(counts[stage, kind]) for kind in kinds) + " |")
    sums = Counter(kind for _, _, kind, _ in rows)
    return "\n".join([*lines, "| all | " + " | ".join(str(sums[kind]) for kind in kinds) + " |"])


if __name__ == "__main__":
    main()
