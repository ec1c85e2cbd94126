"""For the tests alone: with FSDP_ON_CPU=1 accelerate shards over CPU processes, which it does over accelerators only.

It tells accelerate that it has several GPUs over gloo, and that its device is the CPU. Python runs this file at its
start where its folder is on PYTHONPATH.
"""

import os
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder


def _patch(state):
    import torch
    from accelerate.utils import DistributedType

    def prepare_backend(self, cpu=False, sagemaker_dp=False, backend=None):
        if not torch.distributed.is_initialized():
            torch.distributed.init_process_group("gloo")
        return "gloo", DistributedType.MULTI_GPU

    state.PartialState._prepare_backend = prepare_backend
    state.PartialState.set_device = lambda self: setattr(self, "device", torch.device("cpu"))


class _AfterImport(MetaPathFinder):
    """Patches accelerate.state when it has been imported."""

    def find_spec(self, name, path=None, target=None):
        if name != "accelerate.state":
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(name, path)
        run = spec.loader.exec_module

        def exec_module(module):
            run(module)
            _patch(module)

        spec.loader.exec_module = exec_module
        return spec


if os.environ.get("FSDP_ON_CPU"):
    sys.meta_path.insert(0, _AfterImport())
