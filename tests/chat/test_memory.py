"""What a model keeps between turns: every answer is the one that transformers gives without any cache."""

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    StoppingCriteriaList,
)

from fourstage.chat.terminal import Chat, ask, command
from fourstage.speaking import Memory, Sampling, Speaker, speak

GREEDY = {"temperature": 0.0, "top_p": 1.0, "top_k": 0}
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
KINDS = {  # a name -> (config, whether it remembers)
    "llama": ({"max_position_embeddings": 96, **SMALL}, True),
    "gpt2": ({"n_positions": 96, "n_embd": 32, "n_layer": 2, "n_head": 4}, True),
    "mistral": ({"max_position_embeddings": 96, "sliding_window": 16, "num_key_value_heads": 2, **SMALL}, False),
    "gemma3_text": ({"max_position_embeddings": 96, "sliding_window": 16, "head_dim": 8, **SMALL}, False),
    "mamba": ({"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}, False),
    "recurrent_gemma": ({"attention_window_size": 16, "lru_width": 32, **SMALL, "num_hidden_layers": 3}, False),
}
SCALED = {"rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 48}


def speaker_of(kind, tokenizer, **more):
    """A speaker with random weights, large ones: no two logits are nearly equal, and seldom does it end at once."""
    shape = KINDS[kind][0] | more
    ends = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    torch.manual_seed(0)
    plain = {"vocab_size": len(tokenizer), "initializer_range": 0.3, "tie_word_embeddings": False}
    config = AutoConfig.for_model(kind, **plain, **ends, **shape)
    model = AutoModelForCausalLM.from_config(config).eval()
    model.generation_config = GenerationConfig(**ends | {"eos_token_id": [ends["eos_token_id"]]})
    return Speaker(kind, None, True, model, tokenizer)


def likeliest(speaker, ids, count):
    """The likeliest token after each of the last `count` beginnings of `ids`, by one pass without a cache."""
    with torch.no_grad():
        logits = speaker.model(torch.tensor([ids]), use_cache=False).logits[0, -count - 1 : -1]
    return logits.argmax(-1).tolist()


def noted(speaker):
    """A list of all that is read and said from now on: pairs of a prompt's ids and all ids, None after Ctrl-C."""
    seen, generate = [], speaker.model.generate

    def watched(inputs, **options):
        seen.append((inputs[0].tolist(), None))
        output = generate(inputs, **options)
        seen[-1] = (seen[-1][0], output[0].tolist())
        return output

    speaker.model.generate = watched
    return seen


@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_those_without_a_cache(kind, tokenizer, monkeypatch):
    """Over turns, a reset, a system prompt, a context that is full, and an answer broken off within a layer."""
    monkeypatch.setattr(Speaker, "context", 96)
    speaker = speaker_of(kind, tokenizer)
    said = noted(speaker)
    chat = Chat(speaker, Sampling(**GREEDY, max_new_tokens=8))
    for line in ("bab", "gef hub", "dim", "fut bab gef", "/reset", "gef hub", "/system fut", "dim", "gef"):
        command(chat, line) if line.startswith("/") else ask(chat, line)
    while not chat.since:  # until the oldest turns are left out
        ask(chat, "hub bab dim gef fut")
    layers = next(module for module in speaker.model.modules() if isinstance(module, torch.nn.ModuleList))
    calls = []

    def stop(*_):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt

    hook = layers[-1].register_forward_pre_hook(stop)
    assert ask(chat, "bab").interrupted
    hook.remove()
    ask(chat, "gef")
    assert len(said) > 10 and len({*map(str, said)}) == len(said)
    for ids, everything in said:
        if everything:
            new = everything[len(ids) :]
            assert new == likeliest(speaker, everything, len(new)) and (len(new) == 8 or new[-1] in speaker.stops)


@pytest.mark.parametrize("kind", KINDS)
def test_only_new_tokens_are_read(kind, tokenizer):
    """Counted at the embedding: of the second turn only what comes after the first and its answer."""
    speaker, counts = speaker_of(kind, tokenizer), []
    count = lambda module, inputs, output: counts.append(output.shape[1])  # noqa: E731
    speaker.model.get_input_embeddings().register_forward_hook(count)
    sampling, remembers = Sampling(**GREEDY, max_new_tokens=4), KINDS[kind][1]
    speak(speaker, [*range(20, 50)], sampling)
    assert counts == [30, 1, 1, 1]
    speak(speaker, [*range(20, 45), *range(90, 110)], sampling)  # 25 tokens are shared
    assert counts[4:] == ([20, 1, 1, 1] if remembers else [45, 1, 1, 1])
    speak(speaker, [*range(20, 45)], sampling)  # all of it was read before: its last token is read again
    assert counts[8] == (1 if remembers else 25)
    assert (speaker.memory.cache is not None) == remembers


@pytest.mark.parametrize("scaling", ["dynamic", "longrope"])
def test_angles_that_depend_on_the_length(tokenizer, scaling):
    """What was read at one length is not right at another: such a model forgets."""
    factors = {"short_factor": [1.0] * 4, "long_factor": [3.0] * 4} if scaling == "longrope" else {}
    rope = {"rope_type": scaling, **SCALED, **factors}
    speaker = speaker_of("llama", tokenizer, rope_parameters=rope, max_position_embeddings=192)
    sampling = Sampling(**GREEDY, max_new_tokens=8)
    said = noted(speaker)
    for length in (40, 70, 100):
        ids = [*range(20, 20 + length)]
        speak(speaker, ids, sampling)
        once = speaker.model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=8)
        assert said[-2][1] == once[0].tolist()
    assert speaker.memory == Memory()


def test_an_answer_that_is_stopped_is_remembered(tokenizer):
    """A stop between two tokens leaves whole layers, unlike Ctrl-C."""
    speaker = speaker_of("llama", tokenizer)
    sampling = Sampling(**GREEDY, max_new_tokens=20)
    after_three = StoppingCriteriaList([lambda ids, scores, **_: torch.tensor([ids.shape[1] >= 33])])
    first = speak(speaker, [*range(20, 50)], sampling, stopping_criteria=after_three)
    assert first.tokens == 3 and not first.stopped and len(speaker.memory.ids) == 32
    said = noted(speaker)
    speak(speaker, [*speaker.memory.ids, 77, 78], sampling)
    ids, everything = said[0]
    assert everything[len(ids) :] == likeliest(speaker, everything, len(everything) - len(ids))
