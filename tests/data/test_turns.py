"""Every key of a turn, and every column beside a conversation, against the conversation written out by hand."""

import json

import pytest

from fourstage.data.formats import (
    conversation_columns,
    conversation_row,
    preference_columns,
    preference_row,
    prompt_row,
)
from fourstage.data.turns import folded


def user(content, **keys):
    return {"role": "user", "content": content, **keys}


def assistant(content, **keys):
    return {"role": "assistant", "content": content, **keys}


def system(content):
    return {"role": "system", "content": content}


def tool(content, **keys):
    return {"role": "tool", "content": content, **keys}


CALL = {"type": "function", "function": {"name": "sky", "arguments": {"city": "Bonn"}}}
CALLS = json.dumps([CALL])
TOOL = {"type": "function", "function": {"name": "sky", "parameters": {"type": "object"}}}
TOOLS = json.dumps([TOOL])
TEXT = [{"type": "text", "text": "a"}, {"type": "text", "text": " b", "image": None}]


@pytest.mark.parametrize(
    "given, turn",
    [
        pytest.param(assistant("4", reasoning_content="t"), assistant("4", reasoning_content="t"), id="thoughts"),
        pytest.param(assistant("4", thinking="t"), assistant("4", reasoning_content="t"), id="thinking"),
        pytest.param(assistant("4", reasoning="t"), assistant("4", reasoning_content="t"), id="reasoning"),
        pytest.param(assistant("4", thought="t", thinking="t"), assistant("4", reasoning_content="t"), id="thought"),
        pytest.param(assistant("4", reasoning_content=" \n", tool_calls=[]), assistant("4"), id="empty keys"),
        pytest.param(assistant(None, tool_calls=[CALL]), assistant(None, tool_calls=CALLS), id="only a call"),
        pytest.param(assistant("", tool_calls=CALLS), assistant("", tool_calls=CALLS), id="calls as text"),
        pytest.param(assistant("x", tool_calls=CALL["function"]), assistant("x", tool_calls=CALLS), id="a bare call"),
        pytest.param(
            assistant(None, function_call=CALL["function"]), assistant(None, tool_calls=CALLS), id="OpenAI's old key"
        ),
        pytest.param(
            {"from": "function_call", "value": json.dumps(CALL["function"])},
            assistant(None, tool_calls=CALLS),
            id="ShareGPT's call",
        ),
        pytest.param(
            assistant("x", tool_calls=[{**CALL, "index": None, "function": {**CALL["function"], "strict": None}}]),
            assistant("x", tool_calls=CALLS),
            id="nulls that a table put there",
        ),
        pytest.param({"from": "human", "value": "q"}, user("q"), id="human"),
        pytest.param({"role": "human", "content": "q"}, user("q"), id="human as role"),
        pytest.param({"role": "developer", "content": "s"}, system("s"), id="developer"),
        pytest.param({"from": "observation", "value": "sun"}, tool("sun"), id="observation"),
        pytest.param(
            {"role": "function", "name": "sky", "content": "sun"}, tool("sun", name="sky"), id="OpenAI's old role"
        ),
        pytest.param(tool("sun", tool_call_id="7"), tool("sun", tool_call_id="7"), id="the call that is answered"),
        pytest.param(user(TEXT), user("a b"), id="text in parts"),
        pytest.param(user("q", id=3, timestamp="now", meta={"k": 1}, model="m"), user("q"), id="notes"),
        pytest.param(user("q", weight=0, value=None), user("q"), id="not learnt, as always"),
        pytest.param(assistant("x", refusal=None, annotations=[], audio=None), assistant("x"), id="OpenAI's nulls"),
    ],
)
def test_a_turn_keeps_what_it_says(given, turn):
    """As a turn before the last answer; and in prompts and pairs it is read by the same function."""
    row = conversation_row({"messages": [user("first"), given, assistant("last")]})
    assert [*row["prompt"], *row["completion"]][1:-1] == [turn]
    pair = preference_row({"prompt": [user("first"), given], "chosen": "a", "rejected": "b"})
    assert pair["prompt"][1:] == [turn]
    assert prompt_row({"prompt": [user("first"), given, user("q")]})["prompt"][1:-1] == [turn]


@pytest.mark.parametrize(
    "given, words",
    [
        (assistant("4", fancy=1), "the assistant's turn has the key 'fancy', which is not understood; remove it"),
        (user("4", images=["a.png"]), "the user's turn has the key 'images'"),
        (assistant("4", refusal="no"), "the key 'refusal'"),
        (assistant("4", mask=False), "the key 'mask'"),
        (assistant("4", reasoning_details=[{"text": "t"}]), "the key 'reasoning_details'"),
        (assistant("4", thinking="t", reasoning_content="u"), "reasoning_content and thinking, and they differ"),
        (assistant("4", thinking=True), "in 'thinking' holds bool, expected text"),
        (user("4", thinking="t"), "the key 'thinking', which only the assistant's may have"),
        (user("4", tool_calls=[CALL]), "the key 'tool_calls', which only the assistant's may have"),
        (assistant("", tool_calls="sky()"), "tool_calls is text that is not JSON; Expecting value at its character 1"),
        (assistant("", tool_calls=[{"function": {"arguments": "{}"}}]), "holds a call without a name; expected"),
        (assistant("", tool_calls=[3]), "holds a call without a name"),
        ({"from": "function_call", "value": "sky()"}, "function_call is text that is not JSON"),
        (user([{"type": "image_url", "image_url": {"url": "a"}}]), "a part of the type 'image_url'"),
        (user([{"type": "text", "text": "a", "cache_control": {"type": "x"}}]), "'text' with 'cache_control'"),
        (user([{"type": "audio"}, {"type": "text", "text": "a"}]), "a part of the type 'audio'"),
        (tool({"sky": "sun"}), "the tool's turn holds dict, expected text"),
        ({"role": "user", "from": "gpt", "content": "a"}, "role and from, and they differ; keep one"),
        (user("a", value="b"), "content and value, and they differ; keep one"),
        ({"role": ["user"], "content": "a"}, "role ['user'] is unknown"),
        (user("a", train=True), "the user's turn has 'train' True; only the assistant's are learnt"),
        (assistant("a", weight=0.5), "a turn has 'weight' 0.5; it must be 0 or 1"),
        (assistant("a", loss="no"), "a turn has 'loss' 'no'"),
    ],
)
def test_what_is_not_understood_is_named(given, words):
    with pytest.raises(ValueError) as error:
        conversation_row({"messages": [user("first"), given, assistant("last")]})
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("key", ["weight", "train", "loss"])
def test_marks_say_where_the_loss_begins(key):
    def turns(*marks):
        answers = [assistant(f"a{i}", **({} if mark is None else {key: mark})) for i, mark in enumerate(marks)]
        return {"messages": [turn for answer in answers for turn in (user("q", **{key: 0}), answer)]}

    def learnt(*marks):
        return [turn["content"] for turn in conversation_row(turns(*marks))["completion"] if turn["role"] != "user"]

    assert learnt(1, 1.0) == learnt(None, True) == learnt(None, None) == ["a0", "a1"]
    assert learnt(0, 1) == learnt(False, None) == ["a1"]
    assert conversation_row(turns(0, False)) == "without an answer that is marked to be learnt"
    with pytest.raises(ValueError, match="turn 4 is marked as not to be learnt, after one that is"):
        conversation_row(turns(1, 0))
    asked = {"prompt": [user("p")], "completion": turns(0, 1)["messages"]}
    row = conversation_row(asked)
    assert [turn["content"] for turn in row["prompt"]] == ["p", "q", "a0", "q"]
    assert row["completion"] == [assistant("a1")]
    plain = [user("q"), assistant("a")]
    assert conversation_row({"prompt": [], "completion": plain}) == {"prompt": [], "completion": plain}
    for where in ({"prompt": turns(1)["messages"] + [user("q")]}, {"prompt": "q", "history": turns(1)["messages"]}):
        with pytest.raises(ValueError, match="is marked as one to learn, and none there is"):
            conversation_row({**where, "completion": "a"})
    with pytest.raises(ValueError, match="last turn of chosen is marked as not to be learnt"):
        preference_row({"prompt": "q", "chosen": [assistant("a", **{key: 0})], "rejected": "b"})


HISTORY = [["Hi", "Salut"]]
OPENED = [system("S"), user("Hi"), assistant("Salut"), user("q")]


@pytest.mark.parametrize(
    "columns, prompt",
    [
        pytest.param({"system": "S"}, [system("S"), user("q")], id="system"),
        pytest.param({"system_prompt": "S"}, [system("S"), user("q")], id="system_prompt"),
        pytest.param({"system": "S", "system_prompt": "S"}, [system("S"), user("q")], id="twice the same"),
        pytest.param({"system": " ", "history": [], "system_prompt": None}, [user("q")], id="empty"),
        pytest.param({"history": HISTORY}, OPENED[1:], id="history"),
        pytest.param({"system": "S", "history": HISTORY}, OPENED, id="both"),
        pytest.param({"system": "S", "history": OPENED[1:3]}, OPENED, id="history as turns"),
        pytest.param({"history": OPENED[:3]}, OPENED, id="history that begins with the system"),
    ],
)
def test_system_and_history_come_before_what_is_asked(columns, prompt):
    for question in ({"question": "q"}, {"prompt": "q"}, {"prompt": [user("q")]}, {"instruction": "q", "input": ""}):
        answer = {"prompt": "completion", "instruction": "output", "question": "answer"}[next(iter(question))]
        assert conversation_row({**columns, **question, answer: "a"})["prompt"] == prompt
        assert preference_row({**columns, **question, "chosen": "a", "rejected": "b"})["prompt"] == prompt
        assert prompt_row({**columns, **question})["prompt"] == prompt
    chats = [[user("q"), assistant(text)] for text in "ab"]
    for row in ({"messages": chats[0]}, {"conversations": chats[0]}):
        assert conversation_row({**columns, **row})["prompt"] == prompt_row({**columns, **row})["prompt"] == prompt
    for row in (
        {"chosen": chats[0], "rejected": chats[1]},
        {"messages": chats[0], "rejected_messages": chats[1], "chosen": None, "rejected": None},
        {"messages": chats[0], "rejected_response": "b"},
        {"conversations": chats[0][:1], "chosen": chats[0][1], "rejected": chats[1][1]},
    ):
        pair = preference_row({**columns, **row})
        assert (pair["prompt"], pair["chosen"], pair["rejected"]) == (prompt, [assistant("a")], [assistant("b")])
        assert prompt_row({**columns, **row})["prompt"] == prompt


@pytest.mark.parametrize(
    "columns, words",
    [
        ({"system": "S", "system_prompt": "T"}, "system and system_prompt hold different system texts"),
        ({"system": "S", "prompt": [system("T"), user("q")]}, "system and the first turn hold different"),
        ({"system": ["S"]}, "column 'system' holds list, expected text"),
        ({"history": "Hi"}, "column 'history' holds str, expected a list of turns or pairs"),
        ({"history": [["Hi"]]}, "something else than turns or pairs"),
        ({"history": [["Hi", None]]}, "something else than turns or pairs"),
        ({"history": [{"query": "a"}]}, "role None is unknown"),
        ({"images": ["a.png"]}, "column 'images' holds something; only text can be learnt"),
        ({"tools": "sky"}, "column 'tools' is text that is not JSON"),
        ({"tools": {"name": "sky"}}, "column 'tools' must be a list of tools"),
        ({"tools": [TOOL], "functions": [TOOL]}, "both hold tools; keep one"),
        ({"chat_template_kwargs": "on"}, "column 'chat_template_kwargs' is text that is not JSON"),
        ({"chat_template_kwargs": [1]}, "must hold settings of the chat template by name, got [1]"),
        ({"chat_template_kwargs": {"tools": [TOOL]}}, "by name, got ['tools']"),
        ({"chat_template_kwargs": {"max_length": 9, "truncation": True}}, "got ['max_length', 'truncation']"),
    ],
)
def test_columns_beside_a_conversation_that_are_not_understood(columns, words):
    for convert in (conversation_row, preference_row, prompt_row):
        with pytest.raises(ValueError) as error:
            convert({"prompt": "q", "completion": "a", "chosen": "a", "rejected": "b", **columns})
        assert words in str(error.value) and "\n" not in str(error.value)


def test_tools_and_settings_of_the_template():
    asked = {"prompt": "q", "completion": "a", "chosen": "a", "rejected": "b"}
    options = {"enable_thinking": False}
    beside = {"tools": TOOLS, "chat_template_kwargs": options}
    for tools in (TOOLS, [TOOL], [TOOL["function"]], json.dumps([TOOL["function"]]), [{**TOOL, "strict": None}]):
        row = {**asked, "tools": tools, "chat_template_kwargs": {**options, "other": None}}
        assert beside.items() <= conversation_row(row).items() and beside.items() <= preference_row(row).items()
    assert conversation_row({**asked, "functions": [TOOL["function"]]})["tools"] == TOOLS
    assert conversation_row({**asked, "tools": '[{"type": "function"}]'})["tools"] == '[{"type": "function"}]'
    empty = {"tools": None, "functions": "[]", "chat_template_kwargs": {"a": None}, "images": []}
    assert conversation_row({**asked, **empty}) == conversation_row(asked)
    assert prompt_row({"prompt": "q", **empty, "n": 1}) == {"prompt": [user("q")], "n": 1}
    for column, value in (("tools", TOOLS), ("functions", [TOOL]), ("chat_template_kwargs", options)):
        with pytest.raises(ValueError, match="a rollout asks every prompt without; remove the column"):
            prompt_row({"prompt": "q", column: value})


def test_answers_that_only_call_a_tool_are_answers():
    calls = assistant(None, tool_calls=CALLS)
    assert conversation_row({"messages": [user("q"), calls]})["completion"] == [calls]
    assert conversation_row({"messages": [user("q"), assistant("", reasoning_content="t")]}) is None
    assert preference_row({"prompt": "q", "chosen": [calls], "rejected": "b"})["chosen"] == [calls]
    with pytest.raises(ValueError, match="the prompt ends with the assistant's turn"):
        prompt_row({"prompt": [user("q"), calls]})


def test_the_columns_that_a_row_is_read_from():
    def unused(columns, row):
        return set(row) - set(columns(row))

    pair = {"prompt": "q", "chosen": "a", "rejected": "b"}
    assert unused(conversation_columns, {"messages": [], "prompt": "q", "id": 1, "system": "S"}) == {"prompt", "id"}
    assert unused(conversation_columns, {"prompt": "q", "completion": "a", "input": "x"}) == {"input"}
    assert unused(conversation_columns, {"instruction": "q", "output": "a", "input": "x", "label": 0}) == {"label"}
    assert unused(preference_columns, {**pair, "messages": [], "kind": "k", "score": 1}) == {"messages", "score"}
    assert unused(preference_columns, {"messages": [], "rejected_messages": [1], "margin": 1}) == set()
    assert conversation_columns({"text": "a"}) is None and preference_columns({"prompt": "q"}) is None


def test_the_systems_text_goes_into_the_next_turn_of_the_user():
    assert folded([[system("S"), user("a"), assistant("b")]]) == [[user("S\n\na"), assistant("b")]]
    assert folded([[system("S")], [user("a"), assistant("b")]]) == [[], [user("S\n\na"), assistant("b")]]
    assert folded([[system("S"), system("T"), user("a"), system("U"), user("b")]]) == [
        [user("S\n\nT\n\na"), user("U\n\nb")]
    ]
    with pytest.raises(ValueError, match="no turn of the user follows the system's"):
        folded([[user("a"), system("S"), assistant("b")]])
