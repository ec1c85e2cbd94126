"""What the libraries do while they are imported and no run needs: time before the first step, and lines of their own.

Measured by `benchmarks/startup.py`.
"""

import gc
import importlib.util
import logging
import os
import sys
import warnings
from collections.abc import Generator
from contextlib import contextmanager

_BITSANDBYTES = "bitsandbytes"
# (logger, what its line begins with): true, but nothing that a person could or should act on.
_QUIET = {
    "bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward",  # a quicker kernel from the Hub
    "transformers.trainer_utils": "mtime may not be reliable",  # checkpoints within a second
    "transformers.training_args": "The speedups for torchdynamo mostly come with",  # on a CPU too, see docs/speed.md
}


def set_waiting() -> None:
    """Has threads that wait for one another sleep soon; to be called before torch is imported, and left to the user's
    own OMP_WAIT_POLICY or GOMP_SPINCOUNT.

    OpenMP's threads otherwise turn round and round for milliseconds after every operation. Where another program needs
    their core, those are milliseconds that it waits for: the demo's PPO took 10 times as long beside two other
    programs. The number is the one that libgomp chooses by itself where it knows of more threads than cores.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


@contextmanager
def lean_imports() -> Generator[None]:
    """Around the first import of the libraries in a program: it is a third quicker.

    Python looks for garbage again and again among a million objects that stay, during the imports and ever after.
    They are exempt from that, unless torch was there before: then so are objects of the caller, which may become
    garbage.
    """
    set_waiting()
    os.environ.setdefault("TQDM_DELAY", "3")  # no bar, such as those of datasets, for what takes less than 3 seconds
    if "torch" in sys.modules:
        with without_bitsandbytes():
            yield
        return
    gc.collect()  # what is garbage by now would stay too
    gc.disable()
    try:
        with without_bitsandbytes():
            yield
    finally:
        gc.freeze()
        gc.enable()


@contextmanager
def without_bitsandbytes() -> Generator[None]:
    """Around imports that bring bitsandbytes along wherever it is installed: PEFT's, and that of TRL's GRPOTrainer.

    It takes a second, and is not used before something is quantised, which imports it then. Left as it is where it has
    been imported, and where vLLM is installed, whose part of TRL keeps what it found when it was imported.
    """
    if _BITSANDBYTES in sys.modules or importlib.util.find_spec("vllm"):
        yield
        return
    sys.modules[_BITSANDBYTES] = None  # ty: ignore[invalid-assignment]  # Python's way to say: not to be imported
    try:
        yield
    finally:
        del sys.modules[_BITSANDBYTES]
        from transformers.utils import is_bitsandbytes_available

        is_bitsandbytes_available.cache_clear()  # asked meanwhile, it would say no from then on


def quiet_libraries() -> None:
    """Leaves out warnings of libraries on what our settings or other libraries do, and their bars of milliseconds."""
    from transformers.utils.logging import disable_progress_bar

    for name in _QUIET:
        logging.getLogger(name).addFilter(_is_worth_printing)  # a filter that is there already is not added again
    warnings.filterwarnings("ignore", message=".*pin_memory.*")
    warnings.filterwarnings("ignore", message=".*`is_gradient_checkpointing` is deprecated", category=FutureWarning)
    disable_progress_bar()  # of reading weights and of writing them at every checkpoint


def _is_worth_printing(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith(_QUIET[record.name])
