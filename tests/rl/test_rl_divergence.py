"""PPO and GRPO end where numbers are not finite: the critic beside the policy, and a policy that cannot sample."""

import math

import pytest
import torch
from helpers import record_of, run_here, write_chats
from transformers import TrainerCallback

from fourstage.grpo import GRPOTrainer
from fourstage.ppo import PPOTrainer

RUN = ["--per_device_train_batch_size=4", "--gradient_accumulation_steps=2", "--max_steps=8", "--save_steps=2"]
RUN += [
    "--max_completion_length=8",
    "--eval_strategy=no",
    "--max_eval_rows=4",
    "--report_to=none",
    "--num_iterations=1",
]


def stopped(capsys, *command):
    """The last line on stderr of a recipe that ends with exit code 1."""
    with pytest.raises(SystemExit) as end:
        run_here(*command)
    assert end.value.code == 1
    return capsys.readouterr().err.rstrip("\n").splitlines()[-1].split("\r")[-1]


@pytest.fixture
def flags(base, tmp_path):
    chats = write_chats(tmp_path / "chats.jsonl")
    return ["--model_name_or_path", base, "--dataset_name", chats, "--output_dir", tmp_path / "run", *RUN]


def changed_init(monkeypatch, kind, change):
    plain = kind.__init__

    def init(self, *args, **kwargs):
        plain(self, *args, **kwargs)
        change(self)

    monkeypatch.setattr(kind, "__init__", init)


def kept(folder):
    return sorted(path.name for path in (folder / "checkpoints").glob("checkpoint-*"))


class Break(TrainerCallback):
    """Sets a weight of the policy's head after the optimizer's step 4."""

    def __init__(self, value):
        self.value = value

    @torch.no_grad()
    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step == 4:
            model.get_output_embeddings().weight.fill_(self.value)


def test_the_critic_is_watched_too(flags, tmp_path, capsys, monkeypatch):
    def poison(trainer):
        def broken(gradient):
            return gradient * math.nan if trainer.state.global_step + 1 == 4 else gradient

        trainer.value_model.head.weight.register_hook(broken)

    changed_init(monkeypatch, PPOTrainer, poison)
    line = stopped(capsys, "ppo", *flags, "--reward_funcs", "length", "--eval_on_start=false")
    assert "error: ppo stopped at step 4: the critic's gradient norm is nan, the loss " in line
    assert "; its rows begin 'What is " in line  # the prompts of the rollout
    assert kept(tmp_path / "run") == ["checkpoint-2"] and record_of(tmp_path / "run")["status"] == "running"


def test_a_critic_that_its_own_optimizer_broke_reaches_no_checkpoint(flags, tmp_path, capsys, monkeypatch):
    def poison(trainer):
        plain = trainer._step_critic

        def step():
            plain()
            if trainer.state.global_step + 1 == 4:
                torch.nn.init.constant_(trainer.value_model.head.weight, math.inf)

        trainer._step_critic = step

    changed_init(monkeypatch, PPOTrainer, poison)
    line = stopped(capsys, "ppo", *flags, "--reward_funcs", "length", "--eval_on_start=false")
    assert "stopped at step 4: its weights after step 4 are not finite: the critic's head.weight holds NaN" in line
    assert kept(tmp_path / "run") == ["checkpoint-2"]


@pytest.mark.parametrize(("stage", "kind"), [("ppo", PPOTrainer), ("grpo", GRPOTrainer)])
def test_a_policy_that_cannot_sample_ends_the_run(flags, tmp_path, capsys, monkeypatch, stage, kind):
    """Its weights are finite, its logits are not: 1e38 times whatever comes in."""
    changed_init(monkeypatch, kind, lambda trainer: trainer.add_callback(Break(1e38)))
    more = {"ppo": ["length"], "grpo": ["length", "--num_generations=4"]}[stage]
    line = stopped(capsys, stage, *flags, "--eval_on_start=false", "--reward_funcs", *more)
    assert f"error: {stage} stopped at step 4: the model's probabilities are not finite. Nothing" in line
    assert "Lower learning_rate" in line and "the last good checkpoint is" in line
