"""What a run is about to do, with every setting resolved: one block on the screen before the first step."""

from typing import Any, cast

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerState

from fourstage.artifact.run import Run
from fourstage.models.facts import context_of
from fourstage.models.loading import describe
from fourstage.models.sizing import parse_count

_SCALED = ("embedding", "head")  # what Muon leaves to AdamW with rates of their own


def overview(run: Run, trainer: Trainer, state: TrainerState) -> str:
    """The block: model, vocabulary and context, data, batch, steps, rates, precision, device; lines of `name  text`.

    A setting that nobody gave has a `*`: `fourstage.resolve` chose it.
    """
    tokenizer = cast(PreTrainedTokenizerBase, trainer.processing_class)
    lines = {
        "model": _model(run, trainer),
        "starts from": run.parent.describe() if run.parent else f"random weights, seed {run.record['seed']}",
        "adapter": _adapter(trainer),
        "vocabulary": f"{len(tokenizer):,} tokens{_mark(run, 'vocab_size')}",
        "context": _context(run, trainer),
        "data": _data(run, trainer),
        "batch": _batch(run, trainer),
        "steps": _steps(run, trainer, state),
        "rates": _rates(run, trainer),
        "precision": _precision(trainer) + _mark(run, "bf16"),
        "device": _device(run, trainer),
    }
    width = max(map(len, lines))
    body = [f"  {name:<{width}}  {text}" for name, text in lines.items() if text]
    note = ["  * chosen for this model and machine; a flag or YAML key of that name sets it"]
    marked = note if any("*" in line for line in body) else []
    return "\n".join([f"{run.record['stage']}: {run.folder}", *body, *marked])


def _settings(trainer: Trainer) -> Any:
    """Its arguments, untyped: the classes of the five stages have different fields."""
    return trainer.args


def _model_of(trainer: Trainer) -> PreTrainedModel | PeftModel:
    return trainer.accelerator.unwrap_model(trainer.model)


def _mark(run: Run, name: str) -> str:
    return " *" if name in run.record["resolved"] else ""


def _model(run: Run, trainer: Trainer) -> str:
    model, given = _model_of(trainer), run.record["arguments"]["model"]
    if isinstance(model, PeftModel):
        trained, everything = model.get_nb_trainable_parameters()
        return describe(cast(PreTrainedModel, model.get_base_model()), parameters=everything - trained)
    return describe(model, wanted=None if run.parent else parse_count(given["num_parameters"]))


def _adapter(trainer: Trainer) -> str:
    model = _model_of(trainer)
    if not isinstance(model, PeftModel):
        return ""
    config, (trained, _) = cast(LoraConfig, model.peft_config["default"]), model.get_nb_trainable_parameters()
    return f"LoRA, rank {config.r}, alpha {config.lora_alpha}: {trained:,} parameters are trained"


def _context(run: Run, trainer: Trainer) -> str:
    args, limit = _settings(trainer), context_of(cast(PreTrainedModel, _model_of(trainer)))
    model = f"{limit:,} tokens" if limit else "no limit"
    if getattr(args, "max_completion_length", None):
        return f"{model}; completions of at most {args.max_completion_length:,}"
    return f"{model}; rows of at most {args.max_length:,}{_mark(run, 'max_length')}"


def _data(run: Run, trainer: Trainer) -> str:
    names = ", ".join(part["name"] for part in run.record["datasets"])
    rows, args = _rows(trainer), _settings(trainer)
    packed = getattr(args, "packing", False) and rows
    return f"{names}: {run.data}" + (f"; packed ({args.packing_strategy}) into {rows:,} rows" if packed else "")


def _rows(trainer: Trainer) -> int | None:
    """Rows of the training data as the trainer reads them; None for a stream."""
    return len(trainer.train_dataset) if isinstance(trainer.train_dataset, Dataset) else None


def _rows_a_step(run: Run, trainer: Trainer) -> int:
    args = _settings(trainer)
    return args.per_device_train_batch_size * args.gradient_accumulation_steps * run.record["processes"]


def _batch(run: Run, trainer: Trainer) -> str:
    args, processes = _settings(trainer), run.record["processes"]
    unit = "completions" if hasattr(args, "num_generations") else "rows"
    text = f"{args.per_device_train_batch_size} {unit} x {args.gradient_accumulation_steps} accumulated x {processes} "
    text += f"process{'es' if processes > 1 else ''} = {_rows_a_step(run, trainer):,} {unit} a step"
    if getattr(args, "num_generations", 1) > 1:
        text += f", {args.num_generations} for each prompt"
    if getattr(args, "num_iterations", 1) > 1:
        text += f"; {args.num_iterations} passes over each rollout"
    return text


def _steps(run: Run, trainer: Trainer, state: TrainerState) -> str:
    rows, args = _rows(trainer), _settings(trainer)
    text = f"{state.max_steps:,}"
    if rows and not hasattr(args, "num_generations"):
        text += f", {state.max_steps * _rows_a_step(run, trainer) / rows:.3g} passes over the data"
    if getattr(args, "packing", False):
        text += f", {state.max_steps * _rows_a_step(run, trainer) * args.max_length:,} tokens"
    return text


def _rates(run: Run, trainer: Trainer) -> str:
    args = _settings(trainer)
    warm_up = ""
    if args.warmup_steps:  # below 1 a share of all steps
        share = args.warmup_steps < 1
        warm_up = (
            f", warm-up {args.warmup_steps:.0%} of the steps" if share else f", warm-up {args.warmup_steps:g} steps"
        )
    text = f"{args.learning_rate:.3g}{_mark(run, 'learning_rate')}, {_name(args.lr_scheduler_type)}{warm_up}"
    if getattr(args, "use_muon", False):
        scales = [f"{part} x {getattr(args, f'{part}_lr_scale'):g}{_mark(run, f'{part}_lr_scale')}" for part in _SCALED]
        return f"{text}; Muon, and AdamW for the rest: {', '.join(scales)}"
    if hasattr(args, "value_learning_rate"):
        text += f"; critic {args.value_learning_rate:.3g}"
    return f"{text}; {_name(args.optim)}"


def _name(setting: object) -> str:
    """The value of one of transformers' enumerations, or the text itself."""
    return str(getattr(setting, "value", setting))


def _precision(trainer: Trainer) -> str:
    model, args = _model_of(trainer), _settings(trainer)
    weights = f"{str(model.dtype).removeprefix('torch.')} weights"
    bits = next((bits for bits in (4, 8) if getattr(model, f"is_loaded_in_{bits}bit", False)), None)
    parts = [f"{bits} bits, {weights} otherwise" if bits else weights]
    parts += [f"{name} mixed precision" for name, on in (("bfloat16", args.bf16), ("float16", args.fp16)) if on]
    parts += ["activations recomputed"] if args.activation_checkpointing else []
    parts += ["layers compiled"] if args.torch_compile else []
    return ", ".join(parts)


def _device(run: Run, trainer: Trainer) -> str:
    device, processes = trainer.args.device, run.record["processes"]
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    threads = torch.get_num_threads()
    on_cpu = f", {threads} thread{'s' if threads > 1 else ''} a process" if device.type == "cpu" else ""
    return f"{name}{on_cpu}{f', {processes} processes' if processes > 1 else ''}"
