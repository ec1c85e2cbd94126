"""`fourstage plan RECIPE ...`: what a run will need, before it is launched."""

import argparse
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from fourstage.imports import lean_imports

if TYPE_CHECKING:
    from fourstage.plan.planning import Plan

_ENGINES = ("none", "ddp", "zero2", "zero3", "fsdp2")
_USAGE = "fourstage plan RECIPE --config FILE.yaml [recipe flags ...] [--gpu h100] [--num_gpus 8] [--engine ddp]"


def run_plan(words: Sequence[str]) -> int:
    """Prints the plan of a recipe's settings; the exit status.

    Raises:
        ValueError: of one line, for whatever is wrong with the settings.
    """
    own, flags = _parser().parse_known_args(list(words))
    with lean_imports():
        from fourstage.plan.hardware import gpu, this_machine
        from fourstage.plan.planning import Target, make_plan
        from fourstage.plan.recipe import as_on_gpu, read_settings
        from fourstage.plan.table import describe
    settings = read_settings(own.recipe, flags)
    elsewhere = own.gpu is not None or own.gpu_memory is not None
    if elsewhere:
        as_on_gpu(settings)
    device = gpu(own.gpu, own.gpu_memory) if elsewhere else this_machine()
    engine = own.engine or ("ddp" if own.num_gpus > 1 else "none")
    plan = make_plan(settings, Target(device, own.num_gpus, engine, own.prompt_tokens))
    print(describe(plan, own.price), flush=True)
    estimate = max(sum(plan.training.values()), sum(plan.generation.values()))
    result: dict[str, Any] = {"estimate": estimate, "training": plan.training}
    result |= {"generation": plan.generation, "need": plan.need, "fits": plan.fits, "steps": plan.steps}
    result["seconds"] = plan.seconds
    if own.measure:
        result["measured"] = _measure(own, flags, plan, estimate)
    if own.json:
        own.json.write_text(json.dumps(result, indent=2))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fourstage plan", usage=_USAGE, allow_abbrev=False)
    parser.error = _refuse
    add = parser.add_argument
    add("recipe", metavar="RECIPE", help="pretrain, sft, reward, ppo or grpo; its own flags may follow")
    add("--gpu", metavar="NAME", help="h100, h200, a100, l40s or 4090 (default: this machine)")
    add("--gpu_memory", type=float, metavar="GB", help="of a GPU that has no name here")
    add("--num_gpus", type=int, default=1, help="processes, one a GPU (default: 1)")
    add("--engine", choices=_ENGINES, help="default: ddp for several, else none")
    add("--price", type=float, help="of a GPU for an hour")
    add("--prompt_tokens", type=int, help="ppo, grpo: the longest prompt (default: of the data, if they are here)")
    measured = "take a few real steps here, and print what they held and took: allocated, resident (CPU) or both"
    add("--measure", nargs="?", const="both", choices=("allocated", "resident", "both"), help=measured)
    add("--json", type=Path, metavar="FILE", help="write the figures to a file, in bytes")
    return parser


def _refuse(message: str) -> NoReturn:
    raise ValueError(f"plan: {message}; fourstage plan --help lists what it takes")


def _measure(own: argparse.Namespace, flags: list[str], plan: "Plan", estimate: int) -> dict[str, float]:
    from fourstage.plan.table import size, timed

    ways = ("allocated", "resident") if own.measure == "both" else (own.measure,)
    measured: dict[str, float] = {}
    for way in ways:
        found = measure(own.recipe, flags, way, plan.round)
        measured[way] = found["peak"]
        ratio = f"estimate / measured {estimate / found['peak']:.2f}"
        print(f"{'measured':<13}{size(found['peak'])} {found['what']}; {ratio}", flush=True)
        if "seconds" in found:
            measured["seconds"] = found["seconds"]
            print(f"{'timed':<13}{timed(plan, found['seconds'], own.price)}", flush=True)
        if found["what"] == "max_memory_allocated":
            break
    return measured


def measure(stage: str, flags: list[str], way: str, a_round: int = 1) -> dict:
    """A few real steps of a recipe on this machine in a program of its own, in a folder that is thrown away.

    Two under the profiler that sees what is allocated on a CPU, else a round of steps to begin with and further rounds,
    at least 4 steps.
    Raises:
        ValueError: with its last line, if the recipe fails.
    """
    import torch

    from fourstage.shipped import shipped_folder

    recipe = shipped_folder() / "recipes" / f"{stage}.py"
    flags = flags or ["--config", str(recipe.parent / "configs" / "demo" / f"{stage}.yaml")]
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        profiled = way == "allocated" and not torch.cuda.is_available()
        steps = 2 if profiled else a_round * (1 + math.ceil(4 / a_round))
        quick = [
            "--max_steps",
            str(steps),
            "--output_dir",
            f"{folder}/run",
            "--report_to",
            "none",
            "--eval_strategy",
            "no",
        ]
        quick += ["--eval_on_start", "false", "--save_strategy", "no", "--torch_compile", "false"]
        program = [sys.executable, "-m", "fourstage.plan.measuring", str(result), way, str(a_round), str(recipe)]
        done = subprocess.run([*program, *flags, *quick], capture_output=True, text=True)
        if not result.is_file():
            lines = (done.stderr or done.stdout).strip().splitlines() or ["no output"]
            raise ValueError(f"measure: the recipe stopped: {lines[-1]}")
        return json.loads(result.read_text())
