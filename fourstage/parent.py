"""A stage's parent: what a model name stands for, what its run.json says, and the hash of its weights."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache


def is_gguf(name: str) -> bool:
    """Whether the name is that of a GGUF file: llama.cpp's format, which holds weights and tokenizer in one."""
    return name.endswith(".gguf")


def check_parent(name: str) -> None:
    """Refuses a parent that is a path with no finished stage in it, and names the command that makes one.

    Hub ids and folders that fourstage did not write pass.
    """
    folder = Path(name)
    if folder.is_dir():
        record = read_record(folder)
        if record and record["status"] != "finished":
            raise ValueError(f"{name} is not finished; finish it with: {record['command']}")
    elif not is_gguf(name) and (name.startswith((".", "/", "~", "runs/")) or name.count("/") > 1):
        stage = folder.name if folder.name in ("pretrain", "sft", "reward", "ppo", "grpo") else "pretrain"
        parent = "" if stage == "pretrain" else " --model_name_or_path PARENT"
        flags = "" if name == f"runs/demo/{stage}" else f"{parent} --dataset_name DATA --output_dir {name}"
        raise ValueError(f"{name} does not exist; make it with: accelerate launch recipes/{stage}.py{flags}")


def read_record(name: str | Path) -> dict | None:
    """What run.json of the folder `name` holds; None for models from elsewhere."""
    path = Path(name) / "run.json"
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except ValueError as error:
        raise ValueError(f"{path} is broken ({error}); mend it, or remove the folder") from None


def weights_hash(name: str) -> str | None:
    """SHA-256 over the safetensors files of a folder, in name order, or over a GGUF file; None for what is neither."""
    path = Path(name)
    files = [path] if is_gguf(name) and path.is_file() else sorted(path.glob("*.safetensors")) if path.is_dir() else []
    if not files and not path.is_dir():
        return None
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as content:
            while block := content.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)


def is_hub_id(name: str) -> bool:
    """Whether a model's or data set's name is one of the Hub, `OWNER/NAME` or `NAME`, and no path."""
    pathlike = name.startswith((".", "runs/")) or is_gguf(name) or Path(name).exists()
    return not pathlike and HUB_ID.fullmatch(name) is not None


def is_run(record: Any) -> bool:
    """Whether a JSON value is the run.json of a fourstage run; other programs write files of that name too."""
    return isinstance(record, dict) and {"status", "stage", "seed", "arguments", "versions"} <= record.keys()


def read_run(name: str, revision: str | None = None) -> dict | None:
    """What run.json of a folder or of a Hub repository says; None where there is none, or no way to it.

    Raises:
        ValueError: for a folder whose run.json is broken.
    """
    if not is_hub_id(name):
        return read_record(name)
    try:
        record = json.loads(Path(hf_hub_download(name, "run.json", revision=revision)).read_text(encoding="utf-8"))
        return record if is_run(record) else None
    except Exception:  # of a dozen types; a model from elsewhere has none, and that is no failure
        return None


def is_base(name: str) -> bool:
    """Whether `name` is a pre-trained base of ours, which never saw a chat; models from elsewhere pass for tuned."""
    record = read_run(name)
    return record is not None and record["stage"] == "pretrain"


def identify(name: str | None, revision: str | None = None) -> dict | None:
    """Which weights `name` stands for now: the hash of a folder's or file's, the commit of a Hub repository's."""
    if not name:
        return None
    found = {"path": name, "sha256": weights_hash(name)}
    return found | {"commit": commit_of(name, revision)} if is_hub_id(name) else found


def commit_of(name: str, revision: str | None) -> str | None:
    """The commit of a Hub model, asked for, or that of the copy in the cache where the Hub does not answer."""
    try:
        return HfApi().model_info(name, revision=revision).sha
    except Exception:  # offline, unreachable, gated: what loads the weights says so
        cached = try_to_load_from_cache(name, "config.json", revision=revision)
        return Path(cached).parent.name if isinstance(cached, str) else None
