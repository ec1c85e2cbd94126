"""The model that a run starts from, or is rewarded by: looked up once, and carried to whoever asks about it."""

import hashlib
import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache

from fourstage.stages import RECIPES, STAGES

HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)


@dataclass(frozen=True)
class Parent:
    """A model that exists already. `find_parent` makes one; hash and commit are looked up when first asked for.

    Args:
        name: a Hub id, a folder or a GGUF file. revision: a branch, tag or commit of a Hub id.
        record: its run.json, if a fourstage run made it.
    """

    name: str
    revision: str | None
    record: dict | None

    @property
    def stage(self) -> str | None:
        """The stage that made it; None for a model from elsewhere."""
        return self.record.get("stage") if self.record else None

    @property
    def is_base(self) -> bool:
        """Whether it is a pre-trained base of ours, which never saw a chat; models from elsewhere count as tuned."""
        return self.stage == "pretrain"

    @property
    def is_adapter(self) -> bool:
        """Whether its folder holds an adapter alone, without the model that the adapter belongs to."""
        folder = Path(self.name)
        return (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file()

    @property
    def on_hub(self) -> bool:
        return is_hub_id(self.name)

    @cached_property
    def sha256(self) -> str | None:
        """`weights_hash` of its folder or file; None for a Hub id."""
        return weights_hash(self.name)

    @cached_property
    def commit(self) -> str | None:
        """The commit of a Hub id's revision, asked of the Hub or, where it does not answer, taken from the cache."""
        return _commit(self.name, self.revision) if self.on_hub else None

    def identity(self) -> dict[str, str | None]:
        """Which weights these are, for run.json: `path` and `sha256`, and for a Hub id `commit`."""
        found = {"path": self.name, "sha256": self.sha256}
        return found | {"commit": self.commit} if self.on_hub else found

    def describe(self) -> str:
        """For people: its name, with the stage that made it or what else is known of it."""
        facts = [self.stage or "from elsewhere"]
        facts += ["an adapter"] if self.is_adapter else []
        facts += [f"revision {self.revision}"] if self.on_hub and self.revision else []
        return f"{self.name} ({', '.join(facts)})"


def find_parent(name: str, revision: str | None = None, expected: str | None = None) -> Parent:
    """Looks a model up: what its run.json holds, on the Hub at `revision`.

    `expected` is the stage that would have made it, for the message about a folder that does not exist.
    Raises:
        ValueError: for a path without a finished stage (`check_parent`), or a run.json that is broken.
    """
    record = _record_on_hub(name, revision) if is_hub_id(name) else read_record(name)
    _refuse_unusable(name, record, expected)
    return Parent(name, revision, record)


def needed_parent(name: str | None, revision: str | None, stage: str) -> Parent:
    """`find_parent` for a stage that cannot begin with random weights."""
    if not name:
        raise ValueError(
            f"model_name_or_path is missing: {stage} starts from a model, such as runs/{STAGES[stage].parent} or a Hub "
            f"id; the demo's own settings are --config recipes/configs/demo/{stage}.yaml"
        )
    return find_parent(name, revision, expected=STAGES[stage].parent)


def check_parent(name: str, expected: str | None = None) -> None:
    """Refuses a parent that is a path with no finished stage in it, and names the command that makes one.

    Hub ids and folders that fourstage did not write pass. `expected` as in `find_parent`.
    """
    _refuse_unusable(name, read_record(name), expected)


def _refuse_unusable(name: str, record: dict | None, expected: str | None) -> None:
    folder = Path(name)
    if folder.is_dir():
        if record and record["status"] != "finished":
            raise ValueError(f"{name} is not finished; finish it with: {record['command']}")
    elif not is_gguf(name) and (name.startswith((".", "/", "~", "runs/")) or name.count("/") > 1):
        stage = folder.name if folder.name in RECIPES else expected or "pretrain"
        parent = "" if stage == "pretrain" else " --model_name_or_path PARENT"
        flags = "" if name == f"runs/demo/{stage}" else f"{parent} --dataset_name DATA --output_dir {name}"
        raise ValueError(f"{name} does not exist; make it with: accelerate launch recipes/{stage}.py{flags}")


def is_gguf(name: str) -> bool:
    """Whether the name is that of a GGUF file: llama.cpp's format, which holds weights and tokenizer in one."""
    return name.endswith(".gguf")


def is_hub_id(name: str) -> bool:
    """Whether a model's or data set's name is one of the Hub, `OWNER/NAME` or `NAME`, rather than a path."""
    pathlike = name.startswith((".", "runs/")) or is_gguf(name) or Path(name).exists()
    return not pathlike and HUB_ID.fullmatch(name) is not None


def is_run(record: Any) -> bool:
    """Whether a JSON value is the run.json of a fourstage run; other programs write files of that name too."""
    return isinstance(record, dict) and {"status", "stage", "seed", "arguments", "versions"} <= record.keys()


def read_record(folder: str | Path) -> dict | None:
    """What run.json of a folder holds; None where there is none, or one that another program wrote.

    Raises:
        ValueError: if it is broken.
    """
    path = Path(folder) / "run.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except ValueError as error:
        raise ValueError(f"{path} is broken ({error}); mend it, or remove the folder") from None
    return record if isinstance(record, dict) and "status" in record else None


def weights_hash(name: str) -> str | None:
    """SHA-256 over the safetensors files of a folder, in name order, or over a GGUF file; None for what is neither."""
    path = Path(name)
    if path.is_dir():
        files = sorted(path.glob("*.safetensors"))
    elif is_gguf(name) and path.is_file():
        files = [path]
    else:
        return None
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as content:
            while block := content.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def _record_on_hub(name: str, revision: str | None) -> dict | None:
    try:
        record = json.loads(Path(hf_hub_download(name, "run.json", revision=revision)).read_text(encoding="utf-8"))
    except Exception:  # of a dozen types; a model from elsewhere has none, and that is not a failure
        return None
    return record if is_run(record) else None


def _commit(name: str, revision: str | None) -> str | None:
    try:
        return HfApi().model_info(name, revision=revision).sha
    except Exception:  # offline, unreachable, gated: loading the weights reports it
        cached = try_to_load_from_cache(name, "config.json", revision=revision)
        return Path(cached).parent.name if isinstance(cached, str) else None
