"""Does every recipe train the same under DDP, ZeRO-2, ZeRO-3 and FSDP2 as in one process? A table, and JSON.

    python benchmarks/sharding.py OUTPUT_DIR
    python benchmarks/sharding.py OUTPUT_DIR --cases sft sft-lora --engines one fsdp2
    python benchmarks/sharding.py OUTPUT_DIR --chain runs/demo
    python benchmarks/sharding.py OUTPUT_DIR --processes 4
    python benchmarks/sharding.py OUTPUT_DIR --memory 10M
    python benchmarks/sharding.py OUTPUT_DIR --speed 10M

A run is 5 updates in float32 on the CPU, with 8 rows an update: in one process, or divided between two (--processes).
It starts from a chain of about 200,000 parameters, made first, or from the folders pretrain, sft and reward of --chain.
FSDP2 runs on CPUs through the patch in tests/sharded; ZeRO needs the extra deepspeed.

Compared with one process are all that the trainer logs but times, rates and counts, the figures on held-out rows
among it, and the weights that the run leaves. Muon under DeepSpeed is AdamW, and compared with it. "Apart by" is the
largest difference of a figure over its largest value in the reference run. A finished run is not run again.

With --memory: the most that torch's tensors take in one process over the two steps of sft, of PPO, policy and critic
of that size, and of PPO with LoRA, by engine, its share of what one process alone takes; what `fourstage plan` says,
over it.

With --speed: seconds of a step of pretrain, sft and reward in two processes of one thread (DDP), and in one process of
two threads, each the difference of a long and a short run; interleaved, three pairs. To be run on two idle cores.
"""

import argparse
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import load_file

ROOT = Path(__file__).parents[1]
ENGINES = ("one", "ddp", "zero2", "zero3", "fsdp2")
NOT_COMPARED = re.compile(
    r"runtime|per_second|step_time|total_flos|epoch|learning_rate|^step$|^train_loss$|num_|ratio_var$"
)
EQUAL = 1e-4  # sums in another order come to about 1e-6
SMALLEST = 0.01  # a figure below is compared as if its largest value were this: it is a difference of larger ones
ALL = ["--dataset_name=fourstage/demo", "--report_to=none", "--seed=3", "--bf16=false", "--torch_compile=false"]
TRIAL = ["--max_steps=5", "--logging_steps=1", "--save_strategy=no", "--eval_strategy=no", "--eval_on_start=false"]
BASE = ["pretrain", "--num_parameters=200K", "--vocab_size=512", "--max_length=128", "--max_eval_rows=16"]
RL = ["--max_completion_length=16", "--max_eval_rows=8", "--gradient_accumulation_steps=1", "--learning_rate=1e-4"]


def chain_commands(chain: Path) -> dict[str, list[str]]:
    """{stage: recipe and flags} of the models that the runs start from."""
    short = ["--eval_strategy=no", "--eval_on_start=false", "--save_strategy=no", "--max_steps=40"]
    return {
        "pretrain": [*BASE, *short],
        "sft": ["sft", f"--model_name_or_path={chain / 'pretrain'}", "--use_muon", "--learning_rate=3e-3", *short],
        "reward": ["reward", f"--model_name_or_path={chain / 'sft'}", "--learning_rate=2e-3", *short],
    }


def cases(chain: Path) -> dict[str, list[str]]:
    """{case: recipe and flags}."""
    base, tuned = (f"--model_name_or_path={chain / stage}" for stage in ("pretrain", "sft"))
    scored = f"--reward_model_name_or_path={chain / 'reward'}"
    full = {
        "pretrain": [*BASE, "--no_use_muon"],
        "pretrain-muon": BASE,
        "sft": ["sft", base],
        "reward": ["reward", tuned],
        "ppo": ["ppo", tuned, scored, *RL],
        "ppo-ptx": ["ppo", tuned, scored, *RL, "--ptx_dataset_name=fourstage/demo"],
        "grpo": ["grpo", tuned, scored, "--num_generations=4", *RL],
    }
    trained = full | {"pretrain": ["pretrain", base, "--max_length=128", "--max_eval_rows=16"]}  # which adapters need
    adapted = {
        f"{case}-lora": [*trained[case], "--use_peft", "--lora_dropout=0"]
        for case in ("pretrain", "sft", "reward", "ppo", "grpo")
    }
    return full | adapted


def launch(
    engine: str,
    folder: Path,
    recipe: str,
    flags: list[str],
    rows: int = 8,
    through: Sequence[object] = (),
    threads: int = 1,
    processes: int = 2,
) -> str:
    """Runs a recipe into `folder`, logging to FOLDER.log. Returns "" if it succeeded, else the line that says why.

    `through` is a program that runs the recipe, and its arguments before it.
    """
    if (folder / "trainer_state.json").is_file():
        return ""
    folder.parent.mkdir(parents=True, exist_ok=True)
    config = {"one": "cpu"}.get(engine, engine)
    words = [sys.executable, "-m", "accelerate.commands.launch", "--quiet"]
    words += ["--config_file", str(ROOT / "accelerate_configs" / f"{config}.yaml")]
    path = [str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    more = {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    if engine != "one":
        words += ["--num_processes", str(processes), "--main_process_port", free_port()]
        rows //= processes
    if engine == "fsdp2":
        path.insert(0, str(ROOT / "tests" / "sharded"))
        more["FSDP_ON_CPU"] = "1"
    words += [
        *map(str, through),
        str(ROOT / "recipes" / f"{recipe}.py"),
        *flags,
        f"--per_device_train_batch_size={rows}",
        *ALL,
    ]
    with open(f"{folder}.log", "w") as log:
        environment = {**os.environ, **more, "PYTHONPATH": os.pathsep.join(filter(None, path))}
        done = subprocess.run(
            [*words, f"--output_dir={folder}"], cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT
        )
    return why(Path(f"{folder}.log")) if done.returncode else ""


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def why(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    refused = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if refused:
        return f"refused: {refused[0]}"
    errors = [re.sub(r"^\[rank\d+\]: ", "", line) for line in lines]
    errors = [line for line in errors if re.match(r"[\w.]*(Error|Exception)\b", line) and "ChildFailed" not in line]
    return f"FAILED: {errors[-1] if errors else lines[-1:]}"


def figures(folder: Path) -> dict[str, list[float]]:
    """{name: its values in the order logged}."""
    found: dict[str, list[float]] = {}
    for row in json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]:
        for name, value in row.items():
            if not NOT_COMPARED.search(name):
                found.setdefault(name, []).append(float(value))
    return found


def compare(folder: Path, reference: Path) -> dict:
    """How far a run is from its reference: the figure that is furthest, the gradient norm, the weights."""
    ours, theirs, apart = figures(folder), figures(reference), {}
    missing = sorted(ours.keys() ^ theirs.keys())
    for name in ours.keys() & theirs.keys():
        largest = max(*map(abs, theirs[name]), SMALLEST)
        apart[name] = max(abs(a - b) / largest for a, b in zip(ours[name], theirs[name], strict=True))
    worst = max(apart, key=lambda name: apart[name])
    mine, other = (load_file(path / "model.safetensors") for path in (folder, reference))
    weights = max((mine[name].float() - other[name].float()).abs().max().item() for name in other)
    return {"apart": apart[worst], "figure": worst, "missing": missing, "weights": weights, "figures": ours}


def in_words(result: dict) -> str:
    if result.get("why"):
        return result["why"].split(": ")[0]
    if "apart" not in result:
        return "reference"
    if result["apart"] <= EQUAL and not result["missing"]:
        return f"equal ({result['apart']:.0e})"
    return f"apart by {result['apart']:.1e} ({result['figure']})"


def run_case(out: Path, chain: Path, case: str, engine: str, processes: int) -> dict:
    """Runs a case, and its reference where that is still to be run."""

    def run(case: str, engine: str) -> tuple[Path, str]:
        folder, (recipe, *flags) = out / f"{case}-{engine}", cases(chain)[case]
        if not (folder / "trainer_state.json").is_file():
            shutil.rmtree(folder, ignore_errors=True)  # what a failed run left
        return folder, launch(engine, folder, recipe, [*flags, *TRIAL], processes=processes)

    adamw = case == "pretrain-muon" and engine.startswith("zero")  # which takes the place of Muon there
    reference, failed = run("pretrain" if adamw else case, "one")
    folder, failed = (reference, failed) if failed else run(case, engine)
    if failed:
        return {"why": failed}
    return {"figures": figures(folder)} if folder == reference else compare(folder, reference)


def memory(out: Path, size: str, engines: list[str]) -> str:
    """A table of the largest peak of a process, in MB, by stage and engine."""
    short = ["--max_steps=2", "--save_strategy=no", "--eval_strategy=no", "--eval_on_start=false"]
    big = {"pretrain": [*BASE, f"--num_parameters={size}"], "reward": ["reward"], "sft": ["sft"], "ppo": ["ppo", *RL]}
    base, scored = f"--model_name_or_path={out / 'pretrain'}", f"--reward_model_name_or_path={out / 'reward'}"
    for stage in ("pretrain", "reward"):
        parent = [base] if stage == "reward" else []
        if failed := launch("one", out / stage, big[stage][0], [*big[stage][1:], *parent, *short]):
            raise SystemExit(f"{stage}: {failed}")
    lines = [f"| {size} | {' | '.join(engines)} |", "|---" * (len(engines) + 1) + "|"]
    adapters = ["--use_peft", "--lora_dropout=0"]
    for stage, more in (("sft", [base]), ("ppo", [base, scored]), ("ppo-lora", [base, scored, *adapters])):
        peaks, estimates = {}, {}
        for engine in engines:
            folder, file = out / f"{stage}-{engine}", out / f"{stage}-{engine}.json"
            recipe, *flags = big[stage.removesuffix("-lora")]
            through = ("-m", "fourstage.plan.measuring", file, "allocated", 1)
            if failed := launch(engine, folder, recipe, [*flags, *more, *short], through=through):
                raise SystemExit(f"{stage}, {engine}: {failed}")
            peaks[engine] = max(json.loads(path.read_text())["peak"] for path in out.glob(f"{file.name}*"))
            estimates[engine] = estimated(recipe, [*flags, *more], engine) / peaks[engine]
            print(stage, engine, peaks[engine], f"{estimates[engine]:.3f}", flush=True)
        cells = [
            f"{peak / 1e6:.0f} MB ({peak / peaks[engines[0]]:.2f}; {estimates[engine]:.2f})"
            for engine, peak in peaks.items()
        ]
        lines.append(f"| {stage} | {' | '.join(cells)} |")
    return "\n".join(lines)


def estimated(recipe: str, flags: list[str], engine: str, rows: int = 8, processes: int = 2) -> int:
    """What `fourstage plan` says of one process: it rehearses a CPU's run and divides it as the engine does."""
    from fourstage.plan.engines import per_process
    from fourstage.plan.hardware import this_machine
    from fourstage.plan.planning import Target, make_plan
    from fourstage.plan.recipe import read_settings

    rows, engine = (rows, "none") if engine == "one" else (rows // processes, engine)
    settings = read_settings(recipe, [*flags, f"--per_device_train_batch_size={rows}", *ALL])
    plan = make_plan(settings, Target(this_machine(), 1, "none"))
    training = per_process(plan.found, engine, processes, half=False)
    return max(sum(training.values()), sum(plan.generation.values()))


def speed(out: Path, size: str, pairs: int = 3, steps: int = 24) -> str:
    """A table of the seconds of a step in two processes and in one of two threads, and one over two."""
    quiet = ["--save_strategy=no", "--eval_strategy=no", "--eval_on_start=false"]
    commands = {"pretrain": [*BASE, f"--num_parameters={size}"], "sft": ["sft"], "reward": ["reward"]}
    parent: list[str] = []
    lines = [f"| {size} | two processes of one thread | one process of two | ratio |", "|---|---|---|---|"]
    for stage, (recipe, *flags) in commands.items():
        spent: dict[str, list[float]] = {"ddp": [], "one": []}
        for pair in range(pairs):
            for engine in spent:
                ran = {}
                for count in (4, 4 + steps):
                    folder = out / f"{stage}-{engine}-{count}-{pair}"
                    chosen = [*flags, *parent, *quiet, f"--max_steps={count}"]
                    if failed := launch(engine, folder, recipe, chosen, rows=16, threads=1 + (engine == "one")):
                        raise SystemExit(f"{stage}, {engine}: {failed}")
                    history = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
                    ran[count] = next(row["train_runtime"] for row in history if "train_runtime" in row)
                spent[engine].append((ran[4 + steps] - ran[4]) / steps)
                print(stage, engine, f"{spent[engine][-1]:.3f}", flush=True)
        ratio = statistics.median(one / two for one, two in zip(spent["one"], spent["ddp"], strict=True))
        two, one = (statistics.median(values) for values in spent.values())
        lines.append(f"| {stage} | {two:.3f} | {one:.3f} | {ratio:.2f} |")
        parent = [f"--model_name_or_path={out / 'pretrain-one-4-0'}"]
    return "\n".join(lines)


def table(results: dict[str, dict[str, dict]], engines: list[str]) -> str:
    lines = [f"| | {' | '.join(engines)} |", "|---" * (len(engines) + 1) + "|"]
    for case, row in results.items():
        cells = [in_words(row[engine]) if engine in row else "" for engine in engines]
        lines.append(f"| {case} | {' | '.join(cells)} |")
    reasons = {
        f"{case}, {engine}: {result['why']}"
        for case, row in results.items()
        for engine, result in row.items()
        if result.get("why")
    }
    return "\n".join([*lines, "", *sorted(reasons)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output_dir", type=Path, help="where the runs and sharding.json go")
    parser.add_argument("--chain", type=Path, help="folder with pretrain, sft and reward (default: made here)")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--cases", nargs="+", choices=list(cases(Path())))
    parser.add_argument("--processes", type=int, default=2, help="that share the 8 rows (default: 2)")
    parser.add_argument("--memory", metavar="SIZE", help="measure memory instead, with models of so many parameters")
    parser.add_argument("--speed", metavar="SIZE", help="measure the time of a step instead, at so many parameters")
    args = parser.parse_args()
    out = args.output_dir.resolve()
    if args.speed:
        print(speed(out / f"speed-{args.speed}", args.speed))
        return
    if args.memory:
        print(memory(out / f"memory-{args.memory}", args.memory, args.engines))
        return
    chain = (args.chain or out / "chain").resolve()
    for stage, command in {} if args.chain else chain_commands(chain).items():
        if failed := launch("one", chain / stage, command[0], command[1:], rows=16):
            raise SystemExit(f"{stage}: {failed}")
    results: dict[str, dict[str, dict]] = {}
    for case in args.cases or cases(chain):
        for engine in args.engines:
            results.setdefault(case, {})[engine] = run_case(out, chain, case, engine, args.processes)
            print(case, engine, in_words(results[case][engine]), flush=True)
            (out / "sharding.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(table(results, args.engines))


if __name__ == "__main__":
    main()
