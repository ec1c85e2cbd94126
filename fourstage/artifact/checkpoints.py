"""When a checkpoint is whole: a run goes on only from one whose files are all there and open.

A kill, a full disk or a power loss leaves half a checkpoint. So the list of its files, `files.json`, is written last,
when the disk has them all; the trainer's own last file, trainer_state.json, can reach the disk before the weights.
"""

import json
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path

from fourstage.atomic import write_atomically

LIST = "files.json"
_STATE = "trainer_state.json"


def seal(checkpoint: Path, beside: Sequence[Path] = ()) -> None:
    """Writes the list of a checkpoint's files; they have to be on the disk by then.

    Args:
        beside: files outside of it to which the run appends; their sizes are noted (`size_at`).
    """
    files = [file for file in sorted(checkpoint.rglob("*")) if file.is_file() and file.suffix not in (".md", ".tmp")]
    content = {
        "files": {str(file.relative_to(checkpoint)): file.stat().st_size for file in files if file.name != LIST},
        "beside": {file.name: file.stat().st_size for file in beside if file.is_file()},
    }
    write_atomically(checkpoint / LIST, json.dumps(content, indent=1) + "\n")


def unseal(checkpoint: Path) -> None:
    """Takes away what makes a folder a checkpoint, before its other files are removed or written over."""
    for name in (_STATE, LIST):
        (checkpoint / name).unlink(missing_ok=True)


def size_at(checkpoint: Path, name: str) -> int | None:
    """How many bytes a file beside the checkpoints had when this one was taken; None where that was not noted."""
    try:
        return _listed(checkpoint)["beside"].get(name, 0)
    except (OSError, ValueError, KeyError):
        return None


def newest_whole(folder: Path, record: dict) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint of a run folder, by its step, and a line on each newer one that is not whole.

    Args:
        record: the run's run.json, which decides what a checkpoint has to hold.
    """
    flaws: list[str] = []
    for checkpoint in reversed(numbered(folder)):
        flaw = damage(checkpoint, record)
        if flaw is None:
            return checkpoint, flaws
        flaws.append(f"{checkpoint.name} is not whole: {flaw}")
    return None, flaws


def numbered(folder: Path) -> list[Path]:
    """The checkpoints of a run folder in the order of their steps, whole or not. Clocks do not matter."""
    found = [path for path in (folder / "checkpoints").glob("checkpoint-*") if path.name.split("-")[1].isdigit()]
    return sorted(found, key=lambda path: int(path.name.split("-")[1]))


def was_whole(checkpoint: Path) -> bool:
    """Whether the folder held a whole checkpoint once: its last file is there. What is cut off on the way has none."""
    return (checkpoint / LIST).is_file() or _flaw(checkpoint / _STATE) is None


def damage(checkpoint: Path, record: dict) -> str | None:
    """What is wrong with a checkpoint, such as "optimizer.pt is missing"; None for a whole one.

    A checkpoint of an older version has no list: then the files count that every recipe needs under the run's engine.
    """
    sizes: dict[str, int] = {}
    if (checkpoint / LIST).is_file():
        try:
            sizes = _listed(checkpoint)["files"]
        except (ValueError, KeyError):
            return f"{LIST} is damaged"
    for name in sorted({*sizes, *_needed(checkpoint, record)}):
        file = checkpoint / name
        if flaw := _flaw(file):
            return f"{name} {flaw}"
        # The size of a JSON file differs after a way over the Hub, which takes paths of this machine out of it.
        if name in sizes and file.suffix != ".json" and file.stat().st_size != sizes[name]:
            return f"{name} has {file.stat().st_size:,} of {sizes[name]:,} bytes"
    return None


def rotate(folder: Path, newest: int, limit: int | None, best: str | None) -> None:
    """Removes all but `limit` checkpoints: first those of steps to come, which an earlier course left, then the oldest.

    Args:
        newest: the step of the checkpoint just taken, which stays. best: the path of another that stays.
    """
    steps = {path: int(path.name.split("-")[1]) for path in numbered(folder)}
    kept = {path for path in steps if steps[path] == newest or (best and path.name == Path(best).name)}
    others = sorted(steps.keys() - kept, key=lambda path: (steps[path] <= newest, steps[path]))
    spare = len(steps) - max(limit, len(kept)) if limit else 0
    for checkpoint in others[: max(spare, 0)]:
        unseal(checkpoint)
        shutil.rmtree(checkpoint, ignore_errors=True)


def _listed(checkpoint: Path) -> dict:
    return json.loads((checkpoint / LIST).read_text(encoding="utf-8"))


def _needed(checkpoint: Path, record: dict) -> set[str]:
    """The files without which a recipe cannot go on. DeepSpeed and FSDP keep weights and optimizer in other forms."""
    processes, engine = record["processes"], record["engine"]
    names = {_STATE}
    if not (checkpoint / LIST).is_file():  # else that has the random states of the processes that there were
        names |= {f"rng_state_{i}.pth" for i in range(processes)} if processes > 1 else {"rng_state.pth"}
    if not engine.startswith("zero"):
        names.add("scheduler.pt")
    if engine in ("none", "ddp"):
        names |= {"optimizer.pt", *_weights(checkpoint, bool(record["arguments"]["model"].get("use_peft")))}
    if record["stage"] == "ppo":
        names |= {"value_model.safetensors", "value_optimizer.pt"}
    return names


def _weights(checkpoint: Path, adapter: bool) -> set[str]:
    if adapter:
        return {"adapter_config.json", "adapter_model.safetensors"}
    index = checkpoint / "model.safetensors.index.json"
    if _flaw(index) is not None:
        return {"config.json", index.name if index.is_file() else "model.safetensors"}
    return {"config.json", *json.loads(index.read_text(encoding="utf-8")).get("weight_map", {}).values()}


def _flaw(file: Path) -> str | None:
    """Why a file cannot be opened as what its name says it is; None where it can."""
    if not file.is_file():
        return "is missing"
    try:
        if file.suffix == ".json":
            json.loads(file.read_text(encoding="utf-8"))
        elif file.suffix == ".safetensors" and file.stat().st_size != (size := _safetensors_size(file)):
            return f"has {file.stat().st_size:,} of {size:,} bytes"
        elif file.suffix in (".pt", ".pth", ".bin"):
            zipfile.ZipFile(file).close()  # reads the directory, which is at its end
    except (ValueError, KeyError, TypeError, zipfile.BadZipFile, RecursionError):
        return "is damaged"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return None


def _safetensors_size(file: Path) -> int:
    """How many bytes the header of a safetensors file promises."""
    with file.open("rb") as content:
        length = int.from_bytes(content.read(8), "little")
        if not 0 < length <= file.stat().st_size:
            raise ValueError("no header")
        header = json.loads(content.read(length))
    ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
    return 8 + length + max(ends, default=0)
