"""A rehearsal of a run: two optimizer steps of its real model, optimizer and trainer, on tensors without data.

Two, because the optimizer's states exist from the second step on. What a rehearsal cannot know is taken at its largest:
rows are as long as they may be, every token counts, no answer ends early.
"""

import contextlib
import copy
import io
import tempfile
import warnings
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast
from unittest import mock

import torch
from datasets import Dataset
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PreTrainedModel, PrinterCallback, Trainer
from trl import RewardTrainer

from fourstage.grpo import GRPOTrainer
from fourstage.instruction import InstructTrainer
from fourstage.models.adapters import adapter_config, complete_tied_head
from fourstage.optim import MuonWithAdamW, parameter_groups
from fourstage.plan.generation import generate, optimizers_of, states_of
from fourstage.plan.models import ADDED, WORD, Shapes, build, is_quantised, saved_by_quantising, stand_in_tokenizer
from fourstage.plan.recipe import Settings
from fourstage.plan.watching import Watch
from fourstage.plan.work import Work
from fourstage.ppo import PPOTrainer
from fourstage.pretraining import PretrainTrainer
from fourstage.speed import layers_of, speed_up

STEPS, MICRO_BATCHES = 2, 2  # optimizer steps, and at most as many batches in each


@dataclass
class Rehearsed:
    """What two steps took.

    Args:
        peak: bytes by part, all in one process: weights, reference, reward model, critic, gradients, optimizer,
            activations, logits. weights: bytes of each model.
        parameters, trained: of the policy. unit: bytes of the largest layer or table, which sharding gathers.
        states: bytes that the optimizers keep from step to step. critic_trained: parameters that the critic's updates.
        shared_base: bytes of the policy's base, if PPO's critic is an adapter on it.
        generation: as `peak`, while a rollout is generated; empty for stages without rollouts.
        batch: the work of one batch of per_device_train_batch_size rows. update: of the optimizers in a step.
        reading: of a rollout's prompts. token: of the last token of all its completions.
    """

    peak: dict[str, int]
    weights: dict[str, int]
    parameters: int
    trained: int
    unit: int
    states: int
    critic_trained: int = 0
    shared_base: int = 0
    generation: dict[str, int] = field(default_factory=dict)
    batch: Work = Work()
    update: Work = Work()
    reading: Work = Work()
    token: Work = Work()

    @property
    def total(self) -> int:
        """Bytes at the peak."""
        return sum(self.peak.values())


def rehearse(
    settings: Settings, shapes: Shapes, row: int, prompt: int = 0, on_gpu: bool = False, ptx: int = 0
) -> Rehearsed:
    """Trains two steps without data.

    Args:
        settings: of the run, resolved. row: tokens of a row; with PPO and GRPO of prompt and completion. prompt: of
            these the prompt's. on_gpu: whether to take the paths that a GPU takes, wherever this runs. ptx: tokens of a
            row of PPO-ptx, 0 without.
    """
    with _without_data(on_gpu) as fake, tempfile.TemporaryDirectory() as folder, fake:
        args = _short(settings, folder)
        trainer, others = _trainer(settings, shapes, args, row, prompt, ptx)
        _prepare(trainer, settings, others, on_gpu)
        models = {"weights": trainer.accelerator.unwrap_model(trainer.model), **others}
        watch = Watch({shapes.policy.get_text_config().vocab_size})
        for part, model in models.items():
            watch.hold(part, model)
        held = dict(watch.by_part())
        with watch:
            trainer.train()
        policy = models["weights"]
        saved = saved_by_quantising(policy, settings) if is_quantised(settings) else 0
        rows = settings.training.generation_batch_size if prompt else 0
        base = [p for name, p in policy.named_parameters() if not any(part in name for part in ADDED)]
        critic_shares = getattr(others.get("critic"), "is_shared", False)
        batches = STEPS * args.gradient_accumulation_steps
        generation, reading, token = {}, Work(), Work()
        if rows:
            generation, reading, token = generate(trainer, models, rows, prompt, row - prompt)
        return Rehearsed(
            _less(watch.peak, saved),
            _less(held, saved),
            sum(p.numel() for p in base),
            sum(p.numel() for p in policy.parameters() if p.requires_grad),
            _largest_unit(policy),
            sum(x.nbytes for one in optimizers_of(trainer) for x in states_of(one)),
            sum(p.numel() for p in getattr(trainer, "_value_parameters", {}).values()),
            sum(p.nbytes for p in base) if critic_shares else 0,
            _less(generation, saved),
            watch.work * (1 / batches),
            watch.update * (1 / STEPS),
            reading,
            token,
        )


def _less(parts: Mapping[str, int], saved: int) -> dict[str, int]:
    """The parts that are there, with smaller weights."""
    return {part: size - saved * (part == "weights") for part, size in parts.items() if size}


@contextmanager
def _without_data(on_gpu: bool) -> Generator[FakeTensorMode]:
    """Quietly, on one device, and with TRL's fused head where a GPU would run it."""
    never_moved = mock.patch.object(nn.Module, "to", lambda self, *args, **kwargs: self)  # torch cannot swap them
    head = mock.patch("fourstage.models.fused_head._SMALL", -1) if on_gpu else contextlib.nullcontext()
    as_they_are = mock.patch.multiple(  # the lengths of rows are data
        "fourstage.ppo.trainer", grouped_by_length=lambda batches, *_: batches, trimmed=lambda batch: batch
    )
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), never_moved, head, as_they_are:
        warnings.simplefilter("ignore")
        yield FakeTensorMode(allow_fallback_kernels=False, allow_non_fake_inputs=True)


def _short(settings: Settings, folder: str) -> Any:
    """The settings of two steps in `folder` that write, report and evaluate nothing."""
    args = copy.copy(settings.training)
    args.output_dir = args.logging_dir = folder
    args.max_steps, args.logging_steps, args.report_to = STEPS, 1, []
    args.eval_strategy = args.save_strategy = "no"
    args.eval_on_start = args.load_best_model_at_end = args.push_to_hub = args.torch_compile = False
    args.disable_tqdm, args.dataloader_num_workers, args.train_sampling_strategy = True, 0, "random"
    args.resume_from_checkpoint = args.deepspeed = None
    args.include_num_input_tokens_seen = "no"
    args.gradient_accumulation_steps = min(args.gradient_accumulation_steps, MICRO_BATCHES)
    if settings.stage in ("ppo", "grpo"):
        args.steps_per_generation = args.gradient_accumulation_steps
        args.generation_batch_size = args.per_device_train_batch_size * args.steps_per_generation
        args.num_iterations = 1 if settings.stage == "grpo" else args.num_iterations
    elif settings.stage != "reward":
        args.dataset_kwargs = {**(args.dataset_kwargs or {}), "skip_prepare_dataset": True}
        args.packing = args.eval_packing = args.shuffle_dataset = False
    return args


def _trainer(
    settings: Settings, shapes: Shapes, args: Any, row: int, prompt: int, ptx: int
) -> tuple[Trainer, dict[str, nn.Module]]:
    """The recipe's trainer, and the models beside the one that it trains."""
    stage = settings.stage
    model = build(shapes.policy, settings, scores=stage == "reward")
    tokenizer = stand_in_tokenizer(shapes.policy.get_text_config().vocab_size)
    rows = _rows(stage, row, args.per_device_train_batch_size * args.gradient_accumulation_steps * STEPS)
    options: dict[str, Any] = {
        "model": model,
        "args": args,
        "train_dataset": rows,
        "eval_dataset": rows,
        "processing_class": tokenizer,
        "peft_config": adapter_config(
            settings.model, model, tokenizer, continues_text=shapes.is_base and stage in ("sft", "reward")
        ),
    }
    if stage == "pretrain":
        return PretrainTrainer(**options, bytes_per_token=1.0), {}
    if stage == "sft":
        trainer = InstructTrainer(**options, optimizers=(_muon(model, args), None))
        complete_tied_head(cast(PreTrainedModel, trainer.model))
        return trainer, {}
    if stage == "reward":
        return RewardTrainer(**options), {}
    if ptx:
        options["ptx_dataset"] = _rows("sft", ptx, 1)
    return _with_rollouts(settings, shapes, options, row, prompt)


def _muon(model: PreTrainedModel, args: Any) -> Any:
    return MuonWithAdamW(parameter_groups(model, args)) if args.use_muon else None


def _with_rollouts(
    settings: Settings, shapes: Shapes, options: dict, row: int, prompt: int
) -> tuple[Trainer, dict[str, nn.Module]]:
    """PPO's or GRPO's trainer, whose rollouts are made up: prompts and completions at their longest."""
    rewards: list[Any] = [_nothing]
    if shapes.reward is not None:
        rewards = [build(copy.deepcopy(shapes.reward), settings, scores=True, dtype=torch.float32).eval()]
        size = shapes.reward.get_text_config().vocab_size
        same = size == shapes.policy.get_text_config().vocab_size
        options["reward_processing_classes"] = [options["processing_class"] if same else stand_in_tokenizer(size)]
    options["args"].reward_weights = None
    if settings.stage == "ppo":
        kind = PPOTrainer
        if shapes.critic is not None:
            options["value_model"] = build(copy.deepcopy(shapes.critic), settings, scores=True, dtype=torch.float32)
    else:
        kind = GRPOTrainer
    checks = [f"fourstage.{settings.stage}.trainer.{name}" for name in ("check_prompts", "check_head", "show_opening")]
    with contextlib.ExitStack() as stack:
        for name in checks:  # they read data
            stack.enter_context(mock.patch(name))
        trainer: Any = kind(reward_funcs=rewards, **options)
    trainer._generate_and_score_completions = lambda inputs: _rollout(trainer, row, prompt)
    if settings.stage == "grpo":
        trainer._regrouped = lambda batches: batches
    others = {"reference": trainer.ref_model, "critic": getattr(trainer, "value_model", None)}
    if shapes.reward is not None:
        others["reward model"] = trainer.reward_funcs[0]
    return trainer, {name: model for name, model in others.items() if model is not None}


def _nothing(completions: Sequence, **kwargs: Any) -> list[float]:
    return [0.0] * len(completions)


def _rollout(trainer: Any, row: int, prompt: int) -> dict[str, torch.Tensor]:
    """As GRPOTrainer (TRL 1.16) makes it, with the columns that PPOTrainer adds."""
    rows, answer = trainer.args.generation_batch_size, row - prompt
    ids, ones = torch.zeros, torch.ones
    rollout = {
        "prompt_ids": ids(rows, prompt, dtype=torch.int64),
        "prompt_mask": ones(rows, prompt, dtype=torch.int64),
        "completion_ids": ids(rows, answer, dtype=torch.int64),
        "completion_mask": ones(rows, answer, dtype=torch.int64),
        "advantages": ids(rows),
        "num_items_in_batch": ones((), dtype=torch.int64),
    }
    if isinstance(trainer, PPOTrainer):
        return rollout | {"scores": ids(rows)}
    if trainer.beta:
        rollout["ref_per_token_logps"] = ids(rows, answer)
    if trainer.num_iterations > 1 or trainer.args.steps_per_generation > trainer.args.gradient_accumulation_steps:
        rollout["old_per_token_logps"] = ids(rows, answer)
    return rollout


def _rows(stage: str, row: int, count: int) -> Dataset:
    ids = [6] * row
    if stage in ("ppo", "grpo"):
        return Dataset.from_list([{"prompt": WORD}] * count)
    if stage == "reward":
        return Dataset.from_list([{"chosen_ids": ids, "rejected_ids": ids}] * count)
    turn = {"role": "user", "content": WORD}  # by which SFTTrainer knows conversations
    return Dataset.from_list([{"input_ids": ids, "labels": ids, "prompt": [turn], "completion": [turn]}] * count)


def _prepare(trainer: Trainer, settings: Settings, others: dict[str, nn.Module], on_gpu: bool) -> None:
    """Attention as the recipe chooses it; micro-batches stay as they are, as their lengths are no data."""
    if not on_gpu:
        speed_up(trainer, settings.model, *others.values())
    trainer.remove_callback(PrinterCallback)


def _largest_unit(model: nn.Module) -> int:
    """Bytes of the largest layer or table: what FSDP2 and ZeRO-3 gather at once."""
    layers = layers_of(model)
    inside = {id(p) for layer in layers for p in layer.parameters()}
    tables = [p.nbytes for p in model.parameters() if id(p) not in inside]
    return max([*tables, *(sum(p.nbytes for p in layer.parameters()) for layer in layers)], default=0)
