"""What TRL's own preparation makes of our rows: trained text in the clear, all other text in brackets.

Expected: each assistant turn that is to be learnt with exactly one end token, and nothing else.
"""

import pytest
from datasets import Dataset
from trl import SFTTrainer

from fourstage.arguments import InstructConfig
from fourstage.data.formats import conversation_row
from fourstage.data.loading import _FEATURES


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


@pytest.fixture(scope="module")
def prepared(tokenizer, tmp_path_factory):
    """Ids and labels of every case, by the trainer that recipes/sft.py builds and its own collator, in one batch."""
    from transformers import LlamaConfig, LlamaForCausalLM

    rows = [conversation_row(row) for row, _ in CASES.values()]
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    args = InstructConfig(output_dir=str(tmp_path_factory.mktemp("run")), max_length=256, report_to=[])
    trainer = SFTTrainer(
        model=LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shape)),
        args=args,
        train_dataset=Dataset.from_list(rows, features=_FEATURES["sft"]),
        eval_dataset=Dataset.from_list(rows[:2], features=_FEATURES["sft"]),
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
