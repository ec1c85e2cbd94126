"""One guard, called by every recipe before it builds anything: a launch gives what it says, or it is refused.

Some launches train fewer processes than asked for, or another way than asked for, and still exit 0. Measured with
accelerate 1.15 (N = 2):

| launch                                                             | trains              | here     |
|--------------------------------------------------------------------|---------------------|----------|
| python recipes/X.py                                                | 1 process           | allowed  |
| accelerate launch [--num_processes 1] recipes/X.py                 | 1 process           | allowed  |
| accelerate launch --config_file accelerate_configs/cpu.yaml ...    | 1 process           | allowed  |
| accelerate launch --config_file accelerate_configs/ddp.yaml ...    | N, GPU or gloo      | allowed  |
| torchrun --nproc_per_node N recipes/X.py                           | N, GPU or gloo      | allowed  |
| accelerate launch --cpu --num_processes N ...                      | 1 process           | refused  |
| accelerate launch --config_file ANY --cpu --num_processes N ...    | 1 process           | refused  |
| accelerate launch --num_processes N ... with fewer than two GPUs   | 1 process           | refused  |
| WORLD_SIZE is N, but no process group (no GPU and no use_cpu)      | N copies, 1 folder  | refused  |
| FSDP asked for, on the CPU                                         | plain DDP, or alone | refused  |
| DeepSpeed asked for, with use_cpu                                  | plain DDP, or alone | refused  |
"""

import os
import re
import sys
from typing import TYPE_CHECKING

import psutil
from accelerate import PartialState
from accelerate.utils import DistributedType, get_int_from_env, parse_flag_from_env

if TYPE_CHECKING:
    from transformers import TrainingArguments

# The names accelerate itself reads: torchrun's, then those of the MPIs.
WORLD_SIZE_NAMES = ["WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"]
ACCELERATE_LAUNCH = re.compile(r"(^|[/\\ ])accelerate( launch|-launch|[./]commands[./]launch(\.py)?)$")
DDP_LAUNCH = "accelerate launch --config_file accelerate_configs/ddp.yaml --num_processes"


def check_launch(training_args: "TrainingArguments") -> None:
    """Raise ValueError if this launch trains fewer processes than it was asked for, or not the way it was asked to.

    Call it after the arguments are parsed and before a model, a data set or a folder is made: `training_args` has
    joined the process group by then, so `training_args.distributed_state` is what was really got.
    """
    state = training_args.distributed_state or PartialState()
    check_accelerate_processes(state)
    check_world_size(state, training_args.output_dir)
    check_sharding(state, training_args)
    make_models_whole(state)
    size_buckets(training_args)


def make_models_whole(state: PartialState) -> None:
    """Has models made and read whole under ZeRO-3 until the trainer shards them, which turns this off.

    transformers would shard them as they are made. Random weights are then drawn in another order than by one process,
    new heads too, and nothing can be checked by a forward pass before the trainer is there. In return every process
    needs the memory of a whole model until then.
    """
    if state.distributed_type == DistributedType.DEEPSPEED:
        from transformers.integrations import unset_hf_deepspeed_config

        unset_hf_deepspeed_config()


def size_buckets(training_args: "TrainingArguments") -> None:
    """Has DeepSpeed's buffers follow the model: its own take 2 GB for gradients in each process, whatever the model,
    and 50 million weights that are gathered ahead, which it holds twice.

    accelerate puts the square of the hidden size in the place of "auto".
    """
    plugin = getattr(training_args, "deepspeed_plugin", None)
    if plugin is not None:
        options = plugin.deepspeed_config.get("zero_optimization", {})
        for name in ("reduce_bucket_size", "stage3_prefetch_bucket_size"):
            options.setdefault(name, "auto")


def check_accelerate_processes(state: PartialState) -> None:
    asked = processes_asked_of_accelerate()
    if asked > state.num_processes:
        raise ValueError(
            f"launch: accelerate launch was asked for num_processes={asked} and started {state.num_processes}: it "
            "starts more than one only with a multi-GPU config, and with --cpu only through mpirun. Use "
            f"`{DDP_LAUNCH} {asked} {sys.argv[0]}` (no --cpu; it runs on CPUs too), or --num_processes 1."
        )


def check_world_size(state: PartialState, output_dir: str | None) -> None:
    asked = get_int_from_env(WORLD_SIZE_NAMES, 1)
    if asked > state.num_processes:
        fix = (
            "add `--use_cpu true --ddp_backend gloo`"  # launched well, but no accelerator to join over
            if "LOCAL_RANK" in os.environ
            else f"start it with `torchrun --nproc_per_node {asked} {sys.argv[0]}`"
        )
        raise ValueError(
            f"launch: the world size in the environment is {asked}, but this process trains alone (distributed_type "
            f"{state.distributed_type.value}): {asked} independent copies would write to output_dir={output_dir!r}. "
            f"To train together, {fix}; to train alone, unset WORLD_SIZE."
        )


def check_sharding(state: PartialState, training_args: "TrainingArguments") -> None:
    got = state.distributed_type
    # PartialState never says FSDP: accelerate turns MULTI_GPU, or another accelerator's name, into it later on.
    wants_fsdp = parse_flag_from_env("ACCELERATE_USE_FSDP") or training_args.fsdp
    if wants_fsdp and got in (DistributedType.NO, DistributedType.MULTI_CPU):
        raise ValueError(
            f"launch: FSDP was asked for, but distributed_type is {got.value}: accelerate shards over accelerators "
            "only. On GPUs start it with accelerate launch or torchrun, and without use_cpu (got "
            f"use_cpu={training_args.use_cpu}); on CPUs use `{DDP_LAUNCH} 2 {sys.argv[0]}`."
        )
    wants_deepspeed = parse_flag_from_env("ACCELERATE_USE_DEEPSPEED") or training_args.deepspeed
    if wants_deepspeed and got != DistributedType.DEEPSPEED:
        raise ValueError(
            f"launch: DeepSpeed was asked for, but distributed_type is {got.value}: start it with accelerate launch or "
            f"torchrun, and without use_cpu (got use_cpu={training_args.use_cpu}). Without DeepSpeed use "
            f"`{DDP_LAUNCH} 2 {sys.argv[0]}`."
        )


def processes_asked_of_accelerate() -> int:
    """The number `accelerate launch` was told, if it started this process and nothing but this process.

    Its one-process launcher is the only one that sets ACCELERATE_USE_CPU, and then sets MASTER_ADDR if more than one
    process was asked for. The number itself is in no variable, and a shell may have set MASTER_ADDR for another
    reason, so accelerate's own parser reads it from the command line of the process that launched us.
    """
    if "ACCELERATE_USE_CPU" not in os.environ or "MASTER_ADDR" not in os.environ:
        return 1
    for parent in psutil.Process().parents():
        try:
            words = parent.cmdline()
        except psutil.Error:  # another user's process
            continue
        for end in range(1, len(words)):
            if ACCELERATE_LAUNCH.search(" ".join(words[:end])):
                return processes_in_command(words[end:])
    return 2  # launched by a program that calls accelerate: MASTER_ADDR is all there is to go by


def processes_in_command(arguments: list[str]) -> int:
    # Imported here: few runs get this far, and every recipe imports this module.
    from accelerate.commands.config import default_config_file, load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    args = launch_command_parser().parse_args(arguments)
    if args.num_processes is not None:
        return args.num_processes
    has_config = args.config_file is not None or (os.path.isfile(default_config_file) and not args.cpu)
    return load_config_from_file(args.config_file).num_processes if has_config else 1
