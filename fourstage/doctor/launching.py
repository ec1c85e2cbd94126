"""Checks of a run before its first step: batches, packing, the loss, the folder, the disk, memory and versions."""

import copy
import math
import os
import re
import shutil
import tempfile
from contextlib import ExitStack
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, PreTrainedConfig, Trainer
from trl.trainer.utils import disable_dropout_in_model

from fourstage.arguments import InstructConfig, PretrainConfig
from fourstage.doctor.findings import Finding, fail, ok, refused, share, some, unknown, warning
from fourstage.doctor.subject import Subject
from fourstage.errors import one_line
from fourstage.instruction import InstructTrainer
from fourstage.models.facts import context_of
from fourstage.models.sizing import sized_config
from fourstage.parent import read_record
from fourstage.plan.hardware import this_machine
from fourstage.plan.models import shapes_of, stand_in_tokenizer
from fourstage.plan.planning import Plan, Target, planned
from fourstage.plan.rows import Amount
from fourstage.plan.table import size
from fourstage.pretraining import PretrainTrainer
from fourstage.rl.checks import check_prompts
from fourstage.shipped import shipped_folder

_LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "tokenizers")
_TINY, _WORDS = 60_000, 384  # parameters and vocabulary of the model on which the loss is tried
_LENGTHS = (5, 9, 14, 20)  # of its rows: as unequal as those of a real batch
_LARGER = 8.0  # times the weights as drawn
_SAME = 1e-4  # of the loss: rounding is below, a mean of means is far above
_NEARLY_FULL = 0.95  # of the memory


def prompts_fit(subject: Subject) -> list[Finding]:
    """Prompts leave room for an answer, and there are enough for a rollout."""
    training, config, what = subject.training, subject.config, "prompts and answers"
    if subject.stage not in ("ppo", "grpo") or subject.kind != "recipe" or config is None:
        return []
    context, answer = context_of(config) or 1024, training.max_completion_length
    room = context - answer
    if room < 1:
        reason = f"max_completion_length={answer} leaves no room for a prompt in a context of {context:,} tokens"
        return [fail(what, reason, "lower it", "max_completion_length")]
    long = [row.row.at for row in subject.encoded if len(row.ids) > room]
    if long:
        reason = f"{share(len(long), len(subject.encoded))} have more than {room:,} tokens, which a context of "
        reason += f"{context:,} leaves beside max_completion_length={answer}: {some(long)}"
        level = fail if training.overlong == "error" or len(long) == len(subject.encoded) else warning
        return [level(what, reason, "lower max_completion_length, or know that they are left out")]
    longest = max((len(row.ids) for row in subject.encoded), default=0)
    return [ok(what, f"the longest prompt, {longest:,} tokens, and {answer:,} of an answer fit {context:,}")]


def groups(subject: Subject) -> list[Finding]:
    """A rollout takes as many prompts as there are, or fewer; TRL's config has checked by now that groups divide it."""
    training, config, what, train = subject.training, subject.config, "groups", subject.train
    if subject.stage not in ("ppo", "grpo") or subject.kind != "recipe" or config is None or train is None:
        return []
    if not train.rows or subject.tokenizer is None:
        return []
    room = (context_of(config) or 1024) - training.max_completion_length
    long = {row.row.at for row in subject.encoded if len(row.ids) > room}
    rows = Dataset.from_list([{"prompt": row.row["prompt"]} for row in train.rows if row.at not in long])
    if train.total is None or not len(rows):
        return []
    parts = {"args": training, "train_dataset": rows.select_columns(["prompt"]), "eval_dataset": None}
    trainer = SimpleNamespace(**parts, model=config, processing_class=subject.tokenizer, chat_template_kwargs={})
    try:
        check_prompts(cast(Any, trainer))
    except ValueError as error:
        return [refused(what, error)]
    each = training.num_generations or 1
    prompts = training.generation_batch_size // each
    return [ok(what, f"a rollout takes {prompts} of {len(rows):,} prompts, {each} answers to each")]


def packed_documents(subject: Subject) -> list[Finding]:
    """Whether documents that share a row see one another."""
    what, training = "packed documents", subject.training
    if subject.kind != "recipe" or subject.stage not in ("pretrain", "sft") or subject.settings is None:
        return []
    if training.packing_strategy == "auto":  # its model could not be opened
        return []
    if not training.packing:
        return [ok(what, "rows are not packed: each stands alone")]
    flash = "flash" in (subject.settings.model.attn_implementation or "")
    if training.packing_strategy.startswith("bfd") and flash:
        return [ok(what, "kept apart by flash attention")]
    if subject.stage == "pretrain" and training.packing_strategy == "wrapped":
        return [ok(what, "not kept apart: a row's documents see those before them, with the end token between")]
    reason = f"packing_strategy={training.packing_strategy} without flash attention: rows see the ones before them"
    return [warning(what, reason, "leave packing out, or give --attn_implementation flash_attention_2", "packing")]


def accumulation(subject: Subject) -> list[Finding]:
    """The loss of a batch of four rows of unequal length is that of the four, one after another, in the recipe's own
    trainer: on a tiny model of the same type."""
    what, config = "gradient accumulation", subject.config
    if subject.kind != "recipe" or subject.stage not in ("pretrain", "sft") or config is None:
        return []
    kind = config.get_text_config().model_type
    try:
        together, apart = losses_of(config, subject)
    except Exception as error:  # of architectures whose tiny form needs fields of its own
        reason = f"no tiny {kind} could be tried: {one_line(error, 150, with_type=True)}"
        return [unknown(what, reason, "compare two short runs")]
    if abs(together - apart) > _SAME * abs(together):
        reason = f"{kind}: the loss of a batch of four is {together:.5f}, of the four accumulated {apart:.5f}"
        fix = "raise per_device_train_batch_size, not gradient_accumulation_steps"
        level = warning if subject.training.gradient_accumulation_steps > 1 else unknown
        return [level(what, reason, fix, "gradient_accumulation_steps")]
    return [ok(what, f"a tiny {kind} has the same loss, {together:.4f}, in one batch of four and in four")]


def losses_of(config: PreTrainedConfig, subject: Subject) -> tuple[float, float]:
    """The loss of four rows in one batch, and accumulated over four, of a tiny model of this type.

    Its weights are large, so that the rows' losses differ, and a mean of means is not the mean.
    """
    kind = config.get_text_config().model_type
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng():
        torch.manual_seed(0)
        tiny = sized_config(kind, _TINY, vocab_size=_WORDS, max_position_embeddings=64, special_token_ids=ids)
        for name in [name for name, value in vars(tiny).items() if "drop" in name and isinstance(value, float)]:
            setattr(tiny, name, 0.0)
        model = AutoModelForCausalLM.from_config(tiny)
        disable_dropout_in_model(model)
        with torch.no_grad():
            for weight in (one for one in model.parameters() if one.dim() > 1):
                weight.mul_(_LARGER)
        rows = [{"input_ids": torch.randint(6, _WORDS, (length,)).tolist()} for length in _LENGTHS]
        data = Dataset.from_list([row | {"labels": row["input_ids"]} for row in rows])
        trainer = _tiny_trainer(subject, folder, model, data)
        trainer.compute_loss_context_manager = ExitStack  # float32, whatever the run's precision is
        batches = [[trainer.data_collator([row]) for row in data], [trainer.data_collator(list(data))]]
        apart, together = (_accumulated(trainer, batch) for batch in batches)
    return together, apart


def _tiny_trainer(subject: Subject, folder: str, model: Any, data: Dataset) -> Trainer:
    given = subject.training  # its precision: a process keeps the first that it had
    settings: dict[str, Any] = {"output_dir": folder, "report_to": [], "bf16": given.bf16, "fp16": given.fp16}
    settings |= {"packing": False, "dataset_kwargs": {"skip_prepare_dataset": True}, "max_length": 64}
    parts: dict[str, Any] = {"model": model, "train_dataset": data, "eval_dataset": data}
    parts["processing_class"] = stand_in_tokenizer(_WORDS)
    if subject.stage == "pretrain":
        alone = {"use_muon": False, "shuffle_dataset": False}
        return PretrainTrainer(**parts, args=PretrainConfig(**settings, **alone), bytes_per_token=1.0)
    return InstructTrainer(**parts, args=InstructConfig(**settings, assistant_only_loss=False))


def _accumulated(trainer: Trainer, batches: list) -> float:
    """The loss of one optimizer step over these batches."""
    model = cast(torch.nn.Module, trainer.model)
    batches, items = trainer.get_batch_samples(iter(batches), len(batches), trainer.args.device)
    trainer.current_gradient_accumulation_steps = len(batches)
    return sum(float(trainer.training_step(model, batch, items)) for batch in batches)


def output_folder(subject: Subject) -> list[Finding]:
    """The run folder can be written, and holds no other files."""
    if subject.kind != "recipe":
        return []
    what, folder = "output_dir", Path(subject.training.output_dir)
    nearest = _existing(folder)
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        return [fail(what, f"{nearest} cannot be written", "choose another --output_dir", str(folder))]
    if not folder.is_dir() or not any(folder.iterdir()):
        return [ok(what, f"{folder} is free")]
    record = read_record(folder)
    if record is None:
        fix = "choose another --output_dir"
        return [fail(what, f"{folder} holds files that are not a fourstage run", fix, str(folder))]
    return [ok(what, f"{folder} holds a run that is {record['status']}")]


def _existing(folder: Path) -> Path:
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if path.exists())


def memory_and_disk(subject: Subject) -> list[Finding]:
    """What `fourstage plan` says that the run needs, against what this machine has."""
    if subject.kind != "recipe" or subject.config is None or subject.settings is None:
        return []
    if any(finding.what in ("settings", "rewards") for finding in subject.found):
        return []  # what was left open has no values yet
    try:
        plan = _plan(subject)
    except ValueError as error:
        return [unknown("memory", f"not planned: {' '.join(str(error).split())[:200]}", "see fourstage plan")]
    have, need = plan.target.device.memory, plan.need
    text = f"{size(need, 'GB')} of {size(have, 'GB')} by the plan"
    fix = f"fourstage plan {subject.stage} lists what helps"
    fits = ok("memory", text) if need <= _NEARLY_FULL * have else warning("memory", f"it takes {text}", fix)
    return [fits, _disk(subject, plan)]


def _plan(subject: Subject) -> Plan:
    assert subject.settings is not None, "only a recipe is planned"
    settings = copy.copy(subject.settings)
    settings.training = copy.copy(settings.training)
    lengths = [len(row.ids) for row in subject.encoded]
    amount = Amount(subject.train.total if subject.train else None)
    if lengths and subject.stage != "pretrain":
        amount = Amount(amount.rows, max(lengths), sum(lengths) / len(lengths), True)
    return planned(settings, shapes_of(settings), Target(this_machine(), 1, "none"), amount)


def _disk(subject: Subject, plan: Plan) -> Finding:
    training, found, what = subject.training, plan.found, "disk"
    assert subject.settings is not None, "only a recipe is planned"
    whole = found.weights["weights"]
    each = (4 * found.trained if subject.settings.model.use_peft else whole) + found.states + 4 * found.critic_trained
    steps = plan.steps or training.max_steps
    every = training.save_steps * steps if training.save_steps < 1 else training.save_steps
    made = max(1, math.floor(steps / every)) if steps > 0 and every > 0 else 1
    kept = min(training.save_total_limit or made, made) if training.save_strategy != "no" else 0
    need = whole + each * (kept + (kept > 0))  # the new one is written before the oldest goes
    folder = _existing(Path(training.output_dir))
    free = shutil.disk_usage(folder).free
    text = f"{kept} checkpoints of {size(each)} and the model take {size(need)}, {size(free)} are free"
    if need > free:
        return fail(what, text, "free some, lower save_total_limit, or choose another output_dir", str(folder))
    return ok(what, text)


def versions(subject: Subject) -> list[Finding]:
    """The libraries are those that the tests ran with."""
    del subject  # the same for all
    what, file = "versions", shipped_folder() / "constraints.txt"
    if not file.is_file():
        return []
    tested = dict(re.findall(r"^([\w.-]+)==(\S+)$", file.read_text(encoding="utf-8"), re.MULTILINE))
    others = []
    for name in _LIBRARIES:
        try:
            here = version(name).split("+")[0]
        except PackageNotFoundError:
            here = "missing"
        if name in tested and here != tested[name]:
            others.append(f"{name} {here} (tested: {tested[name]})")
    if others:
        return [warning(what, ", ".join(others), "pip install -c constraints.txt, or run the tests with these")]
    return [ok(what, f"{', '.join(_LIBRARIES)} are the tested ones")]
