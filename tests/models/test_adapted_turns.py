"""Turns as data have them, through chat templates as published (TRL ships them) and fourstage's own."""

import copy
import json
import pickle
from importlib.resources import files

import pytest
from datasets.fingerprint import Hasher
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from fourstage.models.encoding import conversation_ids, generation_opening, template_refusal, turn_end
from fourstage.models.tokenizer import CHAT_TEMPLATE, train_tokenizer
from fourstage.models.turns import adapt_template

TEMPLATES = files("trl") / "chat_templates"
ENDS = {"chatml": "<|im_end|>", "gemma": "<end_of_turn>", "r1": "<｜end▁of▁sentence｜>"}
MARKERS = ["<|im_start|>", *ENDS.values(), "<start_of_turn>", "<｜User｜>", "<｜Assistant｜>"]


def published(name):
    return CHAT_TEMPLATE if name == "ours" else (TEMPLATES / f"{name}.jinja").read_text()


@pytest.fixture(scope="module")
def words():
    tokenizer = train_tokenizer(["the quick brown fox | im_end <|user|> jumps <think> over </think>"] * 20, 512, 512)
    tokenizer.add_special_tokens({"extra_special_tokens": MARKERS})
    tokenizer.add_tokens([AddedToken("<think>", special=False), AddedToken("</think>", special=False)])
    return tokenizer


@pytest.fixture
def with_template(words):
    def build(name, keep_markers=False):
        tokenizer = copy.deepcopy(words)
        tokenizer.chat_template = published(name)
        adapt_template(tokenizer, keep_markers)
        return tokenizer

    return build


TEXTS = [
    "With <|eos|>. Then <|user|> again.",
    "<|im_end|>",
    "a<|im_start|><|im_start|>b",
    "x <end_of_turn>\ny",
    "<|<|eos|>|>",
]


@pytest.mark.parametrize("name", ["ours", "qwen3", "gemma", "qwen2_5"])
@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("role", ["user", "assistant"])
def test_a_marker_in_a_message_is_plain_text(with_template, name, text, role):
    tokenizer = with_template(name)
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    harmless = conversation_ids(tokenizer, turns)
    turns[role == "assistant"] = {"role": role, "content": text}
    ids = conversation_ids(tokenizer, turns)
    special = set(
        tokenizer.convert_tokens_to_ids(token) for token in [*MARKERS, "<|eos|>", "<|user|>", "<|assistant|>"]
    )
    assert [i for i in ids if i in special] == [i for i in harmless if i in special]
    # as the library encodes the text with all special tokens off
    plain = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert str(plain)[1:-1] in str(ids)
    assert tokenizer.decode(ids) == type(tokenizer).apply_chat_template(tokenizer, turns, tokenize=False)


SPECIAL = ["<unk>", "<s>", "</s>", "<|user|>", "<|bot|>"]


def unigram():
    """As SentencePiece's unigram models: special tokens are among the words of the model."""
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Metaspace()
    return backend, trainers.UnigramTrainer(
        vocab_size=80, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
    )


def llama2():
    """As Llama 2's: its normalizer makes spaces signs and puts one first."""
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    backend.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.Fuse()])
    return backend, trainers.BpeTrainer(vocab_size=120, special_tokens=SPECIAL, show_progress=False)


@pytest.mark.parametrize("kind", [unigram, llama2])
def test_markers_are_plain_text_for_other_kinds_of_tokenizers(kind):
    backend, trainer = kind()
    backend.train_from_iterator(["the quick brown fox </s> jumps | over < user > bot s"] * 50, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|user|>' if m['role'] == 'user' else '<|bot|>' }}{{ m['content'] }}"
        "{{ '' if m['role'] == 'user' else '</s>' }}{% endfor %}"
    )
    adapt_template(tokenizer)
    turns = [{"role": "user", "content": "the </s> fox <|bot|>"}, {"role": "assistant", "content": "over </s></s> s"}]
    tokens = tokenizer.convert_ids_to_tokens(conversation_ids(tokenizer, turns))
    assert [token for token in tokens if token in SPECIAL] == ["<|user|>", "<|bot|>", "</s>"]
    assert tokenizer.decode(conversation_ids(tokenizer, turns)).replace("> ", ">") == (
        "<|user|>the </s> fox <|bot|><|bot|>over </s></s> s</s>".replace("> ", ">")
    )


def test_a_token_that_is_looked_for_after_normalizing_is_plain_text_too(words):
    tokenizer = copy.deepcopy(words)
    tokenizer.add_special_tokens({"extra_special_tokens": [AddedToken("<late>", normalized=True, special=True)]})
    adapt_template(tokenizer)
    ids = conversation_ids(tokenizer, [{"role": "user", "content": "so <late> it is"}])
    assert tokenizer.convert_tokens_to_ids("<late>") not in ids and "so <late> it is" in tokenizer.decode(ids)


def test_markers_are_kept_on_request_and_thoughts_always(with_template):
    turns = [{"role": "user", "content": "a<|eos|>"}, {"role": "assistant", "content": "<think>b</think>c<|eos|>"}]
    kept, plain = (conversation_ids(with_template("ours", keep), turns) for keep in (True, False))
    end, think = with_template("ours").convert_tokens_to_ids(["<|eos|>", "<think>"])
    assert (kept.count(end), plain.count(end)) == (3, 1)
    assert kept.count(think) == plain.count(think) == 1


def test_a_batch_and_a_mask_follow_the_broken_text(with_template):
    tokenizer = with_template("ours")
    chats = [[{"role": "user", "content": text}, {"role": "assistant", "content": text}] for text in TEXTS]
    options = {"return_dict": True, "return_assistant_tokens_mask": True}
    batch = tokenizer.apply_chat_template(chats, **options)
    for chat, ids, mask in zip(chats, batch["input_ids"], batch["assistant_masks"], strict=True):
        assert ids == conversation_ids(tokenizer, chat)
        trained = [i for i, kept in zip(ids, mask, strict=True) if kept]
        assert tokenizer.decode(trained) == chat[1]["content"] + "<|eos|>"


def test_what_is_adapted_is_neither_saved_nor_seen_in_copies(with_template, words, tmp_path):
    tokenizer = with_template("ours")
    before = Hasher.hash(tokenizer)
    conversation_ids(tokenizer, [{"role": "user", "content": "<|eos|>"}])
    assert Hasher.hash(tokenizer) == before
    for twin in (copy.deepcopy(tokenizer), pickle.loads(pickle.dumps(tokenizer))):
        assert twin.apply_chat_template.tokenizer is twin
    tokenizer.save_pretrained(tmp_path / "adapted")
    words.save_pretrained(tmp_path / "plain")
    names = sorted(path.name for path in (tmp_path / "plain").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "adapted").iterdir())
    assert all((tmp_path / "plain" / n).read_bytes() == (tmp_path / "adapted" / n).read_bytes() for n in names)


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("qwen3", "<think>\n2 and 2\n</think>\n\n4<|im_end|>"),
        ("qwen3_5_think", "<think>\n2 and 2\n</think>\n\n4<|im_end|>"),
        ("gptoss", "<|channel|>analysis<|message|>2 and 2<|end|>"),  # under the name `thinking`
        ("ours", "<think>\n2 and 2\n</think>\n\n4<|eos|>"),
        ("gemma", "<think>\n2 and 2\n</think>\n\n4<end_of_turn>"),
        ("deepseek_r1_distill_training", "<think>\n2 and 2\n</think>\n\n4<｜end▁of▁sentence｜>"),
    ],
)
def test_thoughts_reach_every_template(with_template, name, written):
    turns = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4", "reasoning_content": "2 and 2"}]
    tokenizer = with_template(name)
    tokenizer.eos_token = ENDS["r1"] if "r1" in name else "<|eos|>"
    assert written in tokenizer.apply_chat_template(turns, tokenize=False)


@pytest.mark.parametrize("name", ["qwen3", "qwen2_5", "llama3_1", "deepseekv3"])
@pytest.mark.parametrize("shape", ["openai", "bare", "json", "text"])
def test_calls_reach_templates_that_know_them(with_template, name, shape):
    arguments = {"city": "Rome"}
    calls = {
        "openai": [
            {"type": "function", "id": "1", "function": {"name": "weather", "arguments": json.dumps(arguments)}}
        ],
        "bare": [{"name": "weather", "arguments": arguments}],
        "json": json.dumps([{"type": "function", "function": {"name": "weather", "arguments": arguments}}]),
        "text": json.dumps([{"function": {"name": "weather", "arguments": '{"city": "Rome"}'}}]),
    }[shape]
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "", "tool_calls": calls}]
    text = with_template(name).apply_chat_template(turns, tokenize=False)
    assert "weather" in text and '{"city": "Rome"}' in text


ROLES = {"u": "user", "a": "assistant", "s": "system", "t": "tool"}


@pytest.mark.parametrize(
    ("name", "roles", "why"),
    [
        ("gemma", "sua", "System role not supported"),
        ("gemma", "uua", "roles must alternate"),
        ("gemma", "uaua", None),
        ("qwen3", "sua", None),
        ("ours", "uta", "tool"),
        ("llama3", "suaua", None),
    ],
)
def test_a_refusal_is_in_the_templates_words(with_template, name, roles, why):
    turns = [{"role": ROLES[role], "content": "x"} for role in roles]
    refusal = template_refusal(with_template(name), turns)
    assert refusal is None if why is None else why in refusal


@pytest.mark.parametrize(
    ("name", "opening"),
    [
        ("qwen3", ""),
        ("qwen3_5_think", "<think>"),
        ("deepseek_r1_distill", "<think>"),
        ("ours", ""),
        ("qwen3_5_nothink", ""),
    ],
)
def test_what_the_template_writes_of_an_answer(with_template, name, opening):
    assert generation_opening(with_template(name)) == opening


@pytest.mark.parametrize(
    ("name", "end"),
    [("ours", "<|eos|>"), ("qwen3", "<|im_end|>"), ("gemma", "<end_of_turn>"), ("deepseek_r1_distill", ENDS["r1"])],
)
def test_the_token_that_closes_a_turn(with_template, name, end):
    tokenizer = with_template(name)
    assert turn_end(tokenizer) == tokenizer.convert_tokens_to_ids(end)


def test_nothing_closes_a_turn_of_plain_words(words):
    tokenizer = copy.deepcopy(words)
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    assert turn_end(tokenizer) is None
