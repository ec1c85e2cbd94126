"""What one process of several holds: the parts of a run on one device, divided as its engine divides them."""

from fourstage.plan.rehearsal import Rehearsed

SHARDING = ("zero2", "zero3", "fsdp2")
_KEPT = 4 * 10**9  # bytes in float32 of DeepSpeed's stage3_max_live_parameters


def check_engine(engine: str, processes: int, cpu: bool, quantised_ppo: bool) -> None:
    """Raises ValueError for an engine that a device, a number of processes or PPO on quantised weights cannot have."""
    if processes < 1:
        raise ValueError(f"num_gpus={processes} must be at least 1")
    if engine == "none" and processes > 1:
        raise ValueError(f"engine=none with num_gpus={processes}: one process trains alone; give --engine ddp")
    if engine in SHARDING and cpu:
        raise ValueError(f"engine={engine} shards over GPUs, and this machine has none; name one with --gpu")
    if engine in SHARDING and quantised_ppo:
        raise ValueError(
            f"engine={engine} with load_in_4bit or load_in_8bit: PPO's critic has a copy of the base there, and "
            "quantised weights cannot be sharded for it; leave them out, or give --engine ddp"
        )


def per_process(found: Rehearsed, engine: str, processes: int, half: bool) -> dict[str, int]:
    """Bytes by part in one process, while it trains.

    - ddp: all of it, and a copy of the gradients in the buckets that are summed; the critic's in one message.
    - fsdp2: weights, gradients and optimizer states by the number of processes, in float32; two layers gathered.
    - zero2: gradients and optimizer states by the number of processes. With `half` (bf16) weights and gradients have
      two bytes, as DeepSpeed has them; its optimizer keeps float32 weights beside its states.
    - zero3: as zero2, with the weights by the number of processes too. DeepSpeed keeps up to a billion weights gathered
      (stage3_max_live_parameters): all of a smaller model.
    - PPO's critic is sharded as by fsdp2 beside every engine that shards, with a base of its own if it is an adapter,
      and gathered as by it; the reference as the policy's weights are.
    - Activations, logits and reward models are each process's own.

    Example: 1,000,000 float32 parameters, AdamW, 4 processes -> fsdp2: weights 1 MB, gradients 1 MB, optimizer 2 MB.
    """
    parts = dict(found.peak)
    if engine == "none" or processes == 1:
        return parts
    if engine == "ddp":
        return parts | {"gradient buckets": 4 * (found.trained + found.critic_trained)}
    width = 0.5 if half and engine != "fsdp2" else 1.0
    masters = 0 if engine == "fsdp2" else 4 * found.trained
    weights = 1 if engine == "zero2" else processes
    gathered = {"zero2": 0, "zero3": min(found.weights["weights"], _KEPT) * width, "fsdp2": 2 * found.unit}[engine]
    share: dict[str, float] = {
        "weights": found.weights["weights"] * width / weights,
        "gradients": (4 * found.trained * width + 4 * found.critic_trained) / processes,
        "optimizer": (found.states + masters) / processes,
        "gathered": max(gathered, 2 * found.unit if "critic" in parts else 0),  # the critic's in its own turn
    }
    share |= {"reference": parts["reference"] * width / weights} if "reference" in parts else {}
    share |= {"critic": (parts["critic"] + found.shared_base) / processes} if "critic" in parts else {}
    return {part: round(size) for part, size in (parts | share).items() if size}
