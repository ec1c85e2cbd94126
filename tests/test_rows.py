"""Every row format against the conversation written out by hand."""

import pytest

from fourstage.rows import conversation_row, text_row


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


def system(content):
    return {"role": "system", "content": content}


@pytest.mark.parametrize(
    "row, prompt, completion",
    [
        pytest.param({"messages": [user("a"), assistant("b")]}, [user("a")], [assistant("b")], id="messages"),
        pytest.param(
            {"messages": [system("s"), user("a"), assistant("b"), user("c"), assistant("d")]},
            [system("s"), user("a")],
            [assistant("b"), user("c"), assistant("d")],
            id="messages, several turns",
        ),
        pytest.param(
            {
                "conversations": [
                    {"from": "system", "value": "s"},
                    {"from": "human", "value": "a"},
                    {"from": "gpt", "value": "b"},
                ]
            },
            [system("s"), user("a")],
            [assistant("b")],
            id="ShareGPT",
        ),
        pytest.param(
            {"conversations": [{"from": "user", "value": "a"}, {"from": "assistant", "value": "b"}]},
            [user("a")],
            [assistant("b")],
            id="ShareGPT with the usual roles",
        ),
        pytest.param(
            {"conversations": [user("a"), assistant("b")]}, [user("a")], [assistant("b")], id="roles as conversations"
        ),
        pytest.param({"prompt": "a", "completion": "b"}, [user("a")], [assistant("b")], id="prompt, completion"),
        pytest.param(
            {"prompt": [user("a"), assistant("b"), user("c")], "completion": [assistant("d")]},
            [user("a"), assistant("b"), user("c")],
            [assistant("d")],
            id="prompt with an assistant's turn",
        ),
        pytest.param(
            {"instruction": "Add.", "input": "1 2", "output": "3"},
            [user("Add.\n\n1 2")],
            [assistant("3")],
            id="Alpaca with input",
        ),
        pytest.param(
            {"instruction": "Go.", "input": "", "output": "ok"}, [user("Go.")], [assistant("ok")], id="Alpaca, no input"
        ),
        pytest.param({"instruction": "Go.", "output": "ok"}, [user("Go.")], [assistant("ok")], id="Alpaca, no column"),
        pytest.param(
            {"instruction": "Go.", "input": None, "output": "ok"}, [user("Go.")], [assistant("ok")], id="Alpaca, null"
        ),
        pytest.param({"question": "a", "answer": "b"}, [user("a")], [assistant("b")], id="question, answer"),
        pytest.param(
            {"question": "a", "answer": "b", "messages": None, "id": 7},
            [user("a")],
            [assistant("b")],
            id="columns of other rows hold nothing",
        ),
        pytest.param({"prompt": " \ta\n", "completion": " b "}, [user(" \ta\n")], [assistant(" b ")], id="white space"),
    ],
)
def test_a_row_becomes_prompt_and_completion(row, prompt, completion):
    assert conversation_row(row) == {"prompt": prompt, "completion": completion}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "a", "completion": ""},
        {"question": "a", "answer": None},
        {"instruction": "a", "output": " \n"},
        {"messages": [user("a"), assistant(" ")]},
        {"messages": [user("a"), assistant("b"), user("c"), assistant("")]},
    ],
)
def test_an_empty_answer_is_left_out(row):
    assert conversation_row(row) is None


@pytest.mark.parametrize(
    "row, words",
    [
        ({"title": "a", "body": "b"}, "['body', 'title']"),
        ({"prompt": "a"}, "prompt + completion"),
        ({"messages": None}, "no known format"),
        ({"messages": [{"role": "tool", "content": "a"}, assistant("b")]}, "role 'tool' is unknown"),
        ({"conversations": [{"from": "bing", "value": "a"}]}, "role 'bing' is unknown"),
        ({"messages": [user("a")]}, "the last turn must be the assistant's"),
        ({"messages": [user("a"), assistant("b"), user("c")]}, "the last turn must be the assistant's"),
        ({"messages": []}, "the last turn must be the assistant's"),
        ({"messages": [assistant("b")]}, "a system or user turn must come before it"),
        ({"messages": [user(["parts"]), assistant("b")]}, "the user's turn holds list, want text"),
        ({"messages": [user("a"), assistant(None)]}, "the assistant's turn holds NoneType, want text"),
        ({"messages": "a"}, "the turns are str"),
        ({"messages": ["a", "b"]}, "a turn is str"),
        ({"question": "How many?", "answer": 0}, "the assistant's turn holds int, want text"),
        ({"instruction": 5, "output": "b"}, "the user's turn holds int, want text"),
        ({"instruction": "a", "input": 5, "output": "b"}, "the user's turn holds int, want text"),
    ],
)
def test_a_row_that_cannot_be_learnt_from_says_why_in_one_line(row, words):
    with pytest.raises(ValueError) as error:
        conversation_row(row)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_text_rows():
    assert text_row({"text": " a\n", "id": 1}) == {"text": " a\n"}
    assert text_row({"story": "a"}, "story") == {"text": "a"}
    assert text_row({"text": " \n"}) is None and text_row({"text": None}) is None
    with pytest.raises(ValueError, match=r"no column 'text', found \['body'\]; .*--dataset_text_field"):
        text_row({"body": "a"})
    with pytest.raises(ValueError, match="column 'text' holds int, want text"):
        text_row({"text": 3})


def test_sharegpt_system_column_is_the_first_turn():
    row = {"system": "Be brief.", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}]}
    assert conversation_row(row) == {
        "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
        "completion": [{"role": "assistant", "content": "Yo"}],
    }
