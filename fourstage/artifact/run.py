"""What a stage leaves behind: the run folder, its run.json, and the rule by which a run is resumed."""

import json
import os
import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments

from fourstage.arguments import DataArguments, ModelArguments
from fourstage.artifact.card import card_data, model_card, pushed_card
from fourstage.artifact.checkpoints import damage, newest_whole, numbered, was_whole
from fourstage.artifact.divergence import check_result
from fourstage.artifact.hub import Hub, HubSettings, open_hub, take_settings
from fourstage.artifact.lock import lock_folder, unlock_folder
from fourstage.artifact.record import differences, new_record, other_processes, same_updates
from fourstage.artifact.upload import public_record
from fourstage.atomic import write_atomically, write_through
from fourstage.data.loading import describe, fingerprint, rows_hash
from fourstage.data.sources import Rows
from fourstage.models.adapters import check_adapters
from fourstage.models.opening import dequantised
from fourstage.parent import Parent, is_gguf, read_record
from fourstage.stages import STAGES

_BEFORE_THE_RECORD = {"run.json.tmp", ".lock"}  # what a process that was killed at its start leaves
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


@dataclass
class Run:
    """A started stage.

    Args:
        folder: where it goes. record: what its run.json holds. checkpoint: the path to resume from, or None.
        is_main: whether this is the first process, which alone writes.
        parent: the model it starts from; None for random weights.
        data: the rows to train on and those held out, in words.
        hub: where the first process pushes it, if it does. hub_settings: what was asked for.
    """

    folder: Path
    record: dict
    checkpoint: str | None
    is_main: bool
    parent: Parent | None = None
    data: str = ""
    hub: Hub | None = None
    hub_settings: HubSettings | None = None

    def write(self) -> None:
        """Replaces run.json in one step."""
        if self.is_main:
            write_atomically(self.folder / "run.json", json.dumps(self.record, indent=1, default=str) + "\n")


def start_run(
    stage: str,
    data_args: DataArguments,
    training_args: TrainingArguments,
    model_args: ModelArguments,
    parent: Parent | None = None,
    repairs: Sequence[str] = (),
    resolved: Iterable[str] = (),
) -> Run:
    """Opens the run folder `output_dir`, or finds that its run goes on or is done; checkpoints go below it.

    All processes take the decision of the first. From here on `training_args.output_dir` is the folder's
    `checkpoints/`, and where the parent is a GGUF file `model_args.model_name_or_path` is its dequantised copy in the
    folder's `base/`.

    Args:
        parent: the model to start from. repairs: what was mended in its tokenizer.
        resolved: names of the settings that `fourstage.resolve` filled in.
    Raises:
        ValueError: if the folder or the repository on the Hub holds other files, or a run with other settings (their
            differences are named); if the run is to be pushed and cannot be.
        SystemExit: with code 0, if this very run is finished.
    """
    check_adapters(model_args, STAGES[stage].scores)
    folder, process = Path(training_args.output_dir or stage), PartialState()
    record = new_record(stage, data_args, training_args, model_args, parent, resolved)
    record["tokenizer_repairs"] = list(repairs)
    settings, hub = take_settings(training_args), None  # after the record, which keeps them
    answer: list[tuple] = [()]  # one item in a list, as broadcast_object_list takes it
    if process.is_main_process:
        hub, answer = _open(folder, record, training_args.resume_from_checkpoint, settings)
    if process.num_processes > 1:
        answer = broadcast_object_list(answer)
    kind, value = answer[0]
    if kind == "error":
        raise ValueError(value)
    if kind == "finished":
        process.print(value)
        raise SystemExit(0)
    run = Run(folder, record, value, process.is_main_process, parent, "", hub, settings)
    _begin(run, training_args)
    if parent and is_gguf(parent.name):
        with process.main_process_first():
            model_args.model_name_or_path = str(dequantised(parent.name, folder / "base"))
    return run


def _begin(run: Run, training_args: TrainingArguments) -> None:
    """Writes the first run.json, and lets only the first process talk to the user."""
    training_args.output_dir = str(run.folder / "checkpoints")
    if not run.is_main:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (errors still go to stderr)
        return
    former = read_record(run.folder)
    same_run = former is not None and not differences(former, run.record)
    if former and same_run and run.checkpoint and former["processes"] != run.record["processes"]:
        print(
            f"{run.folder} ran with {former['processes']} processes and goes on with {run.record['processes']}: "
            "updates read the same rows, sums come in another order, random states begin anew"
        )
    for key in ("data", "row_hashes"):
        run.record[key] = former.get(key) if former and same_run else None
    if former and not same_run:  # it never trained
        for name in ("checkpoints", "base", "base.tmp"):
            shutil.rmtree(run.folder / name, ignore_errors=True)
    run.folder.mkdir(parents=True, exist_ok=True)
    run.write()
    if run.checkpoint:
        print(f"Resuming {run.folder} from {Path(run.checkpoint).name}")


def record_data(run: Run, train: Rows, test: Rows, ptx: Rows | None = None) -> None:
    """Notes which rows the run reads, those of PPO-ptx too; a resumed run must read the same.

    Raises:
        ValueError: if the data changed since the run began.
    """
    parts = {"train": train, "test": test} | ({"ptx": ptx} if ptx is not None else {})
    found = {
        "data": {name: fingerprint(rows) for name, rows in parts.items()},
        "row_hashes": {name: rows_hash(rows) for name, rows in parts.items()},
    }
    for key, now in found.items():
        before = run.record.get(key)  # `row_hashes` is None in a run.json of an older version
        if before and before != now:
            raise ValueError(
                f"{run.folder}: the data changed since this run began ({before} -> {now}); bring the old data back, or "
                "choose another --output_dir"
            )
    run.record.update(found)
    run.data = f"{describe(train)} to train on, {describe(test)} held out"
    run.data += f"; {describe(ptx)} learnt on beside the rewards" if ptx is not None else ""
    run.write()


def finish_run(run: Run, trainer: Trainer, model: PreTrainedModel, samples: list[dict], metrics: dict) -> None:
    """Writes the finished stage: weights, tokenizer, samples, trainer state, card; then marks it finished in run.json,
    and pushes it where that was asked for.

    The folder loads as it is with AutoTokenizer and AutoModelForCausalLM, a reward model's with
    AutoModelForSequenceClassification. `model` is what `adapters.finished_model` gave.
    """
    _count_every_step(run, trainer, metrics)
    state_dict = None
    if model is trainer.accelerator.unwrap_model(trainer.model):
        state_dict = trainer.accelerator.get_state_dict(trainer.model_wrapped)  # every process takes part
    check_result(run.folder, model, state_dict)
    if run.is_main:
        _write_stage(run, trainer, model, state_dict, samples, metrics)
    PartialState().wait_for_everyone()  # at the end of any, the launcher may end the first, which is still writing
    if run.hub and run.hub_settings:
        try:
            push_run(run.folder, run.record, run.hub)
        except ValueError as error:  # all is on disk: the Hub can have it later
            print(f"warning: not pushed: {error}", file=sys.stderr)
            print(f"push it later with: {run.hub_settings.push_command(run.folder)}", flush=True)
    unlock_folder(run.folder)


def _count_every_step(run: Run, trainer: Trainer, metrics: dict) -> None:
    """Makes `train_loss` of a resumed run the mean over all steps, as of a run in one piece; the trainer's covers those
    since the checkpoint. It is taken out where the log does not reach the last step.

    The trainer keeps the sum of a stretch in float32 and logs its mean: rounding the product gives the sum to the bit.
    """
    if not run.checkpoint:
        return
    total, last, entries = 0.0, 0, trainer.state.log_history
    for entry in entries:
        if "loss" in entry:
            total += float(np.float32(entry["loss"] * (entry["step"] - last)))
            last = entry["step"]
    for place in (metrics, *(entry for entry in entries[-2:] if "train_loss" in entry)):
        place.pop("train_loss", None)
        if last and last == trainer.state.global_step:
            place["train_loss"] = total / last


def _write_stage(
    run: Run, trainer: Trainer, model: PreTrainedModel, state_dict: dict | None, samples: list[dict], metrics: dict
) -> None:
    model.save_pretrained(run.folder, state_dict=state_dict)
    drop_pickled_arguments(run.folder)
    _save_tokenizer(cast(PreTrainedTokenizerBase, trainer.processing_class), run)
    trainer.state.save_to_json(str(run.folder / "trainer_state.json"))
    lines = [json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples]
    (run.folder / "samples.jsonl").write_text("".join(lines), encoding="utf-8")
    run.record.update(
        status="finished",
        finished=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        parameters=model.num_parameters(),
        tokens=trainer.state.num_input_tokens_seen,
        steps=trainer.state.global_step,
        metrics=metrics,
    )
    (run.folder / "README.md").write_text(model_card(run.record, samples), encoding="utf-8")
    write_through(run.folder)  # before run.json says that it is finished
    run.write()


def push_run(folder: Path, record: dict, hub: Hub) -> None:
    """Uploads a finished stage, and notes in its run.json where it is.

    Raises:
        ValueError: of one line, if the Hub does not take it.
    """
    hub.push_finished(folder, record, pushed_card(folder, record, hub.repo_id))
    Run(folder, record, None, True).write()


def push_folder(folder: Path, settings: HubSettings) -> None:
    """Uploads the folder to the repository of `settings`; by default to where it went, or was to go, before.

    Raises:
        ValueError: of one line, if the folder holds no finished stage or the repository another run, and if the Hub
            does not take it.
    """
    record = read_record(str(folder.resolve()))
    if record is None or record["status"] != "finished":
        way = f"finish it with: {record['command']}" if record else "give the folder that a recipe finished"
        raise ValueError(f"{folder} holds no finished stage; {way}")
    before, given = record.get("hub") or {}, record["arguments"]["training"]
    settings.model_id = settings.model_id or before.get("repo_id") or given.get("hub_model_id")
    settings.revision = settings.revision or before.get("revision") or given.get("hub_revision")
    hub = open_hub(settings, folder, card_data(record).to_yaml())
    if there := hub.record():
        refuse_another_run(hub, there, record)
    push_run(folder, record, hub)


def _open(folder: Path, record: dict, resume: str | None, settings: HubSettings | None) -> tuple[Hub | None, list]:
    """The Hub, if the run is pushed, and the answer of `_decide` in a list; a checkpoint on the Hub is fetched where
    the folder has none."""
    decision = _decide_alone(folder, record, resume)
    if settings and decision[0] == "finished" and not (read_record(folder) or {}).get("hub"):
        return None, [("finished", f"{decision[1]}; it is not on the Hub: {settings.push_command(folder)}")]
    if settings is None or decision[0] != "start":
        return None, [decision]
    try:
        hub = open_hub(settings, folder, card_data(record).to_yaml())
        there = hub.record()
        if there:
            refuse_another_run(hub, there, record)
        if there and there["status"] == "finished":
            fetch = f"hf download {hub.repo_id} --revision {hub.revision} --local-dir {folder}"
            return None, [("finished", f"{hub.url} holds this run, finished ({there['finished']}); fetch it: {fetch}")]
        if there and decision[1] is None and resume in (None, "auto"):
            folder.mkdir(parents=True, exist_ok=True)
            former = {key: there.get(key, record[key]) for key in ("data", "row_hashes", "processes", "engine")}
            Run(folder, record | former, None, True).write()  # first: a folder with files and no run.json is refused
            if hub.restore(folder):
                decision = _decide(folder, record, resume)
    except ValueError as error:
        return None, [("error", str(error))]
    return hub, [decision]


def refuse_another_run(hub: Hub, there: dict, record: dict) -> None:
    """Raises ValueError, with the differences, if the repository's run.json is of another run than `record`."""
    changed = differences(there, public_record(record))
    if changed:
        raise ValueError(
            f"hub_model_id={hub.repo_id} (branch {hub.revision}) holds another run: {'; '.join(changed)}; choose "
            "another --hub_model_id, or a branch of its own with --hub_revision"
        )


def _decide_alone(folder: Path, record: dict, resume: str | None) -> tuple[str, str | None]:
    """`_decide`, and the folder is locked if a run begins there: no other process has it, and none takes it."""
    before = read_record(folder)
    decision = _decide(folder, record, resume)
    if decision[0] == "start":
        try:
            lock_folder(folder)
        except ValueError as error:
            return "error", str(error)
        if read_record(folder) != before:
            decision = _decide(folder, record, resume)
    return decision


def _decide(folder: Path, record: dict, resume: str | None) -> tuple[str, str | None]:
    """("start", checkpoint or None), ("finished", message) or ("error", message)."""
    if problem := _unusable(folder, resume):
        return "error", problem
    checkpoint, former = None if resume in (None, "auto") else resume, read_record(folder)
    if checkpoint and (flaw := damage(Path(checkpoint), record)):
        return "error", f"resume_from_checkpoint={resume} is not whole: {flaw}; give another checkpoint, or auto"
    if former is None:
        if folder.is_dir() and {path.name for path in folder.iterdir()} - _BEFORE_THE_RECORD:
            return "error", f"output_dir={folder} holds files that are not a fourstage run; choose another --output_dir"
        return "start", checkpoint
    finished = former["status"] == "finished"
    if lacking := sorted({"arguments", "processes", *(["finished"] if finished else [])} - former.keys()):
        return "error", f"{folder / 'run.json'} is broken (it has no {lacking[0]!r}); mend it, or remove the folder"
    changed = differences(former, record)
    if changed and _never_trained(folder):
        return "start", None  # a mended command may take the folder
    if changed:
        return "error", (f"output_dir={folder} holds another run: {'; '.join(changed)}; choose another --output_dir")
    if finished and not any(folder.glob("*.safetensors")):
        return (
            "error",
            f"{folder} is finished, but its weights are gone; bring them back, or remove the folder",
        )
    if finished:
        return "finished", f"{folder} is finished ({former['finished']}); nothing to do"
    if former["processes"] != record["processes"] and not same_updates(former, record):
        return "error", other_processes(folder, former, record)
    ran_under = former.get("engine", record["engine"])
    if ran_under != record["engine"] and {ran_under, record["engine"]} != {"none", "ddp"}:
        return "error", (
            f"{folder} ran under {ran_under}, now {record['engine']}, whose checkpoints have another form; "
            f"resume it with {ran_under}, or choose another --output_dir"
        )
    return ("start", checkpoint) if checkpoint else _last_checkpoint(folder, record)


def _unusable(folder: Path, resume: str | None) -> str | None:
    """What is wrong with the folder of a run, or with the checkpoint it is to go on from; None if nothing is."""
    if folder.exists() and not folder.is_dir():
        return f"output_dir={folder} is a file; choose another --output_dir"
    existing = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    if not os.access(existing, os.W_OK):
        return f"output_dir={folder} cannot be made: {existing} is not writable; choose another --output_dir"
    if resume not in (None, "auto") and not (Path(resume) / "trainer_state.json").is_file():
        return f"resume_from_checkpoint={resume} is not a checkpoint; give one of the run's checkpoints/, or auto"
    return None


def _last_checkpoint(folder: Path, record: dict) -> tuple[str, str | None]:
    """The answer of `_decide` for a run that goes on: its newest whole checkpoint. Newer ones are named."""
    checkpoint, flaws = newest_whole(folder, record)
    if checkpoint is None and any(map(was_whole, numbered(folder))):
        return "error", (
            f"output_dir={folder}: no checkpoint is whole any more: {'; '.join(flaws)}; bring the file back, or delete "
            f"{folder / 'checkpoints'} and start anew with the same command"
        )
    for flaw in flaws:
        print(f"{folder}: {flaw}; {f'the run goes on from {checkpoint.name}' if checkpoint else 'it starts anew'}")
    return "start", str(checkpoint) if checkpoint else None


def _never_trained(folder: Path) -> bool:
    """Whether a run left nothing that took work: it failed before its first whole checkpoint."""
    weights = (file for part in (".", "adapter", "value") for file in (folder / part).glob("*.safetensors"))
    return not any(weights) and not any(map(was_whole, numbered(folder)))


def drop_pickled_arguments(folder: Path) -> None:
    """Removes every training_args.bin below a folder."""
    for path, _, files in os.walk(folder):  # which bears that a push in the background removes its folder meanwhile
        if "training_args.bin" in files:
            Path(path, "training_args.bin").unlink(missing_ok=True)


def _save_tokenizer(tokenizer: PreTrainedTokenizerBase, run: Run) -> None:
    """Copies the files of a parent that is a run byte for byte, so that a chain has one tokenizer."""
    own = bool(run.record["arguments"]["model"]["tokenizer_name"])
    is_run = run.parent is not None and run.parent.record is not None and not run.parent.on_hub
    files = [Path(run.parent.name) / name for name in _TOKENIZER_FILES] if is_run and not own else []
    if any(file.name == "tokenizer.json" and file.is_file() for file in files):
        for file in filter(Path.is_file, files):
            (run.folder / file.name).write_bytes(file.read_bytes())
    else:
        tokenizer.save_pretrained(run.folder)
