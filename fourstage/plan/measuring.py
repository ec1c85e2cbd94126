"""A few real steps of a recipe in a program of its own: the most memory that they held, and how long one takes.

    python -m fourstage.plan.measuring RESULT.json allocated 1 recipes/sft.py --flag ...

What is measured begins with `Trainer.train` and ends with it: what the models held before, and what training added.
CUDA: max_memory_allocated. CPU: the peak of the resident set, its mark put back first (resident), or of what
torch's allocator gave out, as torch.profiler reports it (allocated): one of them, as the profiler holds memory too and
takes time. The seconds are those of all steps but the first round, in which libraries set themselves up; a round is as
many steps as one rollout serves, and 1 without rollouts.
"""

import ctypes
import gc
import json
import os
import runpy
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor


def main(result: str, way: str, a_round: str, recipe: str, *flags: str) -> None:
    """Runs the recipe, writes {"peak": bytes, "what": ..., "held": bytes before} and ends after training.

    Beside these "seconds" of a step, unless a profiler slowed them down.
    """
    from transformers import Trainer

    profiler = None if torch.cuda.is_available() or way != "allocated" else _profiler()

    def train(trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        step = lambda: own(trainer, *args, **kwargs)  # noqa: E731
        held, ends = _held(trainer), []
        found: dict[str, Any]
        trainer.add_callback(_clock(ends))
        if torch.cuda.is_available() and trainer.args.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            step()
            found = {"peak": torch.cuda.max_memory_allocated(), "what": "max_memory_allocated"}
        elif profiler is not None:
            found = {"peak": _most_allocated(profiler, trainer, step), "what": "allocated by torch"}
        else:
            found = {"peak": held + _resident_growth(step), "what": "resident set"}
        if profiler is None:
            found["seconds"] = seconds_of_a_step(ends, int(a_round))
        rank = os.environ.get("RANK", "0")  # of several processes each measures itself
        Path(result if rank == "0" else f"{result}.{rank}").write_text(json.dumps({**found, "held": held}))
        raise SystemExit(0)

    own = Trainer.train
    setattr(Trainer, "train", train)  # noqa: B010  # its type is another, as it never returns
    sys.argv = [recipe, *flags]
    runpy.run_path(recipe, run_name="__main__")


def seconds_of_a_step(ends: list[float], a_round: int) -> float:
    """The mean of all steps after the first round, by when each ended: [5.0, 5.5, 6.5] and 1 -> 0.75."""
    return (ends[-1] - ends[a_round - 1]) / (len(ends) - a_round)


def _clock(ends: list[float]) -> Any:
    """A callback that keeps when each step ended."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            ends.append(time.perf_counter())

    return Clock()


def _weights(trainer: Any) -> dict[int, list[torch.Tensor]]:
    """The weights that are there before the first step, on this process: those of each storage by its address."""
    models = [trainer.model, getattr(trainer, "ref_model", None), getattr(trainer, "value_model", None)]
    models += [one for one in getattr(trainer, "reward_funcs", []) if isinstance(one, torch.nn.Module)]
    tensors: Iterable[torch.Tensor] = (
        x for model in models if model is not None for x in [*model.parameters(), *model.buffers()]
    )
    found: dict[int, list[torch.Tensor]] = {}
    for tensor in tensors:
        found.setdefault(_local(tensor).untyped_storage().data_ptr(), []).append(tensor)
    return found


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _held(trainer: Any) -> int:
    """Bytes of the weights that are there before the first step, each storage once."""
    return sum(_local(tensors[0]).untyped_storage().nbytes() for tensors in _weights(trainer).values())


def _resident_growth(step: Any) -> int:
    """How far the resident set grows. What Python and malloc keep for later is given back first."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark becomes what is resident now
    before = _high_water()
    step()
    return _high_water() - before


def _high_water() -> int:
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def _profiler() -> Any:
    """A profiler of memory that has begun."""
    from torch.profiler import ProfilerActivity, profile

    profiler = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
    profiler.start()
    return profiler


def _most_allocated(profiler: Any, trainer: Any, step: Any) -> int:
    """The most that torch's allocator had given out during the step, of what it has since the profiler began."""
    with torch.profiler.record_function("_most_allocated"):
        _allocate_again(trainer)
        step()
    profiler.stop()
    events = profiler.profiler.kineto_results.events()
    start = next(e.start_ns() for e in events if e.name() == "_most_allocated")
    now = most = 0
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now) if event.start_ns() > start else 0
    return most


def _allocate_again(trainer: Any) -> None:
    """Copies the weights: those of a file are in its pages, of which the allocator does not know."""
    for tensors in _weights(trainer).values():
        parts = [_local(tensor) for tensor in tensors]
        if all(part.numel() * part.element_size() == part.untyped_storage().nbytes() for part in parts):
            copy = parts[0].data.clone()
            for part in parts:
                part.data = copy.view(part.shape)


if __name__ == "__main__":
    main(*sys.argv[1:])
