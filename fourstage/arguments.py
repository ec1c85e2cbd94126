"""What a recipe can be told: small dataclasses over TRL's, read from defaults, then YAML, then the command line."""

import ctypes
import difflib
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_type_hints

from fourstage.imports import lean_imports, quiet_libraries
from fourstage.ranges import check_output_dir, check_values, plain, shown
from fourstage.settings_file import read_yaml, typed_settings

with lean_imports():
    import torch
    from accelerate.utils import parse_flag_from_env
    from trl import ModelConfig, RewardConfig, SFTConfig, TrlParser

    from fourstage.chain import make_missing_parents

T = TypeVar("T", bound="DataArguments | ModelArguments")


def option(default: Any, help: str) -> Any:
    """A field of an arguments class, with its line of `--help`."""
    return field(default=default, metadata={"help": help})


@dataclass
class DataArguments:
    """Where the rows come from and which of them are held out."""

    _argument_group_name = "data"

    dataset_name: str | None = option(
        None,
        "Hub id, local file (.txt .jsonl .json .parquet .csv, also .gz), folder of such files, fourstage/demo, "
        "or a generated task, such as reasoning-gym/chain_sum.",
    )
    dataset_config: str | None = option(None, "Configuration name of a Hub data set.")
    dataset_train_split: str = option("train", "Split to train on.")
    dataset_test_split: str = option("test", "Split to hold out; where it is missing, `validation` is looked for.")
    dataset_streaming: bool = option(False, "Read the data as a stream, in flat memory. Needs --max_steps.")
    datasets: list[dict] | None = option(
        None,
        "A mixture, in YAML only: entries with dataset_name, weight, and optionally dataset_config, "
        "dataset_train_split, task_settings, license.",
    )
    task_settings: dict | str | None = option(
        None,
        "Difficulty of a generated task, such as '{\"max_terms\": 3}'; with `levels` a curriculum from easy to hard, "
        "for which --no_shuffle_dataset keeps the order.",
    )
    task_size: int = option(5_000, "Rows of a generated task; held out is the share test_split_size of as many more.")
    test_split_size: float = option(
        0.05, "Share of documents held out where the data has no test split; copies of a document stay together."
    )
    dataset_license: str | None = option(None, "License of the data, for the model card, such as cc-by-4.0.")
    unreadable: str = option(
        "error", "Rows that fit no format, or that the chat template refuses: error, or drop (counted and shown)."
    )
    fold_system: bool = option(
        False, "Put system texts at the beginning of the user's next turn, for templates without a system role."
    )

    def __post_init__(self):
        check_values(self)


@dataclass
class ModelArguments(ModelConfig):
    """Which weights to start from: a checkpoint, or random ones of a named architecture and size."""

    _argument_group_name = "model"
    # No field, as it is one of the training configs already; `parse` hands that one on to here.
    trust_remote_code = False

    dtype: str | None = option("float32", "Type of the weights: float32, bfloat16, float16 or auto.")
    model_type: str = option("qwen3", "Random weights: any causal LM type of transformers, as in config.json.")
    num_parameters: str = option("10M", "Random weights: size with embeddings, such as 800K, 25M or 1.5B.")
    config_overrides: dict | str | None = option(
        None, "Random weights: exact config fields, such as '{\"num_hidden_layers\": 6}'; they win over the size."
    )
    scaled_init: bool = option(
        True,
        "Random weights of untied pre-norm families such as qwen3 and llama: draw them as measured best "
        "(benchmarks/pretrain_quality.py), else as transformers does.",
    )
    keep_markers: bool = option(
        False, "Let a special token that is spelt out in a message, such as <|im_end|>, be the token; else plain text."
    )
    tokenizer_name: str | None = option(None, "Reuse this tokenizer (Hub id or folder) instead of training one.")
    vocab_size: int | None = option(
        None, "Entries of a newly trained tokenizer, a multiple of 128. Default: about sqrt(num_parameters)."
    )
    model_license: str | None = option(
        None, "License of the model you make, for its card: an id that the Hub knows, such as apache-2.0 or other."
    )

    def __post_init__(self):
        check_values(self)
        super().__post_init__()


@dataclass
class RunDefaults:
    """What all five recipes have in common: fields of TRL's configurations with defaults of ours."""

    resume_from_checkpoint: str | None = option(
        "auto", "auto: resume an interrupted run with the same settings; or the path of a checkpoint."
    )
    gradient_checkpointing: bool | None = option(None, "Trade compute for memory. Default: on for a GPU.")
    bf16: bool | None = option(
        None, "bfloat16 mixed precision. Default: on where the GPU, or for 0.5M and more the CPU, multiplies it."
    )
    torch_compile: bool | None = option(
        None, "Compile the layers of the model. Default: where the run is long enough to earn it back."
    )
    check_memory: bool = option(
        True, "Refuse a run whose weights, gradients and optimizer states alone are more than the device has."
    )
    eval_strategy: str = option("steps", "no, steps or epoch.")
    eval_steps: float | None = option(0.1, "Steps between evaluations, or a share of all steps if below 1.")
    eval_on_start: bool = option(True, "Measure the starting weights too.")
    save_steps: float = option(0.1, "Steps between checkpoints, or a share of all steps if below 1.")
    save_total_limit: int | None = option(1, "Checkpoints kept.")
    stop_on_divergence: bool = option(False, "End at a warning that the weights go wrong (docs/watching.md).")


@dataclass
class PretrainConfig(RunDefaults, SFTConfig):
    """TRL's SFTConfig with defaults for plain text and random weights, and the few fields that pretrain.py adds."""

    _argument_group_name = "training"

    output_dir: str | None = option("runs/pretrain", "The run folder: everything the stage leaves is in it.")
    use_muon: bool = option(True, "Muon for the hidden matrices, AdamW for the rest; else AdamW (--optim) for all.")
    muon_momentum: float = option(0.95, "Momentum of Muon.")
    embedding_lr_scale: float | None = option(
        None, "Rate of the embedding, as a multiple of learning_rate. Default: 20 with scaled_init, else 1."
    )
    head_lr_scale: float | None = option(
        None, "Rate of an untied output head, as a multiple of learning_rate. Default: 0.7 with scaled_init, else 1."
    )
    decay_ratio: float = option(0.6, "warmup_stable_decay: share of the steps over which the rate falls to zero.")
    max_eval_rows: int = option(128, "Rows of max_length tokens that an evaluation during training reads.")
    learning_rate: float | None = option(
        None, "Peak learning rate of the hidden matrices. Default: 1e-2 for random weights, 1e-3 for a checkpoint."
    )
    lr_scheduler_type: str = option("warmup_stable_decay", "Any scheduler of transformers, such as cosine.")
    warmup_steps: float = option(0, "Steps of linear warm-up, or a share of all steps if below 1.")
    weight_decay: float = option(0.0, "Decoupled weight decay.")
    adam_beta1: float = option(0.8, "First moment decay of AdamW.")
    adam_beta2: float = option(0.95, "Second moment decay of AdamW.")
    adam_epsilon: float = option(1e-10, "Epsilon of AdamW.")
    max_length: int | None = option(512, "Context in tokens: length of a packed row.")
    packing: bool = option(True, "Fill rows with consecutive documents.")
    packing_strategy: str = option(
        "auto", "wrapped, bfd or bfd_split. auto: bfd_split with flash attention on a GPU, wrapped otherwise."
    )
    shuffle_dataset: bool = option(True, "Shuffle documents and packed rows; of a stream, within a buffer of them.")
    num_train_epochs: float = option(1.0, "Passes over the data, unless max_steps is given.")
    per_device_train_batch_size: int = option(16, "Rows a device takes at once.")
    gradient_checkpointing: bool | None = option(None, "Trade compute for memory. Default: off.")
    include_num_input_tokens_seen: str = option("all", "Count tokens: all, non_padding or no.")

    def __post_init__(self):
        check_values(self)
        choose_by_device(self)
        super().__post_init__()


@dataclass
class InstructConfig(RunDefaults, SFTConfig):
    """TRL's SFTConfig with defaults for instruction tuning, and what happens to rows longer than the context."""

    _argument_group_name = "training"

    output_dir: str | None = option("runs/sft", "The run folder: everything the stage leaves is in it.")
    overlong: str = option("drop", "Rows longer than max_length: drop (counted and shown) or error.")
    assistant_only_loss: bool = option(True, "Train on the assistant's tokens only.")
    use_muon: bool = option(
        False, "Muon for the hidden matrices, AdamW for the rest: quicker for weights that Muon made, as pretrain.py's."
    )
    muon_momentum: float = option(0.95, "Momentum of Muon.")
    embedding_lr_scale: float = option(1.0, "With use_muon: rate of the embedding, as a multiple of learning_rate.")
    head_lr_scale: float = option(1.0, "With use_muon: rate of an untied head, as a multiple of learning_rate.")
    learning_rate: float = option(1e-4, "Peak learning rate.")
    lr_scheduler_type: str = option("cosine", "Any scheduler of transformers, such as linear.")
    warmup_steps: float = option(0.03, "Steps of linear warm-up, or a share of all steps if below 1.")
    max_length: int | None = option(None, "Longest row in tokens. Default: the context of the model, 1024 at most.")
    include_num_input_tokens_seen: str = option("all", "Count tokens: all, non_padding or no.")

    def __post_init__(self):
        check_values(self)
        choose_by_device(self, checkpointing_on_gpu=True)
        super().__post_init__()


@dataclass
class RewardModelConfig(RunDefaults, RewardConfig):
    """TRL's RewardConfig with defaults for a reward model from a tuned one, and what happens to rows too long."""

    _argument_group_name = "training"

    output_dir: str | None = option("runs/reward", "The run folder: everything the stage leaves is in it.")
    overlong: str = option("drop", "Pairs with a side longer than max_length: drop (counted and shown) or error.")
    center_rewards_coefficient: float | None = option(
        0.01, "Weight of the squared sum of a pair's scores in the loss, which keeps their mean near zero."
    )
    learning_rate: float = option(
        3e-4,
        "Peak learning rate. Measured on all weights of 10M: 1e-3 is good too, 1e-4 slow; a large model wants less.",
    )
    lr_scheduler_type: str = option("cosine", "Any scheduler of transformers, such as linear.")
    warmup_steps: float = option(0.03, "Steps of linear warm-up, or a share of all steps if below 1.")
    num_train_epochs: float = option(1.0, "Passes over the data, unless max_steps is given; more overfit soon.")
    max_length: int | None = option(
        None, "Longest side of a pair, with its prompt. Default: the context of the model, 1024 at most."
    )
    include_num_input_tokens_seen: str = option("all", "Count tokens: all, non_padding or no.")

    def __post_init__(self):
        check_values(self)
        choose_by_device(self, checkpointing_on_gpu=True)
        super().__post_init__()


@dataclass
class RewardArguments:
    """Where the rewards of PPO and GRPO come from; their config classes inherit it."""

    reward_model_name_or_path: str | None = option(None, "Reward model: a folder such as runs/reward, or a Hub id.")
    reward_funcs: list[str] | None = option(
        None,
        "Reward functions: names in fourstage.verifiers, python_tests, or dotted paths of functions called as TRL's.",
    )
    gold_func: str | None = option(
        None, "A reward function that is only reported, never trained on: it shows when the reward is gamed."
    )
    control: str | None = option(
        None,
        "random_reward: the same run with coin flips as rewards, the others only reported. Report its gain next to "
        "yours: no reward taught it.",
    )


def choose_by_device(config: Any, checkpointing_on_gpu: bool = False) -> None:
    """Fills bf16 and gradient checkpointing where unset: TRL turns both on, which is wrong for CPUs and small models.

    Without an accelerator the CPU is asked for by name, with gloo between processes: otherwise `accelerate launch`
    with several processes starts independent copies (see `launch.check_launch`).
    """
    no_gpu = not torch.accelerator.is_available() and not parse_flag_from_env("ACCELERATE_USE_DEEPSPEED")
    if no_gpu or parse_flag_from_env("ACCELERATE_USE_CPU"):  # the latter of a config such as cpu.yaml
        config.use_cpu = True  # with it accelerate would not start DeepSpeed, which runs on CPUs as it is
    if config.use_cpu:
        # AdamW's moments of rarely seen embedding rows fade into denormals, on which its step takes 8 times as long.
        torch.set_flush_denormal(True)
        keep_memory()
    gpu = torch.cuda.is_available() and not config.use_cpu
    on_cpu = config.use_cpu or not torch.accelerator.is_available()
    if on_cpu and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        config.ddp_backend = config.ddp_backend or "gloo"
    config.precision_left_open = config.use_cpu and config.bf16 is None and not config.fp16  # for `fourstage.resolve`
    if config.bf16 is None:
        config.bf16 = gpu and not config.fp16 and torch.cuda.is_bf16_supported()
    # The old name warns in transformers 5.23, so the choice is handed on under the new one.
    if config.activation_checkpointing is None:
        chosen = config.gradient_checkpointing
        config.activation_checkpointing = gpu and checkpointing_on_gpu if chosen is None else chosen
    config.gradient_checkpointing = None
    own_choice = not (config.torch_compile_backend or config.torch_compile_mode)
    if isinstance(config, RunDefaults) and config.torch_compile and own_choice:
        config.torch_compile_backend = "no"  # not the whole model by accelerate, but its layers by `fourstage.speed`


def keep_memory() -> None:
    """Lets a process on Linux keep the memory that a step frees, as the next step asks for as much again.

    glibc would give large blocks back to the kernel and fetch them again page by page, which takes a tenth of a step.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
        if mallopt is not None:
            mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
            mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD


def parse(recipe: str, *types: Any) -> tuple:
    """Reads the recipe's arguments: default < YAML (`--config FILE`) < command line.

    Args:
        recipe: the recipe's `__file__`; without any argument its `configs/demo/STAGE.yaml` is used, and the stages of
            the demo that it starts from are made where they are missing.
        types: dataclasses whose fields are the flags.
    Raises:
        ValueError: for an unknown key or flag, and for a Hub token, which comes from the login or HF_TOKEN only.
    """
    quiet_libraries()
    path = Path(recipe)
    arguments = [part for argument in sys.argv[1:] for part in _split_config(argument)]
    if not arguments:
        arguments = ["--config", str(path.parent / "configs" / "demo" / f"{path.stem}.yaml")]
        print(f"No arguments: {arguments[0]} {arguments[1]}", flush=True)
        make_missing_parents(path)
    module_doc = sys.modules["__main__"].__doc__
    usage = f"accelerate launch recipes/{path.name} [--config FILE.yaml] [--flag value ...]"
    parser = TrlParser(types, description=module_doc, usage=usage, allow_abbrev=False)
    parser.error = _refuse  # argparse would print all of the usage, and exit
    known = {f.name for kind in types for f in fields(kind)}
    if "--config" in arguments:
        parser.set_defaults_with_config(**_config_settings(_config_path(arguments), types, known))
        place = arguments.index("--config")
        del arguments[place : place + 2]
    flags = [part.split("=")[0].removeprefix("--").replace("-", "_") for part in arguments if part.startswith("--")]
    _check_names(flags, known | {f"no_{name}" for name in known} | {"config", "help"}, "--")
    optional = {name for kind in types for name, hint in get_type_hints(kind).items() if hint == bool | None}
    try:
        parsed = parser.parse_args_into_dataclasses(_spell_out(arguments, optional))
    except TypeError as error:  # transformers makes an AcceleratorConfig of whatever keys there are
        raise ValueError(
            f"a setting with keys of its own, such as accelerator_config, has one that is unknown: {error}"
        ) from None
    for settings in (vars(part) for part in parsed if hasattr(part, "output_dir")):
        check_output_dir(settings["output_dir"])
    for model_args in (part for part in parsed if isinstance(part, ModelArguments)):
        model_args.trust_remote_code = any(getattr(part, "trust_remote_code", False) for part in parsed)
    return parsed


def _refuse(message: str) -> NoReturn:
    raise ValueError(f"{plain(message)}; --help lists what each flag takes")


def restored(kind: type[T], values: Mapping[str, Any]) -> T:
    """Arguments as run.json keeps them, back in their dataclass: defaults, types and checks apply again.

    What an older version kept and this one does not know is left out.
    Example: restored(DataArguments, record["arguments"]["data"]).
    """
    known = {f.name for f in fields(kind) if f.init}
    return kind(**{name: value for name, value in values.items() if name in known})


def _split_config(argument: str) -> list[str]:
    return ["--config", argument.removeprefix("--config=")] if argument.startswith("--config=") else [argument]


def _spell_out(arguments: list[str], optional: set[str]) -> list[str]:
    """`--bf16` alone says true: for fields that may be None too the parser of transformers 5.23 asks for a value."""
    spelt = []
    for argument, following in pairwise([*arguments, "--"]):
        bare = argument.startswith("--") and following.startswith("--")
        name = argument.removeprefix("--").replace("-", "_")
        spelt += [argument, "true"] if bare and name in optional else [argument]
    return spelt


def _config_path(arguments: list[str]) -> Path:
    after = arguments[arguments.index("--config") + 1 :]
    if not after:
        raise ValueError("--config: a file is missing; give the path of a YAML file")
    if not Path(after[0]).is_file():
        raise ValueError(f"--config {after[0]}: no such file; give the path of a YAML file")
    return Path(after[0])


def _config_settings(path: Path, types: tuple, known: set[str]) -> dict[str, Any]:
    """The settings of a YAML file; its `env` goes to the environment, as by TRL's scripts."""
    values, texts = read_yaml(path)
    _check_names(list(values), known | {"env"}, f"{path}: ")
    env = values.pop("env", {})
    if not isinstance(env, dict) or not all(str(name).isidentifier() for name in env):
        raise ValueError(f"{path}: env: takes NAME: value lines, got {shown(env)}")
    os.environ.update({name: str(value).replace("\0", "") for name, value in texts.get("env", {}).items()})
    if values.get("output_dir", "") is None:
        check_output_dir(None)  # transformers would take a folder of its own
    return typed_settings(values, texts, types, f"{path}: ")


def _check_names(names: list, known: set[str], where: str) -> None:
    """Refuses unknown keys and flags with the nearest known name; TRL's own scripts drop misspelt keys."""
    for name in names:
        if name == "hub_token":
            raise ValueError(
                f"{where}{name}: a token is never an argument, as arguments are recorded; run `hf auth login` or set "
                "HF_TOKEN"
            )
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean {near[0]}?" if near else "see --help"
            raise ValueError(f"{where}{plain(str(name), 80)}: unknown; {hint}")
