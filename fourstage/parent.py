"""The model that a run starts from, or is rewarded by: looked up once, and carried to whoever asks about it."""

import hashlib
import json
import re
import shlex
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache

from fourstage.stages import RECIPES, STAGES

HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)
VALUE_HEAD = "value_head.safetensors"  # PPO's critic writes it beside its backbone
_TOKENIZERS = ("tokenizer_config.json", "tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
# Adapters of PEFT that add to what the model reads, or choose by it: no weights are equal to the model with them.
_UNMERGEABLE = {
    *("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CPT", "CARTRIDGE", "ADAPTION_PROMPT"),
    *("POLY", "XLORA", "LILY", "SHADOW"),
}


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
        """Whether it is an adapter, which is merged into its `base` when it is opened."""
        return self.base is not None

    @cached_property
    def base(self) -> "Parent | None":
        """The model that an adapter belongs to; None for a model that is whole."""
        settings = adapter_of(self.name, self.revision)
        return None if settings is None else find_parent(*base_of(self.name, settings))

    @cached_property
    def quantisation(self) -> str | None:
        """How its weights are kept, such as "fp8", if its config.json says that they are quantised."""
        config = _json_of(self.name, "config.json", self.revision)
        config = config if isinstance(config, dict) else {}
        texts = [part for part in (config, config.get("text_config")) if isinstance(part, dict)]
        found = next((part["quantization_config"] for part in texts if part.get("quantization_config")), None)
        return found.get("quant_method") if isinstance(found, dict) else None

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

    def identity(self) -> dict[str, Any]:
        """Which weights these are, for run.json: `path` and `sha256`; for a Hub id `commit`; for an adapter `base`; for
        quantised weights, which a run dequantises, `quantisation`.
        """
        found: dict[str, Any] = {"path": self.name, "sha256": self.sha256}
        found |= {"commit": self.commit} if self.on_hub else {}
        found |= {"base": self.base.identity()} if self.base else {}
        return found | ({"quantisation": self.quantisation} if self.quantisation and not self.base else {})

    def describe(self) -> str:
        """For people: its name, with the stage that made it or what else is known of it."""
        facts = [self.stage or "from elsewhere"]
        facts += [f"an adapter of {self.base.name}"] if self.base else []
        facts += [f"{self.quantisation} weights"] if self.quantisation and not self.base else []
        facts += [f"revision {self.revision}"] if self.on_hub and self.revision else []
        return f"{self.name} ({', '.join(facts)})"


def find_parent(name: str, revision: str | None = None, expected: str | None = None) -> Parent:
    """Looks a model up: what its run.json holds, on the Hub at `revision`.

    `expected` is the stage that would have made it, for the message about a folder that does not exist.
    Raises:
        ValueError: for a path without a finished stage (`check_parent`), or a run.json that is broken.
    """
    record = _record_on_hub(name, revision) if is_hub_id(name) else _record_in(name)
    _refuse_unusable(name, record, expected, revision)
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
    _refuse_unusable(name, _record_in(name), expected)


def adapter_of(name: str, revision: str | None = None) -> dict | None:
    """What adapter_config.json of a folder or Hub id holds; None for a model that is whole.

    A folder with a config.json beside it is an adapter too: PEFT reads it so, and some programs write both.
    """
    found = _json_of(name, "adapter_config.json", revision)
    return found if isinstance(found, dict) else None


def base_of(name: str, settings: dict) -> tuple[str, str | None]:
    """Name and revision of the model that an adapter (`adapter_of`) belongs to; the same name if it lies beside it.

    Raises:
        ValueError: if none is named, or a folder that is not there.
    """
    base, where = settings.get("base_model_name_or_path"), f"base_model_name_or_path in {name}/adapter_config.json"
    if not base or not isinstance(base, str):
        raise ValueError(f"{name} is an adapter of a model that it does not name; write its name to {where}")
    if Path(base).exists() and Path(base).resolve() == Path(name).resolve():
        if not (Path(name) / "config.json").is_file():
            raise ValueError(f"{name} is an adapter that names itself as its base; correct {where}")
        return name, None
    is_path = not is_hub_id(base) and not Path(base).exists()
    if is_path:
        raise ValueError(f"{name} is an adapter of {base}, which does not exist; bring it back, or correct {where}")
    return base, settings.get("revision")


def whole_model(name: str, revision: str | None = None) -> tuple[str, str | None]:
    """Name and revision of the model below a name's adapters; its own if it is no adapter."""
    for _ in range(20):
        settings = adapter_of(name, revision)
        base = (name, revision) if settings is None else base_of(name, settings)
        if base[0] == name:
            return base
        name, revision = base
    raise ValueError(f"{name}: its adapters belong to each other in a circle; correct base_model_name_or_path in one")


def tokenizer_home(name: str, revision: str | None = None) -> tuple[str, str | None]:
    """Where a model's tokenizer is: an adapter that brings none has that of its run, else that of its base."""
    while (settings := adapter_of(name, revision)) is not None and not _has_tokenizer(name, revision):
        if _run_of_adapter(name) and _has_tokenizer(str(Path(name).parent), None):
            return str(Path(name).parent), None
        base = base_of(name, settings)
        if base[0] == name:
            break
        name, revision = base
    return name, revision


def _has_tokenizer(name: str, revision: str | None) -> bool:
    return any(_file_of(name, file, revision) for file in _TOKENIZERS)


def _run_of_adapter(name: str) -> dict | None:
    """The run.json of the run that left an adapter in its folder's `adapter/`; None for other folders."""
    folder = Path(name)
    ours = folder.name == "adapter" and (folder / "adapter_config.json").is_file()
    return read_record(folder.parent) if ours else None


def _record_in(folder: str) -> dict | None:
    return read_record(folder) or _run_of_adapter(folder)


def _refuse_unusable(name: str, record: dict | None, expected: str | None, revision: str | None = None) -> None:
    folder = Path(name)
    if folder.is_dir():
        if record and record["status"] != "finished":
            raise ValueError(f"{name} is not finished; finish it with{_command_of(record)}")
        _refuse_parts(folder)
    elif not is_gguf(name) and (name.startswith((".", "/", "~", "runs/")) or name.count("/") > 1):
        stage = folder.name if folder.name in RECIPES else expected or "pretrain"
        parent = "" if stage == "pretrain" else " --model_name_or_path PARENT"
        flags = "" if name == f"runs/demo/{stage}" else f"{parent} --dataset_name DATA --output_dir {name}"
        raise ValueError(f"{name} does not exist; make it with: accelerate launch recipes/{stage}.py{flags}")
    if (settings := adapter_of(name, revision)) is not None:
        _refuse_adapter(name, settings)


def _command_of(record: dict) -> str:
    """What follows "finish it with": the command of the run where it is words alone, as a run of ours notes it. A
    run.json may come from anywhere, and what stands here will be pasted.
    """
    command = record.get("command")
    if isinstance(command, str) and command.startswith("accelerate launch "):
        plain = command.replace("hf_***", "hf_x")  # a token that was redacted
        try:
            if shlex.join(shlex.split(plain)) == plain:
                return f": {command}"
        except ValueError:  # quotes that do not close
            pass
    return " the command that began it"


def _refuse_parts(folder: Path) -> None:
    """Refuses a folder that lacks files which its index names, and one with the weights of a value model."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        found = _json_of(str(folder), index.name, None)
        weights = found.get("weight_map") if isinstance(found, dict) else None
        named = (
            set(weights.values()) if isinstance(weights, dict) and all(map(_is_file_name, weights.values())) else None
        )
        if not named:
            raise ValueError(
                f"{folder}: {index.name} names no weights, or files that do not lie beside it; fetch or copy it again"
            )
        absent = sorted(file for file in named if not (folder / file).is_file())
        if absent:
            more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
            raise ValueError(f"{folder} lacks {absent[0]}{more}, which {index.name} names; fetch or copy it again")
    if any((place / VALUE_HEAD).is_file() for place in (folder, folder.parent)):
        raise ValueError(
            f"{folder} holds PPO's value model, which neither writes answers nor scores them; give it to "
            "--value_model_name_or_path, or name the run's own folder"
        )


def _is_file_name(value: Any) -> bool:
    """Whether a value of an index is the name of a file beside it, and not a path to somewhere else."""
    return isinstance(value, str) and value not in ("", ".", "..") and Path(value).name == value


def _refuse_adapter(name: str, settings: dict) -> None:
    kind, folder = str(settings.get("peft_type")), Path(name)
    if kind in _UNMERGEABLE or settings.get("alora_invocation_tokens"):
        kind = "activated LoRA" if settings.get("alora_invocation_tokens") else kind.lower().replace("_", " ")
        raise ValueError(
            f"{name} is an adapter of the kind {kind}, which cannot be merged into a model's weights; start from "
            f"{settings.get('base_model_name_or_path')}, or from an adapter such as LoRA"
        )
    from peft import PeftType  # for adapters alone: it takes a second to import

    if kind not in PeftType.__members__:
        raise ValueError(
            f"{name} is an adapter of the kind {kind}, which the installed PEFT does not know; update peft"
        )
    if folder.is_dir() and not (folder / "adapter_model.safetensors").is_file():
        pickled = (folder / "adapter_model.bin").is_file()
        raise ValueError(
            f"{name} is an adapter, but its weights are pickles, which can run code; load it with PEFT where you trust "
            "them, and save it anew"
            if pickled
            else f"{name} is an adapter without its weights, adapter_model.safetensors; fetch or copy it again"
        )
    base, revision = base_of(name, settings)
    whole_model(name)
    if base != name:
        try:
            find_parent(base, revision)
        except ValueError as error:
            raise ValueError(f"{name} is an adapter of {base}: {error}") from None


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
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is broken ({error}); mend it, or remove the folder") from None
    return record if isinstance(record, dict) and _reads_as_ours(record) else None


def _reads_as_ours(record: dict) -> bool:
    arguments = record.get("arguments", {})
    groups = isinstance(arguments, dict) and all(isinstance(group, dict) for group in arguments.values())
    # A list, as what stands in a foreign run.json may not be hashable.
    return groups and isinstance(record.get("status"), str) and record.get("stage") in [*STAGES]


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


def _json_of(name: str, file: str, revision: str | None) -> Any:
    path = _file_of(name, file, revision)
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path else None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name}: {file} is broken ({error}); mend it, or fetch it again") from None


def _file_of(name: str, file: str, revision: str | None) -> Path | None:
    """A file of a folder or Hub id; None where it has none, or the Hub cannot be asked (opening it says why)."""
    if not is_hub_id(name):
        path = Path(name) / file
        return path if path.is_file() else None
    try:
        return Path(hf_hub_download(name, file, revision=revision))
    except Exception:  # of a dozen types
        return None


def _record_on_hub(name: str, revision: str | None) -> dict | None:
    try:
        record = json.loads(Path(hf_hub_download(name, "run.json", revision=revision)).read_text(encoding="utf-8"))
    except Exception:  # of a dozen types; a model from elsewhere has none, and that is not a failure
        return None
    return record if is_run(record) and _reads_as_ours(record) else None


def _commit(name: str, revision: str | None) -> str | None:
    try:
        return HfApi().model_info(name, revision=revision).sha
    except Exception:  # offline, unreachable, gated: loading the weights reports it
        cached = try_to_load_from_cache(name, "config.json", revision=revision)
        return Path(cached).parent.name if isinstance(cached, str) else None
