"""The whole chain, random weights to a reasoning model: every stage from the one before, then the table and the report.

    python recipes/pipeline.py
    python recipes/pipeline.py --output_dir runs/three --seeds 3 --check
    python recipes/pipeline.py --stages reward ppo
    python recipes/pipeline.py --stages reward ppo --pairs runs/demo/prefs.jsonl

Every recipe runs by `accelerate launch` as a process of its own with recipes/configs/MODEL/STAGE.yaml. The same command
again skips what is done and resumes what was cut off. It leaves stages.json, stages.md, report.html and logs/. With the
choices of `fourstage prefer` the reward model and PPO are those of a round in prefer/, beside the chain's own.
"""

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from fourstage.atomic import write_atomically
from fourstage.children import child, run_child
from fourstage.demo.clock import CHAIN, Clock, duration, minutes_here, say
from fourstage.errors import reported_errors
from fourstage.imports import lean_imports, quiet_libraries, set_waiting
from fourstage.ranges import whole_number
from fourstage.signals import last_words
from fourstage.stages import STAGES, parents_of

if TYPE_CHECKING:
    from fourstage.prefer.rounds import Round

RECIPES = Path(__file__).resolve().parent
MEASURED = ["random", *CHAIN]
FAST = {"pretrain": 20, "sft": 20, "reward": 6, "ppo": 8, "grpo": 2, "control": 2}  # steps
ITEMS, FAST_ITEMS = 500, 20  # measured of every kind
# What the terminal shows of a stage as soon as it is measured: (heading, factor).
SHOWN = {
    "bits_per_byte": ("bits/byte", 1),
    **{kind: (kind, 100) for kind in ("reading", "summary", "code", "glossary", "arithmetic", "derivations")},
    "preferred": ("preferred", 100),
}


def arguments() -> argparse.Namespace:
    models = sorted(folder.name for folder in (RECIPES / "configs").iterdir() if (folder / "grpo.yaml").is_file())
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", default="demo", choices=models, help="folder in recipes/configs (default: demo)")
    add("--output_dir", type=Path, help="where all of it goes (default: runs/MODEL, with --fast runs/MODEL-fast)")
    add("--seed", type=whole_number(0, 2**32 - 1), default=0, help="of weights, order and samples (default: 0)")
    add(
        "--seeds",
        type=whole_number(1, 1_000),
        default=1,
        help="chains, from --seed on, each in a folder of its own (default: 1)",
    )
    add("--stages", nargs="+", choices=CHAIN, metavar="STAGE", help=f"of {', '.join(CHAIN)} (default: all)")
    add("--pairs", type=Path, metavar="FILE", help="choices of `fourstage prefer`: reward and ppo learn from them")
    add("--fast", action="store_true", help="a few steps a stage: shows that all runs, not that anything is learned")
    add("--check", action="store_true", help="exit with 1 if a figure falls short of what the chain has to reach")
    add("--config_file", help="launch the recipes by accelerate with this file (default: one process on the CPU)")
    args = parser.parse_args()
    args.output_dir = args.output_dir or Path("runs") / (args.model + ("-fast" if args.fast else ""))
    args.stages = args.stages or (["reward", "ppo"] if args.pairs else CHAIN)
    if args.pairs and (args.seeds > 1 or {*args.stages} - {"reward", "ppo"}):
        parser.error("--pairs: one seed, and --stages reward, ppo or both")
    return args


def main(args: argparse.Namespace) -> int:
    started = time.monotonic()
    set_waiting()
    if args.pairs:
        return follow_choices(args, started)
    folders = chain_folders(args)
    former = check_folders(args, folders)
    if args.model == "demo" and not args.fast:
        left = [s for s in args.stages for f in folders.values() if not (f / s / "run.json").is_file()]
        minutes = minutes_here(left)
        print(f"about {minutes} minute{'s' * (minutes > 1)} on this machine, more where it is busy", flush=True)
    for seed, folder in folders.items():
        for _, together in groupby(CHAIN, key=lambda name: STAGES[name].recipe):  # GRPO and its control at once
            asked = [stage for stage in together if stage in args.stages]
            clocks = [Clock(args, started, seed, stage, stage == asked[0]) for stage in asked]
            jobs: list[Callable[[int], None]] = [partial(run_stage, args, folder, seed, clock) for clock in clocks]
            unmeasured = [stage for stage in MEASURED if is_unmeasured(folder, stage)]
            if unmeasured and asked == ["ppo"]:  # midway, and long enough for it
                jobs.append(partial(measure_stages, args, folder, seed, unmeasured))
            run_at_once(jobs)
    table = whole_table(args, folders, started, former)
    write_atomically(args.output_dir / "stages.json", json.dumps(table, indent=1, ensure_ascii=False) + "\n")
    from fourstage.demo.table import markdown
    from fourstage.report import write_report

    write_atomically(args.output_dir / "stages.md", markdown(table))
    report = write_report(args.output_dir)
    print(f"\n{markdown(table)}\n{show_checks(table['checks'])}")
    print(f"\n{duration(time.monotonic() - started)} in all; open {report}")
    return int(args.check and not all(check["passed"] for check in table["checks"]))


def chain_folders(args: argparse.Namespace) -> dict[int, Path]:
    """{seed: folder}: the output folder itself for one chain, a folder below it for each of several."""
    seeds = range(args.seed, args.seed + args.seeds)
    return {seed: args.output_dir / f"seed-{seed}" if args.seeds > 1 else args.output_dir for seed in seeds}


def check_folders(args: argparse.Namespace, folders: dict[int, Path]) -> dict | None:
    """Looks, before anything runs, at what is there; returns the former stages.json.

    Raises:
        ValueError: for a broken file, runs of another seed, and stages whose parent is neither there nor asked for.
    """
    former, choose = read_json(args.output_dir / "stages.json"), "choose another --output_dir"
    if former and former["seeds"] != list(folders):
        raise ValueError(f"{args.output_dir} holds seeds {former['seeds']}, asked for {list(folders)}; {choose}")
    for seed, folder in folders.items():
        records = {stage: read_json(folder / stage / "run.json") for stage in CHAIN}
        for stage, record in records.items():
            if record and record["seed"] != seed:
                raise ValueError(f"{folder / stage} holds seed {record['seed']}, asked for {seed}; {choose}")
        for stage in args.stages:
            for parent in {*parents_of(stage)} - {*args.stages}:
                if not records[parent] or records[parent]["status"] != "finished":
                    raise ValueError(
                        f"{stage} needs {folder / parent}, which is not finished; add {parent} to --stages"
                    )
    return former


def read_json(path: Path) -> dict | None:
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is broken ({error}); mend or remove it, nothing was changed") from None


def command(args: argparse.Namespace, stage: str, folder: Path, seed: int, processes: int = 1) -> list[str]:
    """What a person would type for this stage, of `processes` that run at once."""
    recipe, parent = STAGES[stage].recipe, STAGES[stage].parent
    words = ["--config", RECIPES / "configs" / args.model / f"{recipe}.yaml", "--output_dir", folder / stage]
    words += ["--seed", seed]
    if parent:
        words += ["--model_name_or_path", folder / parent]
    if stage == "ppo":
        words += ["--reward_model_name_or_path", folder / "reward"]
    if stage == "control":
        words += ["--control", "random_reward"]
    if args.fast:
        words += ["--max_steps", FAST[stage]] + (["--max_eval_rows", 4] if stage not in ("sft", "reward") else [])
    return launched(args, recipe, words, processes)


def launched(args: argparse.Namespace, recipe: str, words: list, processes: int) -> list[str]:
    launcher = [sys.executable]
    if args.config_file:
        launcher += ["-m", "accelerate.commands.launch", "--quiet", "--config_file", args.config_file]
        launcher += ["--num_cpu_threads_per_process", threads_of(processes)] if processes > 1 else []
    return [str(word) for word in [*launcher, RECIPES / f"{recipe}.py", *words]]


def threads_of(processes: int) -> int:
    """The threads that each of so many processes at once may have."""
    return max(1, int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0))) // processes)


def run_at_once(jobs: list[Callable[[int], None]]) -> None:
    """Calls each job with the number of all: two processes of one thread do more than one after another of two."""
    with ThreadPoolExecutor(len(jobs) or 1) as pool:
        for job in [pool.submit(job, len(jobs)) for job in jobs]:
            job.result()


def run_stage(args: argparse.Namespace, folder: Path, seed: int, clock: Clock, processes: int) -> None:
    stage = clock.stage
    run_recipe(command(args, stage, folder, seed, processes), folder / "logs" / f"{stage}.log", clock, processes)
    clock.done(folder / stage)


def run_recipe(words: list[str], log: Path, clock: Clock, processes: int) -> None:
    """Runs a recipe, one of `processes` at once, its output into a log; shows how far it is.

    Raises:
        SystemExit: if the recipe fails, with the last lines of its log.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    launched = words[1] == "-m"  # by accelerate, which sets what is needed
    typed = [word.removeprefix(f"{Path.cwd()}/") for word in words[3 if launched else 1 :]]  # as from this folder
    say(f"$ {'accelerate launch' if launched else 'python'} {shlex.join(typed)}")
    one = {} if launched else {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": str(threads_of(processes))}
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    env = {**os.environ, "PYTHONUNBUFFERED": "1", **one}
    with log.open("ab") as out, child(words, env=env, **options) as process:
        while chunk := os.read(process.stdout.fileno(), 65536):
            out.write(chunk)
            clock.show(chunk.decode("utf-8", "replace"))
    if process.returncode:
        last = re.split(r"[\r\n]+", log.read_text(encoding="utf-8", errors="replace").strip())[-15:]
        why = f"{clock.stage} failed with exit code {process.returncode}; all that it wrote: {log}"
        raise SystemExit("\n".join(["", *last, "", why]))


def follow_choices(args: argparse.Namespace, started: float) -> int:
    """A round of learning from a person's choices: reward models, PPO if they foresee the person, the small report."""
    with lean_imports():
        from fourstage.prefer import rounds
        from fourstage.prefer.followed import followed, unseen_scores
        from fourstage.report.followed import write_followed
    quiet_libraries()
    parent = args.output_dir / "sft"
    if not is_finished(args.output_dir, "sft"):
        raise ValueError(f"--pairs needs {parent}, which is not finished; run the chain up to sft first")
    for recipe in ("reward", "ppo"):
        if not (RECIPES / "configs" / args.model / f"{recipe}-choices.yaml").is_file():
            raise ValueError(f"--pairs: recipes/configs/{args.model} has no {recipe}-choices.yaml; write one")
    this = rounds.open_round(args.output_dir / "prefer", args.pairs)
    print(f"{len(this.pairs)} pairs of {args.pairs}; this round: {this.folder}", flush=True)
    if "reward" in args.stages:
        train_reward_models(args, this, started)
    elif not is_finished(this.folder, "reward"):
        raise ValueError(f"ppo needs {this.folder / 'reward'}, which is not finished; add reward to --stages")
    found = rounds.held_out_agreement(*unseen_scores(this))
    print(rounds.describe_agreement(found), flush=True)
    goes_on = found["better"] or args.fast or "reward" not in args.stages
    if "ppo" in args.stages and goes_on:
        words = ["--model_name_or_path", parent, "--reward_model_name_or_path", this.folder / "reward"]
        train_on_choices(args, "ppo", this.folder, words, Clock(args, started, args.seed, "ppo", live=True))
    report = write_followed(followed(this, parent, FAST_ITEMS if args.fast else 200), this.folder / "report.html")
    print(f"\n{duration(time.monotonic() - started)} in all; open {report}")
    if "ppo" in args.stages and not goes_on:
        print("PPO was not run: it would follow noise. More choices by one steady taste help; to go on all the same:")
        print(f"  python recipes/pipeline.py --stages ppo --pairs {args.pairs} --output_dir {args.output_dir}")
    return int("ppo" in args.stages and not goes_on)


def train_reward_models(args: argparse.Namespace, this: "Round", started: float) -> None:
    """One on all pairs, for PPO, and one without each fold, to be asked about it: two at once."""
    words = ["--model_name_or_path", args.output_dir / "sft", "--dataset_name"]
    runs = [(this.fold(number), this.fold(number) / "choices") for number in this.folds()]
    runs = [(this.folder, this.choices), *runs]

    def run(folder: Path, data: Path) -> None:
        clock = Clock(args, started, args.seed, "reward", live=folder == this.folder)
        train_on_choices(args, "reward", folder, [*words, data], clock)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(run, *zip(*runs, strict=True)))


def train_on_choices(args: argparse.Namespace, recipe: str, folder: Path, words: list, clock: Clock) -> None:
    config = RECIPES / "configs" / args.model / f"{recipe}-choices.yaml"
    words = ["--config", config, *words, "--output_dir", folder / recipe, "--seed", args.seed]
    if args.fast:
        words += ["--max_steps", FAST[recipe]] + (["--max_eval_rows", 4] if recipe == "ppo" else [])
    processes = 2 if recipe == "reward" else 1
    run_recipe(launched(args, recipe, words, processes), folder / "logs" / f"{recipe}.log", clock, processes)
    clock.done(folder / recipe)


def is_unmeasured(folder: Path, stage: str) -> bool:
    """Whether a finished stage has weights that are newer than what was measured of it."""
    part, record = folder / "measured" / f"{stage}.json", folder / weights_of(stage) / "run.json"
    return is_finished(folder, stage) and not (part.is_file() and part.stat().st_mtime >= record.stat().st_mtime)


def is_finished(folder: Path, stage: str) -> bool:
    record = read_json(folder / weights_of(stage) / "run.json")
    return bool(record) and record["status"] == "finished"


def weights_of(stage: str) -> str:
    """The stage whose folder holds what is measured: random weights are drawn again from what pre-training kept."""
    return "pretrain" if stage == "random" else stage


def measure_stages(args: argparse.Namespace, folder: Path, seed: int, stages: list[str], processes: int) -> None:
    """Measures stages on half of the cores, beside `processes` - 1 others, or three at once; shows their rows."""
    titles = {stage: "0 random weights" if stage == "random" else STAGES[stage].title for stage in stages}
    say(f"measuring {', '.join(titles.values())}")
    with ThreadPoolExecutor(1 if processes > 1 else 3) as pool:  # two at once leave a core idle under the third
        for stage in pool.map(lambda stage: measure_stage(args, folder, seed, stage), stages):
            metrics = (read_json(folder / "measured" / f"{stage}.json") or {})["row"]["metrics"]
            shown = {name: factor for name, (_, factor) in SHOWN.items() if name in metrics} or {"accuracy": 100}
            cells = [f"{SHOWN.get(k, ('pairs right', 0))[0]} {metrics[k]['mean'] * by:.3g}" for k, by in shown.items()]
            say(f"  {titles[stage]}: {', '.join(cells)}")


def measure_stage(args: argparse.Namespace, folder: Path, seed: int, stage: str) -> str:
    """Measures one stage in a process of its own; returns its name."""
    items = FAST_ITEMS if args.fast else ITEMS
    words = ["-m", "fourstage.demo", folder, stage, "--seed", seed, "--items", items]
    done = run_child([sys.executable, *map(str, words)], env={**os.environ, "OMP_NUM_THREADS": str(threads_of(2))})
    if done.returncode:
        raise SystemExit(f"measuring {stage} failed\n{done.stderr[-3000:]}")
    return stage


def whole_table(args: argparse.Namespace, folders: dict[int, Path], started: float, former: dict | None) -> dict:
    """stages.json: what every finished stage does with held-out items, on this machine."""
    with lean_imports():
        from fourstage.artifact.record import git_sha
        from fourstage.demo import checks, table
        from fourstage.demo.measured import chain_rows, read_part
        from fourstage.parent import weights_hash
    quiet_libraries()

    paths = [folder / stage for folder in folders.values() for stage in CHAIN if (folder / stage).is_dir()]
    measured = {str(path.relative_to(args.output_dir)): weights_hash(str(path)) for path in paths} | {"code": git_sha()}
    if former and former["measured"] == measured:
        return former
    items = FAST_ITEMS if args.fast else ITEMS
    for seed, folder in folders.items():
        done = [stage for stage in MEASURED if is_finished(folder, stage)]
        if stale := [stage for stage in done if not read_part(folder, stage, items)]:
            measure_stages(args, folder, seed, stale, processes=1)
    chains = [chain_rows(folder, items) for folder in folders.values()]
    rows, scorers = table.combine([rows for rows, _ in chains]), [[scorer] for _, scorer in chains]
    reward_model = table.combine(scorers)[0] if all(scorer for (scorer,) in scorers) else None
    return {
        "model": args.model,
        "seeds": list(folders),
        "folders": [str(folder.relative_to(args.output_dir)) for folder in folders.values()],
        "fast": args.fast,
        "measured": measured,
        "machine": table.machine(),
        "seconds": time.monotonic() - started,  # of the command that measured; a chain that was cut off took longer
        "columns": table.columns(),
        "rows": rows,
        "reward_model": reward_model,
        "checks": checks.checks(rows, reward_model),
    }


def show_checks(done: list[dict]) -> str:
    lines = [f"{'ok  ' if c['passed'] else 'FAIL'} {c['name']}: {c['figure']:.3f} (want {c['want']})" for c in done]
    return "\n".join(lines)


if __name__ == "__main__":
    with reported_errors():
        last_words("stopped by {signal}; the same command goes on from here")
        sys.exit(main(arguments()))
