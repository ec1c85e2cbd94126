"""A recipe without arguments runs its stage of the demo; here the stages before it are made where they are missing."""

import os
import re
import sys
from pathlib import Path

import yaml

from fourstage.children import child
from fourstage.parent import read_record
from fourstage.stages import DEMO_MINUTES, STAGES, parents_of

# What a launcher leaves in the environment of the processes that it starts.
_LAUNCHER = re.compile(
    r"(ACCELERATE_(?!USE_CPU)|FSDP_|MASTER_|OMPI_|PMI_|MV2_|TORCHELASTIC_).*|(LOCAL_)?(WORLD_SIZE|RANK)"
)


def make_missing_parents(recipe: Path) -> None:
    """Runs the recipes of the demo whose finished stages this one starts from, and that are not there yet.

    Raises:
        ValueError: with several processes, which would all do it; the message names the command.
        SystemExit: with the exit code of a recipe that failed.
    """
    missing = missing_stages(recipe.stem, recipe.parent / "configs" / "demo")
    if not missing:
        return
    minutes = round(sum(STAGES[name].share for name in missing) * DEMO_MINUTES / 100)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            f"{recipe.name} starts from stages of the demo that are not finished: {', '.join(missing)}; make them in "
            f"one process first: python recipes/pipeline.py --stages {' '.join(missing)}"
        )
    print(f"{recipe.name} starts from {', '.join(missing)}: made first, about {max(minutes, 1)} minutes", flush=True)
    for name in missing:
        config = recipe.parent / "configs" / "demo" / f"{name}.yaml"
        command = [sys.executable, str(recipe.parent / f"{STAGES[name].recipe}.py"), "--config", str(config)]
        print(f"$ {' '.join(command)}", flush=True)
        with child(command, env=environment_without_launcher()) as done:
            pass  # until it ends
        if done.returncode:
            raise SystemExit(done.returncode)


def missing_stages(name: str, configs: Path) -> list[str]:
    """The stages below `name` in the chain that are not finished, in the order to make them."""
    missing: list[str] = []
    for parent in parents_of(name):
        settings = yaml.safe_load((configs / f"{parent}.yaml").read_text(encoding="utf-8"))
        record = read_record(settings["output_dir"])
        if not record or record["status"] != "finished":
            missing += [*missing_stages(parent, configs), parent]
    return list(dict.fromkeys(missing))


def environment_without_launcher() -> dict[str, str]:
    """The environment less what `accelerate launch` or torchrun set for this process alone.

    Their one thread a process goes too: a stage that is made alone may use every core.
    """
    environment = {name: value for name, value in os.environ.items() if not _LAUNCHER.fullmatch(name)}
    if len(environment) < len(os.environ) and environment.get("OMP_NUM_THREADS") == "1":
        del environment["OMP_NUM_THREADS"]
    return environment
