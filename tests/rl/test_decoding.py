"""Our generation against transformers' loop: the same tokens, greedy and sampled; its own wherever ours is not fit."""

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LogitsProcessor,
    LogitsProcessorList,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    set_seed,
)

from fourstage.rl.decoding import decodable, decode, follows, quick_generation
from fourstage.rl.sampling import SampledByRow, row_uniforms, samples_by_row

VOCABULARY, CAP = 40, 24
ENDS = [2, 7, 11]
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SHAPE = {
    **{"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"num_key_value_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.3},
}
BART_SIDE = {"layers": 1, "attention_heads": 4, "ffn_dim": 64}


def llama():
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, **SHAPE, **IDS))


def qwen3():
    return Qwen3ForCausalLM(Qwen3Config(vocab_size=VOCABULARY, head_dim=8, **SHAPE, **IDS))


def gpt2():
    shape = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "initializer_range": 0.3}
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, **shape, **IDS))


def sliding_mistral():
    return MistralForCausalLM(MistralConfig(vocab_size=VOCABULARY, sliding_window=4, **SHAPE, **IDS))


def mamba():
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4, "initializer_range": 0.3}
    return MambaForCausalLM(MambaConfig(vocab_size=VOCABULARY, **shape, **IDS))


def bart():
    sides = {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in BART_SIDE.items()}
    ids = IDS | {"decoder_start_token_id": 1, "forced_eos_token_id": None}
    return BartForConditionalGeneration(BartConfig(vocab_size=VOCABULARY, d_model=32, **sides, **ids))


def built(kind, seed=0):
    set_seed(seed)
    return kind().eval()


def prompts(copies=3):
    """Prompts of 1 to 9 tokens, each several times, not in a row; one has the id of padding inside."""
    generator = torch.Generator().manual_seed(1)
    lengths = [9, 1, 4, 6, 4, 2] * copies
    texts = [torch.randint(3, VOCABULARY, (n,), generator=generator) for n in lengths[:6]]
    texts[3][0] = 0
    ids, mask = torch.zeros(len(lengths), 9, dtype=torch.long), torch.zeros(len(lengths), 9, dtype=torch.long)
    for row, n in enumerate(lengths):
        ids[row, 9 - n :], mask[row, 9 - n :] = texts[row % 6], 1
    return {"input_ids": ids, "attention_mask": mask}


def settings(**more):
    """As GRPOTrainer makes them."""
    plain = {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": None, "repetition_penalty": 1.0}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": ENDS}
    return GenerationConfig(**({"max_new_tokens": CAP, "disable_compile": True, **plain, **ids} | more))


def chances(rows, tokens, seed=0):
    return row_uniforms([seed], 0, rows, tokens)


def by_transformers(model, config, seed=0, **rows):
    """Its own loop, which samples by the same numbers."""
    processors = None
    if samples_by_row(config):
        size = len(next(iter(rows.values())))
        processors = LogitsProcessorList([SampledByRow(chances(size, config.max_new_tokens, seed), config)])
    return model.generate(**rows, generation_config=config, logits_processor=processors)


def lengths(ids):
    """Tokens of each completion, without its padding and end."""
    ended = torch.isin(ids[:, 9:], torch.tensor(ENDS))
    return torch.where(ended.any(dim=1), ended.int().argmax(dim=1), ids.size(1) - 9).tolist()


@pytest.mark.parametrize("kind", [llama, qwen3, gpt2])
@pytest.mark.parametrize("how", [{"do_sample": False}, {}, {"temperature": 0.7}])
def test_tokens_are_those_of_transformers_number_for_number(kind, how):
    """Prompts of all lengths, completions that end at many times, a few of them at the limit."""
    config, ended = settings(**how), set()
    for seed in range(4):
        model = built(kind, seed)
        assert decodable(model) and follows(model, config)
        theirs = by_transformers(model, config, seed, **prompts())
        before = torch.get_rng_state()
        ours = decode(model, **prompts(), config=config, uniforms=chances(18, CAP, seed))
        assert torch.equal(ours, theirs)
        assert torch.equal(torch.get_rng_state(), before)
        ended |= set(lengths(ours))
    assert len(ended) > 4 and CAP in ended


@pytest.mark.parametrize("kind", [llama, qwen3, gpt2])
@pytest.mark.parametrize("how", [{"do_sample": False}, {"temperature": 0.7}])
@pytest.mark.parametrize("padded", [True, False])
def test_a_cache_of_fixed_length_gives_the_same_tokens(kind, how, padded, monkeypatch):
    """What a GPU records and replays, run step by step; with no padding at all transformers makes no mask."""
    rows = prompts() if padded else {name: value[[0] * 4 + [6] * 4] for name, value in prompts().items()}
    assert padded or rows["attention_mask"].all()
    monkeypatch.setattr("fourstage.rl.decoding.recordable", lambda model, limit: True)
    config, ended = settings(**how), set()
    for seed in range(4):
        model = built(kind, seed)
        theirs = by_transformers(model, config, seed, **rows)
        ours = decode(model, **rows, config=config, uniforms=chances(len(rows["input_ids"]), CAP, seed))
        assert torch.equal(ours, theirs)
        ended |= set(lengths(ours))
    assert len(ended) > (4 if padded else 1)


@pytest.mark.parametrize("kind", [llama, qwen3])
def test_a_cache_of_fixed_length_keeps_the_types_of_autocast(kind, monkeypatch):
    """Keys come out of the rotation in float32, values in bfloat16, as in training with mixed precision."""
    monkeypatch.setattr("fourstage.rl.decoding.recordable", lambda model, limit: True)
    model, config = built(kind), settings(do_sample=False)
    with torch.autocast("cpu", torch.bfloat16):
        theirs = model.generate(**prompts(), generation_config=config)
        ours = decode(model, **prompts(), config=config)
    same = (ours[:, : theirs.size(1)] == theirs[:, : ours.size(1)]).float().mean()
    assert same > 0.9  # sums of another length round differently, and one other token changes the rest of its row


def test_prompts_are_read_once_and_ended_rows_leave():
    model, seen = built(llama), []
    model.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    set_seed(0)
    ids = decode(model, **prompts(), config=settings())
    assert seen[:2] == [6, 18]  # 18 rows, 6 different ones
    assert seen[1:] == sorted(seen[1:], reverse=True) and len(set(seen[1:])) > 2
    for step, rows in enumerate(seen[1:], start=1):
        running = sum(length >= step for length in lengths(ids))
        assert running <= rows < max(running / 0.75, 1) + 1


def test_the_distribution_is_the_models():
    """4,000 draws of a first token against its probabilities: chi-square, 39 degrees of freedom, at 1e-4."""
    model = built(llama)
    row = {name: value[:1].repeat(4000, 1) for name, value in prompts().items()}
    set_seed(3)
    drawn = decode(model, **row, config=settings(max_new_tokens=1, temperature=0.8))[:, -1]
    logits = model(input_ids=row["input_ids"][:1]).logits[0, -1]
    expected = 4000 * (logits / 0.8).softmax(dim=-1)
    likely = expected >= 5
    counts = torch.bincount(drawn, minlength=VOCABULARY).float()
    pairs = [(counts[likely], expected[likely]), (counts[~likely].sum()[None], expected[~likely].sum()[None])]
    assert sum(((c - e) ** 2 / e).sum() for c, e in pairs if e.sum() > 0) < 80.0


@pytest.mark.parametrize("kind", [sliding_mistral, mamba, bart])
def test_other_architectures_generate_by_themselves(kind):
    model = built(kind)
    assert not decodable(model)
    assert_equal_through_the_wrapper(model, settings())


@pytest.mark.parametrize(
    "asked",
    [
        {"top_p": 0.5},
        {"top_k": 3},
        {"top_k": None},  # 50 then
        {"min_p": 0.2},
        {"repetition_penalty": 1.5},
        {"no_repeat_ngram_size": 1},
        {"num_beams": 2, "do_sample": False},
        {"cache_implementation": "static"},
        {"suppress_tokens": [5, 6]},
        {"return_dict_in_generate": True},
        {"use_cache": False},
        {"max_new_tokens": None, "max_length": 20},
        {"num_return_sequences": 2},
    ],
)
def test_other_settings_are_transformers(asked):
    model, config = built(llama), settings(**asked)
    assert not follows(model, config)
    assert_equal_through_the_wrapper(model, config)


def test_what_the_model_itself_asks_for_is_not_dropped():
    model = built(llama)
    model.generation_config.no_repeat_ngram_size = 1
    assert not follows(model, settings())
    assert_equal_through_the_wrapper(model, settings())


def assert_equal_through_the_wrapper(model, config, own_loop=False):
    set_seed(0)
    theirs = by_transformers(model, config, **prompts())
    set_seed(0)
    with quick_generation(model, chances, own_loop):
        ours = model.generate(**prompts(), generation_config=config)
    ours, theirs = (getattr(found, "sequences", found) for found in (ours, theirs))
    assert torch.equal(ours, theirs)


def test_the_wrapper_takes_calls_of_any_kind_and_goes_away():
    model = built(llama)
    theirs = model.generate(prompts()["input_ids"][:1], max_new_tokens=3, do_sample=False)
    with quick_generation(model):
        assert torch.equal(model.generate(prompts()["input_ids"][:1], max_new_tokens=3, do_sample=False), theirs)
        with pytest.raises(ValueError, match="temperature"):
            model.generate(**prompts(), generation_config=settings(temperature=0.0))
    assert "generate" not in vars(model)


def test_a_loop_left_to_the_model_samples_by_the_same_numbers():
    """As sharded weights need it; a `generate` that something else put there is called, and put back."""
    model, calls = built(llama), []
    own = model.generate
    model.generate = lambda **kwargs: calls.append(kwargs) or own(**kwargs)
    wrapped = model.generate
    assert_equal_through_the_wrapper(model, settings(), own_loop=True)
    assert len(calls) == 2 and model.generate is wrapped
    assert_equal_through_the_wrapper(model, settings(temperature=0.7))
    assert len(calls) == 3  # that of the comparison: the loop is ours again


def test_without_numbers_the_random_state_chooses():
    model, found = built(llama), []
    for seed in (0, 0, 1):
        set_seed(seed)
        found.append(decode(model, **prompts(), config=settings())[:, 9:].tolist())
    assert found[0] == found[1] != found[2]


def test_processors_of_the_caller_stay():
    class Never(LogitsProcessor):
        def __call__(self, ids, scores):
            return scores.index_fill(1, torch.tensor([5]), -torch.inf)

    model, rows = built(mamba), {name: value.repeat(20, 1) for name, value in prompts().items()}
    with quick_generation(model, chances):
        free = model.generate(**rows, generation_config=settings())[:, 9:]
        held = model.generate(**rows, generation_config=settings(), logits_processor=[Never()])[:, 9:]
    assert (free == 5).any() and not (held == 5).any()


def test_adapters_generate_as_they_are():
    lora = get_peft_model(built(llama), LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    assert decodable(lora)
    assert_equal_through_the_wrapper(lora, settings())
    base = built(llama).generate(**prompts(), generation_config=settings(do_sample=False))
    assert not torch.equal(decode(lora, **prompts(), config=settings(do_sample=False)), base)
    prompt = get_peft_model(built(llama), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    assert not decodable(prompt)


def test_a_broken_model_is_not_sampled():
    model = built(llama)
    model.lm_head.weight.data[5] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        decode(model, **prompts(), config=settings())
