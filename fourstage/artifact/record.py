"""run.json: what a run notes about itself when it begins, and which of it makes a run another one."""

import dataclasses
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from huggingface_hub import get_token
from transformers import TrainingArguments

from fourstage import __version__
from fourstage.arguments import DataArguments, ModelArguments
from fourstage.artifact.lineage import lineage, named_data, summary
from fourstage.parent import Parent, find_parent

_LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "tokenizers")
# Settings that change what is written or where it runs, not what is learned: a run may be resumed with others.
_NOT_IDENTITY = re.compile(
    r"^(output_dir|resume_from_checkpoint|logging_.*|log_.*|report_to|run_name|project|trackio_.*|disable_tqdm|save_.*|"
    r"eval_.*|per_device_eval_batch_size|max_eval_rows|dataloader_(?!drop_last).*|push_to_hub|hub_.*|.*_license|use_cpu|"
    r"local_rank|ddp_.*|dataset_num_proc|skip_memory_metrics|stop_on_divergence|debug|include_.*|do_.*)$"
)
# Micro-batches that a process takes for an update, and that it generates at once.
_MICRO_BATCHES = ("gradient_accumulation_steps", "steps_per_generation")


def new_record(
    stage: str,
    data_args: DataArguments,
    training_args: TrainingArguments,
    model_args: ModelArguments,
    parent: Parent | None,
    resolved: Iterable[str],
) -> dict:
    """What run.json holds when a run begins. `resolved` names the settings that `fourstage.resolve` filled in."""
    scored_by = getattr(training_args, "reward_model_name_or_path", None)
    scorer = find_parent(scored_by) if scored_by else None
    arguments = {
        "data": dataclasses.asdict(data_args),
        "training": training_args.to_dict(),
        "model": dataclasses.asdict(model_args),
    }
    record = {
        "status": "running",
        "stage": stage,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": shlex.join(["accelerate", "launch", *sys.argv]),
        "seed": training_args.seed,
        "git_sha": git_sha(),
        "processes": PartialState().num_processes,
        "engine": engine(training_args),
        "versions": {"fourstage": __version__, **{name: version(name) for name in _LIBRARIES}},
        "parent": parent.identity() if parent else None,
        "reward_model": scorer.identity() if scorer else None,
        "lineage": lineage(parent),
        "rewarded_by": summary(scorer) if scorer else None,
        "datasets": named_data(data_args, getattr(training_args, "ptx_dataset_name", None)),
        "data": None,
        "row_hashes": None,
        "arguments": arguments,
        "resolved": sorted(resolved),
    }
    return json.loads(redact(json.dumps(record, default=str)))


def engine(training_args: TrainingArguments) -> str:
    """What trains the processes together: none, ddp, fsdp1 or 2, zero1, zero2, zero3."""
    state = PartialState()
    if training_args.deepspeed_plugin is not None:
        return f"zero{training_args.deepspeed_plugin.zero_stage}"
    if parse_flag_from_env("ACCELERATE_USE_FSDP") or training_args.fsdp:
        options = training_args.fsdp_config if isinstance(training_args.fsdp_config, dict) else {}
        return f"fsdp{options.get('version', 2) if training_args.fsdp else os.environ.get('FSDP_VERSION', 1)}"
    return "ddp" if state.num_processes > 1 else "none"


def identity(record: dict) -> dict:
    """What makes a run this one: its stage, its parents' weights, and every setting that changes what is learned."""
    flat = {f: v for group in record["arguments"].values() for f, v in group.items() if not _NOT_IDENTITY.match(f)}
    return {**{key: record.get(key) for key in ("stage", "parent", "reward_model")}, **flat}


def differences(old: dict, new: dict) -> list[str]:
    """How two run.json differ in their `identity`, a line for each setting; empty for the same run.

    Other micro-batches are no difference where another number of processes makes up for them (`same_updates`).

    A setting that the new run's defaults filled in does not count where the old run.json has None or "auto": it was
    written before such settings were resolved, and the rule that fills them is the same. A setting of data or model
    that the old run.json does not know was at its default.
    """
    defaults = {f.name: f.default for kind in (DataArguments, ModelArguments) for f in dataclasses.fields(kind)}
    now, filled = identity(new), set(new.get("resolved", ()))
    before = {name: value for name, value in defaults.items() if name in now} | identity(old)
    return [
        f"{key} was {before.get(key)!r}, now {now.get(key)!r}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
        and not (key in filled and before.get(key) in (None, "auto"))
        and not (key in _MICRO_BATCHES and same_updates(old, new))
    ]


def same_updates(old: dict, new: dict) -> bool:
    """Whether a run may go on with the processes of `new`: updates read the same rows, sums come in another order.

    That is so alone or under DDP, with as many micro-batches an update in all processes together. group_by_length forms
    its groups by process; in PPO and GRPO the batches of a rollout that makes several updates are drawn by process.
    """
    plain = all(record.get("engine") in ("none", "ddp") for record in (old, new))
    micro, other = (batches_an_update(record) for record in (old, new))
    settings = [record["arguments"]["training"] for record in (old, new)]
    grouped = settings[1].get("train_sampling_strategy") == "group_by_length"
    whole = all(one.get("steps_per_generation") == one.get("gradient_accumulation_steps") for one in settings)
    by_rows = new["stage"] in ("pretrain", "sft", "reward") or (whole and settings[1].get("loss_type") != "bnpo")
    return by_rows and plain and micro == other and not grouped


def batches_an_update(record: dict) -> int:
    """Micro-batches of an update in all processes together."""
    return record["arguments"]["training"].get("gradient_accumulation_steps", 1) * record.get("processes", 1)


def other_processes(folder: Path, old: dict, new: dict) -> str:
    """Why a run does not go on with another number of processes, and with which settings it would."""
    then, now, batches = old["processes"], new["processes"], batches_an_update(old)
    arguments = old["arguments"]["training"].copy()
    rollout = arguments.get("steps_per_generation") == arguments.get("gradient_accumulation_steps")
    arguments |= dict.fromkeys(_MICRO_BATCHES[: 1 + rollout], batches // now)
    elastic = {**old, "processes": now, "engine": new["engine"], "arguments": {"training": arguments}}
    way = f"--num_processes {then}"
    if batches % now == 0 and same_updates(old, elastic):
        way += f", or with --gradient_accumulation_steps {batches // now}"
    return (
        f"{folder} ran with {then} processes, now {now}, another number of rows a step; resume it with {way}, or "
        "choose another --output_dir"
    )


def git_sha() -> str | None:
    """The commit of the checkout that this package lies in; None without one, or without git."""
    if not shutil.which("git"):
        return None
    folder = Path(__file__).parent
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


def redact(text: str) -> str:
    """The text without Hub tokens: the one of this machine, and whatever looks like one."""
    if token := get_token():  # whatever its form
        text = text.replace(token, "hf_***")
    return re.sub(r"\bhf_[A-Za-z0-9]{8,}", "hf_***", text)
