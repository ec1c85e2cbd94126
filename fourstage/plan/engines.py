"""What one process of several holds: the parts of a run on one device, divided as its engine divides them."""

from fourstage.plan.rehearsal import Rehearsed

ENGINES = ("none", "ddp", "zero2", "zero3", "fsdp2")


def check_engine(engine: str, stage: str, processes: int, cpu: bool) -> None:
    """Raises ValueError for an engine that a stage, a device or a number of processes cannot have."""
    if processes < 1:
        raise ValueError(f"num_gpus={processes} must be at least 1")
    if engine == "none" and processes > 1:
        raise ValueError(f"engine=none with num_gpus={processes}: one process trains alone; give --engine ddp")
    if engine in ("zero2", "zero3", "fsdp2") and stage == "ppo":
        raise ValueError(
            f"engine={engine} is not supported by PPO: it would not shard the critic, a whole copy in every process; "
            "choose --engine ddp, and --use_peft if memory is short"
        )
    if engine in ("zero2", "zero3", "fsdp2") and cpu:
        raise ValueError(f"engine={engine} shards over GPUs only, and this machine has none; name one with --gpu")


def per_process(found: Rehearsed, engine: str, processes: int) -> dict[str, int]:
    """Bytes by part in one process, while it trains.

    - ddp: all of it, and a copy of the gradients in the buckets that are summed.
    - zero2: gradients and optimizer states by the number of processes; weights in bfloat16, of which the optimizer
      keeps its share in float32 (DeepSpeed's mixed precision).
    - zero3: weights too, but for what is gathered: a layer, and the next one that is fetched ahead.
    - fsdp2: weights, gradients and optimizer states in float32 by the number of processes; two layers gathered.
    - Frozen weights are divided like others. Activations and logits are of a process's own rows.

    Example: 1,000,000 float32 parameters, AdamW, 4 processes -> fsdp2: weights 1 MB, gradients 1 MB, optimizer 2 MB.
    """
    parts = dict(found.peak)
    if engine == "none" or processes == 1:
        return parts
    gradients = 4 * found.trained
    if engine == "ddp":
        return parts | {"gradient buckets": gradients}
    weights, others = found.weights["weights"], parts.get("reference", 0)
    share = {"gradients": gradients / processes, "optimizer": found.states / processes}
    if engine == "fsdp2":
        share |= {"weights": weights / processes, "gathered": 2 * found.unit}
    else:  # two bytes a weight and a gradient, and a float32 copy of what is trained
        share = {"gradients": gradients / 2 / processes, "weights": weights / 2}
        share["optimizer"] = (found.states + 4 * found.trained) / processes
    if engine == "zero3":
        share |= {"weights": weights / 2 / processes, "gathered": found.unit}
    if engine != "zero2" and others:
        share["reference"] = others / processes
    return parts | {part: round(size) for part, size in share.items()}
