"""The ids and labels that rows come with, against those that TRL's own trainers make of the same rows."""

import copy
import json
from importlib.resources import files

import pytest
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification
from trl import RewardTrainer, SFTTrainer

from fourstage.arguments import DataArguments, InstructConfig, RewardModelConfig
from fourstage.data.encoded import encode_conversations, encode_pairs
from fourstage.data.loading import load_conversations, load_preferences
from fourstage.models.tokenizer import mark_generation
from fourstage.models.turns import adapt_template
from tests.data.test_rows_through_recipes import CHATS, PAIRS, PLAIN, assistant, user, write

MARKS = ["<|im_start|>", "<|im_end|>", "<|end|>", "<|eot_id|>", "<start_of_turn>", "<end_of_turn>"]
THOUGHTS = {"messages": [user("a"), assistant("<think>\nb\n</think>\n\nc"), user("d"), assistant("e <|im_end|> f")]}
MARKERS = {"prompt": "Write <|eos|> and <|im_end|>.", "completion": "<|im_start|> is one <|eos|>"}
SHAPE = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}


@pytest.fixture(scope="module")
def with_template(tokenizer):
    def build(name):
        other = copy.deepcopy(tokenizer)
        other.add_special_tokens({"extra_special_tokens": MARKS})
        if name != "own":
            other.chat_template = (files("trl") / "chat_templates" / f"{name}.jinja").read_text()
        adapt_template(other)
        return other

    return build


def of_trl(trainer, model, args, rows, tokenizer):
    config = LlamaConfig(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, num_labels=1, **SHAPE)
    return trainer(model=model(config), args=args, train_dataset=rows, processing_class=tokenizer).train_dataset


def columns(rows, *names):
    return [tuple(row[name] for name in names) for row in rows]


@pytest.mark.parametrize(
    ("template", "chats", "settings"),
    [
        ("own", [*PLAIN, MARKERS], {}),
        ("own", [*PLAIN, MARKERS], {"assistant_only_loss": False}),
        ("own", [*PLAIN, MARKERS], {"completion_only_loss": False}),
        ("qwen3", [*PLAIN, *CHATS.values(), THOUGHTS, MARKERS], {}),
        ("qwen3", [*PLAIN, *CHATS.values(), THOUGHTS], {"assistant_only_loss": False}),
        ("qwen3_5_think", [*PLAIN, *CHATS.values(), THOUGHTS], {}),
        ("llama3", [*PLAIN, THOUGHTS, MARKERS], {}),
        ("phi3", [*PLAIN, THOUGHTS, MARKERS], {}),
        ("gemma", [*PLAIN, CHATS["masked"], MARKERS], {}),
    ],
)
def test_conversations_are_encoded_as_trl_encodes_them(with_template, tmp_path, template, chats, settings):
    tokenizer = with_template(template)
    args = InstructConfig(output_dir=str(tmp_path), max_length=2_048, report_to=[], eval_strategy="no", **settings)
    if args.assistant_only_loss:
        mark_generation(tokenizer)
    data = DataArguments(dataset_name=str(write(tmp_path / "a.jsonl", chats)))
    train, _ = load_conversations(data, 0, tokenizer)
    own = encode_conversations(tokenizer, train, args, "train")
    assert own.column_names == [*train.column_names, "input_ids", "labels"] and len(own) > 15
    names = ("input_ids", "labels")
    expected = columns(of_trl(SFTTrainer, LlamaForCausalLM, args, train, tokenizer), *names)
    assert columns(own, *names) == expected
    stream = encode_conversations(tokenizer, train.to_iterable_dataset(), args, "train")
    assert columns(stream, *names) == expected
    args.dataset_kwargs = {"skip_prepare_dataset": True}
    assert columns(of_trl(SFTTrainer, LlamaForCausalLM, args, own, tokenizer), *names) == expected


@pytest.mark.parametrize(("template", "pairs"), [("own", PAIRS[:20]), ("qwen3", PAIRS), ("llama3", PAIRS[:22])])
def test_pairs_are_encoded_as_trl_encodes_them(with_template, tmp_path, template, pairs):
    tokenizer = with_template(template)
    args = RewardModelConfig(output_dir=str(tmp_path), max_length=2_048, report_to=[], eval_strategy="no")
    rows = [*pairs, {"prompt": "<|eos|>?", "chosen": "<|im_end|>", "rejected": "<|eos|>", "margin": 2}]
    train, _ = load_preferences(DataArguments(dataset_name=str(write(tmp_path / "a.jsonl", rows))), 0, tokenizer)
    own = encode_pairs(tokenizer, train, args, "train")
    names = ("chosen_ids", "rejected_ids", "margin")
    expected = columns(of_trl(RewardTrainer, LlamaForSequenceClassification, args, train, tokenizer), *names)
    assert columns(own, *names) == expected
    assert columns(encode_pairs(tokenizer, train.to_iterable_dataset(), args, "train"), *names) == expected
    assert columns(of_trl(RewardTrainer, LlamaForSequenceClassification, args, own, tokenizer), *names) == expected


def test_rows_that_are_too_long_or_teach_nothing(with_template, tmp_path, capsys):
    tokenizer = with_template("own")
    rows = [{"prompt": [user("q")], "completion": [assistant(text)]} for text in ("a", "b " * 50, "c")]
    args = InstructConfig(output_dir=str(tmp_path), max_length=20, report_to=[])
    kept = encode_conversations(tokenizer, Dataset.from_list(rows), args, "train")
    assert [row["completion"][0]["content"] for row in kept] == ["a", "c"]
    assert "train: 1 of 3 rows dropped, longer than 20 tokens" in capsys.readouterr().out
    args.overlong = "error"
    with pytest.raises(ValueError, match=r"train row 2 has 56 tokens, but at most 20 are allowed"):
        encode_conversations(tokenizer, Dataset.from_list(rows), args, "train")
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "{%- generation -%}", "{%- if false -%}{%- endif -%}"
    ).replace("{%- endgeneration -%}", "")
    with pytest.raises(ValueError, match="train row 1, .*: it marks nothing as the assistant's; take it out"):
        encode_conversations(tokenizer, Dataset.from_list(rows), args, "train")


def test_an_answer_that_the_prompt_has_begun(with_template, tmp_path, capsys):
    """The generation prompt opens thoughts that the answer has not: SFTTrainer warns, a row is learnt without them."""
    tokenizer = with_template("own")
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "{{- '<|assistant|>' -}}\n{%- endif", "{{- '<|assistant|>((' -}}\n{%- endif"
    )
    args = InstructConfig(output_dir=str(tmp_path), max_length=64, report_to=[])
    encode_conversations(
        tokenizer, Dataset.from_list([{"prompt": [user("q")], "completion": [assistant("a")]}]), args, "train"
    )
    assert json.dumps("((")[1:-1] in capsys.readouterr().out
