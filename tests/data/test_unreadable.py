"""Rows that cannot be read: refused with their number, or left out and counted; and rows with more keys than others."""

import copy
import json
from importlib.resources import files
from types import SimpleNamespace

import pytest

from fourstage import verifiers
from fourstage.arguments import DataArguments
from fourstage.data import as_written
from fourstage.data.lengths import pair_tokens
from fourstage.data.loading import (
    held_out_rows,
    load_conversations,
    load_preferences,
    load_problems,
    load_prompts,
    load_texts,
)
from fourstage.models.encoding import conversation_ids


def user(content):
    return {"role": "user", "content": content}


def assistant(content, **keys):
    return {"role": "assistant", "content": content, **keys}


SYSTEM = {"role": "system", "content": "Be brief."}
CHATS = [{"messages": [user(f"q{i}"), assistant(f"a{i}")]} for i in range(30)]
TOOLS = json.dumps([{"type": "function", "function": {"name": "sky", "parameters": {"type": "object"}}}])
CALLS = json.dumps([{"type": "function", "function": {"name": "sky", "arguments": {"city": "Bonn"}}}])


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def problems(args, seed, tokenizer=None):
    settings = SimpleNamespace(unverifiable="error", system_prompt=None)
    return load_problems(args, seed, [verifiers.number], settings, tokenizer)


# A good row of each stage, and one that cannot be read with the reason.
STAGES = {
    "pretrain": (load_texts, {"text": "a {}"}, {"text": 5}, "column 'text' holds int, expected text"),
    "sft": (load_conversations, CHATS[0], {"messages": [{"role": "alien"}]}, "role 'alien' is unknown"),
    "reward": (
        load_preferences,
        {"prompt": "q {}", "chosen": "a", "rejected": "b"},
        {"prompt": "q", "chosen": "a", "rejected": "b", "margin": "big"},
        "column 'margin' holds a wrong value, expected a number: by how much chosen is better",
    ),
    "ppo": (
        load_prompts,
        {"prompt": "q {}"},
        {"prompt": [assistant("a")]},
        "the prompt ends with the assistant's turn",
    ),
    "grpo": (
        problems,
        {"question": "q {}", "answer": "4"},
        {"question": "q", "answer": "4", "tools": TOOLS},
        "the row has tools, and a rollout asks every prompt without",
    ),
}


def numbered(row, number):
    return json.loads(json.dumps(row).replace("{}", str(number)).replace("q0", f"q{number}"))


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("stage", STAGES)
def test_single_rows_are_refused_or_left_out_in_every_stage(tmp_path, capsys, stage, streaming):
    load, good, bad, reason = STAGES[stage]
    rows = [numbered(good, i) for i in range(20)]
    name = write(tmp_path / "a.jsonl", [*rows[:7], bad, *rows[7:], bad])
    args = {"dataset_name": name, "test_split_size": 0.3, "dataset_streaming": streaming}
    with pytest.raises(ValueError, match=r"a\.jsonl row 8: ") as error:
        load(DataArguments(**args), 0)
    assert "\n" not in str(error.value) and "; " in str(error.value)
    train, test = load(DataArguments(**args, unreadable="drop"), 0)
    assert len(list(train)) + len(test) == 20
    total = "the first 22" if streaming else "22"
    said = capsys.readouterr().out
    assert f"a.jsonl: 2 of {total} rows are unreadable and left out: 2 {reason} (first: row 8)\n" in said
    name = write(tmp_path / "b.jsonl", [bad, bad])
    with pytest.raises(ValueError, match=r"b\.jsonl: all rows are unreadable: 2 .* \(first: row 1\), so there is"):
        load(DataArguments(dataset_name=name, unreadable="drop", dataset_streaming=streaming), 0)


def test_reasons_are_grouped_and_the_commonest_come_first(tmp_path, capsys):
    bad = [{"messages": [{"role": role, "content": "a"}]} for role in ("alien", "robot", "alien", *"abcd")]
    name = write(tmp_path / "a.jsonl", [*CHATS, *bad])
    load_conversations(DataArguments(dataset_name=name, unreadable="drop"), 0)
    said = capsys.readouterr().out
    assert "a.jsonl: 7 of 37 rows are unreadable and left out: 2 role 'alien' is unknown (first: row 31), 1 " in said
    assert said.rstrip().endswith("and 1 more reasons")
    with pytest.raises(ValueError, match="unreadable='skip' must be error or drop"):
        DataArguments(unreadable="skip")


def test_a_wrong_gold_is_a_matter_of_unverifiable(tmp_path):
    rows = [{"question": f"q{i}", "answer": "4" if i < 19 else "four or so"} for i in range(20)]
    name = write(tmp_path / "a.jsonl", rows)
    with pytest.raises(ValueError, match=r"row 20: the right answer .*--unverifiable drop"):
        problems(DataArguments(dataset_name=name, unreadable="drop"), 0)


# Chat templates


@pytest.fixture(scope="module")
def gemma(tokenizer):
    template = (files("trl") / "chat_templates" / "gemma.jinja").read_text(encoding="utf-8")
    other = copy.deepcopy(tokenizer)
    other.chat_template = template
    return other


ALTERNATE = [user("a"), user("b"), assistant("c")]
REFUSED = {
    "system": ({"messages": [SYSTEM, user("q"), assistant("a")]}, "System role not supported; fold the system text"),
    "system column": ({"system": "Be brief.", "question": "q", "answer": "a"}, "System role not supported"),
    "order": ({"messages": ALTERNATE}, "Conversation roles must alternate"),
    "both, which folding does not mend": ({"messages": [SYSTEM, *ALTERNATE]}, "System role not supported; leave"),
    "order in a prompt": ({"prompt": ALTERNATE[:2], "completion": "c"}, "must alternate"),
}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("case", REFUSED)
def test_a_row_that_the_template_refuses_has_its_number(tmp_path, capsys, gemma, case, streaming):
    row, words = REFUSED[case]
    name = write(tmp_path / "chats.jsonl", [*CHATS, row])
    args = {"dataset_name": name, "dataset_streaming": streaming, "test_split_size": 0.3}
    with pytest.raises(ValueError) as error:
        load_conversations(DataArguments(**args), 0, gemma)
    message = str(error.value)
    assert message.startswith(f"{name} row 31: the chat template refuses it: ") and words in message
    assert message.endswith("leave such rows out with --unreadable drop") and "\n" not in message
    assert ("--fold_system" in message) is ("system" in case)
    train, test = load_conversations(DataArguments(**args, unreadable="drop"), 0, gemma)
    assert len(list(train)) + len(test) == 30 and "1 the chat template refuses it: " in capsys.readouterr().out
    load_conversations(DataArguments(**args), 0)  # without a tokenizer no template is asked


def test_pairs_prompts_and_problems_are_asked_too(tmp_path, gemma):
    pairs = [{"prompt": f"q{i}", "chosen": "a", "rejected": "b"} for i in range(9)]
    late = {"prompt": [user("q")], "chosen": "a", "rejected": [assistant("x"), assistant("y")]}
    with pytest.raises(ValueError, match="row 10: the chat template refuses it: Conversation roles must alternate"):
        load_preferences(DataArguments(dataset_name=write(tmp_path / "a.jsonl", [*pairs, late])), 0, gemma)
    asked = write(tmp_path / "b.jsonl", [*pairs, {"prompt": [SYSTEM, user("q")]}])
    with pytest.raises(ValueError, match="row 10: the chat template refuses it: System role not supported; fold"):
        load_prompts(DataArguments(dataset_name=asked), 0, gemma)
    train, test = load_prompts(DataArguments(dataset_name=asked, fold_system=True), 0, gemma)
    assert [user("Be brief.\n\nq")] in [row["prompt"] for row in (*train, *test)]
    settings = SimpleNamespace(unverifiable="error", system_prompt="Think.")
    args = {"dataset_name": write(tmp_path / "c.jsonl", [{"question": f"q{i}", "answer": "4"} for i in range(9)])}
    with pytest.raises(ValueError, match="row 1: the chat template refuses it: System role"):
        load_problems(DataArguments(**args), 0, [verifiers.number], settings, gemma)
    train, _ = load_problems(DataArguments(**args, fold_system=True), 0, [verifiers.number], settings, gemma)
    assert train[0]["prompt"][0]["content"].startswith("Think.\n\nq")


def test_what_a_run_held_out_is_read_with_its_settings(tmp_path, gemma):
    rows = [{"messages": [SYSTEM, *chat["messages"]]} for chat in CHATS]
    args = DataArguments(dataset_name=write(tmp_path / "a.jsonl", [*rows, {"messages": ALTERNATE}]))
    args.fold_system, args.unreadable = True, "drop"
    _, test = load_conversations(args, 0, gemma)
    assert list(held_out_rows("sft", None, args, 0, tokenizer=gemma)) == list(test)
    name = write(tmp_path / "b.jsonl", [*rows[:3], {"messages": ALTERNATE}])
    others = held_out_rows("sft", name, args, 0, None, gemma)
    assert [row["prompt"] for row in others] == [[user(f"Be brief.\n\nq{i}")] for i in range(3)]


# Keys and columns that only some rows have

SUNNY = {"role": "tool", "content": "sunny"}
RICH = {
    "reasoning_content": {"messages": [user("q"), assistant("a", thinking="t")]},
    "tool_calls": {"messages": [user("q"), assistant(None, tool_calls=CALLS), SUNNY, assistant("a")]},
    "name": {"messages": [{"role": "user", "content": "q", "name": "Ada"}, assistant("a")]},
    "tools": {**CHATS[0], "tools": [{"name": "sky"}]},
    "chat_template_kwargs": {**CHATS[0], "chat_template_kwargs": {"enable_thinking": False}},
}


def plain(row):
    """A row without keys and columns that hold nothing."""
    if isinstance(row, dict):
        return {key: plain(value) for key, value in row.items() if value not in (None, {})}
    return [plain(part) for part in row] if isinstance(row, list) else row


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("key", RICH)
def test_a_key_is_there_if_one_row_has_it_and_moves_no_row(tmp_path, key, streaming):
    args = {"dataset_streaming": streaming, "test_split_size": 0.3}
    before = load_conversations(DataArguments(dataset_name=write(tmp_path / "a.jsonl", CHATS), **args), 0)
    features = before[0].features
    rich = write(tmp_path / "b.jsonl", [*CHATS, RICH[key]])
    after = load_conversations(DataArguments(dataset_name=rich, **args), 0)
    after, before = ([[json.dumps(plain(row)) for row in part] for part in both] for both in (after, before))
    (extra,) = [row for row in after[0] + after[1] if key in row]
    assert sorted(after[0] + after[1]) == sorted([*before[0], *before[1], extra])
    held_out, former = set(after[1]) - {extra}, set(before[1])  # of one ranking, so one set holds the other
    assert held_out == former or (not streaming and (held_out < former or former < held_out))
    nothing = {**CHATS[1], key: None, "messages": [{**turn, key: None} for turn in CHATS[1]["messages"]]}
    empty = DataArguments(dataset_name=write(tmp_path / "c.jsonl", [*CHATS, nothing]), **args)
    train, test = load_conversations(empty, 0)
    if not streaming:
        assert train.features == test.features == features


def test_pairs_and_prompts_keep_keys_too(tmp_path):
    pairs = [{"prompt": f"q{i}", "chosen": "a", "rejected": "b"} for i in range(9)]
    rich = {"prompt": "q", "chosen": [assistant("a", thinking="t")], "rejected": "b", "tools": TOOLS}
    train, test = load_preferences(DataArguments(dataset_name=write(tmp_path / "a.jsonl", [*pairs, rich])), 0)
    (row,) = [row for row in (*train, *test) if row["tools"]]
    assert row["chosen"][0]["reasoning_content"] == "t" and row["rejected"][0]["reasoning_content"] is None
    said = {"prompt": [user("q"), assistant("a", thinking="t"), user("r")], "n": 1, "tools": None}
    train, test = load_prompts(DataArguments(dataset_name=write(tmp_path / "b.jsonl", [*pairs, said])), 0)
    assert train.column_names == ["prompt", "n"]
    assert any(turn["reasoning_content"] == "t" for row in (*train, *test) for turn in row["prompt"])


def test_sources_with_unlike_keys_mix(tmp_path):
    names = [write(tmp_path / f"{key}.jsonl", [*CHATS, RICH[key]]) for key in RICH]
    names.append(write(tmp_path / "plain.jsonl", CHATS))
    for streaming in (False, True):
        entries = [{"dataset_name": name} for name in names]
        args = DataArguments(datasets=entries, test_split_size=0.3, dataset_streaming=streaming)
        train, test = load_conversations(args, 0)
        assert {"tools", "chat_template_kwargs"} < set(train.column_names) and train.features == test.features
        assert all(row["chat_template_kwargs"] is not None for row in train)


def test_a_later_row_of_a_stream_with_a_new_key_is_unreadable(tmp_path, capsys, monkeypatch):
    rows = [{"messages": [user(f"q{i}"), assistant("a")]} for i in range(1_200)]
    late = {"messages": [user("q"), assistant("a", thinking="t")]}
    args = {"dataset_name": write(tmp_path / "a.jsonl", [*rows, late]), "dataset_streaming": True}
    with pytest.raises(ValueError, match=r"row 1201: the row has 'reasoning_content', which the first 1,000 rows"):
        list(load_conversations(DataArguments(**args), 0)[0])
    # Where rows may be left out, the types are those of the first 10 MB, and the row is read; here of less.
    train, test = load_conversations(DataArguments(**args, unreadable="drop"), 0)
    assert len([*train, *test]) == 1_201
    monkeypatch.setattr(as_written, "SAMPLED", 20_000)
    train, test = load_conversations(DataArguments(**args, unreadable="drop"), 0)
    capsys.readouterr()
    assert len(list(train)) + len(test) == 1_200
    assert capsys.readouterr().out.count("a.jsonl row 1201 is unreadable and left out: column 'messages'") == 1


@pytest.mark.parametrize("streaming", [False, True])
def test_unused_columns_are_named_once(tmp_path, capsys, streaming):
    rows = [{**chat, "id": i, "source": "x", "margin": None} for i, chat in enumerate(CHATS)]
    args = {"dataset_name": write(tmp_path / "a.jsonl", rows), "dataset_streaming": streaming, "test_split_size": 0.3}
    load_conversations(DataArguments(**args), 0)
    assert capsys.readouterr().out.count("a.jsonl: columns id, source are not used\n") == 1
    load_prompts(DataArguments(**args), 0)
    assert "not used" not in capsys.readouterr().out  # they go to the rewards
    write(tmp_path / "a.jsonl", [{"prompt": f"q{i}", "input": "x"} for i in range(9)])
    load_prompts(DataArguments(**args), 0)
    assert "a.jsonl: column input is not used\n" in capsys.readouterr().out


def test_tokens_are_counted_with_tools_and_settings(tokenizer):
    """Against the template's own text: one that writes the tools, and a sign where thinking is off."""
    other = copy.deepcopy(tokenizer)
    other.chat_template = "{{ tools | tojson if tools }}{{ '!!!' if enable_thinking is false }}{{ messages | length }}"
    row = {"prompt": [user("q")], "completion": [assistant("a")], "chosen": [assistant("a")], "rejected": []}
    bare = len(conversation_ids(other, row["prompt"] + row["completion"]))
    rich = {**row, "tools": TOOLS, "chat_template_kwargs": {"enable_thinking": False}}
    expected = len(other(TOOLS + "!!!2", add_special_tokens=False)["input_ids"])
    rows = [{"tools": None, "chat_template_kwargs": {}, **each} for each in (row, rich, row)]
    batch = {key: [each[key] for each in rows] for key in rows[0]}
    assert pair_tokens(other, batch) == [bare, expected, bare] and expected > bare
