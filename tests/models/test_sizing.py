"""Sizes: how close, which shapes, and what is refused."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from fourstage.models.sizing import causal_lm_types, count_parameters, exact_config, parse_count, sized_config

IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
CORE = ["llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gpt2", "gpt_neox", "olmo2", "phi", "granite"]
CORE += ["stablelm", "cohere2"]
MORE = ["smollm3", "phi3", "olmo", "starcoder2", "opt", "gptj", "bloom", "falcon", "glm"]
MORE += ["gemma3_text", "nemotron"]


def sized(model_type, parameters, vocab_size=4096, overrides=None):
    return sized_config(
        model_type,
        parameters,
        vocab_size=vocab_size,
        max_position_embeddings=512,
        special_token_ids=IDS,
        overrides=overrides,
    )


def off_by(config, parameters):
    return abs(count_parameters(config) / parameters - 1)


@pytest.mark.parametrize("model_type", CORE + MORE)
def test_dense_families_land_within_3_percent(model_type):
    config = sized(model_type, 25_000_000)
    assert off_by(config, 25_000_000) <= 0.03
    assert config.vocab_size == 4096 and config.eos_token_id == 2
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    assert 32 <= head_dim <= 128 and config.hidden_size % 32 == 0


@pytest.mark.parametrize("model_type", CORE)
def test_a_million_parameters_within_3_percent(model_type):
    assert off_by(sized(model_type, 1_000_000, vocab_size=1024), 1_000_000) <= 0.03


def test_depth_and_width_grow_with_size():
    sizes = [1_000_000, 3_000_000, 10_000_000, 30_000_000, 125_000_000, 1_000_000_000]
    configs = [sized("llama", size, vocab_size=1024) for size in sizes]
    assert all(off_by(config, size) <= 0.03 for config, size in zip(configs, sizes, strict=True))
    depths = [config.num_hidden_layers for config in configs]
    widths = [config.hidden_size for config in configs]
    assert depths == sorted(depths) and widths == sorted(widths)
    assert depths[0] >= 3 and 10 <= depths[4] <= 18 and 16 <= depths[5] <= 26


def test_keys_are_shared_from_100_million_parameters():
    small, large = sized("llama", 25_000_000), sized("llama", 1_000_000_000)
    assert small.num_key_value_heads == small.num_attention_heads
    assert large.num_key_value_heads < large.num_attention_heads
    assert large.num_attention_heads % large.num_key_value_heads == 0


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "gpt2", "opt", "mamba"])
def test_the_count_is_that_of_a_real_model(model_type):
    config = sized(model_type, 1_000_000, vocab_size=1024)
    model = AutoModelForCausalLM.from_config(config)
    assert count_parameters(config) == sum(parameter.numel() for parameter in model.parameters())
    tokens = torch.arange(512)[None]  # up to the last position
    with torch.no_grad():
        assert model(input_ids=tokens).logits.shape == (1, 512, 1024)


@given(
    parameters=st.integers(400_000, 300_000_000),
    vocab_size=st.sampled_from([512, 1024, 3000]),
    model_type=st.sampled_from(["llama", "gemma2", "gpt2"]),
)
@settings(max_examples=5, deadline=None, derandomize=True)
def test_any_size_within_3_percent(parameters, vocab_size, model_type):
    assert off_by(sized(model_type, parameters, vocab_size), parameters) <= 0.03


def test_best_effort_families_are_near():
    for model_type in ["mixtral", "deepseek_v3", "mamba", "mamba2", "rwkv"]:
        assert off_by(sized(model_type, 10_000_000), 10_000_000) <= 0.1, model_type


def test_a_multimodal_name_means_its_text_part():
    config = sized("gemma3", 10_000_000)
    assert config.model_type == "gemma3_text" and off_by(config, 10_000_000) <= 0.03


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma2"])
def test_too_small_names_the_smallest_and_the_smallest_works(model_type):
    with pytest.raises(ValueError, match="the smallest possible is") as refused:
        sized(model_type, 1000)
    smallest = int(str(refused.value).split("the smallest possible is ")[1].split(";")[0])
    assert count_parameters(sized(model_type, smallest)) == smallest
    assert "\n" not in str(refused.value)


def test_overrides_win_and_the_search_works_around_them():
    config = sized("llama", 25_000_000, overrides={"hidden_size": 320, "num_key_value_heads": 1, "rms_norm_eps": 1e-5})
    assert (config.hidden_size, config.num_key_value_heads, config.rms_norm_eps) == (320, 1, 1e-5)
    assert off_by(config, 25_000_000) <= 0.03
    config = sized("gpt2", 10_000_000, overrides={"num_hidden_layers": 4, "n_head": 8})
    assert (config.n_layer, config.n_head) == (4, 8) and off_by(config, 10_000_000) <= 0.03
    config = sized("llama", 10_000_000, overrides={"intermediate_size": 640, "tie_word_embeddings": True})
    assert config.intermediate_size == 640 and config.tie_word_embeddings
    assert off_by(config, 10_000_000) <= 0.1  # without the MLP there is less to adjust


def test_overrides_that_leave_no_way():
    with pytest.raises(ValueError, match="hidden_size=2048.*the smallest possible is"):
        sized("llama", 1_000_000, overrides={"hidden_size": 2048})
    with pytest.raises(ValueError, match="num_key_value_heads=3 must divide the 8 attention heads"):
        sized("llama", 10_000_000, overrides={"num_attention_heads": 8, "num_key_value_heads": 3})
    with pytest.raises(ValueError, match="cannot be reached: the nearest is"):
        sized("llama", 1_000_000_000, overrides={"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 64})


@pytest.mark.parametrize("build", [sized, lambda name, _, **rest: exact_config(name, rest.get("overrides") or {}, {})])
def test_unknown_names(build):
    with pytest.raises(ValueError, match="model_type='lama' is not a causal.*did you mean .*llama"):
        build("lama", 1_000_000)
    with pytest.raises(ValueError, match="hiden_size=64 is not a field of llama configs; .*hidden_size"):
        build("llama", 1_000_000, overrides={"hiden_size": 64})


def test_exact_config_is_what_was_said():
    fields = {"vocab_size": 512, "max_position_embeddings": 256, **IDS}
    config = exact_config("llama", {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}, fields)
    assert (config.hidden_size, config.num_hidden_layers, config.vocab_size) == (64, 2, 512)
    assert config.max_position_embeddings == 256 and config.pad_token_id == 0
    assert exact_config("gpt2", {"hidden_size": 64}, fields).n_positions == 256
    assert exact_config("bert", {}, fields).is_decoder  # else it would look ahead
    assert exact_config("mamba", {}, fields).vocab_size == 512  # and has no positions


def test_types():
    types = causal_lm_types()
    assert types == sorted(types) and len(types) > 150 and set(CORE + MORE) <= set(types)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("25M", 25_000_000),
        ("1.5B", 1_500_000_000),
        ("300k", 300_000),
        ("300K", 300_000),
        ("3_000_000", 3_000_000),
        (" 7b ", 7_000_000_000),
        ("0.5m", 500_000),
        ("1T", 10**12),
        (42, 42),
    ],
)
def test_parse_count(text, count):
    assert parse_count(text) == count


@pytest.mark.parametrize("text", ["", "M", "25 million", "-3M", "1.5", "0", 0, -1, "1e6", True, "0.0001k", "25MB"])
def test_parse_count_refuses(text):
    with pytest.raises(ValueError, match="write it like 25M"):
        parse_count(text)
