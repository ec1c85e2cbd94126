"""What TRL's own preparation makes of our rows: trained text in the clear, all other text in brackets.

Expected: each assistant turn that is to be learnt with exactly one end token, and nothing else.
"""

import copy
import json
from importlib.resources import files

import pytest
from datasets import Dataset
from trl import SFTTrainer

from fourstage.arguments import InstructConfig
from fourstage.data.converting import FEATURES
from fourstage.data.encoded import encode_conversations
from fourstage.data.formats import conversation_row
from fourstage.data.trained_text import tell_untrained, untrained_parts
from fourstage.models.tokenizer import mark_generation
from fourstage.models.turns import adapt_template


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


SYSTEM = {"role": "system", "content": "Be brief."}
CASES = {
    "messages": (
        {"messages": [user("Hi"), assistant("Hello.")]},
        "[<|bos|><|user|>Hi<|assistant|>]Hello.<|eos|>",
    ),
    "messages with a system prompt and several turns": (
        {"messages": [SYSTEM, user("Hi"), assistant("Hello."), user("Bye"), assistant(" So long!\n")]},
        "[<|bos|><|system|>Be brief.<|user|>Hi<|assistant|>]Hello.<|eos|>[<|user|>Bye<|assistant|>] So long!\n<|eos|>",
    ),
    "assistant turns one after the other": (
        {"messages": [user("Hi"), assistant("One."), assistant("Two.")]},
        "[<|bos|><|user|>Hi<|assistant|>]One.<|eos|>[<|assistant|>]Two.<|eos|>",
    ),
    "ShareGPT": (
        {
            "conversations": [
                {"from": "system", "value": "Be brief."},
                {"from": "human", "value": "Hi"},
                {"from": "gpt", "value": "Hello."},
            ]
        },
        "[<|bos|><|system|>Be brief.<|user|>Hi<|assistant|>]Hello.<|eos|>",
    ),
    "prompt and completion as text": (
        {"prompt": "2+2? ", "completion": " 4"},
        "[<|bos|><|user|>2+2? <|assistant|>] 4<|eos|>",
    ),
    "an assistant's turn inside the prompt is not learnt": (
        {"prompt": [user("Hi"), assistant("Hello."), user("Bye")], "completion": [assistant("Ciao.")]},
        "[<|bos|><|user|>Hi<|assistant|>Hello.<|eos|><|user|>Bye<|assistant|>]Ciao.<|eos|>",
    ),
    "a completion of several turns": (
        {"prompt": [SYSTEM, user("Hi")], "completion": [assistant("a"), user("b"), assistant("c")]},
        "[<|bos|><|system|>Be brief.<|user|>Hi<|assistant|>]a<|eos|>[<|user|>b<|assistant|>]c<|eos|>",
    ),
    "Alpaca with input": (
        {"instruction": "Add.", "input": "1 2", "output": "3"},
        "[<|bos|><|user|>Add.\n\n1 2<|assistant|>]3<|eos|>",
    ),
    "Alpaca without input": (
        {"instruction": "Sing.", "input": "", "output": "La\n\nla \U0001f3b5"},
        "[<|bos|><|user|>Sing.<|assistant|>]La\n\nla \U0001f3b5<|eos|>",
    ),
    "question and answer": (
        {"question": "Who?", "answer": "Ada"},
        "[<|bos|><|user|>Who?<|assistant|>]Ada<|eos|>",
    ),
}


def args_of(folder):
    return InstructConfig(output_dir=str(folder), max_length=1_024, report_to=[])


@pytest.fixture(scope="module")
def prepared(tokenizer, tmp_path_factory):
    """Ids and labels of every case, by the trainer that recipes/sft.py builds and its own collator, in one batch."""
    from transformers import LlamaConfig, LlamaForCausalLM

    rows = [conversation_row(row) for row, _ in CASES.values()]
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    trainer = SFTTrainer(
        model=LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shape)),
        args=args_of(tmp_path_factory.mktemp("run")),
        train_dataset=Dataset.from_list(rows, features=FEATURES["sft"]),
        eval_dataset=Dataset.from_list(rows[:2], features=FEATURES["sft"]),
        processing_class=tokenizer,
    )
    batch = trainer.data_collator(list(trainer.train_dataset))
    return {name: {key: batch[key][i].tolist() for key in batch} for i, name in enumerate(CASES)}


def in_brackets(tokenizer, row):
    """The whole row as text, what is not trained on in brackets, without the padding at its end."""
    text, before = "", None
    length = sum(row["attention_mask"])
    assert all(label == -100 for label in row["labels"][length:])
    pieces = []
    for token, label in zip(row["input_ids"][:length], row["labels"][:length], strict=True):
        assert label in (-100, token)
        if (label == -100) is not before:
            before = label == -100
            pieces.append((before, []))
        pieces[-1][1].append(token)
    for untrained, ids in pieces:
        piece = tokenizer.decode(ids)
        text += f"[{piece}]" if untrained else piece
    return text


@pytest.mark.parametrize("name", CASES)
def test_only_answers_and_their_end_are_trained_on(tokenizer, prepared, name):
    assert in_brackets(tokenizer, prepared[name]) == CASES[name][1]


def test_the_end_is_trained_on_and_the_beginning_never(tokenizer, prepared):
    for row in prepared.values():
        assert tokenizer.bos_token_id not in row["labels"] and row["input_ids"].count(tokenizer.bos_token_id) == 1
        assert tokenizer.pad_token_id not in row["labels"]
        last = row["labels"][sum(row["attention_mask"]) - 1]
        assert last == tokenizer.eos_token_id


# Templates as published: what is trained on of five rows, the rest in brackets, of which only the end is shown.
CALL = [{"type": "function", "function": {"name": "sky", "arguments": {"city": "Rome"}}}]
THOUGHTFUL = assistant("<think>\n2 and 2\n</think>\n\n4")
SHAPES = {
    "thoughts": [user("2+2?"), THOUGHTFUL],
    "field": [user("2+2?"), {**assistant("4"), "reasoning_content": "2 and 2"}],
    "two": [user("2+2?"), THOUGHTFUL, user("Again?"), assistant("<think>\nso\n</think>\n\n4.")],
    "turns": [user("Hi"), assistant("Hello."), user("Bye"), assistant("Ciao.")],
    "call": [user("Sky?"), {**assistant(""), "tool_calls": json.dumps(CALL)}],
}
QWEN, R1 = "<|im_end|>", "<\uff5cend\u2581of\u2581sentence\uff5c>"
TRAINED = {
    ("qwen3", "thoughts"): (["<think>\n2 and 2\n</think>\n\n4" + QWEN], []),
    ("qwen3", "field"): (["<think>\n2 and 2\n</think>\n\n4" + QWEN], []),
    ("qwen3", "two"): (["4" + QWEN, "<think>\nso\n</think>\n\n4." + QWEN], ["thoughts"]),
    ("qwen3", "turns"): (["Hello." + QWEN, "<think>\n\n</think>\n\nCiao." + QWEN], []),
    ("qwen3_5_think", "thoughts"): (["2 and 2\n</think>\n\n4" + QWEN], []),
    ("qwen3_5_think", "two"): (["4" + QWEN, "so\n</think>\n\n4." + QWEN], ["thoughts"]),
    ("qwen3_8", "thoughts"): (["2 and 2\n</think>\n\n4" + QWEN], []),
    ("deepseek_r1_distill", "thoughts"): (["2 and 2\n</think>\n\n4" + R1], []),
    ("deepseek_r1_distill", "field"): (["2 and 2\n</think>\n\n4" + R1], []),
    ("deepseek_r1_distill", "two"): (["2 and 2\n</think>\n\n4" + R1, "so\n</think>\n\n4." + R1], []),
    ("deepseek_r1_distill", "turns"): (["Hello." + R1, "Ciao." + R1], []),
    ("deepseekv3", "thoughts"): (["\n\n4" + R1], ["thoughts"]),
    ("gptoss", "field"): (
        ["<|channel|>analysis<|message|>2 and 2<|end|><|start|>assistant<|channel|>final<|message|>4<|return|>"],
        [],
    ),
    ("gptoss", "turns"): (
        ["<|channel|>final<|message|>Hello.<|end|>", "<|channel|>final<|message|>Ciao.<|return|>"],
        [],
    ),
    ("gemma", "turns"): (["Hello.<end_of_turn>", "Ciao.<end_of_turn>"], []),
    ("llama3", "turns"): (["Hello.<|eot_id|>", "Ciao.<|eot_id|>"], []),
    ("phi3", "turns"): (["Hello.<|end|>", "Ciao.<|end|>\n<|eos|>"], []),
    ("glm4moe", "two"): (["\n<think></think>\n4", "\n<think>so</think>\n4."], ["thoughts"]),
    ("qwen2_5", "call"): (['<tool_call>\n{"name": "sky", "arguments": {"city": "Rome"}}\n</tool_call>' + QWEN], []),
    ("llama3", "call"): (["<|eot_id|>"], ["calls"]),
}


@pytest.fixture(scope="module")
def published(tokenizer):
    """A tokenizer with a published template that mark_generation has marked, as recipes/sft.py has it."""
    marks = ["<|im_start|>", QWEN, R1, "<end_of_turn>", "<|eot_id|>", "<|end|>", "<|return|>", "<|channel|>"]

    def build(name):
        other = copy.deepcopy(tokenizer)
        other.add_special_tokens({"extra_special_tokens": marks})
        other.chat_template = (files("trl") / "chat_templates" / f"{name}.jinja").read_text()
        adapt_template(other)
        mark_generation(other)
        return other

    return build


@pytest.mark.parametrize(("name", "shape"), TRAINED)
def test_published_templates_train_what_the_assistant_said(published, tmp_path, name, shape):
    tokenizer, (expected, untrained) = published(name), TRAINED[name, shape]
    row = {"prompt": SHAPES[shape][:1], "completion": SHAPES[shape][1:]}
    asked = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, tokenize=False)
    whole = tokenizer.apply_chat_template(SHAPES[shape], return_dict=True, return_assistant_tokens_mask=True)
    runs, before = [], 0
    for i, kept in zip(whole["input_ids"], whole["assistant_masks"], strict=True):
        runs = [*runs, [i]] if kept and not before else [*runs[:-1], [*runs[-1], i]] if kept else runs
        before = kept
    texts = [tokenizer.decode(ids) for ids in runs]
    opened = "<think>\n" if asked.endswith("<think>\n") and texts[0].startswith("<think>\n") else ""
    assert [texts[0].removeprefix(opened), *(text.removeprefix(opened) for text in texts[1:])] == expected
    [encoded] = encode_conversations(tokenizer, Dataset.from_list([row]), args_of(tmp_path), "train")
    assert untrained_parts(tokenizer, encoded) == untrained


def test_what_is_not_trained_on_is_counted_wherever_it_stands(published, tmp_path, capsys):
    tokenizer = published("qwen3")

    def encoded(rows):
        rows = Dataset.from_list(rows, features=FEATURES["sft"])
        return encode_conversations(tokenizer, rows, args_of(tmp_path), "train")

    plain, two = ({"prompt": SHAPES[s][:1], "completion": SHAPES[s][1:]} for s in ("turns", "two"))
    rows = encoded([*[plain] * 150, two, *[plain] * 1_100, two])
    assert tell_untrained(tokenizer, rows, "train") == {"thoughts": 2}
    assert "train: not trained on" in capsys.readouterr().out
    assert tell_untrained(tokenizer, rows.to_iterable_dataset(), "train") == {"thoughts": 1}
    capsys.readouterr()
    few = encoded([plain] * 3)
    capsys.readouterr()
    assert not tell_untrained(tokenizer, few, "train") and not capsys.readouterr().out
