"""Devices: how much memory they have and how fast they multiply."""

import time
from dataclasses import dataclass

import psutil
import torch

GB = 1e9
# A GPU of this table reaches about this share of its peak in training; small models and short rows reach less.
UTILISATION = 0.4


@dataclass(frozen=True)
class Device:
    """Memory in bytes; operations a second, in float32 and in bfloat16, and bytes a second that can be hoped for.

    Args:
        outside: bytes that are held beside torch's tensors.
    """

    name: str
    memory: float
    full: float
    half: float
    bandwidth: float
    outside: float
    is_gpu: bool = True

    def need(self, tensors: float) -> float:
        """Bytes that a process holds with so many bytes of tensors."""
        return self.outside + tensors * (1 + _GAPS if self.is_gpu else 1 + _HEAP)

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
_HEAP = 0.5  # of a CPU's heap, which keeps what is freed (`arguments.keep_memory`)
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
    return Device(shown, total, half * _FLOAT32_SHARE, half, bandwidth, _CUDA_CONTEXT)


def this_machine() -> Device:
    """The GPU of this machine, else its CPU, with short matrix products as the measure of its speed."""
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    full, half = (_measured_rate(kind, dtype) * UTILISATION for dtype in (torch.float32, torch.bfloat16))
    if kind == "cuda":
        properties = torch.cuda.get_device_properties(0)
        return Device(properties.name, properties.total_memory, full, half, 1e12, _CUDA_CONTEXT)
    held = psutil.Process().memory_info().rss  # Python and the libraries, which a recipe imports too
    return Device("this CPU", psutil.virtual_memory().total, full, half, 1e10, held, is_gpu=False)


def _measured_rate(device: str, dtype: torch.dtype) -> float:
    """Operations a second of a product of two matrices of 1024 rows, of 8192 on a GPU."""
    size = 1024 if device == "cpu" else 8192
    one = torch.ones(size, size, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        (one @ one)[0, 0].item()  # waits for a GPU
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
