"""PPO runs that are cut off, saved, loaded again, or spread over two processes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import ROOT, environment, files_in
from ppo_helpers import (
    assert_equal_weights,
    critic_weights,
    logged,
    lora,
    policy_weights,
    ppo_trainer,
    prompts,
    ptx_rows,
    tiny_policy,
)
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from fourstage.ppo.critic import load_critic


def optimizer_state(optimizer):
    return [value for state in optimizer.state_dict()["state"].values() for value in state.values()]


@pytest.mark.parametrize("kind", ["full", "adapters", "critic with adapters", "ptx"])
def test_a_resumed_run_equals_an_uninterrupted_one_to_the_last_bit(tmp_path, kind):
    """Two minibatches, accumulation over two micro-batches, an evaluation between the checkpoint and the end."""
    settings = {"max_steps": 12, "save_strategy": "steps", "save_steps": 4, "eval_strategy": "steps", "eval_steps": 6}
    settings |= {"eval_dataset": prompts(8), "per_device_eval_batch_size": 4, "learning_rate": 3e-3}
    adapters = {"adapters": {"peft_config": lora}, "critic with adapters": {"value_peft_config": lora}}.get(kind, {})
    adapters |= {"ptx_dataset": ptx_rows} if kind == "ptx" else {}

    def trainer(name):
        return ppo_trainer(tmp_path / name, **settings, **{key: make() for key, make in adapters.items()})

    straight = trainer("straight")
    assert straight.args.steps_per_update == 4
    straight.train()
    trainer("cut").train()
    resumed = trainer("cut")
    resumed.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-4"))
    assert_equal_weights(policy_weights(straight), policy_weights(resumed))
    assert_equal_weights(critic_weights(straight), critic_weights(resumed))
    for name in ("optimizer", "value_optimizer"):
        ours, theirs = (optimizer_state(getattr(run, name)) for run in (straight, resumed))
        assert len(ours) == len(theirs) > 0
        assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))
    assert logged(straight, "objective/scores")[-1] == logged(resumed, "objective/scores")[-1]


def test_a_checkpoint_waits_for_the_end_of_its_update(tmp_path):
    """Asked for at steps 3, 6 and 9 of updates of 4: taken at 4, 8, and at the last step."""
    ppo_trainer(tmp_path, max_steps=10, save_strategy="steps", save_steps=3).train()
    saved = sorted(int(path.name.split("-")[1]) for path in tmp_path.glob("checkpoint-*"))
    assert saved == [4, 8, 10]


def test_a_checkpoint_without_a_critic_is_refused(tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 4}
    ppo_trainer(tmp_path, max_steps=4, **settings).train()
    (tmp_path / "checkpoint-4" / "value_optimizer.pt").unlink()
    with pytest.raises(ValueError, match="value_optimizer.pt"):
        ppo_trainer(tmp_path, **settings).train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))


def test_the_policy_is_saved_alone_and_the_critic_in_a_folder_of_its_own(tmp_path):
    trainer = ppo_trainer(tmp_path / "run", max_steps=4, learning_rate=1e-2)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    assert {"value/model.safetensors", "value/value_head.safetensors", "model.safetensors"} <= files_in(
        tmp_path / "saved"
    )
    policy = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert_equal_weights(policy_weights(trainer), {n: p.detach() for n, p in policy.named_parameters()})
    critic = load_critic(str(tmp_path / "saved" / "value"))
    assert_equal_weights(critic_weights(trainer), {n: p.detach() for n, p in critic.named_parameters()})
    again = ppo_trainer(tmp_path / "again", model=policy, value_model=str(tmp_path / "saved" / "value"))
    assert_equal_weights(critic_weights(trainer), critic_weights(again))


def test_a_critic_with_adapters_is_saved_merged(tmp_path):
    trainer = ppo_trainer(tmp_path / "run", max_steps=4, learning_rate=1e-2, value_peft_config=lora())
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    ids, mask = torch.randint(3, 10, (2, 9)), torch.ones(2, 9, dtype=torch.long)
    expected = trainer.value_model(ids, mask)
    loaded = load_critic(str(tmp_path / "saved" / "value"))(ids, mask)
    torch.testing.assert_close(loaded, expected, rtol=0, atol=1e-5)
    assert expected.abs().max() > 1e-3


def test_the_adapter_of_a_critic_is_kept_apart(tmp_path):
    trainer = ppo_trainer(tmp_path / "run", max_steps=4, peft_config=lora())
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    assert {"value/value/adapter_model.safetensors", "value/value_head.safetensors"} <= files_in(tmp_path / "saved")
    saved = load_file(tmp_path / "saved" / "value" / "value" / "adapter_model.safetensors")
    name = next(name for name in saved if "lora_B" in name)
    live = dict(trainer.model.named_parameters())[name.replace(".weight", ".value.weight")]
    assert torch.equal(saved[name], live) and live.abs().sum() > 0
    with pytest.raises(ValueError, match="shares its policy's base"):
        load_critic(str(tmp_path / "saved" / "value"))


def test_the_critic_need_not_be_saved(tmp_path):
    trainer = ppo_trainer(tmp_path / "run", save_value_model=False)
    trainer.save_model(str(tmp_path / "saved"))
    assert not [name for name in files_in(tmp_path / "saved") if "value" in name]


def test_a_trained_adapter_is_its_own_reference(tmp_path):
    """A PeftModel that was tuned already: the penalty is the distance from the tuned model, not from its base."""
    from peft import get_peft_model

    model = get_peft_model(tiny_policy(), lora())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    trainer = ppo_trainer(tmp_path, model=model, learning_rate=0.0, max_steps=4)
    trainer.train()
    assert logged(trainer, "objective/kl") == [0.0]


# Two processes

PROBE = """
import json, os, sys
from pathlib import Path
import torch
from datasets import Dataset
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/tests"]
torch.set_num_threads(1)
from ppo_helpers import count_a, logged, lora, ppo_trainer, ptx_rows

out, kind = sys.argv[2], sys.argv[3]
world = int(os.environ.get("WORLD_SIZE", 1))
adapters = {"adapters": {"peft_config": lora()}, "critic with adapters": {"value_peft_config": lora()}}
more = ({"ptx": {"ptx_dataset": ptx_rows()}} | adapters).get(kind, {})
data = Dataset.from_dict({"prompt": ["bcde"[: 1 + i % 4] + "abcde"[i % 5] for i in range(160)]})
# Greedy, so that both launches sample the same; one minibatch, so that its order does not matter; no adaptive rates.
trainer = ppo_trainer(
    out, data=data, per_device_train_batch_size=8 // world, gradient_accumulation_steps=1, steps_per_generation=1,
    num_iterations=1, max_steps=10, optim="sgd", learning_rate=0.5, lr_scheduler_type="constant", logging_steps=1,
    generation_kwargs={"do_sample": False}, beta=0.1, shuffle_dataset=False, use_cpu=True, **more,
)
trainer.train()
weights = [p.detach().double().sum().item() for p in trainer.model.parameters()]
weights += [p.detach().double().sum().item() for p in trainer._value_parameters.values()]
names = ("objective/rlhf_reward", "objective/kl", "loss/value_avg", "val/grad_norm", "loss/ptx_avg")
log = {name: logged(trainer, name) for name in names}
record = {"world": trainer.accelerator.num_processes, "weights": weights, "log": log}
Path(f"{out}.{world}.{os.environ.get('RANK', 0)}.json").write_text(json.dumps(record))
# Threads of a process group that outlive the interpreter abort it, now and then: it leaves without its destructors.
trainer.accelerator.end_training()
os._exit(0)
"""


@pytest.mark.parametrize("kind", ["full", "adapters", "critic with adapters", "ptx"])
def test_two_processes_equal_one(tmp_path, kind):
    script = tmp_path / "probe.py"
    script.write_text(PROBE)
    arguments = [str(script), str(ROOT), str(tmp_path / "out"), kind]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    for command in ([sys.executable], launch):
        result = subprocess.run([*command, *arguments], env=environment(), capture_output=True, text=True, timeout=280)
        assert result.returncode == 0, result.stderr[-4000:]
    one, first, second = (json.loads(Path(f"{tmp_path}/out.{name}.json").read_text()) for name in ("1.0", "2.0", "2.1"))
    assert (one["world"], first["world"]) == (1, 2)
    assert first["weights"] == second["weights"]
    assert len(one["log"]["objective/rlhf_reward"]) == 10
    for name, values in one["log"].items():
        assert first["log"][name] == pytest.approx(values, rel=1e-3, abs=1e-5), name
    assert first["weights"] == pytest.approx(one["weights"], rel=1e-4, abs=1e-4)
