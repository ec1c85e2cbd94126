"""The critic beside a sharded policy: its weights and optimizer states, divided and put together again."""

from types import SimpleNamespace

import pytest
import torch
from ppo_helpers import VOCABULARY, tiny_reward_model
from torch.distributed.tensor import DTensor

from fourstage.ppo.sharding import average_gradients, divided, divided_states, gathered, shard_critic


@pytest.fixture
def one_process():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield SimpleNamespace(device=torch.device("cpu"), num_processes=1)
    torch.distributed.destroy_process_group()


def learn(model, optimizer, seed):
    ids = torch.randint(VOCABULARY, (2, 6), generator=torch.Generator().manual_seed(seed))
    model(input_ids=ids).logits.square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_a_sharded_critic_learns_and_resumes_as_a_whole_one(one_process):
    """Against the same model that torch trains whole, without a stop."""
    whole, sharded = tiny_reward_model(), tiny_reward_model()
    shard_critic(sharded, one_process)
    parameters = dict(sharded.named_parameters())
    assert all(isinstance(parameter, DTensor) for parameter in parameters.values())
    steady, first = (torch.optim.AdamW(model.parameters(), lr=0.01) for model in (whole, sharded))
    for seed in (0, 1):
        learn(whole, steady, seed)
        learn(sharded, first, seed)
    weights, state = gathered(parameters), gathered(first.state_dict())
    moments = [value for part in state["state"].values() for value in part.values()]
    assert not any(isinstance(value, DTensor) for value in [*weights.values(), *moments])
    torch.testing.assert_close(weights, dict(whole.state_dict()), rtol=1e-5, atol=1e-6)

    resumed = tiny_reward_model(seed=7)  # other weights, so that nothing is left where loading forgets something
    shard_critic(resumed, one_process)
    with torch.no_grad():
        for name, parameter in resumed.named_parameters():
            parameter.copy_(divided(weights[name], parameter))
    second = torch.optim.AdamW(resumed.parameters(), lr=0.01)
    second.load_state_dict(divided_states(state, list(resumed.parameters())))
    assert isinstance(second.state_dict()["state"][0]["exp_avg"], DTensor)
    learn(whole, steady, 2)
    learn(resumed, second, 2)
    torch.testing.assert_close(gathered(dict(resumed.named_parameters())), dict(whole.state_dict()))


def test_values_that_belong_to_no_shard_stay_as_they_are(one_process):
    step, plain = torch.tensor(3.0), torch.nn.Parameter(torch.ones(2))
    assert divided(step, plain) is step and divided(0.1, plain) == 0.1
    assert gathered({"a": [1], "b": {"c": plain}})["b"]["c"].requires_grad is False


def test_gradients_are_averaged_and_a_missing_one_counts_as_zero():
    """Beside a process whose gradients are all 1."""
    accelerator = SimpleNamespace(reduce=lambda sums, reduction: {"mean": (sums + 1) / 2}[reduction])
    with_gradient, without = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    with_gradient.grad = torch.tensor([3.0, 5.0])
    average_gradients([with_gradient, without], accelerator)
    assert with_gradient.grad.tolist() == [2.0, 3.0] and without.grad.tolist() == [0.5, 0.5]
