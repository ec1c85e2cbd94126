"""The numbers of the stage table against NumPy, the statistics library, closed forms and arithmetic by hand."""

import copy
import itertools
import math
import statistics

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel, LlamaConfig

from fourstage import verifiers
from fourstage.evaluation.generation import answer_questions, generate, sequence_log_probs, text_nats
from fourstage.evaluation.metrics import (
    BitsPerByte,
    ExactMatch,
    PassAtK,
    ProblemSettings,
    bits_per_byte,
    pass_at_k,
    score_answers,
    score_problems,
    standard_error,
)


def nats_token_by_token(model, ids, window):
    """Each token by a forward pass of its own over what its window lets it see, in NumPy."""
    total = 0.0
    for at in range(1, len(ids)):
        start = (at - 1) // window * window
        logits = model(input_ids=torch.tensor([ids[start:at]])).logits[0, -1].detach().double().numpy()
        total -= logits[ids[at]] - logits.max() - np.log(np.exp(logits - logits.max()).sum())
    return total


@pytest.mark.parametrize("window", [1, 5, 16, 64, 200])
def test_text_nats_scores_each_token_once(model, tokenizer, window):
    text = "bab kof 12 lil\nmun é" * 4
    ids = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]
    assert 60 < len(ids) < 200  # several batches of windows of 1, a short last window of 16, one window of 200
    assert text_nats(model, tokenizer, text, window) == pytest.approx(nats_token_by_token(model, ids, window), rel=1e-5)


def test_sequence_log_probs_are_those_of_the_completion_alone(model, tokenizer):
    """Each completion by itself, token by token in NumPy; lengths differ, so that batches are padded."""
    prompts = [[5, 6, 7], [8] * 9, [9, 10], [11, 12, 13, 14]]
    completions = [[20, 21], [22], [23, 24, 25, 26, 27], []]
    found = sequence_log_probs(model, prompts, completions, batch_size=3)
    for prompt, completion, value in zip(prompts, completions, found, strict=True):
        both = nats_token_by_token(model, prompt + completion, 1_000)
        assert value == pytest.approx(nats_token_by_token(model, prompt, 1_000) - both, abs=1e-4)


@pytest.mark.parametrize("length", [1, 7, 8, 9, 16, 17])
def test_logits_of_zero_cost_ln_v_a_token(model, tokenizer, length):
    torch.nn.init.zeros_(model.get_output_embeddings().weight)
    text = "1" * length  # digits are tokens of one byte
    assert text_nats(model, tokenizer, text, 8) == pytest.approx(length * math.log(512))
    assert bits_per_byte(model, tokenizer, [text, "2", "34"], 8) == pytest.approx(9.0)  # log2(512)


def test_bytes_are_those_of_utf8(model, tokenizer):
    torch.nn.init.zeros_(model.get_output_embeddings().weight)
    text = "1é\U0001f600"  # 1 + 2 + 4 bytes
    tokens = len(tokenizer(text, add_special_tokens=False)["input_ids"])
    assert bits_per_byte(model, tokenizer, iter([text]), 8) == pytest.approx(tokens * 9 / 7)


def test_a_tokenizer_without_a_begin_token_scores_the_first_token_too(model, tokenizer):
    foreign = copy.deepcopy(tokenizer)
    foreign.bos_token = None
    ids = tokenizer("abc 1", add_special_tokens=False)["input_ids"]
    wanted = nats_token_by_token(model, [tokenizer.eos_token_id, *ids], 8)
    assert text_nats(model, foreign, "abc 1", 8) == pytest.approx(wanted, rel=1e-5)


def test_bits_per_byte_by_hand():
    metric = BitsPerByte()  # 20 ln 2 nats are 20 bits, over 3 + 7 bytes
    assert metric.compute(predictions=[5 * math.log(2), 15 * math.log(2)], references=[3, 7]) == {"bits_per_byte": 2.0}


def test_exact_match_by_hand():
    answers = ["Paris. ", "paris", "Paris, France", "", "4.", "4.0"]
    wanted = ["paris", " PARIS.", "Paris", "Paris", "4", "4"]
    got = ExactMatch().compute(predictions=answers, references=wanted)
    assert got["exact_match"] == 0.5
    assert got["exact_match_stderr"] == pytest.approx(statistics.stdev([1, 1, 0, 0, 1, 0]) / 6**0.5)


@pytest.mark.parametrize("values", [[1, 0, 0, 1, 1], [0.5, 0.25], [3, 3, 3], [True, False, True, True]])
def test_standard_error_is_that_of_statistics(values):
    assert standard_error(values) == pytest.approx(statistics.stdev(values) / len(values) ** 0.5)


def test_standard_error_of_one_value_is_zero():
    assert standard_error([3.0]) == standard_error([]) == 0.0


PROMPTS = [[1, 4, 40, 41], [1], [1, 300, 20, 20, 21, 22, 23, 99, 100], [1, 7], [1, 4, 90]]
INHERITED = {"do_sample": True, "temperature": 3.0, "top_k": 1, "top_p": 0.1, "repetition_penalty": 5.0}
INHERITED |= {"no_repeat_ngram_size": 1, "min_new_tokens": 9, "num_beams": 2, "max_length": 3, "bad_words_ids": [[4]]}


def argmax_loop(model, prompt, tokens, stop):
    """Greedy decoding without cache, padding or generate()."""
    ids = list(prompt)
    while len(ids) < len(prompt) + tokens and not (len(ids) > len(prompt) and ids[-1] == stop):
        ids.append(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax().item())
    return ids[len(prompt) :]


def test_greedy_generation_is_an_argmax_loop(model, tokenizer):
    assert generate(model, tokenizer, PROMPTS, 10, batch_size=2) == [argmax_loop(model, p, 10, 2) for p in PROMPTS]


def with_a_stop(model):
    """Makes an end token of what the model says third after the first prompt, so that some answers end."""
    stop = argmax_loop(model, PROMPTS[0], 3, None)[-1]
    model.generation_config.eos_token_id = stop
    return stop


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_an_answer_ends_with_one_end_token_whatever_the_batch(model, tokenizer, batch_size):
    stop = with_a_stop(model)
    got = generate(model, tokenizer, PROMPTS, 10, batch_size=batch_size)
    assert got == [argmax_loop(model, p, 10, stop) for p in PROMPTS]
    assert got[0].count(stop) == 1 and got[0][-1] == stop and len(got[0]) <= 3
    assert any(len(row) == 10 for row in got)  # others went on beside it


def test_fields_of_the_models_own_generation_config_are_not_used(model, tokenizer):
    stop = with_a_stop(model)
    own = model.generation_config = GenerationConfig(eos_token_id=[stop, 3], **INHERITED)
    wanted = [argmax_loop(model, p, 10, stop) for p in PROMPTS]
    wanted = [row[: row.index(3) + 1] if 3 in row else row for row in wanted]
    assert generate(model, tokenizer, PROMPTS, 10) == wanted
    assert model.generation_config is own and own.repetition_penalty == 5.0


def test_sampling_follows_the_softmax_of_the_whole_vocabulary(model, tokenizer):
    model.generation_config = GenerationConfig(eos_token_id=2, top_k=1, top_p=0.1)
    torch.manual_seed(1)
    draws = 4_000
    got = generate(model, tokenizer, [[1, 5]] * draws, 1, temperature=2.0, batch_size=draws)
    seen = np.bincount([row[0] for row in got], minlength=512) / draws
    logits = model(input_ids=torch.tensor([[1, 5]])).logits[0, -1].detach().double()
    wanted = torch.softmax(logits / 2.0, dim=-1).numpy()
    # The expected total variation distance of n draws is at most sum of sqrt(p / n) over the vocabulary, halved.
    assert 0.5 * np.abs(seen - wanted).sum() < 0.5 * np.sqrt(wanted / draws).sum()
    assert (seen > 0).sum() > 100


def test_an_adapter_generates_like_its_model_and_keeps_its_config(model, tokenizer):
    wanted = [argmax_loop(model, p, 6, 2) for p in PROMPTS]
    model.generation_config = GenerationConfig(eos_token_id=2, **INHERITED)
    adapted = get_peft_model(model, LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"))  # B is zero
    assert generate(adapted, tokenizer, PROMPTS, 6) == wanted
    assert adapted.generation_config.top_k == adapted.get_base_model().generation_config.top_k == 1


def test_a_tokenizer_without_a_pad_token_serves(model, tokenizer):
    foreign = copy.deepcopy(tokenizer)
    foreign.pad_token = None
    model.generation_config.pad_token_id = None
    assert generate(model, foreign, PROMPTS, 4) == generate(model, tokenizer, PROMPTS, 4)


class Parrot:
    """A stand-in that answers from a list, looked up by the last word of the prompt."""

    device = torch.device("cpu")
    config = LlamaConfig()

    def __init__(self, tokenizer, answers):
        self.tokenizer, self.answers = tokenizer, answers
        self.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id)

    def eval(self):
        return self

    def generate(self, input_ids, attention_mask, generation_config):
        rows = []
        for ids, mask in zip(input_ids.tolist(), attention_mask.tolist(), strict=True):
            prompt = self.tokenizer.decode([token for token, seen in zip(ids, mask, strict=True) if seen])
            question = prompt.split("<|user|>")[-1].removesuffix("<|assistant|>")
            rows.append(self.tokenizer(self.answers[question], add_special_tokens=False)["input_ids"])
        longest = max(map(len, rows))
        pad = self.tokenizer.pad_token_id
        return torch.cat([input_ids, torch.tensor([row + [pad] * (longest - len(row)) for row in rows])], dim=1)


def turn(role, content):
    return {"role": role, "content": content}


def test_score_answers_by_hand(tokenizer):
    answers = {"a": "Yes.<|eos|>", "b": "1 2 3", "c": "<|eos|>", "d": "no<|eos|>"}
    rows = [
        {"prompt": [turn("user", "a")], "completion": [turn("assistant", "yes")]},
        {"prompt": [turn("user", "b")], "completion": [turn("assistant", "1 2 3 4 5")]},  # five words: not for a match
        {"prompt": [turn("user", "c")], "completion": [turn("assistant", "no"), turn("user", "d")]},
        {"prompt": [turn("user", "x")], "completion": [turn("user", "d"), turn("assistant", "No!")]},
    ]
    metrics, got = score_answers(Parrot(tokenizer, answers), tokenizer, rows)
    assert [row["completion"].rstrip("\0") for row in got] == ["Yes.", "1 2 3", "", "no"]
    assert [row["stopped"] for row in got] == [True, False, True, True]
    assert [row["reference"] for row in got] == ["yes", "1 2 3 4 5", "no", "No!"]
    assert (metrics["answers"], metrics["ended"]) == (4, 0.5)  # b never ends, c says nothing
    assert metrics["ended_stderr"] == pytest.approx(statistics.stdev([1, 0, 0, 1]) / 2)
    assert (metrics["exact_match_n"], metrics["exact_match"]) == (3, pytest.approx(1 / 3))
    assert metrics["mean_tokens"] == sum(row["tokens"] for row in got) / 4


def test_questions_are_asked_through_the_template(tokenizer):
    seen = []
    parrot = Parrot(tokenizer, {"Why?": "So.<|eos|>"})

    def generate(input_ids, **kwargs):
        seen.append(input_ids)
        return Parrot.generate(parrot, input_ids, **kwargs)

    parrot.generate = generate
    got = answer_questions(parrot, tokenizer, ["Why?"])
    assert tokenizer.decode(seen[0][0]) == "<|bos|><|user|>Why?<|assistant|>"
    assert got == [{"prompt": "Why?", "completion": "So.", "tokens": 4, "stopped": True}]


def test_generation_stops_where_the_context_does(tokenizer):
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=1, n_head=2, n_positions=12)
    model = GPT2LMHeadModel(config)
    model.generation_config.eos_token_id = None
    rows = generate(model, tokenizer, [[1] * 10, [1] * 4, [1] * 12], max_new_tokens=5, batch_size=1)
    assert [len(row) for row in rows] == [2, 5, 0]


# Problems


@pytest.mark.parametrize(("n", "c", "k"), [(5, 0, 2), (5, 2, 1), (5, 2, 3), (5, 4, 2), (6, 3, 4), (4, 4, 4)])
def test_pass_at_k_is_the_share_of_all_choices_with_a_right_one(n, c, k):
    samples = [1] * c + [0] * (n - c)
    choices = list(itertools.combinations(samples, k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(any(chosen) for chosen in choices) / len(choices))


def test_pass_at_k_of_several_problems():
    found = PassAtK().compute(predictions=[3, 0], references=[10, 10], k=2)
    chances = [1 - 21 / 45, 0.0]  # C(7, 2) / C(10, 2) by hand
    assert found["pass@2"] == pytest.approx(sum(chances) / 2)
    assert found["pass@2_stderr"] == pytest.approx(statistics.stdev(chances) / math.sqrt(2))
    with pytest.raises(ValueError, match="k=11 must be between 1 and 10"):
        pass_at_k(10, 1, 11)


def test_problems_by_hand(tokenizer):
    """a: right with a wrong step; b: wrong, right when forced; c: right throughout; d has no gold that can be read."""
    forced = "<|assistant|><think>"
    answers = {
        "a": "<think>1 + 1 = 3</think> 2<|eos|>",
        f"a{forced}": "1 + 1 = 3</think> 2<|eos|>",
        "b": "7<|eos|>",
        f"b{forced}": "2 + 3 = 5</think> 5<|eos|>",
        "c": "<think>4 - 1 = 3</think> 3<|eos|>",
        f"c{forced}": "4 - 1 = 3</think> 3<|eos|>",
    }
    golds = {"a": "2", "b": "5", "c": "3", "d": "many"}
    problems = [{"prompt": [turn("user", name)], "answer": gold} for name, gold in golds.items()]
    settings = ProblemSettings(verifiers.number, verifiers.think_format, "<think>", samples=2)
    metrics, rows = score_problems(Parrot(tokenizer, answers), tokenizer, problems, settings)
    assert metrics["problems"] == 3
    assert [row["right"] for row in rows] == [True, False, True]
    assert [row["in_format"] for row in rows] == [True, False, True]
    assert [row["derivation_right"] for row in rows] == [False, False, True]
    assert [row["forced_right"] for row in rows] == [True, True, True]
    assert [row["forced_derivation_right"] for row in rows] == [False, True, True]
    assert [row["samples_right"] for row in rows] == [2, 0, 2]
    assert metrics["sampled_pass@1"] == metrics["sampled_pass@2"] == metrics["right"] == pytest.approx(2 / 3)
    assert metrics["sampled_in_format"] == pytest.approx(2 / 3)
    assert metrics["right_stderr"] == pytest.approx(statistics.stdev([1, 0, 1]) / math.sqrt(3))
    assert rows[1]["forced"].startswith("<think>2 + 3 = 5</think>") and rows[1]["reference"] == "5"
    settings.samples = 0  # the greedy answers alone
    greedy, _ = score_problems(Parrot(tokenizer, answers), tokenizer, problems, settings)
    assert greedy == {key: value for key, value in metrics.items() if not key.startswith("sampled_")}


def test_problems_where_the_template_opens_the_thoughts(tokenizer):
    """What the verifiers see begins with `<think>`: unfinished thoughts are no answer, finished ones have the form."""
    tokenizer = copy.deepcopy(tokenizer)
    head, _, tail = tokenizer.chat_template.rpartition("<|assistant|>")  # the generation prompt's
    tokenizer.chat_template = f"{head}<|assistant|><think>\n{tail}"
    opened = "<|assistant|><think>\n"
    answers = {f"a{opened}": "1 + 1 = 2</think> 2<|eos|>", f"b{opened}": "2 + 3 = 5"}
    problems = [
        {"prompt": [turn("user", name)], "answer": gold, "tokens": 1} for name, gold in (("a", "2"), ("b", "5"))
    ]
    settings = ProblemSettings(verifiers.number, verifiers.think_format, "<think>")
    _, rows = score_problems(Parrot(tokenizer, answers), tokenizer, problems, settings)
    assert [(row["right"], row["in_format"], row["derivation_right"]) for row in rows] == [(True,) * 3, (False,) * 3]
    assert "forced" not in rows[0]  # the template has forced it already


def test_a_verifier_of_ones_own_is_called_as_in_training(tokenizer):
    def own(prompts, completions, answer, **columns):
        assert columns.keys() == {"tokens"} and prompts == [[turn("user", "a")]] * len(completions)
        return [float(completion == gold) for completion, gold in zip(completions, answer, strict=True)]

    problems = [{"prompt": [turn("user", "a")], "answer": "2", "tokens": 1}]
    _, rows = score_problems(Parrot(tokenizer, {"a": "2<|eos|>"}), tokenizer, problems, ProblemSettings(own))
    assert rows[0]["right"]


def test_problems_that_none_can_score(tokenizer):
    problems = [{"prompt": [turn("user", "a")], "answer": "many"}]
    with pytest.raises(ValueError, match="no row can be scored"):
        score_problems(Parrot(tokenizer, {}), tokenizer, problems, ProblemSettings(verifiers.number))
