"""What may leave this machine: which files of a run, and their text without paths of this machine."""

import json
import os
import re
import shlex
import shutil
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

LAST = "last-checkpoint"  # the folder of the newest checkpoint in a repository, as transformers names it
_FILES = ("*.safetensors", "*.json", "*.jinja", "*.model", "vocab.txt", "merges.txt", "samples.jsonl")
_FILES += ("completions.jsonl", "README.md")
_FOLDERS = ("adapter", "value")  # so neither `checkpoints/` nor `base/`, another's weights dequantised
_MENDED = ("run.json", "trainer_state.json", "evaluation.json")
# A path of two parts or more, from the root or home, within a text: not `https://...`, not `a/b`.
_PATH = re.compile(r"""(?:file://|(?<![\w./~-]))~?(?:/(?!/)[^\s/'"`,;:(){}\[\]<>|]+){2,}/?""")


def without_paths(value: Any) -> Any:
    """A JSON value in which every absolute path is its last part.

    Example: "/data/runs/base" -> "base", "--name=/a/b c" -> "--name=b c", "see https://x.org/a/b" as it is.
    """
    if isinstance(value, dict):
        return {key: without_paths(part) for key, part in value.items()}
    if isinstance(value, list):
        return [without_paths(part) for part in value]
    if not isinstance(value, str):
        return value
    option = re.match(r"--[\w-]+=", value)
    flag = option[0] if option else ""
    path = value.removeprefix(flag)
    if path.startswith(("/", "~/")) and "\n" not in path:
        return flag + Path(path).name
    return _PATH.sub(lambda found: Path(found[0]).name, value)


def public_record(record: dict) -> dict:
    """run.json as it is uploaded: the same, without paths of this machine; an earlier push is not its business."""
    kept = {key: value for key, value in record.items() if key != "hub"}
    command = shlex.join(without_paths(shlex.split(record["command"])))
    return {**without_paths(json.loads(json.dumps(kept, default=str))), "command": command}


def stage_finished(folder: Path, record: dict, card: str) -> Path:
    """A folder beside the run's files that holds what is uploaded of a finished stage; the caller removes it."""
    staged = _new_folder(folder)
    for file in _finished_files(folder):
        _place(file, staged / file.relative_to(folder), record)
    (staged / "README.md").write_text(card, encoding="utf-8")
    return staged


def stage_checkpoint(folder: Path, checkpoint: Path, record: dict, name: str) -> Path:
    """The same for a checkpoint, which goes into the repository's folder `name`, with run.json beside it.

    Files are linked, not copied: they outlive the trainer's removal of an older checkpoint, and take no room twice.
    """
    staged = _new_folder(folder)
    for file in checkpoint.rglob("*"):
        if file.is_file() and file.name not in ("training_args.bin", "README.md"):
            _place(file, staged / name / file.relative_to(checkpoint), record)
    for extra in ("run.json", "completions.jsonl"):  # the answers so far: a resumed run appends to them
        if (folder / extra).is_file():
            shutil.copy2(folder / extra, staged / extra)  # not linked: the run writes on
    _write_json(staged / "run.json", public_record(record))
    return staged


def _new_folder(folder: Path) -> Path:
    number = sum(path.name.startswith(".push-") for path in folder.iterdir())
    while (folder / f".push-{number}").exists():
        number += 1
    (folder / f".push-{number}").mkdir()
    return folder / f".push-{number}"


def remove_staged(folder: Path) -> None:
    """Removes what a killed run was about to upload."""
    for left in folder.glob(".push-*"):
        shutil.rmtree(left)


def _finished_files(folder: Path) -> Iterator[Path]:
    yield from (file for file in sorted(folder.iterdir()) if _is_wanted(file))
    for name in _FOLDERS:  # without PEFT's own card of an adapter, which names the base by its path
        yield from (file for file in sorted((folder / name).rglob("*")) if _is_wanted(file) and file.suffix != ".md")


def _is_wanted(file: Path) -> bool:
    return file.is_file() and any(fnmatch(file.name, pattern) for pattern in _FILES)


def _place(file: Path, to: Path, record: dict) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    if file.name in (*_MENDED, "adapter_config.json"):
        content = json.loads(file.read_text(encoding="utf-8"))
        if file.name == "adapter_config.json":
            content["base_model_name_or_path"] = parent_on_hub(record)
        _write_json(to, public_record(content) if file.name == "run.json" else without_paths(content))
        return
    try:
        os.link(file, to)
    except OSError:  # a file system without links
        shutil.copy2(file, to)


def _write_json(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def parent_on_hub(record: dict) -> str | None:
    """The Hub id of the model that a run began with, where it has one."""
    parents = record.get("lineage") or [{}]
    return (parents[-1].get("hub") or {}).get("repo_id")
