"""Real launches, each as its own program; what needs GPUs or DeepSpeed, with the environment set by hand.

The number of processes each launch trains is measured here, by the program launched, so the table in
fourstage/launch.py says what accelerate and torchrun do, not what we think they do.
"""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from accelerate.utils import DistributedType

from fourstage import launch
from fourstage.launch import check_launch, processes_in_command

ROOT = Path(__file__).parents[1]
CPU, DDP = (str(ROOT / "accelerate_configs" / name) for name in ("cpu.yaml", "ddp.yaml"))

# A recipe's first lines: without an accelerator it joins the others over gloo.
PROBE = """
import os, sys
from pathlib import Path
from trl import SFTConfig
from fourstage.launch import check_launch

several = int(os.environ.get("WORLD_SIZE", 1)) > 1
args = SFTConfig(
    output_dir=sys.argv[1], bf16=False, report_to="none",
    use_cpu="alone" not in sys.argv, ddp_backend="gloo" if several and "alone" not in sys.argv else None,
)
try:
    check_launch(args)
except ValueError as error:
    answer = f"REFUSED {error}"
else:
    answer = f"ALLOWED {args.distributed_state.num_processes}"
Path(sys.argv[1] + f".answer-{os.getpid()}").write_text(answer)  # a file each: lines of two processes may mix
"""


def accelerate(*flags):
    return [str(Path(sys.executable).with_name("accelerate")), "launch", *flags]


def torchrun(*flags):
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", *flags]


def run_probe(tmp_path, command, *script_args, **env):
    """What each process of the launch answered."""
    for former in tmp_path.glob("run.answer-*"):
        former.unlink()
    script = tmp_path / "probe.py"
    script.write_text(PROBE)
    done = subprocess.run(
        [*command, str(script), str(tmp_path / "run"), *script_args],
        # HF_HOME: accelerate reads the default config of whoever runs the tests from there.
        env={**clean_environment(), "PYTHONPATH": str(ROOT), "HF_HOME": str(tmp_path), **env},
        capture_output=True,
        text=True,
        timeout=280,
    )
    answers = [file.read_text() for file in tmp_path.glob("run.answer-*")]
    assert answers, done.stdout + done.stderr
    return answers


def clean_environment():
    """The environment without what a launcher around the tests may have left."""
    launchers = ("ACCELERATE_", "FSDP_", "MASTER_", "OMPI_", "PMI_", "MV2_")
    names = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    return {k: v for k, v in os.environ.items() if not k.startswith(launchers) and k not in names}


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in set(os.environ) - set(clean_environment()):
        monkeypatch.delenv(name)


def test_two_processes_asked_with_cpu_and_one_started(tmp_path):
    (answer,) = run_probe(tmp_path, accelerate("--cpu", "--num_processes", "2"))
    assert answer.startswith("REFUSED launch: accelerate launch was asked for num_processes=2 and started 1")
    assert "accelerate launch --config_file accelerate_configs/ddp.yaml --num_processes 2" in answer


def test_ddp_config_trains_two_processes_without_a_gpu(tmp_path):
    assert run_probe(tmp_path, accelerate("--config_file", DDP, "--main_process_port", "0")) == ["ALLOWED 2"] * 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        [sys.executable],
        accelerate(),
        accelerate("--num_processes", "1"),
        accelerate("--config_file", CPU),
        accelerate("--config_file", DDP, "--num_processes", "1", "--main_process_port", "0"),
    ],
    ids=["python", "bare", "num_processes 1", "cpu.yaml", "ddp.yaml with 1"],
)
def test_one_process_asked_and_got(tmp_path, command):
    # A MASTER_ADDR of the shell's own, as cluster scripts export it, is no request for more.
    assert run_probe(tmp_path, command, MASTER_ADDR="127.0.0.1") == ["ALLOWED 1"]


@pytest.mark.slow
def test_torchrun_trains_two_processes(tmp_path):
    assert run_probe(tmp_path, torchrun("--nproc_per_node", "2")) == ["ALLOWED 2"] * 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags", [("--config_file", DDP, "--cpu"), ("--num_processes", "2")], ids=["ddp.yaml --cpu", "num_processes 2"]
)
def test_accelerate_starts_one_of_two(tmp_path, flags):
    (answer,) = run_probe(tmp_path, accelerate(*flags), CUDA_VISIBLE_DEVICES="")
    assert answer.startswith("REFUSED launch: accelerate launch was asked for num_processes=2 and started 1")


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [accelerate("--config_file", DDP, "--main_process_port", "0"), torchrun("--nproc_per_node", "2")],
    ids=["accelerate", "torchrun"],
)
def test_two_copies_on_one_folder(tmp_path, command):
    answers = run_probe(tmp_path, command, "alone", CUDA_VISIBLE_DEVICES="")
    assert len(answers) == 2
    for answer in answers:
        assert answer.startswith("REFUSED launch: the world size in the environment is 2")
        assert str(tmp_path / "run") in answer and "--use_cpu true --ddp_backend gloo" in answer


# What follows needs no launch: the environment and the state are what accelerate's launchers and PartialState make.


def training_args(distributed_type, num_processes=1, **fields):
    state = SimpleNamespace(distributed_type=distributed_type, num_processes=num_processes)
    defaults = {"output_dir": "out", "use_cpu": False, "fsdp": None, "deepspeed": None}
    return SimpleNamespace(distributed_state=state, **{**defaults, **fields})


def test_world_size_without_a_local_rank_names_torchrun(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ValueError, match="environment is 4.*4 independent copies.*torchrun --nproc_per_node 4"):
        check_launch(training_args(DistributedType.NO))


@pytest.mark.parametrize("got", [DistributedType.NO, DistributedType.MULTI_CPU])
def test_fsdp_asked_of_the_launcher_and_not_got(monkeypatch, got):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match=f"FSDP was asked for, but distributed_type is {got.value}"):
        check_launch(training_args(got, 2, use_cpu=True))


def test_fsdp_asked_of_the_recipe_and_not_got():
    with pytest.raises(ValueError, match="FSDP was asked for"):
        check_launch(training_args(DistributedType.NO, fsdp=True))


def test_fsdp_on_gpus_is_allowed(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("WORLD_SIZE", "2")
    check_launch(training_args(DistributedType.MULTI_GPU, 2))


@pytest.mark.parametrize("asked", ["launcher", "recipe"])
def test_deepspeed_asked_and_not_got(monkeypatch, asked):
    if asked == "launcher":
        monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    args = training_args(DistributedType.MULTI_CPU, 2, use_cpu=True, deepspeed={} if asked == "launcher" else "z.json")
    with pytest.raises(ValueError, match="DeepSpeed was asked for, but distributed_type is MULTI_CPU.*use_cpu=True"):
        check_launch(args)


def test_deepspeed_got_is_allowed(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    check_launch(training_args(DistributedType.DEEPSPEED, 2))


def test_a_false_flag_asks_for_nothing(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "false")
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "False")
    check_launch(training_args(DistributedType.NO))


def test_number_of_processes_comes_from_flag_before_config(tmp_path):
    config = tmp_path / "four.yaml"
    config.write_text(yaml.safe_dump({"distributed_type": "MULTI_GPU", "num_processes": 4}))
    assert processes_in_command(["--config_file", str(config), "x.py", "--num_processes", "9"]) == 4
    assert processes_in_command(["--config_file", str(config), "--num_processes=3", "x.py"]) == 3
    assert processes_in_command(["--cpu", "x.py"]) == 1


@pytest.mark.parametrize(
    ("command", "asked"),
    [
        ("python -m accelerate.commands.launch --num_processes 3 x.py", 3),
        ("python bin/accelerate launch --cpu --num-processes 2 x.py", 2),
        ("python bin/accelerate-launch --num_processes 1 x.py accelerate launch", 1),
        ("python train.py", 2),  # it calls accelerate itself: MASTER_ADDR is the only sign
    ],
)
def test_command_of_the_launcher_is_found_among_the_parents(monkeypatch, command, asked):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "False")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    parents = [SimpleNamespace(cmdline=line.split) for line in ("timeout 60", command, "bash -c train")]
    monkeypatch.setattr(launch.psutil, "Process", lambda: SimpleNamespace(parents=lambda: parents))
    assert launch.processes_asked_of_accelerate() == asked


def test_buffers_of_deepspeed_follow_the_model_unless_their_size_is_given():
    name = "stage3_prefetch_bucket_size"
    for given, taken in ({}, ("auto", "auto")), ({"reduce_bucket_size": 7}, (7, "auto")), ({name: 0}, ("auto", 0)):
        plugin = SimpleNamespace(deepspeed_config={"zero_optimization": {"stage": 3, **given}})
        launch.size_buckets(SimpleNamespace(deepspeed_plugin=plugin))
        assert plugin.deepspeed_config["zero_optimization"] == {
            "stage": 3,
            "reduce_bucket_size": taken[0],
            name: taken[1],
        }
    launch.size_buckets(SimpleNamespace(deepspeed_plugin=None))
