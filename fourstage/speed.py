"""How a run uses its device: precision, attention, memory and compiled layers, each chosen by what was measured.

The choices follow the device, the model's size and the number of steps, never a clock, so that the same command gives
the same numbers again. docs/speed.md has the measurements.
"""

import functools
import itertools
import logging
import os
import statistics
from collections.abc import Callable
from typing import Any, cast

import torch
from accelerate.utils import DistributedType
from datasets import Dataset
from torch import nn
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.modeling_layers import GradientCheckpointingLayer
from trl import RewardConfig, SFTConfig

from fourstage.arguments import ModelArguments

_BFLOAT16_FROM = 500_000  # parameters; below, converting takes longer than multiplying
# Floating-point operations of a run (6 x parameters x tokens), from which compiling is earned back.
_COMPILED_FROM = {"cpu": 2e13, "cuda": 1e17}
_PLAIN_ATTENTION = 1 << 25  # weights of one layer's attention: rows x heads x tokens x tokens
_IDS = ("input_ids", "chosen_ids", "chosen_input_ids")  # columns of tokenized rows in TRL's trainers
_FELL_BACK = "torch._dynamo.convert_frame"  # the logger that says so


def bfloat16_pays(parameters: int) -> bool:
    """Whether this CPU multiplies bfloat16 itself, and the model is large enough to gain by it."""
    able = torch.cpu.get_capabilities()
    return parameters >= _BFLOAT16_FROM and any(able.get(name, False) for name in ("avx512_bf16", "amx_bf16"))


def fill_precision(training_args: Any, model_args: ModelArguments, parameters: int) -> list[str]:
    """Turns bfloat16 mixed precision on where it pays on a CPU and nobody has set it; returns ["bf16"] if it did."""
    quantised = model_args.load_in_4bit or model_args.load_in_8bit
    pays = model_args.dtype == "float32" and not quantised and bfloat16_pays(parameters)
    if not (training_args.precision_left_open and pays):
        return []
    training_args.bf16, training_args.mixed_precision = True, "bf16"  # the second is derived from the first, once
    # oneDNN builds a kernel for every shape: rows of few lengths, and few kernels kept, or they take half a gigabyte.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")
    if getattr(training_args, "pad_to_multiple_of", 0) is None and isinstance(training_args, (SFTConfig, RewardConfig)):
        training_args.pad_to_multiple_of = 8
    return ["bf16"]


def speed_up(trainer: Trainer, model_args: ModelArguments, *others: object) -> None:
    """Chooses the attention, and whether layers are compiled, for a trainer's model and those of `others` beside it.

    Others that are no modules, such as reward functions, are left alone. To be called before callbacks that show the
    settings.
    """
    models = [model for model in (trainer.model, *others) if isinstance(model, nn.Module)]
    if model_args.attn_implementation is None and trainer.args.bf16 and trainer.args.device.type == "cpu":
        for model in models:
            _use_plain_attention(model, trainer.args)
    trainer.add_callback(CompileLayers(trainer, models))


def _use_plain_attention(model: nn.Module, args: Any) -> None:
    """Attention by two matrix products, where its weights fit in memory: torch's fused kernel for CPUs has a backward
    pass in bfloat16 that takes three times as long as in float32 (torch 2.13, AVX512-BF16 without AMX)."""
    for part in model.modules():
        if isinstance(part, PreTrainedModel) and part.config._attn_implementation == "sdpa":
            heads = getattr(part.config.get_text_config(), "num_attention_heads", 1)
            longest = getattr(args, "max_length", None) or 2 * (getattr(args, "max_completion_length", None) or 512)
            if args.per_device_train_batch_size * heads * longest**2 <= _PLAIN_ATTENTION:
                part.set_attn_implementation("eager")


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The repeated blocks of a model, which transformers marks by their class."""
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


class CompileLayers(TrainerCallback):
    """Compiles the layers of a trainer's models while it trains, if that pays or is asked for.

    One layer is compiled, for all layers and shapes; parameters keep their names. `args.torch_compile` then says
    whether it was done. Where torch cannot compile, one line says so, and training goes on as written.
    """

    def __init__(self, trainer: Trainer, models: list[nn.Module]):
        self.trainer, self.models = trainer, models
        self.plain: list[tuple[nn.Module, Any]] = []  # layers, and what stood in place of their class's `forward`

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if args.torch_compile_backend not in (None, "no"):
            return  # transformers compiles the whole model
        layers = [layer for model in self.models for layer in layers_of(model)]
        asked = args.torch_compile
        pays = operations(self.trainer, state) >= _COMPILED_FROM.get(args.device.type, float("inf"))
        args.torch_compile = bool(layers) and (asked if asked is not None else pays) and self._is_able()
        if args.torch_compile:
            print("the first step compiles the layers: half a minute, or seconds where torch has kept them", flush=True)
            self.plain = [(layer, vars(layer).get("forward")) for layer in layers]
            compile_in_place(layers)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        for layer, own in self.plain:
            del layer.forward
            if own is not None:  # a hook of accelerate's, say
                layer.forward = own
        self.plain = []

    def _is_able(self) -> bool:
        kind = self.trainer.accelerator.distributed_type
        if kind in (DistributedType.FSDP, DistributedType.DEEPSPEED):
            return False
        try:  # a kernel of one line, to see whether there is a compiler
            torch.compile(lambda x: x * 2 + 1)(torch.zeros(8, device=self.trainer.args.device))
        except Exception as error:  # whatever the compiler's many layers raise
            print(f"layers are not compiled: {_last_line(error)}", flush=True)
            return False
        return True


def compile_in_place(layers: list[nn.Module]) -> None:
    """Makes layers run compiled from their next call with gradients on, with shapes that vary.

    Without gradients, as in generation, they run as written: a cache of growing length would be compiled for again.
    """
    import torch._dynamo.config  # takes half a second

    dynamo: Any = torch._dynamo.config
    dynamo.suppress_errors = True  # what does not compile runs as written
    dynamo.recompile_limit = max(dynamo.recompile_limit, 32)  # layers of several kinds, models, adapters
    logging.getLogger(_FELL_BACK).addFilter(_tell_fallback)
    for layer in layers:
        layer.forward = _compiled_with_gradients(layer.forward)


def _compiled_with_gradients(forward: Callable) -> Callable:
    compiled = torch.compile(forward, dynamic=True)

    @functools.wraps(forward)
    def run(*args: Any, **kwargs: Any) -> Any:
        return (compiled if torch.is_grad_enabled() else forward)(*args, **kwargs)

    return run


def operations(trainer: Trainer, state: TrainerState) -> float:
    """About how many floating-point operations a run takes: 6 x parameters x tokens."""
    args: Any = trainer.args
    rows = args.per_device_train_batch_size * args.gradient_accumulation_steps
    parameters = sum(p.numel() for p in cast(nn.Module, trainer.model).parameters())
    return 6.0 * parameters * rows * _row_tokens(trainer) * state.max_steps


def _row_tokens(trainer: Trainer) -> float:
    args, rows = cast(Any, trainer.args), trainer.train_dataset
    if isinstance(rows, Dataset) and (column := next((name for name in _IDS if name in rows.column_names), None)):
        return statistics.fmean(len(row[column]) for row in itertools.islice(rows, 256))
    return getattr(args, "max_completion_length", None) or getattr(args, "max_length", None) or 0


def _tell_fallback(record: logging.LogRecord) -> bool:
    """Turns torch's pages about what it does not compile into one line, once for each reason."""
    message = record.getMessage()
    if "CONVERT" not in message:
        return True
    reason = _last_line(message)
    if reason not in _told:
        _told.add(reason)
        print(f"a part of the model runs uncompiled: {reason}", flush=True)
    return False


_told: set[str] = set()


def _last_line(error: object) -> str:
    """The line of a long message that names the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    causes = [line for line in lines if "Error: " in line or "Compiler: " in line or "Unsupported: " in line]
    return (causes or lines or [type(error).__name__])[-1 if causes else 0][:200]
