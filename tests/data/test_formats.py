"""Every row format against the conversation written out by hand."""

import json
import re

import pytest

from fourstage.data.formats import conversation_row, preference_row, prompt_row, text_row
from tests.helpers import ROOT


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
        ({"messages": [{"role": "alien", "content": "a"}, assistant("b")]}, "role 'alien' is unknown"),
        ({"conversations": [{"from": "bing", "value": "a"}]}, "role 'bing' is unknown"),
        ({"messages": [user("a")]}, "the last turn must be the assistant's"),
        ({"messages": [user("a"), assistant("b"), user("c")]}, "the last turn must be the assistant's"),
        ({"messages": []}, "the last turn must be the assistant's"),
        ({"messages": [assistant("b")]}, "a system or user turn must come before it"),
        ({"messages": [user(["parts"]), assistant("b")]}, "the user's turn holds list"),
        ({"messages": [user("a"), assistant(None)]}, "the assistant's turn holds NoneType"),
        ({"messages": "a"}, "the turns are str"),
        ({"messages": ["a", "b"]}, "a turn is str"),
        ({"question": "How many?", "answer": 0}, "the assistant's turn holds int"),
        ({"instruction": 5, "output": "b"}, "the user's turn holds int"),
        ({"instruction": "a", "input": 5, "output": "b"}, "the user's turn holds int"),
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
    with pytest.raises(ValueError, match="column 'text' holds int"):
        text_row({"text": 3})


def test_sharegpt_system_column_is_the_first_turn():
    row = {"system": "Be brief.", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}]}
    assert conversation_row(row) == {
        "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
        "completion": [{"role": "assistant", "content": "Yo"}],
    }


# Preference pairs

PLAIN = {"margin": 0.0, "kind": None}


@pytest.mark.parametrize(
    "row, prompt, chosen, rejected",
    [
        pytest.param(
            {"prompt": "a", "chosen": "b", "rejected": "c"}, [user("a")], [assistant("b")], [assistant("c")], id="text"
        ),
        pytest.param(
            {"prompt": [system("s"), user("a")], "chosen": [assistant("b")], "rejected": [assistant("c")]},
            [system("s"), user("a")],
            [assistant("b")],
            [assistant("c")],
            id="turns",
        ),
        pytest.param(
            {"prompt": [user("a")], "chosen": "b", "rejected": [assistant("c")]},
            [user("a")],
            [assistant("b")],
            [assistant("c")],
            id="some of both",
        ),
        pytest.param(
            {"instruction": "Add.", "input": "1 2", "chosen": "3", "rejected": "4"},
            [user("Add.\n\n1 2")],
            [assistant("3")],
            [assistant("4")],
            id="Alpaca's columns",
        ),
        pytest.param(
            {"instruction": "Go.", "input": "", "chosen": "3", "rejected": "4", "prompt": None},
            [user("Go.")],
            [assistant("3")],
            [assistant("4")],
            id="Alpaca's columns, no input",
        ),
        pytest.param(
            {"question": "a", "chosen": "b", "rejected": "c"},
            [user("a")],
            [assistant("b")],
            [assistant("c")],
            id="question",
        ),
        pytest.param(
            {
                "chosen": [user("a"), assistant("b"), user("c"), assistant("d")],
                "rejected": [user("a"), assistant("b"), user("c"), assistant("e")],
            },
            [user("a"), assistant("b"), user("c")],
            [assistant("d")],
            [assistant("e")],
            id="whole conversations",
        ),
        pytest.param(
            {
                "chosen": [user("a"), assistant("b"), user("c"), assistant("d")],
                "rejected": [user("a"), assistant("e")],
            },
            [user("a")],
            [assistant("b"), user("c"), assistant("d")],
            [assistant("e")],
            id="whole conversations of unequal length",
        ),
        pytest.param(
            {"prompt": "a", "chosen": [user("a"), assistant("b")], "rejected": [user("a"), assistant("c")]},
            [user("a")],
            [assistant("b")],
            [assistant("c")],
            id="whole conversations and their prompt as text",
        ),
        pytest.param(
            {"prompt": [user("a")], "chosen": [user("a"), assistant("b")], "rejected": [user("a"), assistant("c")]},
            [user("a")],
            [assistant("b")],
            [assistant("c")],
            id="whole conversations and their prompt as turns",
        ),
        pytest.param(
            {"prompt": [system("s")], "chosen": [user("a"), assistant("b")], "rejected": [user("a"), assistant("c")]},
            [system("s")],
            [user("a"), assistant("b")],
            [user("a"), assistant("c")],
            id="answers that begin with a user's turn",
        ),
        pytest.param(
            {"prompt": "a", "chosen": "b", "rejected": ""},
            [user("a")],
            [assistant("b")],
            [assistant("")],
            id="empty rejected",
        ),
        pytest.param(
            {"prompt": "a", "chosen": "b", "rejected": None},
            [user("a")],
            [assistant("b")],
            [assistant("")],
            id="null rejected",
        ),
    ],
)
def test_a_pair_becomes_turns(row, prompt, chosen, rejected):
    assert preference_row(row) == {"prompt": prompt, "chosen": chosen, "rejected": rejected, **PLAIN}


def test_margin_and_kind():
    row = {"prompt": "a", "chosen": "b", "rejected": "c"}
    assert preference_row(row | {"margin": 2, "kind": "rude"}) == preference_row(row) | {"margin": 2.0, "kind": "rude"}
    assert preference_row(row | {"margin": None, "kind": ""}) == preference_row(row)
    assert preference_row(row | {"margin": -0.5})["margin"] == -0.5


@pytest.mark.parametrize(
    "row, why",
    [
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "equal in chosen and rejected"),
        (
            {"chosen": [user("a"), assistant("b")], "rejected": [user("a"), assistant("b")]},
            "equal in chosen and rejected",
        ),
        ({"prompt": "a", "chosen": "", "rejected": "b"}, "without a chosen answer"),
        ({"prompt": "a", "chosen": " \n", "rejected": ""}, "without a chosen answer"),
        ({"prompt": "a", "chosen": None, "rejected": "b"}, "without a chosen answer"),
        (
            {"prompt": "a", "chosen": [assistant("b"), user("c"), assistant("")], "rejected": "b"},
            "without a chosen answer",
        ),
    ],
)
def test_a_pair_that_teaches_nothing_is_left_out(row, why):
    assert preference_row(row) == why


@pytest.mark.parametrize(
    "row, words",
    [
        ({"title": "a", "body": "b"}, "columns ['body', 'title'] fit no known format; expected chosen + rejected"),
        ({"prompt": "a", "completion": "b"}, "['completion', 'prompt']"),
        ({"prompt": "a", "chosen": "b"}, "['chosen', 'prompt']"),
        ({"chosen": "Human: a Assistant: b", "rejected": "Human: a Assistant: c"}, "whole conversations"),
        ({"chosen": [assistant("b")], "rejected": [assistant("c")]}, "with prompt, instruction or question"),
        ({"chosen": [user("a"), assistant("b")], "rejected": [user("c"), assistant("b")]}, "answer the same prompt"),
        ({"prompt": [], "chosen": "b", "rejected": "c"}, "answer the same prompt"),
        ({"prompt": "a", "chosen": [assistant("b"), user("c")], "rejected": "d"}, "last turn of chosen must be"),
        ({"prompt": "a", "chosen": "b", "rejected": []}, "last turn of rejected must be"),
        ({"chosen": [user("a"), assistant("b")], "rejected": [user("a")]}, "last turn of rejected must be"),
        ({"prompt": "a", "chosen": [{"role": "alien", "content": "b"}], "rejected": "c"}, "role 'alien' is unknown"),
        ({"prompt": "a", "chosen": 1, "rejected": "c"}, "the assistant's turn holds int"),
        ({"instruction": 5, "chosen": "b", "rejected": "c"}, "the user's turn holds int"),
        (
            {"prompt": "a", "chosen": "b", "rejected": "c", "margin": "big"},
            "column 'margin' holds 'big'",
        ),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "margin": True}, "column 'margin' holds True"),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "margin": float("nan")}, "column 'margin' holds nan"),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "kind": 3}, "column 'kind' holds '3'"),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "kind": "x" * 41}, "at most 40 characters"),
    ],
)
def test_a_pair_that_cannot_be_learnt_from_says_why_in_one_line(row, words):
    with pytest.raises(ValueError) as error:
        preference_row(row)
    assert words in str(error.value) and "\n" not in str(error.value)


# The page on data


@pytest.mark.parametrize(
    "section, convert, count",
    [
        ("## Instruction tuning", conversation_row, 6),
        ("## Preference tuning: the reward model", preference_row, 7),
        ("## Preference tuning: PPO", prompt_row, 3),
    ],
)
def test_examples_in_the_documents_are_rows(section, convert, count):
    page = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    text = page.partition(f"{section}\n")[2].partition("\n## ")[0]
    examples = [json.loads(example) for example in re.findall(r"\| `(\{.*\})` \|$", text, re.M)]
    assert len(examples) >= count
    for row in examples:
        assert convert(row)["prompt"][-1]["role"] == "user", row
