"""Where a model comes from: its parents stage by stage and its data, as run.json keeps them and the card shows them."""

import json
import math
import re
from pathlib import Path
from typing import Any

from fourstage.parent import HUB_ID, Parent, is_hub_id

_KINDS = ("hub", "demo", "generated", "local")


def summary(parent: Parent) -> dict:
    """A model in short, for the run.json of the models made from it; it names no path of this machine."""
    record, evaluation, hub = parent.record or {}, evaluation_of(Path(parent.name)), None
    if parent.on_hub:
        evaluation = {}
        hub = {"repo_id": parent.name, "revision": parent.revision or "main", "commit": parent.commit}
    return _plain(
        {
            **record,
            "name": parent.name if parent.on_hub else Path(parent.name).name,
            "license": _mapping(_mapping(record.get("arguments")).get("model")).get("model_license"),
            "metrics": measured(_mapping(record.get("metrics")), evaluation),
            "hub": hub or record.get("hub"),
        }
    )


def lineage(parent: Parent | None) -> list[dict]:
    """The models before this one, the first one first: the parent's own lineage and the parent."""
    if parent is None:
        return []
    before = (parent.record or {}).get("lineage")
    before = before if isinstance(before, list) else []
    return [*(_plain(entry) for entry in before if isinstance(entry, dict)), summary(parent)]


def _mapping(value: Any) -> dict:
    return value if isinstance(value, dict) else {}


def _plain(entry: dict) -> dict:
    """A summary that holds what it should and nothing else: a parent's run.json may be anybody's."""
    texts = {key: str(entry[key])[:200] if entry.get(key) is not None else None for key in ("name", "stage", "license")}
    counts = {key: entry[key] if type(entry.get(key)) is int else None for key in ("parameters", "tokens", "seed")}
    metrics = entry["metrics"] if isinstance(entry.get("metrics"), dict) else {}
    hub = entry["hub"] if isinstance(entry.get("hub"), dict) else {}
    hub = {key: str(hub.get(key)) for key in ("repo_id", "revision", "commit") if hub.get(key)}
    known = HUB_ID.fullmatch(hub.get("repo_id", "")) and all(len(part) < 200 for part in hub.values())
    data = entry["datasets"] if isinstance(entry.get("datasets"), list) else []
    data = [part for part in data if isinstance(part, dict) and part.get("kind") in _KINDS]
    data = [
        {"name": str(part.get("name"))[:200], "kind": part["kind"], "license": part.get("license")} for part in data
    ]
    kept = [part for part in data if part["kind"] != "hub" or HUB_ID.fullmatch(part["name"])]
    return {**texts, **counts, "metrics": measured(metrics), "hub": hub if known else None, "datasets": kept}


def named_data(data_args: Any, ptx: str | None = None) -> list[dict]:
    """The data sets of a run: `name`, which of `hub`, `demo`, `generated` or `local` it is, and its license if given.

    `ptx` names those of PPO-ptx, whose license is not asked for.
    A local file or folder goes by the last part of its path.
    """
    entries = data_args.datasets if isinstance(data_args.datasets, list) else []
    entries = [entry for entry in entries if isinstance(entry, dict)] or [{"dataset_name": data_args.dataset_name}]
    license = data_args.dataset_license
    named = [_named(str(entry.get("dataset_name")), entry.get("license") or license) for entry in entries]
    beside = [_named(ptx, None)] if ptx else []
    return named + [part for part in beside if part["name"] not in [known["name"] for known in named]]


def _named(name: str, license: str | None) -> dict:
    kind = _kind_of_data(name)
    return {"name": Path(name).name if kind == "local" else name, "kind": kind, "license": license}


def _kind_of_data(name: str) -> str:
    if name == "fourstage/demo":
        return "demo"
    if name.startswith("reasoning-gym/") and not Path(name).exists():
        return "generated"
    looks_local = Path(name.removesuffix(".gz")).suffix in (".txt", ".jsonl", ".json", ".parquet", ".csv")
    return "hub" if is_hub_id(name) and not looks_local else "local"


def evaluation_of(folder: Path) -> dict:
    """What recipes/measure.py left in a folder, or nothing; ValueError where the file is broken."""
    file = folder / "evaluation.json"
    try:
        return _mapping(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is broken ({error}); delete it, or measure the model again") from None


_NO_MEASUREMENT = re.compile(r"(runtime|_per_second|total_flos|epoch|num_tokens|num_input_tokens_seen)$")


def measured(metrics: dict, evaluation: dict | None = None) -> dict[str, int | float]:
    """The finite numbers among a run's metrics that measure the model, not the machine; those of `evaluation` that
    have other names stand after them.
    """
    both = {**metrics, **{k: v for k, v in (evaluation or {}).items() if k not in metrics and k != "parameters"}}
    numbers = {k: v for k, v in both.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    return {k: v for k, v in numbers.items() if math.isfinite(v) and not _NO_MEASUREMENT.search(k)}
