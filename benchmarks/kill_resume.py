"""Does a run that was killed end as one that was not? A SIGKILL before each file event, then the same command.

    python benchmarks/kill_resume.py --work DIR [--recipes pretrain sft reward ppo grpo] [--every 1] [--at-random 0]
    python benchmarks/kill_resume.py --work DIR --recipes grpo --every 9        # the short form

Tiny models, one thread. For each recipe one run in one piece counts the events below its output_dir: files opened for
writing, written by torch and safetensors, renamed, linked and removed, folders made and removed. Then for each event a
run kills itself just before it, and the same command runs to its end twice: on the folder as it is, and on a copy in
which what was written last is cut in half, as a power loss may leave it. `--at-random N` adds N kills at random.

Compared with the run in one piece: SHA-256 of all weights, every metric and counter in run.json, all curves, answers
and samples; times are left out. Each difference is a line, and the end is the table of docs/recipes.md. Exit code 1 if
anything differs.
"""

import argparse
import gc
import hashlib
import importlib
import json
import os
import random
import re
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
TIMES = re.compile(r"runtime|per_second|step_time")
SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
SHAPE |= {"head_dim": 16, "intermediate_size": 64}
NEW = ["--num_parameters=43K", "--vocab_size=384", "--max_length=96", f"--config_overrides={json.dumps(SHAPE)}"]
# Saves between lines of the log, with a mean to lose; the rate does not reach 0, so that a step too many shows.
RUN = ["--max_steps=5", "--save_steps=2", "--eval_steps=3", "--logging_steps=3", "--report_to=none", "--seed=3"]
RUN += ["--lr_scheduler_type=constant", "--learning_rate=1e-3", "--per_device_train_batch_size=4"]
RL = ["--max_completion_length=8", "--max_eval_rows=4", "--gradient_accumulation_steps=2"]
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
PATHS = {"os.rename": 2, "os.link": 2, "os.symlink": 2, "os.remove": 1, "os.mkdir": 1, "os.rmdir": 1, "os.truncate": 1}
HEAVY = ["trl.trainer.sft_trainer", "trl.trainer.reward_trainer", "fourstage.ppo", "fourstage.grpo", "fourstage.speed"]
HEAVY += ["fourstage.pretraining", "fourstage.instruction", "fourstage.artifact.progress", "fourstage.resolve"]
HEAVY += ["fourstage.grpo.trainer", "fourstage.ppo.trainer", "transformers.models.qwen3.modeling_qwen3"]
HEAVY += ["fourstage.evaluation.generation", "fourstage.evaluation.everywhere", "fourstage.evaluation.reward_model"]


def commands(work: Path) -> dict[str, list[str]]:
    """{recipe: flags}, in the order in which each finds its parent."""
    base, tuned = f"--model_name_or_path={work / 'pretrain'}", f"--model_name_or_path={work / 'sft'}"
    chats, flags = f"--dataset_name={work / 'chats.jsonl'}", {}
    flags["pretrain"] = [f"--dataset_name={work / 'texts.jsonl'}", *NEW]
    flags["sft"] = [base, chats]
    flags["reward"] = [tuned, f"--dataset_name={work / 'pairs.jsonl'}"]
    flags["ppo"] = [tuned, chats, f"--reward_model_name_or_path={work / 'reward'}", *RL]
    flags["grpo"] = [tuned, chats, "--reward_funcs", "kill_resume.vowels", "--num_generations=4", *RL]
    return {recipe: [*RUN, *own, f"--output_dir={work / recipe}"] for recipe, own in flags.items()}


def vowels(completions: list, **columns: object) -> list[float]:
    """A reward with spread from the first step on: the share of vowels."""
    texts = [completion[0]["content"] for completion in completions]
    return [sum(letter in "aeiou" for letter in text) / (len(text) + 1) for text in texts]


def write_data(work: Path) -> None:
    """Sixty rows of each kind."""
    rows = {
        "texts": [{"text": f"The man saw {i} kites over the river. " * (1 + i % 7)} for i in range(60)],
        "chats": [{"question": f"What is {i} and {i % 7}?", "answer": f"{i + i % 7}"} for i in range(60)],
        "pairs": [{"prompt": f"Is {i} odd?", "chosen": f"It is {i}.", "rejected": f"No {i}!"} for i in range(60)],
    }
    for name, lines in rows.items():
        (work / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


# What is killed, and where


def watch_files(folder: Path, at: Callable[[str, str, tuple], None]) -> None:
    """Calls `at(kind, path, written)` before each event below `folder`.

    `written` is the file written last, and the size from which on it was written: not 0 where text was appended.
    """
    import safetensors.torch
    import torch

    last: list[tuple[str, int]] = [("", 0)]

    def event(kind: str, path: object, directory: int = -1, appends: bool = False) -> None:
        text = os.fsdecode(path) if isinstance(path, (str, bytes, os.PathLike)) else ""
        if directory >= 0:
            text = os.path.join(os.readlink(f"/proc/self/fd/{directory}"), text)
        if text and (folder in Path(text).parents or Path(text) == folder):
            at(kind, text, last[0])
            if kind == "write":
                last[0] = (text, os.path.getsize(text) if appends and os.path.exists(text) else 0)

    def hook(name: str, values: tuple) -> None:
        if name == "open" and isinstance(values[2], int) and values[2] & WRITES:
            event("write", values[0], appends=bool(values[2] & os.O_APPEND))
        elif name in PATHS:
            directories = [value for value in values[PATHS[name] :] if isinstance(value, int) and name != "os.mkdir"]
            directory = values[2] if name == "os.mkdir" else (directories or [-1])[0]
            event(name, values[0], directory if isinstance(directory, int) else -1)

    def seen(function: Callable, position: int) -> Callable:
        def write(*values: object, **named: object) -> object:
            if len(values) > position:
                event("write", values[position])
            return function(*values, **named)

        return write

    torch.save = seen(torch.save, 1)  # these two write by code that Python does not see
    safetensors.torch.serialize_file = seen(safetensors.torch.serialize_file, 1)
    sys.addaudithook(hook)


def in_child(job: Callable[[], None], log: Path) -> int:
    """Runs a job in a fork of this process, which has imported all and computed nothing; its wait status."""
    pid = os.fork()
    if pid:
        return os.waitpid(pid, 0)[1]
    status = 1
    try:
        with log.open("w", encoding="utf-8") as out:
            os.dup2(out.fileno(), 1)
            os.dup2(out.fileno(), 2)
        job()
        status = 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def recipe_job(recipe: str, flags: list[str], before: Callable[[], None] = lambda: None) -> Callable[[], None]:
    """The recipe as its program runs it, after `before()`."""

    def job() -> None:
        import torch

        torch.set_num_threads(1)
        file = ROOT / "recipes" / f"{recipe}.py"
        sys.argv = [str(file), *flags]
        spec = spec_from_file_location(f"recipe_{recipe}", file)
        assert spec and spec.loader
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
        before()
        module.main(*module.parse(str(file), *list(module.main.__annotations__.values())[:3]))

    return job


# What is compared


def outcome(folder: Path) -> dict[str, object]:
    """All that a run leaves, less times."""
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    history = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    names = ("status", "steps", "tokens", "parameters", "data", "row_hashes")
    found = {name: record.get(name) for name in names}
    found |= {f"metrics {k}": v for k, v in record["metrics"].items() if not TIMES.search(k)}
    found["curves"] = [{k: v for k, v in row.items() if not TIMES.search(k)} for row in history]
    for file in sorted(folder.rglob("*.safetensors")):
        if "checkpoints" not in file.parts:
            found[str(file.relative_to(folder))] = hashlib.sha256(file.read_bytes()).hexdigest()
    for name in ("completions.jsonl", "samples.jsonl"):
        found[name] = (folder / name).read_bytes() if (folder / name).is_file() else None
    return found


def differences(folder: Path, straight: dict[str, object], status: int, log: Path) -> list[str]:
    """What the run that was killed has otherwise; the last line of its log if it did not finish."""
    if status:
        return [
            f"status {status}: {(log.read_text(encoding='utf-8', errors='replace').splitlines() or [''])[-1][:200]}"
        ]
    ended = outcome(folder)
    return [key for key in straight.keys() | ended.keys() if straight.get(key) != ended.get(key)]


# The runs


def kill_at(number: int, note: Path) -> Callable[[str, str, tuple], None]:
    """Ends the process before event `number`; leaves in `note` what event that was, and the file written last."""
    count = [0]

    def at(kind: str, path: str, written: tuple) -> None:
        if count[0] == number:
            descriptor = os.open(note, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.write(descriptor, json.dumps([kind, path, written]).encode())
            os.close(descriptor)
            os.kill(os.getpid(), signal.SIGKILL)
        count[0] += 1

    return at


def kill_after(seconds: float) -> Callable[[], None]:
    """Has the kernel's clock end the process, whatever it is doing then."""
    return lambda: (signal.signal(signal.SIGALRM, signal.SIG_DFL), signal.setitimer(signal.ITIMER_REAL, seconds))[0]


def resume_and_compare(recipe: str, flags: list[str], straight: dict[str, object], work: Path) -> list[str]:
    log = work / "resumed.log"
    status = in_child(recipe_job(recipe, flags), log)
    return differences(work / recipe, straight, status, log)


def check(recipe: str, flags: list[str], work: Path, events_killed: slice, at_random: int) -> dict[str, list]:
    """Kills the recipe; {"plain", "cut" and "random": a pair (what was done, what differs) for each kill}."""
    folder, kept, note = work / recipe, work / "kept", work / "event.json"
    events, log = work / "events.jsonl", work / "killed.log"

    def write_event(kind: str, path: str, written: tuple) -> None:
        os.write(descriptor, json.dumps([kind, path]).encode() + b"\n")

    descriptor = os.open(events, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    begun = time.monotonic()
    if in_child(recipe_job(recipe, flags, lambda: watch_files(folder, write_event)), log):
        raise SystemExit(f"{recipe}: {log.read_text(encoding='utf-8')[-3000:]}")
    seconds, straight = time.monotonic() - begun, outcome(folder)
    os.close(descriptor)
    count = len(events.read_text(encoding="utf-8").splitlines())
    print(f"{recipe}: {count} events in {seconds:.1f} s", flush=True)
    found: dict[str, list] = {"plain": [], "cut": [], "random": []}
    shutil.move(folder, work / f"{recipe}-straight")

    def tell(kind: str, what: str, differing: list[str]) -> None:
        found[kind].append((what, differing))
        if differing:
            print(f"  {recipe}, {kind}, {what}: {'; '.join(sorted(differing))}", flush=True)

    for number in range(count)[events_killed]:
        shutil.rmtree(folder, ignore_errors=True)
        in_child(recipe_job(recipe, flags, lambda n=number: watch_files(folder, kill_at(n, note))), log)
        kind, path, (written, start) = json.loads(note.read_text(encoding="utf-8"))
        what = f"event {number} ({kind} {os.path.relpath(path, folder)})"
        shutil.rmtree(kept, ignore_errors=True)
        if folder.exists():
            shutil.copytree(folder, kept)
        tell("plain", what, resume_and_compare(recipe, flags, straight, work))
        half = kept / os.path.relpath(written, folder) if written else None
        if half and half.is_file() and half.stat().st_size > start:
            os.truncate(half, (start + half.stat().st_size) // 2)
            shutil.rmtree(folder)
            shutil.move(kept, folder)
            cut = f"{what}, {os.path.relpath(written, folder)} cut in half"
            tell("cut", cut, resume_and_compare(recipe, flags, straight, work))
    draw = random.Random(7)
    for _ in range(at_random):
        shutil.rmtree(folder, ignore_errors=True)
        moment = draw.uniform(0.0, seconds)
        in_child(recipe_job(recipe, flags, kill_after(moment)), log)
        tell("random", f"after {moment:.2f} s", resume_and_compare(recipe, flags, straight, work))
    shutil.rmtree(folder, ignore_errors=True)
    shutil.move(work / f"{recipe}-straight", folder)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="a folder for the runs")
    parser.add_argument("--recipes", nargs="+", default=["pretrain", "sft", "reward", "ppo", "grpo"])
    parser.add_argument("--every", type=int, default=1, help="kill before each n-th event")
    parser.add_argument("--first", type=int, default=0, help="the first event to kill before")
    parser.add_argument("--at-random", type=int, default=0, help="kills at random moments, for each recipe")
    args = parser.parse_args()
    work = args.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    os.environ["HF_DATASETS_CACHE"] = str(work / "cache")
    write_data(work)
    for module in HEAVY:
        importlib.import_module(module)
    gc.freeze()  # children need not look at what is imported
    table = ["| recipe | killed before an event: same | and the file written last cut: same | at random: same |"]
    table += ["|---|---|---|---|"]
    differ, flags = False, commands(work)
    needed = {"pretrain": [], "sft": ["pretrain"], "reward": ["pretrain", "sft"]}
    needed |= {"grpo": needed["reward"], "ppo": [*needed["reward"], "reward"]}
    for parent in [name for name in flags if any(name in needed[recipe] for recipe in args.recipes)]:
        if in_child(recipe_job(parent, flags[parent]), work / "parent.log"):
            raise SystemExit(f"{parent}: {(work / 'parent.log').read_text(encoding='utf-8')[-3000:]}")
    for recipe in args.recipes:
        own = [flag.replace(f"--output_dir={work}", f"--output_dir={work}/killed") for flag in flags[recipe]]
        (work / "killed").mkdir(exist_ok=True)
        found = check(recipe, own, work / "killed", slice(args.first, None, args.every), args.at_random)
        cells = [f"{sum(not bad for _, bad in found[kind])} of {len(found[kind])}" for kind in found]
        table.append(f"| {recipe} | {' | '.join(cells)} |")
        differ = differ or any(bad for kind in found.values() for _, bad in kind)
    print("\n".join(table))
    raise SystemExit(int(differ))


if __name__ == "__main__":
    main()
