"""docs/ppo_in_one_page.py does what PPOTrainer does: from the same rollout, both arrive at the same weights."""

import copy
import importlib.util
import re
import runpy
from typing import NamedTuple

import pytest
import torch
from datasets import Dataset
from helpers import ROOT
from ppo_helpers import critic_weights, logged, policy_weights, ppo_trainer, tiny_policy
from torch import Tensor, nn

from fourstage.ppo import PPOConfig, PPOTrainer
from fourstage.rl.batches import loss_mask

PATH = ROOT / "docs" / "ppo_in_one_page.py"
LEARNING_RATE = 1e-3


def load_page():
    spec = importlib.util.spec_from_file_location("ppo_in_one_page", PATH)
    page = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(page)
    return page


PAGE = load_page()


class OfTokens(nn.Module):
    """A Llama policy or the trainer's critic, called as the page calls a model: (B, S) tokens -> (B, S, outputs).

    Without an attention mask, since padding stands on the right only, where a causal model does not see it.
    """

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, tokens):
        result = self.model(input_ids=tokens, attention_mask=torch.ones_like(tokens))
        return result[..., None] if torch.is_tensor(result) else result.logits


class Rollout(NamedTuple):
    """In the order in which the page's `update` takes it."""

    tokens: Tensor
    mask: Tensor
    logps: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor


class OneUpdate(NamedTuple):
    """The models before an update of PPOTrainer, the rollout that it made and learned from, and the trainer after."""

    policy: nn.Module
    reference: nn.Module
    critic: nn.Module
    rollout: Rollout
    scores: Tensor
    trainer: PPOTrainer


def to_width(tensor, width):
    return nn.functional.pad(tensor, (0, width - tensor.size(1)))


def page_rollout(batches):
    """The trainer's micro-batches, each as wide as its longest completion, as one rollout of the page."""
    names = ("old_per_token_logps", "values", "advantages", "returns")
    ids = torch.cat([to_width(batch["completion_ids"], PAGE.T) for batch in batches])
    return Rollout(
        torch.cat([torch.cat([batch["prompt_ids"] for batch in batches]), ids], dim=1),
        torch.cat([to_width(loss_mask(batch), PAGE.T) for batch in batches]),
        *(torch.cat([to_width(batch[name], PAGE.T) for batch in batches]) for name in names),
    )


def shifted(module, seed):
    """Other weights, so that policy and reference differ, and the values are not all zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)


@pytest.fixture(scope="module")
def one_update(tmp_path_factory):
    prompts = Dataset.from_dict({"prompt": ["abc", "bcd", "cde", "dea"] * 8})  # of one length: no padding on the left
    settings = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "lr_scheduler_type": "constant"}
    settings |= {"steps_per_generation": PAGE.MINIBATCHES, "num_iterations": PAGE.PASSES, "logging_steps": 1}
    settings |= {"max_steps": PAGE.PASSES * PAGE.MINIBATCHES, "max_completion_length": PAGE.T}
    folder = tmp_path_factory.mktemp("one_page")
    trainer = ppo_trainer(folder, data=prompts, learning_rate=LEARNING_RATE, **settings)
    shifted(trainer.model, 1)
    shifted(trainer.value_model.head, 2)
    policy, critic = tiny_policy(), copy.deepcopy(trainer.value_model)
    policy.load_state_dict(trainer.model.state_dict())
    trainer.train()
    batches = trainer._buffered_inputs
    scores = torch.cat([batch["scores"] for batch in batches])
    models = [OfTokens(model) for model in (policy, tiny_policy(), critic)]
    return OneUpdate(*models, page_rollout(batches), scores, trainer)


@torch.no_grad()
def test_the_rollout_is_worth_comparing(one_update):
    """Completions of several lengths, scores and values that differ, and a policy that is not its reference."""
    policy, reference, _, rollout, scores, _ = one_update
    assert len(set(rollout.mask.sum(dim=1).tolist())) > 2
    assert scores.std() > 0.05 and rollout.values[rollout.mask].std() > 0.01
    kl = PAGE.log_probs(policy, rollout.tokens) - PAGE.log_probs(reference, rollout.tokens)
    assert kl[rollout.mask].abs().mean() > 0.01


@torch.no_grad()
def test_the_same_probabilities_values_advantages_and_returns(one_update):
    policy, reference, critic, rollout, scores, _ = one_update
    logps, values = PAGE.log_probs(policy, rollout.tokens), PAGE.state_values(critic, rollout.tokens)
    torch.testing.assert_close(logps[rollout.mask], rollout.logps[rollout.mask], rtol=0, atol=1e-5)
    torch.testing.assert_close(values[rollout.mask], rollout.values[rollout.mask], rtol=0, atol=1e-5)
    kl = PAGE.F.per_token_kl(logps, PAGE.log_probs(reference, rollout.tokens), rollout.mask)
    advantages, returns = PAGE.advantages_and_returns(scores, kl, values, rollout.mask)
    torch.testing.assert_close(advantages, rollout.advantages, rtol=0, atol=1e-5)
    torch.testing.assert_close(returns, rollout.returns, rtol=0, atol=1e-5)


def test_the_same_losses_in_every_step_and_the_same_weights_after_it(one_update):
    policy, critic = copy.deepcopy(one_update.policy), copy.deepcopy(one_update.critic)
    rollout, trainer = one_update.rollout, one_update.trainer
    optimizers = [
        torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0) for model in (policy, critic)
    ]
    history = PAGE.update(policy, critic, optimizers, rollout)
    counts = [int(mask.sum()) for mask in rollout.mask.chunk(PAGE.MINIBATCHES)] * PAGE.PASSES
    per_step = sum(counts) / len(counts)
    for column, name in enumerate(["loss/policy_avg", "loss/value_avg"]):  # TRL logs the mean over a minibatch
        means = [losses[column] * per_step / count for losses, count in zip(history, counts, strict=True)]
        assert means == pytest.approx(logged(trainer, name), rel=0, abs=1e-5)
    assert_close_weights(policy.model, policy_weights(trainer))
    assert_close_weights(critic.model, critic_weights(trainer))


def assert_close_weights(model, expected):
    weights = dict(model.named_parameters())
    assert weights.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], value, rtol=0, atol=1e-5, msg=name)


def test_the_constants_are_the_defaults():
    config = PPOConfig(output_dir="x", report_to="none", per_device_train_batch_size=2)
    assert (config.beta, config.gamma, config.lam) == (PAGE.BETA, PAGE.GAMMA, PAGE.LAM)
    assert (config.num_iterations, config.epsilon, config.cliprange_value) == (PAGE.PASSES, PAGE.CLIP, PAGE.CLIP_VALUE)
    assert (config.max_grad_norm, config.weight_decay, config.whiten_advantages) == (PAGE.MAX_GRAD_NORM, 0.0, True)


def test_the_toy_learns(capsys):
    runpy.run_path(str(PATH), run_name="__main__")
    rows = re.findall(r"update +(\d+)  score ([\d.]+)  KL ([-\d.]+)", capsys.readouterr().out)
    scores, kls = [float(row[1]) for row in rows], [float(row[2]) for row in rows]
    assert scores[0] < 0.2 and min(scores[-3:]) > 0.5
    assert kls[0] == 0 and all(1 < kl < 12 for kl in kls[1:])


def test_it_is_a_page():
    assert PATH.read_text(encoding="utf-8").count("\n") <= 80
