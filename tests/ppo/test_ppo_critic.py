"""The critic that is an adapter: on the policy's base, or on a copy of it where an engine has the policy's."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from ppo_helpers import lora, tiny_policy
from transformers import BertConfig, BertLMHeadModel, set_seed

from fourstage.ppo.critic import adapter_critic


def bert():
    """Its attention has a layer that is called "value", as the critic's adapter is."""
    set_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    return BertLMHeadModel(BertConfig(vocab_size=16, is_decoder=True, **sizes))


def with_moved_adapters(model, seed=7):
    """No adapter does nothing any more."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_B" in name or "lora_embedding_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator)
    return model


@pytest.mark.parametrize("shares_base", [True, False])
@pytest.mark.parametrize(
    ("make", "settings"),
    [(tiny_policy, lora()), (bert, lora()), (tiny_policy, LoraConfig(target_modules=["embed_tokens", "q_proj"]))],
)
def test_it_trains_its_own_adapter_and_head_alone(make, settings, shares_base):
    settings.task_type = "CAUSAL_LM"
    policy = get_peft_model(make(), settings)
    adapters = {name for name, p in policy.named_parameters() if p.requires_grad}
    trained = adapter_critic(policy, shares_base).trained()
    assert trained.keys() == {"head.weight"} | {name.replace("default", "value") for name in adapters}
    assert {name for name, p in policy.named_parameters() if p.requires_grad} == adapters


def test_its_own_base_gives_what_the_shared_one_does_and_stays_when_the_policy_moves():
    ids, mask = torch.arange(12).view(2, 6) % 9, torch.ones(2, 6, dtype=torch.long)
    policy = with_moved_adapters(get_peft_model(tiny_policy(), lora()))
    critics = []
    for shares_base in (False, True):
        torch.manual_seed(3)
        critics.append(adapter_critic(policy, shares_base))
        torch.nn.init.ones_(critics[-1].head.weight)
        with_moved_adapters(critics[-1].adapted if not shares_base else policy)
    own, shared = critics
    assert own.trained().keys() == shared.trained().keys()
    assert not any("default" in name for name, _ in own.named_parameters())
    for name, parameter in own.trained().items():
        parameter.data.copy_(shared.trained()[name])
    with shared.active(), torch.no_grad():
        expected = shared(ids, mask)
    assert torch.equal(own(ids, mask), expected)
    policy.get_base_model().lm_head.weight.data.zero_()
    policy.get_base_model().model.norm.weight.data.zero_()
    assert torch.equal(own(ids, mask), expected)
