"""On a CUDA device: the quick decode loop, PPO, resumed runs and compiled layers, each against the plain way."""

import copy

import pytest
import torch
from ppo_helpers import assert_equal_weights, critic_weights, logged, policy_weights, ppo_trainer, tiny_policy
from transformers import GenerationConfig, LogitsProcessorList

from fourstage.rl.decoding import decode
from fourstage.rl.sampling import SampledByRow, row_uniforms
from fourstage.speed import compile_in_place, layers_of

CAP = 24
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def left_padded(copies=4):
    """Prompts of 1 to 6 tokens, each several times."""
    generator = torch.Generator().manual_seed(1)
    lengths = [6, 1, 4, 3] * copies
    ids, mask = torch.zeros(len(lengths), 6, dtype=torch.long), torch.zeros(len(lengths), 6, dtype=torch.long)
    for row, n in enumerate(lengths):
        ids[row, 6 - n :], mask[row, 6 - n :] = torch.randint(3, 10, (n,), generator=generator), 1
    return {"input_ids": ids.cuda(), "attention_mask": mask.cuda()}


@pytest.mark.parametrize("sampled", [False, True])
def test_decoded_tokens_are_those_of_transformers(sampled):
    plain = {"do_sample": sampled, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": [2, 7], "max_new_tokens": CAP}
    config = GenerationConfig(**plain, **({"top_k": 0, "temperature": 0.8} if sampled else {}))
    model, lengths = tiny_policy().cuda().eval(), set()
    for seed in range(4):
        uniforms = row_uniforms([seed], 0, 16, CAP)
        processors = LogitsProcessorList([SampledByRow(uniforms, config)] if sampled else [])
        theirs = model.generate(**left_padded(), generation_config=config, logits_processor=processors)
        ours = decode(model, **left_padded(), config=config, uniforms=uniforms)
        assert torch.equal(ours, theirs)
        lengths |= set((ours[:, 6:] != 0).sum(dim=1).tolist())
    assert len(lengths) > 2


@pytest.mark.parametrize("bf16", [False, True])
def test_ppo_trains_on_the_device(tmp_path, bf16):
    """Policy, reference, critic and rollouts are on the device; rewards of a share of letters grow."""
    trainer = ppo_trainer(tmp_path, bf16=bf16, max_steps=160, logging_steps=4, learning_rate=3e-3)
    before = policy_weights(trainer)
    trainer.train()
    devices = {p.device.type for p in (*trainer.model.parameters(), *trainer.value_model.parameters())}
    assert devices == {"cuda"}
    assert all(value.isfinite().all() for value in policy_weights(trainer).values())
    assert any(not torch.equal(before[name], value) for name, value in policy_weights(trainer).items())
    rewards = logged(trainer, "reward")
    assert sum(rewards[-5:]) > sum(rewards[:5])


def test_a_resumed_ppo_run_is_the_whole_one(tmp_path):
    """The random state of the device is part of a checkpoint."""
    settings = {"save_strategy": "steps", "save_steps": 4, "max_steps": 8}
    whole = ppo_trainer(tmp_path / "whole", **settings)
    whole.train()
    again = ppo_trainer(tmp_path / "again", **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    assert_equal_weights(policy_weights(again), policy_weights(whole))
    assert_equal_weights(critic_weights(again), critic_weights(whole))


def test_compiled_layers_give_the_same_loss_and_gradients():
    plain = tiny_policy().cuda()
    compiled = copy.deepcopy(plain)
    compile_in_place(layers_of(compiled))
    for length in (6, 9, 12):
        ids = torch.randint(3, 10, (4, length), generator=torch.Generator().manual_seed(length)).cuda()
        losses = [model(input_ids=ids, labels=ids).loss for model in (plain, compiled)]
        for loss in losses:
            loss.backward()
        torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=1e-6)
    for one, other in zip(plain.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, rtol=1e-3, atol=1e-5)
