"""Sampling by numbers of rows: against a NumPy loop, transformers' own warpers and closed-form probabilities."""

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, LogitsProcessorList, set_seed

from fourstage.rl.rollouts import RolloutNumbers
from fourstage.rl.sampling import SampledByRow, inverse_transform, row_uniforms, samples_by_row

VOCABULARY = 24


def by_loop(probabilities, number):
    """The first token at which the running sum is above the number's share of the whole sum."""
    aim, reached = number * sum(probabilities), 0.0
    for token, probability in enumerate(probabilities):
        reached += probability
        if reached > aim:
            return token
    raise AssertionError("the numbers are below 1")


def test_tokens_are_those_of_a_loop():
    generator = np.random.default_rng(0)
    probabilities = generator.random((500, 37)) * (generator.random((500, 37)) < 0.3)
    probabilities[:, 17] += 0.01
    numbers = generator.random(500)
    chosen = inverse_transform(torch.tensor(probabilities), torch.tensor(numbers)).tolist()
    assert chosen == [by_loop(row, number) for row, number in zip(probabilities, numbers, strict=True)]
    assert len(set(chosen)) == 37


@pytest.mark.parametrize(
    ("probabilities", "number", "token"),
    [
        ([0.2, 0.0, 0.5, 0.3], 0.1, 0),
        ([0.2, 0.0, 0.5, 0.3], 0.2, 2),  # an interval holds its lower end
        ([0.0, 0.4, 0.6], 0.0, 1),  # a token without probability is never chosen, not at either end
        ([0.5, 0.5, 0.0], 1 - 2**-53, 1),
        ([0.0, 0.0, 1.0], 0.7, 2),
        ([0.1, 0.1], 0.6, 1),  # a sum that is not 1, as float32 leaves it
    ],
)
@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_ends_and_tokens_without_probability(probabilities, number, token, kind):
    row, numbers = torch.tensor([probabilities], dtype=kind), torch.tensor([number], dtype=torch.float64)
    assert inverse_transform(row, numbers).tolist() == [token]


def test_rare_tokens_of_a_large_vocabulary_keep_their_share():
    """150,000 tokens of 1e-8 after one of almost 1: their part of the numbers is their sum."""
    probabilities = torch.full((1, 150_001), 1e-8, dtype=torch.float64)
    probabilities[0, 0] = 1 - 150_000 * 1e-8
    numbers = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    chosen = inverse_transform(probabilities.float().expand(len(numbers), -1)[:100], numbers[-100:])
    assert (chosen > 0).all() and chosen.unique().numel() == 100
    assert chosen.tolist() == sorted(chosen.tolist())


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_probabilities_that_are_not_finite_are_refused(broken):
    with pytest.raises(ValueError, match="not finite, so nothing can be sampled: lower learning_rate"):
        inverse_transform(torch.tensor([[0.5, 0.5], [0.5, broken]]), torch.tensor([0.1, 0.1], dtype=torch.float64))


def test_a_rows_numbers_are_its_own():
    whole = row_uniforms([3, 0, 7], first=0, rows=8, tokens=5)
    parts = [row_uniforms([3, 0, 7], first, rows, tokens=5) for first, rows in ((0, 3), (3, 5))]
    assert whole.shape == (5, 8) and torch.equal(whole, torch.cat(parts, dim=1))
    others = [row_uniforms(key, 0, 8, 5) for key in ([3, 0, 8], [3, 1, 7], [4, 0, 7])]
    numbers = torch.stack([whole, *others]).flatten()
    assert numbers.unique().numel() == numbers.numel()


def test_numbers_are_uniform_and_independent():
    """Shares of 20 bins over rows and tokens, 30 standard errors squared at most; no correlation of neighbours."""
    numbers = row_uniforms([0, 0, 0], 0, rows=2000, tokens=20).numpy()
    counts = np.histogram(numbers, bins=20, range=(0, 1))[0]
    assert ((counts - 2000) ** 2 / 2000).sum() < 50  # chi-square of 19 degrees of freedom: 1e-4
    for a, b in ((numbers[1:], numbers[:-1]), (numbers[:, 1:], numbers[:, :-1])):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 4 / np.sqrt(a.size)
    assert numbers.min() >= 0 and numbers.max() < 1


def model():
    set_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, initializer_range=0.5, **shape)).eval()


@pytest.mark.parametrize(
    "how",
    [{}, {"temperature": 0.6}, {"top_k": 4}, {"top_p": 0.6}, {"min_p": 0.2}, {"temperature": 2.0, "top_p": 0.5}],
)
def test_transformers_samples_its_own_distribution_by_the_rows_numbers(how):
    """Its probabilities for a first token, as it warps them itself, in intervals of evenly spread numbers."""
    settings = {"do_sample": True, "max_new_tokens": 1, "top_k": 0, "pad_token_id": 0, **how}
    config, policy, rows = GenerationConfig(**settings), model(), 4000
    assert samples_by_row(config)
    ids = torch.tensor([[5, 3, 8]])
    scores = GenerationConfig(**settings, output_scores=True, return_dict_in_generate=True)
    probabilities = policy.generate(ids, generation_config=scores).scores[0].softmax(dim=-1)[0]
    numbers = ((torch.arange(rows, dtype=torch.float64) + 0.5) / rows)[None]
    processors = LogitsProcessorList([SampledByRow(numbers, config)])
    chosen = policy.generate(ids.expand(rows, -1), generation_config=config, logits_processor=processors)[:, -1]
    shares = torch.bincount(chosen, minlength=VOCABULARY) / rows
    torch.testing.assert_close(shares, probabilities, rtol=0, atol=1.5 / rows)


@pytest.mark.parametrize(
    "other",
    [
        {"do_sample": False},
        {"num_beams": 2},
        {"num_return_sequences": 3},
        {"typical_p": 0.9},
        {"epsilon_cutoff": 0.01},
        {"eta_cutoff": 0.01},
        {"top_h": 0.4},
        {"top_k": None},
        {"max_new_tokens": None},
    ],
)
def test_other_ways_of_choosing_are_left_to_transformers(other):
    assert not samples_by_row(GenerationConfig(**{"do_sample": True, "max_new_tokens": 4, "top_k": 0, **other}))


def trainer(processes=1, rank=0, step=0, micro=0, training=True, **settings):
    args = {"seed": 3, "gradient_accumulation_steps": 2, "steps_per_generation": 4, "num_iterations": 1, **settings}
    return SimpleNamespace(
        args=SimpleNamespace(**args),
        accelerator=SimpleNamespace(process_index=rank, num_processes=processes),
        state=SimpleNamespace(global_step=step),
        model=SimpleNamespace(training=training),
        _step=micro,
    )


def places(*states, rows=8, numbers=None):
    numbers = RolloutNumbers() if numbers is None else numbers
    return [numbers._place(state, rows) for state in states]


def test_two_processes_share_the_rows_of_one():
    """Four micro-batches of 2 rows in one process, in two processes two of 2: the same rollouts of 8 rows."""
    alone = places(*(trainer(step=2 * n, micro=4 * n) for n in range(3)), rows=8)
    halves = {"gradient_accumulation_steps": 1, "steps_per_generation": 2}
    for rank in (0, 1):
        shared = places(*(trainer(2, rank, 2 * n, 2 * n, **halves) for n in range(3)), rows=4)
        assert [key for key, _ in shared] == [key for key, _ in alone] and {first for _, first in shared} == {4 * rank}
    assert all(a != b for a, b in pairwise(key for key, _ in alone))


@pytest.mark.parametrize("iterations", [1, 3])
def test_a_resumed_run_and_one_that_never_stopped_are_at_the_same_rollout(iterations):
    straight = trainer(step=2 * iterations * 5, micro=4 * iterations * 5, num_iterations=iterations)
    resumed = trainer(step=2 * iterations * 5, micro=0, num_iterations=iterations)
    assert places(straight) == places(resumed) == [([3, 0, 5], 0)]


def test_several_rollouts_within_an_optimizer_step_differ():
    settings = {"gradient_accumulation_steps": 4, "steps_per_generation": 2}
    found = places(*(trainer(step=1, micro=4 + n, **settings) for n in (0, 2)))
    assert [key[2] for key, _ in found] == [2, 3]


def test_evaluations_number_their_rows_over_processes_and_begin_anew():
    numbers = RolloutNumbers()
    state = trainer(processes=2, rank=1, training=False)
    assert [first for _, first in places(state, state, rows=4, numbers=numbers)] == [4, 12]
    numbers.on_evaluate(None, None, None)
    assert places(state, rows=4, numbers=numbers) == [([3, 1, 0], 4)]
