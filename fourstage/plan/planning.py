"""A plan: what a run needs on a device, and what to change where it does not fit."""

import copy
import math
import multiprocessing
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any

from fourstage import resolve
from fourstage.errors import one_line
from fourstage.models.adapters import check_adapters
from fourstage.models.facts import context_of
from fourstage.parent import needed_parent
from fourstage.plan.engines import check_engine, per_process
from fourstage.plan.hardware import Device
from fourstage.plan.models import Shapes, is_quantised, shapes_of, stand_in_tokenizer
from fourstage.plan.recipe import Settings
from fourstage.plan.rehearsal import Rehearsed, rehearse
from fourstage.plan.rows import Amount, amount_of
from fourstage.plan.work import Work
from fourstage.ppo.ptx import LONGEST_PTX

_PROMPT = 256  # tokens of a prompt where no data say how long they are


@dataclass
class Target:
    """Where a run is to be: a device, how many of it, the engine between them; the longest prompt, if it is given."""

    device: Device
    processes: int
    engine: str
    prompt_tokens: int | None = None


@dataclass
class Plan:
    """What a run needs.

    Args:
        found: the rehearsal, of one process. training, generation: bytes by part in one process of the engine; no
            generation without rollouts. amount: of the data. row, prompt: tokens of the longest. steps: of the
            optimizer, None where unknown. flops: of all processes in a step. seconds: of a step.
    """

    settings: Settings
    shapes: Shapes
    target: Target
    found: Rehearsed
    training: dict[str, int]
    generation: dict[str, int]
    amount: Amount
    row: int
    prompt: int
    steps: int | None
    flops: float
    seconds: float

    @property
    def need(self) -> int:
        """Bytes of the larger of training and generation, with what is held outside of torch's tensors."""
        tensors = max(sum(self.training.values()), sum(self.generation.values()))
        return round(self.target.device.need(tensors))

    @property
    def round(self) -> int:
        """Steps that one rollout serves; 1 without rollouts."""
        return round(_served(self.settings)) if self.prompt else 1

    @property
    def fits(self) -> bool:
        return self.need <= self.target.device.memory


def make_plan(settings: Settings, target: Target) -> Plan:
    """Rehearses the run and divides it.

    Raises:
        ValueError: of one line, for what the recipe or the engine refuses.
    """
    quantised = settings.stage == "ppo" and is_quantised(settings)
    check_engine(target.engine, target.processes, not target.device.is_gpu, quantised)
    if target.engine.startswith("zero") and hasattr(settings.training, "use_muon"):
        settings.training.use_muon = False  # DeepSpeed hands the optimizer flat vectors, so recipes take AdamW
    if settings.stage != "pretrain":
        needed_parent(settings.model.model_name_or_path, settings.model.model_revision, settings.stage)
    check_adapters(settings.model, scores=settings.stage == "reward")
    parts = (settings.data, settings.training, settings.model)
    if settings.stage == "pretrain":  # it says how large the vocabulary is
        resolve.resolve_pretrain(*parts)
    shapes = shapes_of(settings)
    if settings.stage == "grpo":
        resolve.resolve_grpo(*parts, stand_in_tokenizer(shapes.policy.get_text_config().vocab_size))
    elif settings.stage != "pretrain":
        getattr(resolve, f"resolve_{settings.stage}")(*parts)
    return planned(settings, shapes, target, amount_of(settings))


def planned(settings: Settings, shapes: Shapes, target: Target, amount: Amount) -> Plan:
    """The plan of settings that are resolved already."""
    training = settings.training
    prompt = 0
    if settings.stage in ("ppo", "grpo"):
        room = (context_of(shapes.policy) or 1024) - training.max_completion_length
        if room < 1:
            raise ValueError(
                f"max_completion_length={training.max_completion_length} leaves no room for a prompt in the context of "
                f"{context_of(shapes.policy)} tokens; lower it"
            )
        prompt = min(target.prompt_tokens or amount.longest or _PROMPT, room)
        row = prompt + training.max_completion_length
    else:
        packed = settings.stage == "pretrain" or getattr(training, "packing", False)
        row = training.max_length if packed else min(amount.longest or training.max_length, training.max_length)
        row = math.ceil(row / (training.pad_to_multiple_of or 1)) * (training.pad_to_multiple_of or 1)
    ptx = 0
    if getattr(training, "ptx_dataset_name", None):
        ptx = amount.ptx or min(context_of(shapes.policy) or LONGEST_PTX, LONGEST_PTX)
    found = _rehearsed(settings, shapes, row, prompt, target.device.is_gpu, ptx)
    batches = training.gradient_accumulation_steps
    work = found.batch * batches + found.update
    seconds = _seconds(settings, target, work)
    return Plan(
        settings,
        shapes,
        target,
        found,
        per_process(found, target.engine, target.processes, bool(training.bf16)),
        found.generation,
        amount,
        row,
        prompt,
        _steps(settings, amount, target.processes),
        work.flops * target.processes,
        seconds + (_rollout_seconds(settings, found, target) if prompt else 0),
    )


def _rehearsed(settings: Settings, shapes: Shapes, *numbers: Any) -> Rehearsed:
    """`rehearse` in a copy of this process, which ends with it: libraries keep what they set up once for a process, and
    after PPO's rehearsal the heap of torch 2.13 is broken (docs/plan.md)."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    child = context.Process(target=_rehearse_and_send, args=(there, settings, shapes, *numbers))
    child.start()
    there.close()
    kind = shapes.policy.model_type
    try:
        found = here.recv()
    except EOFError:
        child.join()
        raise ValueError(f"model type {kind} cannot be planned: the rehearsal ended with {child.exitcode}") from None
    child.join()
    if isinstance(found, str):
        raise ValueError(found)
    return found


def _rehearse_and_send(there: Connection, settings: Settings, shapes: Shapes, *numbers: Any) -> None:
    try:
        found: Rehearsed | str = rehearse(settings, shapes, *numbers)
    except ValueError as error:
        found = one_line(error)
    except Exception as error:  # architectures that need data to run raise their own kinds
        found = f"model type {shapes.policy.model_type} cannot be planned: {one_line(error, with_type=True)}"
    there.send(found)
    there.close()
    os._exit(0)  # without the garbage collection of a normal end


def _steps(settings: Settings, amount: Amount, processes: int) -> int | None:
    training: Any = settings.training
    if training.max_steps > 0:
        return training.max_steps
    if amount.rows is None:
        return None
    repeated = 1
    if settings.stage in ("ppo", "grpo"):
        repeated = (training.num_generations or 1) * training.num_iterations
    at_once = training.per_device_train_batch_size * training.gradient_accumulation_steps * processes
    return max(1, math.ceil(amount.rows * repeated / at_once * training.num_train_epochs))


def _rollout_seconds(settings: Settings, found: Rehearsed, target: Target) -> float:
    """Of a step: a rollout serves several, and the processes share its rows."""
    works = [found.reading, found.token * settings.training.max_completion_length]
    shares = [replace(work, flops=work.flops / target.processes) for work in works]
    return sum(_seconds(settings, target, work) for work in shares) / _served(settings)


def _seconds(settings: Settings, target: Target, work: Work) -> float:
    """In the precision of the settings, which resolving them may have chosen."""
    return target.device.seconds(work, bool(settings.training.bf16 or settings.training.fp16))


def _served(settings: Settings) -> float:
    training = settings.training
    return training.num_iterations * training.steps_per_generation / training.gradient_accumulation_steps


def remedies(plan: Plan) -> Iterator[tuple[str, Plan]]:
    """Changes by which less memory is needed, each alone, with the plan that it gives; the mildest first."""
    training, model, target = plan.settings.training, plan.settings.model, plan.target
    batch, least = training.per_device_train_batch_size, 2 if plan.settings.stage == "ppo" else 1
    while batch // 2 >= least:
        batch //= 2
        times = training.gradient_accumulation_steps * training.per_device_train_batch_size // batch
        changed = _changed(plan, per_device_train_batch_size=batch, gradient_accumulation_steps=times)
        if changed.fits or batch // 2 < least:
            yield f"--per_device_train_batch_size {batch} --gradient_accumulation_steps {times}", changed
            break
    if not training.activation_checkpointing:
        yield "--gradient_checkpointing", _changed(plan, activation_checkpointing=True)
    if not training.bf16 and not training.fp16:
        yield "--bf16", _changed(plan, bf16=True, mixed_precision="bf16")
    if model.model_name_or_path and not model.use_peft:
        yield "--use_peft (LoRA)", _changed(plan, use_peft=True)
    if plan.prompt and training.max_completion_length > 1:
        shorter = training.max_completion_length // 2
        yield f"--max_completion_length {shorter}", _changed(plan, max_completion_length=shorter)
    quantised = plan.settings.stage == "ppo" and is_quantised(plan.settings)
    if target.device.is_gpu and not quantised and target.engine != "fsdp2":
        several = max(target.processes, 8)
        there = copy.copy(plan)
        there.target = Target(target.device, several, "fsdp2", target.prompt_tokens)
        there.training = per_process(plan.found, "fsdp2", several, bool(training.bf16))
        yield f"--engine fsdp2 --num_gpus {several}", there


def _changed(plan: Plan, **fields: Any) -> Plan:
    settings = copy.copy(plan.settings)
    settings.training, settings.model = copy.copy(settings.training), copy.copy(settings.model)
    for name, value in fields.items():
        setattr(settings.model if name == "use_peft" else settings.training, name, value)
    if "gradient_accumulation_steps" in fields and hasattr(settings.training, "steps_per_generation"):
        before = plan.settings.training
        share = before.steps_per_generation / before.gradient_accumulation_steps
        settings.training.steps_per_generation = round(fields["gradient_accumulation_steps"] * share)
    if "use_peft" in fields and getattr(settings.training, "use_muon", False):
        settings.training.use_muon = False
    return planned(settings, plan.shapes, plan.target, plan.amount)
