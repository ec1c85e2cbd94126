"""The tokenizer: lossless, of the size asked for, and a chat template that trains on answers and their end only."""

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2.exceptions import TemplateError
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, LlamaConfig, Qwen2Config, Qwen3Config
from transformers.models.qwen2.tokenization_qwen2 import Qwen2Tokenizer

from fourstage.models.tokenizer import check_reload, default_vocab_size, first_characters, train_tokenizer

STRANGE = [
    "e\u0301 o\u0308 \u1e9b\u0323",  # combining marks that normalisation would join
    "\u05e9\u05dc\u05d5\u05dd \u200f\u0645\u0631\u062d\u0628\u0627",  # right to left
    "\U0001f469\u200d\U0001f469\u200d\U0001f467\ufe0f \U0001f1e9\U0001f1ea",  # joined emoji, a flag
    "\x00\x01\x1b[31m\x7f\x85\u2028\ufeff\ufffd",
    "a\r\nb\rc\n\n\n",
    "   two  spaces \t at both ends   ",
    "1234567890 3.14 1,000 \u0663\u0664 \u00bd",
    "\ufb01 \uff21 \u2460",  # what NFKC would change
    "",
]


def roundtrip(tokenizer, text):
    return tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("text", STRANGE)
def test_strange_text_survives(tokenizer, text):
    assert roundtrip(tokenizer, text) == text


@settings(max_examples=150, deadline=None)
@given(text=st.text())
def test_any_text_survives(tokenizer, text):
    assert roundtrip(tokenizer, text) == text


def test_digits_are_split_singly(tokenizer):
    trained = train_tokenizer(["2024 2024 2024 2025 " * 50], 384, 64)
    for some in (tokenizer, trained):
        tokens = some.tokenize("a2024b77", add_special_tokens=False)
        assert tokens == ["a", "2", "0", "2", "4", "b", "7", "7"]


@pytest.mark.parametrize("size", [384, 512, 640])
def test_the_size_is_exact(words, size):
    tokenizer = train_tokenizer([words] * 3, size, 64)
    assert len(tokenizer) == tokenizer.vocab_size == size == max(tokenizer.get_vocab().values()) + 1


def plainly_trained(texts, size):
    """The merges that tokenizers' own trainer learns, without a limit on the length of words."""
    bpe = Tokenizer(models.BPE())
    digits = pre_tokenizers.Digits(individual_digits=True)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=size - 6, initial_alphabet=alphabet))
    return json.loads(bpe.to_str())


def parts(tokenizer):
    return json.loads(tokenizer.backend_tokenizer.to_str())


def test_ordinary_text_gives_the_tokenizer_of_the_library(words):
    plain, ours = plainly_trained([words] * 3, 512), parts(train_tokenizer([words] * 3, 512, 64))
    assert len(plain["model"]["merges"]) > 200 and ours["model"]["merges"] == plain["model"]["merges"]
    assert ours["pre_tokenizer"] == plain["pre_tokenizer"]


def test_unbroken_text_is_learnt_from_in_pieces():
    """Which takes time in proportion to its length: 100,000 letters took 6 seconds in one piece, and 0.2 in fifty."""
    letters = "".join(random.Random(0).choices("acgt", k=20_000))
    pieces = [letters[i : i + 2_000] for i in range(0, len(letters), 2_000)]
    assert parts(train_tokenizer([letters], 512, 64)) == parts(train_tokenizer(pieces, 512, 64))
    assert plainly_trained(pieces, 512)["model"]["merges"] != plainly_trained([letters], 512)["model"]["merges"]


def test_a_small_corpus_gives_a_smaller_multiple_topped_up():
    tokenizer = train_tokenizer(["aaaa bbbb"], 8192, 64)
    reserved = [token for token in tokenizer.get_vocab() if token.startswith("<|reserved_")]
    # 262 entries for bytes and special tokens; aa, aaaa, bb, bbbb and the one with a space before it: under 384
    assert len(tokenizer) == 384 and 100 < len(reserved) <= 384 - 262
    assert roundtrip(tokenizer, "aaaa \u00e9") == "aaaa \u00e9"


def test_special_tokens_are_single_distinct_ids(tokenizer):
    names = ["<|pad|>", "<|bos|>", "<|eos|>", "<|system|>", "<|user|>", "<|assistant|>"]
    ids = [tokenizer(name, add_special_tokens=False)["input_ids"] for name in names]
    assert all(len(one) == 1 for one in ids) and len({one[0] for one in ids}) == 6
    assert [one[0] for one in ids[:3]] == [tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id]
    assert tokenizer("a")["input_ids"] == [tokenizer.bos_token_id, tokenizer.convert_tokens_to_ids("a")]


def test_saved_and_loaded_it_is_the_same(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.get_vocab() == tokenizer.get_vocab() and loaded.chat_template == tokenizer.chat_template
    assert loaded.model_max_length == 256 and loaded.pad_token == "<|pad|>"
    for text in STRANGE:
        assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
        assert roundtrip(loaded, text) == text


@pytest.mark.parametrize("size, nearest", [(100, 384), (256, 384), (383, 384), (1000, 1024), (0, 384)])
def test_a_wrong_size_names_the_nearest(size, nearest):
    with pytest.raises(ValueError, match=f"--vocab_size {nearest}$"):
        train_tokenizer(["a"], size, 64)


@pytest.mark.parametrize(
    "parameters, size",
    [(1, 512), (800_000, 1024), (1e6, 1024), (10e6, 4096), (125e6, 8192), (1e9, 32_768), (1e12, 131_072)],
)
def test_default_size(parameters, size):
    assert default_vocab_size(int(parameters)) == size


def test_training_reads_no_further_than_the_limit():
    read = []

    def endless():
        while True:
            read.append(1)
            yield {"text": "abcdefghij"}

    assert list(first_characters(endless(), 35)) == ["abcdefghij"] * 3 + ["abcde"]
    assert len(read) == 4
    assert len(train_tokenizer(first_characters(endless(), 1_000), 384, 64)) == 384
    assert len(read) == 104


def test_one_endless_document_is_cut_at_the_limit():
    assert [len(text) for text in first_characters([{"text": "a" * 5_000}, {"text": "b"}], 100)] == [100]


def test_the_texts_are_read_as_a_stream():
    held = []

    class Text(str):
        def __del__(self):
            held.pop()

    def texts():
        for _ in range(2_000):
            held.append(1)
            most.append(len(held))
            yield Text("some words to merge")

    most = []
    train_tokenizer(texts(), 384, 64)
    assert max(most) < 1_000 and len(most) == 2_000


TURNS = [
    {"role": "system", "content": "S"},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Ok"},
    {"role": "user", "content": "?"},
    {"role": "assistant", "content": "No"},
]


def test_the_chat_template_token_by_token(tokenizer):
    expected = [
        ("<|bos|>", 0), ("<|system|>", 0), ("S", 0), ("<|user|>", 0), ("H", 0), ("i", 0),
        ("<|assistant|>", 0), ("O", 1), ("k", 1), ("<|eos|>", 1),
        ("<|user|>", 0), ("?", 0), ("<|assistant|>", 0), ("N", 1), ("o", 1), ("<|eos|>", 1),
    ]  # fmt: skip
    got = tokenizer.apply_chat_template(TURNS, return_dict=True, return_assistant_tokens_mask=True)
    assert tokenizer.convert_ids_to_tokens(got["input_ids"]) == [token for token, _ in expected]
    assert got["assistant_masks"] == [mask for _, mask in expected]


@pytest.mark.parametrize("number", [2, 4])
def test_a_generation_prompt_begins_what_was_trained_on(tokenizer, number):
    asked = tokenizer.apply_chat_template(TURNS[:number], add_generation_prompt=True, return_dict=True)["input_ids"]
    trained = tokenizer.apply_chat_template(TURNS[: number + 1], return_dict=True)["input_ids"]
    assert trained[: len(asked)] == asked
    assert tokenizer.decode(trained[len(asked) :]) == ["Ok", "No"][number // 2 - 1] + "<|eos|>"


@pytest.mark.parametrize("text", [*STRANGE, "{{ 7 * 7 }} {% if %} {# #}", "\n lines \n", "<b>&amp;'\"</b>"])
def test_the_template_leaves_content_as_it_is(tokenizer, text):
    turns = [{"role": "user", "content": text}, {"role": "assistant", "content": text}]
    ids = tokenizer.apply_chat_template(turns, return_dict=True)["input_ids"]
    assert tokenizer.decode(ids) == f"<|bos|><|user|>{text}<|assistant|>{text}<|eos|>"
    assert ids.count(tokenizer.eos_token_id) == ids.count(tokenizer.bos_token_id) == 1


def test_an_unknown_role_is_refused(tokenizer):
    with pytest.raises(TemplateError, match="Role 'tool' is unknown"):
        tokenizer.apply_chat_template([{"role": "tool", "content": "a"}])


def test_types_whose_folder_would_load_another_tokenizer_are_refused(tokenizer):
    with pytest.raises(ValueError, match="model_type='qwen2'.*Qwen2Tokenizer of .* choose another model_type") as error:
        check_reload(tokenizer, Qwen2Config())
    assert "\n" not in str(error.value)
    for config in (Qwen3Config(), LlamaConfig()):
        check_reload(tokenizer, config)


def test_a_tokenizer_of_the_types_own_class_is_taken():
    letters = {letter: number for number, letter in enumerate("abcdefgh")}
    check_reload(Qwen2Tokenizer(vocab=letters, merges=[]), Qwen2Config())
