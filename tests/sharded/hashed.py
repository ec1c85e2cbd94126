"""A recipe whose every process writes a hash of all weights, gathered from all processes, after every update.

python -m hashed FILE recipes/sft.py --flag ...        # FILE.0, FILE.1, ...: a line of policy and critic a step
"""

import hashlib
import os
import runpy
import sys

import torch
from torch.distributed.tensor import DTensor


def digest(model):
    found = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        whole = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
        found.update(name.encode() + whole.detach().contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def main(file, recipe, *flags):
    from transformers import Trainer, TrainerCallback

    class Hashes(TrainerCallback):
        def __init__(self, trainer):
            self.trainer = trainer

        def on_step_end(self, args, state, control, **kwargs):
            parts = [self.trainer.model, getattr(self.trainer, "value_model", None)]
            line = " ".join(digest(model) for model in parts if model is not None)
            with open(f"{file}.{os.environ['RANK']}", "a", encoding="utf-8") as out:
                out.write(line + "\n")

    def train(trainer, *args, **kwargs):
        trainer.add_callback(Hashes(trainer))
        return own(trainer, *args, **kwargs)

    own = Trainer.train
    Trainer.train = train
    sys.argv = [recipe, *flags]
    runpy.run_path(recipe, run_name="__main__")


if __name__ == "__main__":
    main(*sys.argv[1:])
