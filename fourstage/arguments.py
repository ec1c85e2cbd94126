"""What a recipe can be told: small dataclasses over TRL's, read from defaults, then YAML, then the command line."""

import difflib
import os
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_type_hints

import torch
from accelerate.utils import parse_flag_from_env
from trl import ModelConfig, RewardConfig, SFTConfig, TrlParser


def _option(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass
class DataArguments:
    """Where the rows come from and which of them are held out."""

    _argument_group_name = "data"

    dataset_name: str | None = _option(
        None,
        "Hub id, local file (.txt .jsonl .json .parquet .csv, also .gz), folder of such files, fourstage/demo, "
        "or a generated task, such as reasoning-gym/chain_sum.",
    )
    dataset_config: str | None = _option(None, "Configuration name of a Hub data set.")
    dataset_train_split: str = _option("train", "Split to train on.")
    dataset_test_split: str = _option("test", "Split to hold out; where it is missing, `validation` is looked for.")
    dataset_streaming: bool = _option(False, "Read the data as a stream, in flat memory. Needs --max_steps.")
    datasets: list[dict] | None = _option(
        None,
        "A mixture, in YAML only: entries with dataset_name, weight, and optionally dataset_config, "
        "dataset_train_split, task_settings, license.",
    )
    task_settings: dict | str | None = _option(
        None,
        "Difficulty of a generated task, such as '{\"max_terms\": 3}'; with `levels` a curriculum from easy to hard, "
        "for which --no_shuffle_dataset keeps the order.",
    )
    task_size: int = _option(5_000, "Rows of a generated task; held out is the share test_split_size of as many more.")
    test_split_size: float = _option(
        0.05, "Share of documents held out where the data has no test split; copies of a document stay together."
    )
    dataset_license: str | None = _option(None, "License of the data, for the model card, such as cc-by-4.0.")


@dataclass
class ModelArguments(ModelConfig):
    """Which weights to start from: a checkpoint, or random ones of a named architecture and size."""

    _argument_group_name = "model"
    # No field, as it is one of the training configs already; `parse` hands that one on to here.
    trust_remote_code = False

    dtype: str | None = _option("float32", "Type of the weights: float32, bfloat16, float16 or auto.")
    model_type: str = _option("qwen3", "Random weights: any causal LM type of transformers, as in config.json.")
    num_parameters: str = _option("10M", "Random weights: size with embeddings, such as 800K, 25M or 1.5B.")
    config_overrides: dict | str | None = _option(
        None, "Random weights: exact config fields, such as '{\"num_hidden_layers\": 6}'; they win over the size."
    )
    scaled_init: bool = _option(
        True,
        "Random weights of untied pre-norm families such as qwen3 and llama: draw them as measured best "
        "(benchmarks/pretrain_quality.py), else as transformers does.",
    )
    tokenizer_name: str | None = _option(None, "Reuse this tokenizer (Hub id or folder) instead of training one.")
    vocab_size: int | None = _option(
        None, "Entries of a newly trained tokenizer, a multiple of 128. Default: about sqrt(num_parameters)."
    )
    model_license: str | None = _option(
        None, "License of the model you make, for its card: an id that the Hub knows, such as apache-2.0 or other."
    )


@dataclass
class PretrainConfig(SFTConfig):
    """TRL's SFTConfig with defaults for plain text and random weights, and the few fields that pretrain.py adds."""

    _argument_group_name = "training"

    output_dir: str | None = _option("runs/pretrain", "The run folder: everything the stage leaves is in it.")
    resume_from_checkpoint: str | None = _option(
        "auto", "auto: go on where a run with the same settings was cut off; or the path of a checkpoint."
    )
    use_muon: bool = _option(True, "Muon for the hidden matrices, AdamW for the rest; else AdamW (--optim) for all.")
    muon_momentum: float = _option(0.95, "Momentum of Muon.")
    embedding_lr_scale: float | None = _option(
        None, "Rate of the embedding, as a multiple of learning_rate. Default: 20 with scaled_init, else 1."
    )
    head_lr_scale: float | None = _option(
        None, "Rate of an untied output head, as a multiple of learning_rate. Default: 0.7 with scaled_init, else 1."
    )
    decay_ratio: float = _option(0.6, "warmup_stable_decay: share of the steps over which the rate falls to zero.")
    max_eval_rows: int = _option(128, "Rows of max_length tokens that an evaluation during training reads.")
    learning_rate: float | None = _option(
        None, "Peak learning rate of the hidden matrices. Default: 1e-2 for random weights, 1e-3 for a checkpoint."
    )
    lr_scheduler_type: str = _option("warmup_stable_decay", "Any scheduler of transformers, such as cosine.")
    warmup_steps: float = _option(0, "Steps of linear warm-up, or a share of all steps if below 1.")
    weight_decay: float = _option(0.0, "Decoupled weight decay.")
    adam_beta1: float = _option(0.8, "First moment decay of AdamW.")
    adam_beta2: float = _option(0.95, "Second moment decay of AdamW.")
    adam_epsilon: float = _option(1e-10, "Epsilon of AdamW.")
    max_length: int | None = _option(512, "Context in tokens: length of a packed row.")
    packing: bool = _option(True, "Fill rows with consecutive documents.")
    packing_strategy: str = _option(
        "auto", "wrapped, bfd or bfd_split. auto: bfd_split with flash attention on a GPU, wrapped otherwise."
    )
    shuffle_dataset: bool = _option(True, "Shuffle documents and packed rows; of a stream, within a buffer of them.")
    num_train_epochs: float = _option(1.0, "Passes over the data, unless max_steps is given.")
    per_device_train_batch_size: int = _option(16, "Rows a device takes at once.")
    gradient_checkpointing: bool | None = _option(None, "Trade compute for memory. Default: off.")
    bf16: bool | None = _option(None, "bfloat16 mixed precision. Default: on where a GPU has it.")
    eval_strategy: str = _option("steps", "no, steps or epoch.")
    eval_steps: float | None = _option(0.1, "Steps between evaluations, or a share of all steps if below 1.")
    eval_on_start: bool = _option(True, "Measure the starting weights too.")
    save_steps: float = _option(0.1, "Steps between checkpoints, or a share of all steps if below 1.")
    save_total_limit: int | None = _option(1, "Checkpoints kept.")
    include_num_input_tokens_seen: str = _option("all", "Count tokens: all, non_padding or no.")

    def __post_init__(self):
        choose_by_device(self)
        super().__post_init__()


@dataclass
class InstructConfig(SFTConfig):
    """TRL's SFTConfig with defaults for instruction tuning, and what happens to rows longer than the context."""

    _argument_group_name = "training"

    output_dir: str | None = _option("runs/sft", "The run folder: everything the stage leaves is in it.")
    resume_from_checkpoint: str | None = _option(
        "auto", "auto: go on where a run with the same settings was cut off; or the path of a checkpoint."
    )
    overlong: str = _option("drop", "Rows longer than max_length: drop (counted and shown) or error.")
    assistant_only_loss: bool = _option(True, "Train on the assistant's tokens only.")
    use_muon: bool = _option(
        False, "Muon for the hidden matrices, AdamW for the rest: quicker for weights that Muon made, as pretrain.py's."
    )
    muon_momentum: float = _option(0.95, "Momentum of Muon.")
    embedding_lr_scale: float = _option(1.0, "With use_muon: rate of the embedding, as a multiple of learning_rate.")
    head_lr_scale: float = _option(1.0, "With use_muon: rate of an untied head, as a multiple of learning_rate.")
    learning_rate: float = _option(1e-4, "Peak learning rate.")
    lr_scheduler_type: str = _option("cosine", "Any scheduler of transformers, such as linear.")
    warmup_steps: float = _option(0.03, "Steps of linear warm-up, or a share of all steps if below 1.")
    max_length: int | None = _option(None, "Longest row in tokens. Default: the context of the model, 1024 at most.")
    gradient_checkpointing: bool | None = _option(None, "Trade compute for memory. Default: on for a GPU.")
    bf16: bool | None = _option(None, "bfloat16 mixed precision. Default: on where a GPU has it.")
    eval_strategy: str = _option("steps", "no, steps or epoch.")
    eval_steps: float | None = _option(0.1, "Steps between evaluations, or a share of all steps if below 1.")
    eval_on_start: bool = _option(True, "Measure the starting weights too.")
    save_steps: float = _option(0.1, "Steps between checkpoints, or a share of all steps if below 1.")
    save_total_limit: int | None = _option(1, "Checkpoints kept.")
    include_num_input_tokens_seen: str = _option("all", "Count tokens: all, non_padding or no.")

    def __post_init__(self):
        if self.overlong not in ("drop", "error"):
            raise ValueError(f"overlong={self.overlong!r} must be drop or error")
        choose_by_device(self, checkpointing_on_gpu=True)
        super().__post_init__()


@dataclass
class RewardModelConfig(RewardConfig):
    """TRL's RewardConfig with defaults for a reward model from a tuned one, and what happens to rows too long."""

    _argument_group_name = "training"

    output_dir: str | None = _option("runs/reward", "The run folder: everything the stage leaves is in it.")
    resume_from_checkpoint: str | None = _option(
        "auto", "auto: go on where a run with the same settings was cut off; or the path of a checkpoint."
    )
    overlong: str = _option("drop", "Pairs with a side longer than max_length: drop (counted and shown) or error.")
    center_rewards_coefficient: float | None = _option(
        0.01, "Weight of the squared sum of a pair's scores in the loss, which keeps their mean near zero."
    )
    learning_rate: float = _option(
        3e-4,
        "Peak learning rate. Measured on all weights of 10M: 1e-3 is good too, 1e-4 slow; a large model wants less.",
    )
    lr_scheduler_type: str = _option("cosine", "Any scheduler of transformers, such as linear.")
    warmup_steps: float = _option(0.03, "Steps of linear warm-up, or a share of all steps if below 1.")
    num_train_epochs: float = _option(1.0, "Passes over the data, unless max_steps is given; more overfit soon.")
    max_length: int | None = _option(
        None, "Longest side of a pair, with its prompt. Default: the context of the model, 1024 at most."
    )
    gradient_checkpointing: bool | None = _option(None, "Trade compute for memory. Default: on for a GPU.")
    bf16: bool | None = _option(None, "bfloat16 mixed precision. Default: on where a GPU has it.")
    eval_strategy: str = _option("steps", "no, steps or epoch.")
    eval_steps: float | None = _option(0.1, "Steps between evaluations, or a share of all steps if below 1.")
    eval_on_start: bool = _option(True, "Measure the starting weights too.")
    save_steps: float = _option(0.1, "Steps between checkpoints, or a share of all steps if below 1.")
    save_total_limit: int | None = _option(1, "Checkpoints kept.")
    include_num_input_tokens_seen: str = _option("all", "Count tokens: all, non_padding or no.")

    def __post_init__(self):
        if self.overlong not in ("drop", "error"):
            raise ValueError(f"overlong={self.overlong!r} must be drop or error")
        choose_by_device(self, checkpointing_on_gpu=True)
        super().__post_init__()


@dataclass
class RewardArguments:
    """Where the rewards of PPO and GRPO come from; their config classes inherit it."""

    reward_model_name_or_path: str | None = _option(None, "Reward model: a folder such as runs/reward, or a Hub id.")
    reward_funcs: list[str] | None = _option(
        None, "Reward functions: names in fourstage.verifiers, or dotted paths of functions that are called as TRL's."
    )
    gold_func: str | None = _option(
        None, "A reward function that is only reported, never trained on: it shows when the reward is gamed."
    )
    control: str | None = _option(
        None,
        "random_reward: the same run with coin flips as rewards, the others only reported. What it gains, no reward "
        "taught; any claim needs it beside it.",
    )


def choose_by_device(config: SFTConfig | RewardConfig, checkpointing_on_gpu: bool = False) -> None:
    """Fills bf16 and gradient checkpointing where unset (TRL turns both on, wrong for CPU and small models).

    Without an accelerator the CPU is asked for by name, with gloo between processes: otherwise `accelerate launch`
    with several processes starts independent copies (see `launch.check_launch`).
    """
    if not torch.accelerator.is_available() or parse_flag_from_env("ACCELERATE_USE_CPU"):
        config.use_cpu = True  # the second is set by `accelerate launch` for a config such as cpu.yaml
    if config.use_cpu:
        # AdamW's moments of rarely seen embedding rows fade into denormals, on which its step takes 8 times as long.
        torch.set_flush_denormal(True)
    gpu = torch.cuda.is_available() and not config.use_cpu
    if config.use_cpu and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        config.ddp_backend = config.ddp_backend or "gloo"
    if config.bf16 is None:
        config.bf16 = gpu and not config.fp16 and torch.cuda.is_bf16_supported()
    # The old name warns in transformers 5.23, so the choice is handed on under the new one.
    if config.activation_checkpointing is None:
        chosen = config.gradient_checkpointing
        config.activation_checkpointing = gpu and checkpointing_on_gpu if chosen is None else chosen
    config.gradient_checkpointing = None


def parse(recipe: str, *types: type) -> tuple:
    """Reads the recipe's arguments: default < YAML (`--config FILE`) < command line.

    Args:
        recipe: the recipe's `__file__`; without any argument its `configs/demo/STAGE.yaml` is used.
        types: dataclasses whose fields are the flags.
    Raises:
        ValueError: for an unknown key or flag, and for a Hub token, which comes from the login or HF_TOKEN only.
    """
    path = Path(recipe)
    unshadow_libraries(recipe)
    arguments = [part for argument in sys.argv[1:] for part in _split_config(argument)]
    if not arguments:
        arguments = ["--config", str(path.parent / "configs" / "demo" / f"{path.stem}.yaml")]
        print(f"No arguments: {arguments[0]} {arguments[1]}", flush=True)
    module_doc = sys.modules["__main__"].__doc__
    usage = f"accelerate launch recipes/{path.name} [--config FILE.yaml] [--flag value ...]"
    parser = TrlParser(types, description=module_doc, usage=usage, allow_abbrev=False)
    known = {f.name for kind in types for f in fields(kind)}
    if "--config" in arguments:
        _check_names(_yaml_keys(_config_path(arguments)), known | {"env"}, f"{_config_path(arguments)}: ")
    flags = [part.split("=")[0].removeprefix("--").replace("-", "_") for part in arguments if part.startswith("--")]
    _check_names(flags, known | {f"no_{name}" for name in known} | {"config", "help"}, "--")
    optional = {name for kind in types for name, hint in get_type_hints(kind).items() if hint == bool | None}
    parsed = parser.parse_args_and_config(_spell_out(arguments, optional))
    for model_args in (part for part in parsed if isinstance(part, ModelArguments)):
        model_args.trust_remote_code = any(getattr(part, "trust_remote_code", False) for part in parsed)
    return parsed


def unshadow_libraries(recipe: str) -> None:
    """Takes the recipes' folder off the import path, where `recipes/evaluate.py` hides the library `evaluate`."""
    folder = Path(recipe).resolve().parent
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != folder]


def _split_config(argument: str) -> list[str]:
    return ["--config", argument.removeprefix("--config=")] if argument.startswith("--config=") else [argument]


def _spell_out(arguments: list[str], optional: set[str]) -> list[str]:
    """`--bf16` alone says true: for fields that may be None too the parser of transformers 5.23 asks for a value."""
    spelt = []
    for argument, following in zip(arguments, [*arguments[1:], "--"], strict=True):
        bare = argument.startswith("--") and following.startswith("--")
        name = argument.removeprefix("--").replace("-", "_")
        spelt += [argument, "true"] if bare and name in optional else [argument]
    return spelt


def _config_path(arguments: list[str]) -> Path:
    after = arguments[arguments.index("--config") + 1 :]
    if not after or not Path(after[0]).is_file():
        raise ValueError(f"--config {after[0] if after else ''}: no such file; give the path of a YAML file")
    return Path(after[0])


def _yaml_keys(path: Path) -> list:
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: must hold `key: value` lines, got {type(content).__name__}")
    return list(content)


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
            raise ValueError(f"{where}{name}: unknown; {hint}")
