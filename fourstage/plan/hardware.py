"""Devices: how much memory they have and how fast they multiply."""

import time
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM

from fourstage.plan.work import Work

GB = 1e9
# A GPU reaches about this share of its peak in training; small models and short rows reach less.
UTILISATION = 0.4
# A CPU reaches the speed of one product, and then reads and writes so many bytes a second; an operation on its tensors
# takes so many times as long as one in a tiny model. By the runs in docs/plan.md, on one CPU.
_CPU_BANDWIDTH, _CPU_STARTS = 5.5e9, 2.0


@dataclass(frozen=True)
class Device:
    """Memory in bytes; operations a second, in float32 and in bfloat16, and bytes a second that can be hoped for.

    Args:
        outside: bytes that are held beside torch's tensors. start: seconds that a small operation takes.
        draw: seconds of a random number.
    """

    name: str
    memory: float
    full: float
    half: float
    bandwidth: float
    outside: float
    start: float
    draw: float = 0.0
    is_gpu: bool = True

    def need(self, tensors: float) -> float:
        """Bytes that a process holds with so many bytes of tensors."""
        return self.outside + tensors * (1 + _GAPS if self.is_gpu else 1 + _HEAP)

    def seconds(self, work: Work, half: bool) -> float:
        """Of the work, with products in bfloat16 if `half`. Only a GPU computes while operations are started."""
        seconds = (
            work.flops / (self.half if half else self.full),
            work.read / self.bandwidth,
            work.starts * self.start,
            work.drawn * self.draw,
        )
        return max(seconds) if self.is_gpu else sum(seconds)

    def outside_in_words(self) -> str:
        """What is added to the tensors, in one line."""
        if self.is_gpu:
            return f"beside it {self.outside / GB:.1f} GB of CUDA's own, and {_GAPS:.0%} for gaps between blocks"
        return f"beside it {self.outside / GB:.1f} GB of Python and libraries, and {_HEAP:.0%} for gaps in the heap"


# (memory as the driver shows it, dense bfloat16 operations a second, bytes a second), from the vendor's data sheets.
_GPUS = {
    "h100": (80 * GB, 989e12, 3.35e12),
    "h200": (141 * GB, 989e12, 4.8e12),
    "a100": (80 * GB, 312e12, 2.04e12),
    "l40s": (48 * GB, 362e12, 0.864e12),
    "4090": (24 * GB, 165e12, 1.01e12),
}
_CUDA_CONTEXT = 0.6 * GB  # CUDA's context and kernels, and cuBLAS's workspace
_GAPS = 0.08  # of a GPU's memory that torch has reserved and cannot use
_ENOUGH = 0.02  # seconds of a product that is timed
_HEAP = 0.5  # of a CPU's heap, which keeps what is freed (`arguments.keep_memory`)
_GPU_START = 1e-5  # seconds, by rule of thumb: Muon's 3,000 operations of a step took less than 20 us each on one H200
_FLOAT32_SHARE = 0.5  # of the peak in bfloat16, with TF32


def gpu_names() -> list[str]:
    """Names that --gpu takes."""
    return list(_GPUS)


def gpu(name: str | None, memory: float | None) -> Device:
    """A GPU by its name, or an unknown one of so many GB, which is taken for an A100 of that memory.

    Raises:
        ValueError: for a name that is not in the table, and for a memory that is not above 0.
    """
    if name is not None and name.lower() not in _GPUS:
        raise ValueError(f"gpu={name!r} must be one of {', '.join(_GPUS)}; or give --gpu_memory in GB")
    if memory is not None and not memory > 0:
        raise ValueError(f"gpu_memory={memory:g} must be above 0, in GB")
    total, operations, bandwidth = _GPUS[(name or "a100").lower()]
    total = memory * GB if memory else total
    shown = name.upper() if name else f"a GPU of {memory:g} GB"
    half = operations * UTILISATION
    return Device(shown, total, half * _FLOAT32_SHARE, half, bandwidth, _CUDA_CONTEXT, _GPU_START)


def this_machine() -> Device:
    """The GPU of this machine, else its CPU, with short matrix products as the measure of its speed."""
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    share = UTILISATION if kind == "cuda" else 1.0
    full, half = (_measured_rate(kind, dtype) * share for dtype in (torch.float32, torch.bfloat16))
    start = _measured_start(kind)
    if kind == "cuda":
        properties = torch.cuda.get_device_properties(0)
        return Device(properties.name, properties.total_memory, full, half, 1e12, _CUDA_CONTEXT, start)
    held = psutil.Process().memory_info().rss  # Python and the libraries, which a recipe imports too
    times = {"start": start * _CPU_STARTS, "draw": _measured_draw()}
    return Device("this CPU", psutil.virtual_memory().total, full, half, _CPU_BANDWIDTH, held, **times, is_gpu=False)


def _measured_rate(device: str, dtype: torch.dtype) -> float:
    """Operations a second of a product of two matrices of 1024 rows, of 8192 on a GPU.

    Of fewer where that takes long: a CPU without bfloat16 may need ten seconds for 1024.
    """
    size, largest, seconds, operations = (128, 1024, 0.0, 0) if device == "cpu" else (8192, 8192, 0.0, 0)
    while seconds < _ENOUGH and size <= largest:
        one = torch.ones(size, size, device=device, dtype=dtype)
        seconds = _seconds_of_a_product(one)
        operations, size = 2 * size**3, size * 2
    return operations / seconds


def _seconds_of_a_product(one: torch.Tensor) -> float:
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        (one @ one)[0, 0].item()  # waits for a GPU
        best = min(best, time.perf_counter() - start)
    return best


def _measured_draw() -> float:
    """Seconds of a number of dropout on a CPU."""
    mask = torch.empty(1 << 20)
    start = time.perf_counter()
    mask.bernoulli_(0.9)
    return (time.perf_counter() - start) / mask.numel()


class _Count(TorchDispatchMode):
    operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        self.operations += 1
        return func(*args, **(kwargs or {}))


def _measured_start(device: str) -> float:
    """Seconds of an operation in the forward and backward pass of a model too small for its products to count."""
    shape = LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4
    )
    model = LlamaForCausalLM(shape).to(torch.device(device))
    ids = torch.zeros(4, 32, dtype=torch.int64, device=device)

    def step() -> float:
        start = time.perf_counter()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        loss.item()  # waits for a GPU
        return time.perf_counter() - start

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several would wait for one another on a busy machine
    with _Count() as count:
        step()
    best = min(step() for _ in range(5))
    torch.set_num_threads(threads)
    return best / count.operations
