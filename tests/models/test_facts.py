"""Facts of a configuration: context, end ids and the number of scores, on configurations of transformers."""

import pytest
from transformers import AutoModelForCausalLM, GenerationConfig, GPT2Config, MambaConfig

from fourstage.models.facts import check_one_label, context_of, stop_ids


def test_the_context_of_a_model_with_positions_and_of_one_without():
    gpt2 = GPT2Config(vocab_size=32, n_embd=8, n_layer=1, n_head=1, n_positions=24)
    assert context_of(AutoModelForCausalLM.from_config(gpt2)) == 24
    mamba = MambaConfig(vocab_size=32, hidden_size=8, num_hidden_layers=1, state_size=4)
    assert context_of(AutoModelForCausalLM.from_config(mamba)) is None


@pytest.mark.parametrize(("end", "ids"), [(None, []), (0, [0]), (2, [2]), ([2, 7], [2, 7])])
def test_end_ids_are_a_list(end, ids):
    assert stop_ids(GenerationConfig(eos_token_id=end)) == ids


@pytest.mark.parametrize("labels", [None, 0, 2])
def test_a_classifier_needs_one_label(labels):
    check_one_label(1, "reward_model")
    with pytest.raises(ValueError, match=f"^reward_model has num_labels={labels}.*num_labels=1"):
        check_one_label(labels, "reward_model")
