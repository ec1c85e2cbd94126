"""Checks of a run's folder: its status, checkpoints, weights, and whether parent and data are as they were."""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from fourstage.artifact.checkpoints import damage, numbered
from fourstage.data.loading import (
    fingerprint,
    load_conversations,
    load_preferences,
    load_problems,
    load_prompts,
    load_texts,
    rows_hash,
)
from fourstage.doctor.findings import Finding, fail, ok, refused, some, unknown, warning
from fourstage.doctor.subject import Subject
from fourstage.models.facts import context_of
from fourstage.models.finite import not_finite
from fourstage.parent import is_hub_id, weights_hash
from fourstage.ppo.ptx import load_ptx
from fourstage.rl.rewards import load_reward_func


def status(subject: Subject) -> list[Finding]:
    """Whether the run came to its end."""
    if subject.kind != "run" or subject.record is None:
        return []
    what, record = "status", subject.record
    if record.get("status") == "finished":
        return [ok(what, f"{record.get('stage')}, finished {record.get('finished')} after {record.get('steps')} steps")]
    return [warning(what, f"it is {record.get('status')}", f"finish it with: {record.get('command')}", "run.json")]


def checkpoints(subject: Subject) -> list[Finding]:
    """The files of every checkpoint can be opened."""
    if subject.kind != "run" or subject.record is None:
        return []
    what, folder = "checkpoints", Path(subject.target)
    found = numbered(folder)
    broken = [f"{path.name}: {flaw}" for path in found if (flaw := damage(path, subject.record))]
    if broken:
        fix = "the run goes on from the newest whole one; remove the others, or bring their files back"
        return [fail(what, "; ".join(broken), fix, str(folder / "checkpoints"))]
    return [ok(what, f"{len(found)} whole" if found else "none are kept")]


def weights(subject: Subject) -> list[Finding]:
    """Weights are finite, and their embedding has the rows that config.json says."""
    if subject.kind not in ("run", "model") or not Path(subject.target).is_dir():
        return []
    what, folder, bad, rows = "weights", Path(subject.target), [], {}
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        if subject.kind == "run" and (subject.record or {}).get("status") == "finished":
            return [fail(what, "a finished run has no weights", "make it again", str(folder))]
        return []
    try:
        for file in files:
            tensors = load_file(file)
            bad += not_finite(tensors)
            rows |= {name: len(tensor) for name, tensor in tensors.items() if name.endswith(_EMBEDDINGS)}
    except (SafetensorError, OSError) as error:
        return [fail(what, f"cannot be read: {error}", "fetch or make them again", str(folder))]
    if bad:
        reason = f"NaN or infinite numbers in {some(bad, 3)}"
        return [fail(what, reason, "take a checkpoint from before, and a lower learning_rate", str(folder))]
    wanted = subject.config.get_text_config().vocab_size if subject.config else None
    off = [name for name, found in rows.items() if found != wanted]
    if wanted and off:
        reason = f"{off[0]} has {rows[off[0]]:,} rows, config.json says vocab_size {wanted:,}"
        return [fail(what, reason, "bring config.json and weights of the same model together", str(folder))]
    return [ok(what, f"{', '.join(file.name for file in files[:3])}: all finite")]


_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight")


def parents(subject: Subject) -> list[Finding]:
    """Parent and reward model have the weights with which the run began."""
    if subject.kind != "run" or subject.record is None:
        return []
    found = []
    for what, key in (("parent", "parent"), ("reward model", "reward_model")):
        before = subject.record.get(key)
        if not isinstance(before, dict) or not before.get("path"):
            continue
        path, known = str(before["path"]), before.get("sha256")
        now = weights_hash(path)
        if is_hub_id(path):
            found.append(ok(what, f"{path} on the Hub, commit {before.get('commit')}"))
        elif now is None:
            found.append(unknown(what, f"{path} is not here any more", "bring it back, if the run is to go on"))
        elif known and now != known:
            reason = f"the weights of {path} are {now[:12]}, the run began with {known[:12]}"
            found.append(fail(what, reason, "bring the old weights back, or make this stage again", path))
        else:
            found.append(ok(what, f"{path} is as it was"))
    return found


def data(subject: Subject) -> list[Finding]:
    """The rows are those with which the run began."""
    record, settings, what = subject.record, subject.settings, "data"
    if subject.kind != "run" or record is None or settings is None or not record.get("data"):
        return []
    if settings.data.dataset_streaming:
        return [unknown(what, "a stream, which is not read again")]
    try:
        parts = _load(subject)
    except ValueError as error:
        return [refused(what, error)]
    now = {"data": fingerprint, "row_hashes": rows_hash}
    for key, hash_of in now.items():
        before, found = record.get(key), {name: hash_of(rows) for name, rows in parts.items()}
        if before and {name: before.get(name) for name in parts} != found:
            reason = f"{settings.data.dataset_name or 'the mixture'} changed since the run: {before} -> {found}"
            return [fail(what, reason, "bring the old data back, or make this stage again", "run.json")]
    if (record["data"].keys() | {"train", "test"}) != parts.keys():
        return [
            unknown(what, "the rows of PPO-ptx: no tokenizer is there to read them with; the others are as they were")
        ]
    counts = " and ".join(f"{len(rows):,}" for rows in parts.values())
    return [ok(what, f"{counts} rows, as the run read them")]


def _load(subject: Subject) -> dict[str, Any]:
    """The rows of a run by the names under which its record keeps their hashes."""
    settings, stage = subject.settings, subject.stage
    assert settings is not None, "only a run with settings reads its rows"
    rows, training, tokenizer = settings.data, settings.training, subject.tokenizer
    if stage == "pretrain":
        pair = load_texts(rows, training.seed, training.dataset_text_field)
    elif stage == "grpo":
        functions = [load_reward_func(name) for name in training.reward_funcs or []]
        pair = load_problems(rows, training.seed, functions, training, tokenizer)
    else:
        load = {"sft": load_conversations, "reward": load_preferences, "ppo": load_prompts}[stage]
        pair = load(rows, training.seed, tokenizer)
    parts: dict[str, Any] = {"train": pair[0], "test": pair[1]}
    if getattr(training, "ptx_dataset_name", None) and tokenizer is not None:
        context = context_of(subject.config) if subject.config is not None else None
        parts["ptx"] = load_ptx(training, rows, tokenizer, context)
    return parts
