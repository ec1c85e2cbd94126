"""What several test files need: recipes run here or as their own program, small data, and a look at what they leave."""

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[1]
RECIPES = ROOT / "recipes"
ACCELERATE = [str(Path(sys.executable).with_name("accelerate")), "launch"]

# About 43,000 parameters: a step takes milliseconds.
SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "intermediate_size": 64,
}
TINY = ["--num_parameters=43K", "--vocab_size=384", f"--config_overrides={json.dumps(SHAPE)}"]
SMALL_RUN = ["--max_steps=4", "--eval_steps=2", "--save_steps=2", "--per_device_train_batch_size=4", "--report_to=none"]


def load_recipe(name):
    """The module recipes/NAME.py under a name of its own: nothing can import `recipes`."""
    spec = importlib.util.spec_from_file_location(f"recipe_{name}", RECIPES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_here(name, *flags):
    """Runs a training recipe in this process, which saves the seconds that the imports take."""
    recipe = load_recipe(name)
    kinds = list(recipe.main.__annotations__.values())[:3]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the programs started by `run_program`, so that sums agree to the last bit
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(RECIPES / f"{name}.py"), *map(str, flags)])
        patch.setattr(sys, "path", list(sys.path))
        try:
            recipe.main(*recipe.parse(recipe.__file__, *kinds))
        finally:
            torch.set_num_threads(threads)


def environment(**more):
    """One thread, no network, and nothing that a launcher around the tests may have left."""
    launchers = ("ACCELERATE_", "FSDP_", "MASTER_", "OMPI_", "PMI_", "MV2_")
    names = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "HF_TOKEN")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(launchers) and k not in names}
    return {**kept, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), **more}


def run_program(*command, ok=True, timeout=280, **env):
    """Runs a command from the repository's root and returns it; by default it has to succeed."""
    done = subprocess.run(
        list(map(str, command)), cwd=ROOT, env=environment(**env), capture_output=True, text=True, timeout=timeout
    )
    assert (done.returncode == 0) is ok, done.stdout[-3000:] + done.stderr[-6000:]
    return done


def files_in(folder):
    return {str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file()}


def snapshot(folder):
    """Every file with its hash and time of change: equal before and after means that nothing was written."""
    return {
        name: (hashlib.sha256((Path(folder) / name).read_bytes()).hexdigest(), (Path(folder) / name).stat().st_mtime_ns)
        for name in files_in(folder)
    }


def record_of(folder):
    return json.loads((Path(folder) / "run.json").read_text())


def write_texts(path, count=60):
    """A small .jsonl of documents of 5 to 60 words, all different."""
    words = ["the", "old", "man", "saw", "a", "red", "kite", "over", "green", "river", "while", "nobody", "slept"]
    texts = [" ".join(words[(i * k) % 13] for k in range(1, 6 + i % 56)) + f" {i}." for i in range(count)]
    datasets.Dataset.from_list([{"text": text} for text in texts]).to_json(str(path))
    return path


def write_chats(path, count=60):
    """A small .jsonl of questions and answers."""
    rows = [{"question": f"What is {i} and {i % 7}?", "answer": f"It is {i + i % 7}."} for i in range(count)]
    datasets.Dataset.from_list(rows).to_json(str(path))
    return path


def cut_off(folder, step):
    """Puts a finished run back to how a cut-off would leave it that came after the checkpoint of `step`."""
    folder = Path(folder)
    for path in folder.iterdir():
        if path.is_file() and path.name != "run.json":
            path.unlink()
    shutil.rmtree(folder / "adapter", ignore_errors=True)
    for checkpoint in (folder / "checkpoints").glob("checkpoint-*"):
        if int(checkpoint.name.split("-")[1]) > step:
            shutil.rmtree(checkpoint)
    record = record_of(folder)
    for key in ("finished", "parameters", "tokens", "metrics"):
        record.pop(key)
    (folder / "run.json").write_text(json.dumps(record | {"status": "running"}))


def tensors_of(folder):
    return load_file(Path(folder) / "model.safetensors")
