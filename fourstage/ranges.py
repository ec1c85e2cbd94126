"""What the values of settings may be: tables of ranges, choices and needed packages, and one check of them all.

A type alone lets through what means nothing: a negative rate, a share of 2, NaN. A library finds some of it after
minutes, and the rest trains. The configs call `check_values` before the libraries see a value, wherever it came from.
"""

import json
import math
import re
import tempfile
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from numbers import Real
from pathlib import Path
from reprlib import Repr
from typing import Any, NamedTuple


class Range(NamedTuple):
    """The numbers that a field may be, in words and as a check."""

    words: str
    fits: Callable[[float], bool]


def _between(low: float, high: float) -> Range:
    return Range(f"between {low:,} and {high:,}", lambda x: low <= x <= high)


def _steps(zero: bool) -> Range:
    words = "a whole number of steps, or a share of all steps below 1"
    return Range(f"{'0, ' if zero else ''}{words}", lambda x: (x > 0 or (zero and x == 0)) and (x < 1 or x == int(x)))


# The ranges say what can mean something for some model and data. A rate that is too high for this one is found while
# it trains. 0 is a rate: that of a control which changes nothing.
_GROUPS: dict[Range, str] = {
    _between(0, 1_000_000): "learning_rate value_learning_rate embedding_lr_scale head_lr_scale",
    _between(0, 100): "weight_decay",
    Range("0 or more", lambda x: x >= 0): "max_grad_norm beta critic_warmup_steps missing_eos_penalty "
    "center_rewards_coefficient ptx_coef "
    "router_aux_loss_coef top_k eval_delay entropy_target entropy_coef_delta vespo_k_pos vespo_k_neg vespo_lambda_pos "
    "vespo_lambda_neg num_completions_to_print max_tool_calling_iterations vllm_importance_sampling_clip_min",
    Range("above 0", lambda x: x > 0): "num_train_epochs temperature repetition_penalty epsilon "
    "epsilon_high delta cliprange_value off_policy_mask_threshold neftune_noise_alpha sapo_temperature_pos "
    "sapo_temperature_neg vllm_server_timeout vllm_importance_sampling_cap vllm_importance_sampling_clip_max",
    Range("at least 1", lambda x: 1 <= x <= 10**9): "gradient_accumulation_steps per_device_train_batch_size "
    "per_device_eval_batch_size num_iterations num_generations num_generations_eval steps_per_generation "
    "ptx_batch_size generation_batch_size max_completion_length max_eval_rows task_size lora_alpha "
    "eval_accumulation_steps ref_model_sync_steps ddp_bucket_cap_mb dataloader_prefetch_factor torch_empty_cache_steps "
    "vllm_tensor_parallel_size vllm_max_model_length",
    Range("at least 1, or null to keep all", lambda x: x >= 1): "save_total_limit",
    Range("at least 2: of one token nothing can be learned", lambda x: 2 <= x <= 10**9): "max_length",
    Range("at least 1, or -1 to go by num_train_epochs", lambda x: 1 <= x <= 10**12 or x == -1): "max_steps",
    Range("0 or more and below 1", lambda x: 0 <= x < 1): "adam_beta1 adam_beta2 muon_momentum lora_dropout "
    "label_smoothing_factor",
    Range("a share between 0 and 1, such as 0.05", lambda x: 0 < x < 1): "test_split_size",
    Range("above 0, 1 at most", lambda x: 0 < x <= 1): "adam_epsilon top_p vllm_gpu_memory_utilization",
    _between(0, 1): "decay_ratio gamma lam min_p top_entropy_quantile ref_model_mixup_alpha",
    _steps(zero=False): "eval_steps save_steps logging_steps",
    _steps(zero=True): "warmup_steps",
    _between(0, 2**32 - 1): "seed data_seed",
    _between(0, 1_024): "dataloader_num_workers",
    _between(1, 1_024): "dataset_num_proc",
    _between(1, 65_536): "lora_r",
    _between(1, 65_535): "vllm_server_port vllm_group_port",
    _between(1, 10**9): "ddp_timeout",
    Range(
        "a multiple of 128, from 384 (256 bytes and special tokens) to 4,194,304",
        lambda x: x % 128 == 0 and 384 <= x <= 2**22,
    ): "vocab_size",
}
RANGES: dict[str, Range] = {name: of for of, names in _GROUPS.items() for name in names.split()}

_LEVELS = "debug detail info warning error critical passive"
CHOICES: dict[str, Sequence[str]] = {
    name: words.split()
    for name, words in {
        "eval_strategy": "no steps epoch",
        "logging_strategy": "no steps epoch",
        "save_strategy": "no steps epoch best",
        "hub_strategy": "end every_save checkpoint all_checkpoints",
        "lr_scheduler_type": "linear cosine cosine_with_restarts polynomial constant constant_with_warmup inverse_sqrt "
        "reduce_lr_on_plateau cosine_with_min_lr cosine_warmup_with_min_lr warmup_stable_decay greedy",
        "overlong": "drop error",
        "unreadable": "error drop",
        "unverifiable": "error drop",
        "control": "random_reward",
        "dtype": "float32 bfloat16 float16 auto",
        "packing_strategy": "auto bfd bfd_split wrapped",
        "train_sampling_strategy": "random sequential group_by_length batch_rebalance",
        "truncation_mode": "keep_start keep_end",
        "include_num_input_tokens_seen": "all non_padding no",
        "log_level": _LEVELS,
        "log_level_replica": _LEVELS,
        "ddp_backend": "nccl gloo mpi ccl hccl cncl mccl xccl",
        "dataloader_multiprocessing_context": "fork spawn forkserver",
        "torch_compile_mode": "default reduce-overhead max-autotune max-autotune-no-cudagraphs",
        "bnb_4bit_quant_type": "nf4 fp4",
        "bnb_4bit_quant_storage": "uint8 int8 float16 bfloat16 float32",
        "scale_rewards": "group batch none",
        "importance_sampling_level": "token sequence",
        "multi_objective_aggregation": "sum_then_normalize normalize_then_sum",
        "vllm_mode": "colocate server",
        "vllm_model_impl": "vllm transformers",
        "vllm_importance_sampling_mode": "token_truncate token_mask sequence_truncate sequence_mask",
        "lora_task_type": "CAUSAL_LM SEQ_CLS TOKEN_CLS SEQ_2_SEQ_LM QUESTION_ANS FEATURE_EXTRACTION",
        "include_for_metrics": "inputs loss",
        "cache_implementation": "static offloaded_static sliding_window hybrid hybrid_chunked offloaded_hybrid "
        "offloaded_hybrid_chunked dynamic offloaded quantized",
        "torch_compile_backend": "no eager aot_eager inductor aot_ts_nvfuser nvprims_nvfuser cudagraphs ofi fx2trt "
        "onnxrt tensorrt aot_torchxla_trace_once torchxla_trace_once tvm hpu_backend neuron",
    }.items()
}

_MAPPINGS = (
    "activation_checkpointing_kwargs",
    "chat_template_kwargs",
    "config_overrides",
    "dataset_kwargs",
    "generation_kwargs",
    "gradient_checkpointing_kwargs",
    "lr_scheduler_kwargs",
    "model_init_kwargs",
    "task_settings",
    "transformers_continuous_batching_config",
)
_MAPPINGS_OR_FILES = ("accelerator_config", "deepspeed", "fsdp_config")
_NAMES = (
    *("chat_template_path", "dataset_config", "dataset_name", "dataset_test_split"),
    *("dataset_train_split", "model_name_or_path", "model_revision", "model_type"),
    *("output_dir", "ptx_dataset_config", "ptx_dataset_name", "reward_model_name_or_path"),
    *("run_name", "tokenizer_name", "value_model_name_or_path"),
)


def _is_loss(value: Any, given: Mapping[str, Any]) -> bool:
    if "num_generations" in given:  # GRPO's, on which PPO builds
        return value in ("grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "vespo", "luspo")
    return "packing" not in given or value in ("nll", "dft", "chunked_nll")  # SFT's; others have their own


def _is_padding(value: Any) -> bool:
    return value in ("auto", "none", "null") or (str(value).isdecimal() and 1 <= int(value) <= 65_536)


def _is_template(value: str) -> bool:
    return value.count("/") == 1 or Path(value).exists()


def _is_count(value: str) -> bool:
    return re.fullmatch(r"\s*[\d_]+(\.\d+)?\s*[kmbt]?\s*", str(value).lower()) is not None


_OTHERS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "pad_to_multiple_of": ("a whole number, at least 1, or auto, or none", _is_padding),
    "chat_template_path": ("the path of a template, or of a model that has one", _is_template),
    "num_parameters": ("a positive whole number, such as 25M, 1.5B, 300k or 3000000", _is_count),
    "enable_jit_checkpoint": ("false: SIGTERM and Ctrl-C leave a checkpoint anyway", lambda on: not on),
    "optim_args": ("key=value, several with commas", lambda text: all("=" in part for part in text.split(","))),
}

# What a setting needs beside the packages of the project: (module, what to do)
_NEEDS = {
    "deepspeed": ("deepspeed", 'pip install -e ".[deepspeed]" -c constraints.txt'),
    "use_vllm": ("vllm", "pip install vllm"),
    "use_liger_kernel": ("liger_kernel", "pip install liger-kernel"),
}
_TRACKERS = {
    "azure_ml": "azureml",
    "clearml": "clearml",
    "codecarbon": "codecarbon",
    "comet_ml": "comet_ml",
    "dagshub": "dagshub",
    "dvclive": "dvclive",
    "flyte": "flytekit",
    "mlflow": "mlflow",
    "neptune": "neptune",
    "swanlab": "swanlab",
    "tensorboard": "tensorboard",
    "trackio": "trackio",
    "wandb": "wandb",
}
# Part of an optimizer's name -> its module
_OPTIMIZERS = {
    "galore": "galore_torch",
    "apollo": "apollo_torch",
    "lomo": "lomo_optim",
    "grokadamw": "grokadamw",
    "schedule_free": "schedulefree",
    "torch_4bit": "torchao",
    "torch_8bit": "torchao",
    "stable_adamw": "optimi",
    "ademamix": "bitsandbytes",
    "lion": "bitsandbytes",
    "8bit": "bitsandbytes",
    "bnb": "bitsandbytes",
    "paged": "bitsandbytes",
    "anyprecision": "torchdistx",
    "npu": "torch_npu",
    "xla": "torch_xla",
}
_ATTENTION = {
    "eager": "torch",
    "sdpa": "torch",
    "flex_attention": "torch",
    "flash_attention_2": "flash_attn",
    "flash_attention_3": "flash_attn_interface",
    "flash_attention_4": "flash_attn",
}

_LARGEST = 1e12  # of a setting; within a mapping, whose fields are others' own:
_LARGEST_WITHIN = 1e30  # beyond it float32 soon overflows

_short = Repr()
_short.maxstring = _short.maxother = 80


def shown(value: Any) -> str:
    """A value as an error names it: on one line, without control characters, cut off where it is long."""
    return _short.repr(value)


def plain(text: str, longest: int = 600) -> str:
    """A message that quotes what a person gave: its control characters are written out, its end is cut off."""
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in text)[:longest]


def check_values(config: Any, **others: Range) -> None:
    """Raises ValueError, of one line, for the first field of a dataclass whose value means nothing.

    Args:
        config: the settings; None is always left to their type.
        others: ranges that hold for this config in place of the table's.
    """
    given = {name: value for name, value in vars(config).items() if value is not None}
    for name, value in given.items():
        if name != "datasets":  # `data.sources` names the entry
            check_finite(name, value)
        if name in RANGES:
            _check_number(name, value, others.get(name, RANGES[name]))
        for word in value if isinstance(value, list) else [value]:
            if name in CHOICES and isinstance(word, str) and getattr(word, "value", word) not in CHOICES[name]:
                raise ValueError(f"{name}={shown(word)} must be {' or '.join(CHOICES[name])}")
        if name in _MAPPINGS + _MAPPINGS_OR_FILES and isinstance(value, str):
            _check_mapping(name, value)
        if name in _NAMES and isinstance(value, str):
            _check_name(name, value)
        if name == "loss_type" and not _is_loss(value, given):
            raise ValueError(f"loss_type={shown(value)} is not a loss of this stage; --help lists them")
        if name in _OTHERS and not _OTHERS[name][1](value):
            raise ValueError(f"{name}={shown(value)} must be {_OTHERS[name][0]}")
        if name in _NEEDS and value and find_spec(_NEEDS[name][0]) is None:
            module, way = _NEEDS[name]
            raise ValueError(f"{name}={shown(value)} needs the package {module}: {way}, or leave it out")
    _check_packages(given)


def check_finite(name: str, value: Any) -> None:
    """Raises ValueError for NaN or infinity in the value of the field `name`, or within its lists and mappings."""
    largest = _LARGEST_WITHIN if isinstance(value, Mapping) else _LARGEST
    for one in _numbers(value):
        open_end = name == "reward_clip_range" and one in (math.inf, -math.inf)
        if not (abs(one) <= largest or open_end):
            allowed = f", {RANGES[name].words}" if name in RANGES else f", {largest:g} at most"
            raise ValueError(f"{name}={shown(value)} must be a finite number{allowed}")


def _numbers(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for one in value:
            yield from _numbers(one)
    elif isinstance(value, Real):
        yield value


def _check_number(name: str, value: Any, allowed: Range) -> None:
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if isinstance(value, bool) or (is_number and not allowed.fits(value)):
        raise ValueError(f"{name}={shown(value)} must be {allowed.words}")


def _check_mapping(name: str, value: str) -> None:
    if name in _MAPPINGS_OR_FILES and not value.startswith("{"):
        if len(value) > 1_000 or not value.isprintable() or not Path(value).is_file():
            raise ValueError(f"{name}={shown(value)} must be a mapping or the path of a JSON file")
        return
    try:
        mapping = json.loads(value)
    except (ValueError, RecursionError):
        mapping = None
    if not isinstance(mapping, dict):
        raise ValueError(f"{name}={shown(value)} must be a mapping, in JSON such as '{{\"name\": 1}}'")
    check_finite(name, mapping)


def _check_name(name: str, value: str) -> None:
    parts = value.split("/")
    if not value.strip() or not value.isprintable() or max(len(part.encode()) for part in parts) > 255:
        raise ValueError(f"{name}={shown(value)} must be a name of printable characters, 255 at most; or leave it out")
    if len(value) > 4_000 or not value.strip("/ "):
        raise ValueError(f"{name}={shown(value)} must be a name, or the path of a file or folder below the root")


def _check_packages(given: Mapping[str, Any]) -> None:
    """Raises ValueError for trackers, optimizers and attentions that are unknown or not installed."""
    trackers = given.get("report_to", [])
    for tracker in [trackers] if isinstance(trackers, str) else trackers:
        if tracker not in ("all", "none"):
            _check_installed("report_to", tracker, _TRACKERS, "none")
    if "optim" in given:
        from transformers.training_args import OptimizerNames

        names, optimizer = [name.value for name in OptimizerNames], getattr(given["optim"], "value", given["optim"])
        needed = next((module for part, module in _OPTIMIZERS.items() if part in optimizer), "torch")
        _check_installed("optim", optimizer, dict.fromkeys(names, needed), "adamw_torch")
    attention = given.get("attn_implementation")
    if attention is not None and "/" not in attention:  # else a kernel of the Hub
        _check_installed("attn_implementation", attention, _ATTENTION, "sdpa")


def _check_installed(name: str, value: str, modules: Mapping[str, str], other: str) -> None:
    if value not in modules:
        raise ValueError(f"{name}={shown(value)} must be one of {', '.join({**modules, other: ''})}")
    if find_spec(modules[value]) is None:
        raise ValueError(
            f"{name}={shown(value)} needs the package {modules[value]}, which is not installed; install it, or choose "
            f"{name}={other}"
        )


def check_best_metric(wanted: str | None, metrics: Mapping[str, Any] | None) -> None:
    """Raises ValueError unless the evaluation that picks the best checkpoint measures what it is to be picked by."""
    if wanted is not None and metrics is not None and not {wanted, f"eval_{wanted}"} & {*metrics}:
        raise ValueError(f"metric_for_best_model={shown(wanted)} must be one of {', '.join(sorted(metrics))}")


def check_output_dir(output_dir: str | None) -> None:
    """Raises ValueError unless a run folder can be opened at `output_dir`, which is left as it is.

    A folder in which a run has been may be read-only: what is finished has nothing to write.
    """
    example = "give a folder of its own, such as runs/sft"
    if not output_dir or not output_dir.strip():
        raise ValueError(f"output_dir={shown(output_dir)} names no folder; {example}")
    folder = Path(output_dir).expanduser()
    try:
        if Path.cwd().is_relative_to(folder.resolve()) or folder.resolve() == Path.home():
            raise ValueError(f"output_dir={shown(output_dir)} is the folder you work in, or one around it; {example}")
        above = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if (folder / "run.json").is_file():
            return
        if not above.is_dir():
            raise ValueError(f"output_dir={shown(output_dir)}: {above} is a file; {example}")
        with tempfile.TemporaryFile(dir=above):
            pass
    except OSError as error:
        raise ValueError(f"output_dir={shown(output_dir)} cannot be written: {error.strerror}; {example}") from None


def whole_number(least: int, most: int = 10**9) -> Callable[[str], int]:
    """A type for argparse: a whole number between `least` and `most`."""

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if not least <= value <= most:
            raise ArgumentTypeError(f"{shown(text)} must be a whole number between {least:,} and {most:,}")
        return value

    return convert


def number(words: str, fits: Callable[[float], bool]) -> Callable[[str], float]:
    """A type for argparse: a finite number that fits, which `words` describe."""

    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or not fits(value):
            raise ArgumentTypeError(f"{shown(text)} must be a number, {words}")
        return value

    return convert
