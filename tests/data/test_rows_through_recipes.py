"""Rows with more than a role and a text, through TRL's own preparation and through the recipes."""

import json
import sys
from importlib.resources import files

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import RewardTrainer, SFTTrainer

from fourstage.arguments import DataArguments, InstructConfig, ModelArguments, RewardModelConfig
from fourstage.data.lengths import pair_ids
from fourstage.data.loading import load_conversations, load_preferences
from fourstage.models.loading import load_reward_model, load_tokenizer
from fourstage.models.tokenizer import mark_generation
from tests.helpers import RECIPES, SMALL_RUN, TINY, record_of, run_here, run_program, write_texts

CALL = {"type": "function", "function": {"name": "sky", "arguments": {"city": "Bonn"}}}
TOOL = {"type": "function", "function": {"name": "sky", "description": "Looks up.", "parameters": {"type": "object"}}}


def user(content):
    return {"role": "user", "content": content}


def assistant(content, **keys):
    return {"role": "assistant", "content": content, **keys}


SYSTEM = {"role": "system", "content": "Be brief."}
PLAIN = [{"messages": [user(f"q{i}"), assistant(f"r{i}")]} for i in range(20)]
SUN = {"role": "tool", "content": "sun"}
CHATS = {
    "thoughts": {"messages": [user("2+2?"), assistant("4", thinking="two and two")]},
    "tools": {
        "tools": json.dumps([TOOL]),
        "messages": [user("Sky?"), assistant(None, tool_calls=[CALL]), SUN, assistant("Fine.")],
    },
    "settings": {"prompt": "Quick?", "completion": "Yes.", "chat_template_kwargs": {"enable_thinking": False}},
    "alpaca": {"system": "French.", "instruction": "And you?", "output": "Bien.", "history": [["Hi", "Salut"]]},
    "parts": {"messages": [user([{"type": "text", "text": text} for text in ("par", "ts?")]), assistant("whole")]},
    "masked": {"messages": [user("a"), assistant("old", weight=0), user("b"), assistant("new", weight=1)]},
}


PAIRS = [{"prompt": f"q{i}", "chosen": "good", "rejected": "bad"} for i in range(20)]
PAIRS += [
    {"system": "Pirate.", "question": "Hi", "chosen": "Arr", "rejected": "Hello"},
    {"messages": [user("2+2?"), assistant("4", thinking="two")], "rejected_response": "5"},
    {"tools": [TOOL], "prompt": "Sky?", "chosen": [assistant(None, tool_calls=[CALL])], "rejected": "No."},
]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """A folder with bases of 43,000 parameters and the chat templates of Qwen3 and Gemma."""
    folder = tmp_path_factory.mktemp("bases")
    texts = write_texts(folder / "texts.jsonl")
    quick = [*TINY, "--max_length=1024", "--max_steps=1", "--eval_strategy=no", "--report_to=none"]
    run_here("pretrain", "--dataset_name", texts, *quick, "--output_dir", folder / "own")
    for name, marks in (("qwen3", ["<|im_start|>", "<|im_end|>"]), ("gemma", ["<start_of_turn>", "<end_of_turn>"])):
        model, tokenizer = (kind.from_pretrained(folder / "own") for kind in (AutoModelForCausalLM, AutoTokenizer))
        tokenizer.add_special_tokens({"extra_special_tokens": marks})
        tokenizer.chat_template = (files("trl") / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")
        model.resize_token_embeddings(len(tokenizer))
        for part in (model, tokenizer):
            part.save_pretrained(folder / name)
    return folder


def prepared(bases, tmp_path, rows, load, trainer, config, column):
    """(tokenizer, rows as we load them, ids that TRL's trainer makes of them), as the recipe of the stage does it."""
    arguments = ModelArguments(model_name_or_path=str(bases / "qwen3"))
    tokenizer, _ = load_tokenizer(arguments, chats=True)
    if trainer is SFTTrainer:
        mark_generation(tokenizer)
    train, test = load(DataArguments(dataset_name=str(write(tmp_path / "a.jsonl", rows))), 0, tokenizer)
    model = load_reward_model(arguments, tokenizer) if trainer is RewardTrainer else str(bases / "qwen3")
    args = config(output_dir=str(tmp_path / "run"), max_length=4_096, report_to=[], eval_strategy="no")
    data = trainer(model=model, args=args, train_dataset=train, eval_dataset=test, processing_class=tokenizer)
    return tokenizer, [*train, *test], [row[column] for part in (data.train_dataset, data.eval_dataset) for row in part]


@pytest.mark.slow
def test_trl_reads_every_field_of_a_conversation(bases, tmp_path):
    given = (bases, tmp_path, [*PLAIN, *CHATS.values()])
    tokenizer, rows, ids = prepared(*given, load_conversations, SFTTrainer, InstructConfig, "input_ids")
    assert len(ids) == len(rows)
    texts = [tokenizer.decode(row) for row in ids]
    wanted = {
        "<think>\ntwo and two\n</think>\n\n4": 1,
        '{"name": "sky", "arguments": {"city": "Bonn"}}': 1,
        '"description": "Looks up."': 1,
        "<tool_response>\nsun\n</tool_response>": 1,
        "<|im_start|>system\nFrench.<|im_end|>\n<|im_start|>user\nHi<|im_end|>": 1,
        "<|im_start|>user\nparts?<|im_end|>": 1,
    }
    found = {piece: sum(piece in text for text in texts) for piece in wanted}
    assert found == wanted


@pytest.mark.slow
def test_trl_reads_every_field_of_a_pair(bases, tmp_path):
    given = (bases, tmp_path, PAIRS)
    tokenizer, rows, ids = prepared(*given, load_preferences, RewardTrainer, RewardModelConfig, "chosen_ids")
    batch = {key: [row[key] for row in rows] for key in rows[0]}
    assert ids == [pair["chosen_ids"] for pair in pair_ids(tokenizer, batch)]
    text = "".join(map(tokenizer.decode, ids))
    for piece in ("system\nPirate.<|im_end|>", "<think>\ntwo\n</think>\n\n4", "Looks up.", '{"city": "Bonn"}'):
        assert text.count(piece) == 1, piece


ROWS = {
    "sft": (
        PLAIN,
        {"messages": [SYSTEM, user("q"), assistant("a")]},
        {"messages": [user("q"), user("r"), assistant("a")]},
    ),
    "reward": (
        PAIRS[:20],
        {"system": "Be brief.", "prompt": "q", "chosen": "good", "rejected": "bad"},
        {"prompt": [user("q"), user("r")], "chosen": "good", "rejected": "bad"},
    ),
    "ppo": (
        [{"prompt": f"q{i}"} for i in range(40)],
        {"system_prompt": "Be brief.", "prompt": "q"},
        {"prompt": "q", "tools": [TOOL]},
    ),
    "grpo": (
        [{"question": f"q{i}", "answer": "1"} for i in range(40)],
        {"system": "Be brief.", "question": "q", "answer": "1"},
        {"question": "q", "answer": "1", "history": "Hi"},
    ),
}
FLAGS = {
    "ppo": ["--reward_funcs=number", "--max_completion_length=8"],
    "grpo": ["--reward_funcs=number", "--max_completion_length=8", "--num_generations=4"],
}


@pytest.mark.slow
@pytest.mark.parametrize("stage", ROWS)
def test_what_a_recipe_does_with_rows_that_it_cannot_read(bases, tmp_path, stage):
    good, system, unreadable = ROWS[stage]
    if stage == "ppo":  # `number` wants an answer
        good, system, unreadable = (
            [r | {"answer": "1"} for r in good],
            system | {"answer": "1"},
            unreadable | {"answer": "1"},
        )
    data = write(tmp_path / "rows.jsonl", [*good, system, unreadable])
    run = [
        RECIPES / f"{stage}.py",
        "--model_name_or_path",
        bases / "gemma",
        "--dataset_name",
        data,
        *SMALL_RUN,
        *FLAGS.get(stage, []),
    ]
    first = len(good) + 1
    refused = run_program(sys.executable, *run, "--output_dir", tmp_path / "a", ok=False)
    assert refused.returncode == 2 and refused.stderr.count("error: ") == 1
    assert f"rows.jsonl row {first}: the chat template refuses it: System role not supported; fold" in refused.stderr
    refused = run_program(sys.executable, *run, "--fold_system", "--output_dir", tmp_path / "b", ok=False)
    assert f"rows.jsonl row {first + 1}: " in refused.stderr and "Traceback" not in refused.stderr
    dropped = run_program(sys.executable, *run, "--unreadable=drop", "--output_dir", tmp_path / "c")
    assert f"rows.jsonl: 2 of {first + 1} rows are unreadable and left out: 1 " in dropped.stdout
    record = record_of(tmp_path / "c")
    assert record["status"] == "finished" and record["arguments"]["data"]["unreadable"] == "drop"


@pytest.mark.slow
@pytest.mark.parametrize("stage, rows", [("sft", [*PLAIN, *CHATS.values()]), ("reward", PAIRS)])
def test_a_run_on_rich_rows_and_its_measure(bases, tmp_path, stage, rows):
    data, out = write(tmp_path / "rows.jsonl", rows), tmp_path / "run"
    flags = ["--test_split_size=0.5", "--max_length=1024", *SMALL_RUN]
    run_here(stage, "--model_name_or_path", bases / "qwen3", "--dataset_name", data, *flags, "--output_dir", out)
    assert record_of(out)["status"] == "finished"
    done = run_program(sys.executable, RECIPES / "measure.py", out, "--max_new_tokens=4")
    assert " held out" in done.stdout
    every = run_program(sys.executable, RECIPES / "measure.py", out, "--max_new_tokens=4", "--dataset_name", data)
    assert stage == "reward" or "2 of 26 rows need tools or settings of the template and are not asked" in every.stdout
    assert json.loads((out / "evaluation.json").read_text())["rows"] == (23 if stage == "reward" else 24)
