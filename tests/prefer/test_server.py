"""The desk behind the page: a choice is on the disk or refused, and every request may come twice, late or broken."""

import errno
import json
import os
import threading

import pytest
from prefer_helpers import MODELS, SAMPLING, Canned, Table, asked
from starlette.testclient import TestClient

from fourstage.data.picks import FIELDS
from fourstage.prefer.server import progress


@pytest.fixture
def table(tmp_path):
    table = Table(tmp_path)
    yield table
    table.close()


def reopened(table):
    """The server after a kill, with the same files."""
    table.close()
    table.__init__(table.path.parent)
    return table


def turn(text):
    return [{"role": "assistant", "content": text}]


@pytest.mark.parametrize(
    ("choice", "better", "chosen", "rejected"),
    [
        ("left", "", "L", "R"),
        ("right", "", "R", "L"),
        ("both_good", "", None, None),
        ("both_bad", "", None, None),
        ("skip", "", None, None),
        ("left", " mine ", "mine", "R"),
        ("right", "mine", "mine", "L"),
        ("both_bad", "mine", "mine", "L"),
        ("skip", "mine", None, None),
    ],
)
def test_the_line_of_a_choice(table, choice, better, chosen, rejected):
    pair = table.state()["pair"]
    sides = {"L": pair["left"], "R": pair["right"]}
    sent = {"pair": pair["id"], "choice": choice, "better": better, "comment": "why\n", "seconds": 2.301}
    state = table.send("choose", **sent)
    (row,) = table.rows
    time = row.pop("time")
    expected = {
        "pair": pair["id"],
        "choice": choice,
        "prompt": pair["prompt"],
        "chosen": chosen and turn(sides.get(chosen, chosen)),
        "rejected": rejected and turn(sides.get(rejected, rejected)),
        "left": pair["left"],
        "right": pair["right"],
        "better": better.strip() or None,
        "comment": "why",
        "person": "Ada",
        "seconds": 2.3,
        "models": MODELS,
        "sampling": SAMPLING,
        "blind": True,
        "repeat_of": None,
    }
    assert row == expected and {*row, "time"} == {*FIELDS} and time.endswith("+00:00")
    assert state["pair"]["id"] != pair["id"] and state["last"] == pair["id"]


@pytest.mark.parametrize("fault", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_choice_that_the_disk_does_not_take_is_not_pretended(table, monkeypatch, capsys, fault):
    before = table.state()
    for name in ("write", "fsync"):
        with monkeypatch.context() as patch:

            def refuse(*_):
                raise OSError(fault, os.strerror(fault))

            patch.setattr(os, name, refuse)
            said = table.send("choose", 507, pair=before["pair"]["id"], choice="left")["error"]
        assert said == f"Not saved. {table.path} cannot be written: {os.strerror(fault)}. Mend that, then choose again."
        assert f"not saved: {table.path} cannot be written: {os.strerror(fault)}" in capsys.readouterr().err
        assert table.rows == [] and table.state() == before
    table.send("choose", pair=before["pair"]["id"], choice="left")
    assert len(table.rows) == 1


def test_a_file_that_was_deleted_meanwhile_takes_no_choice(table):
    pair = table.state()["pair"]["id"]
    table.path.unlink()
    assert "No such file" in table.send("choose", 507, pair=pair, choice="left")["error"]


def test_the_same_choice_sent_twice_is_written_once_and_another_is_refused(table):
    pair = table.state()["pair"]["id"]
    sent = {"pair": pair, "choice": "left", "better": "x", "comment": "", "seconds": 3}
    states = [table.send("choose", **sent), table.send("choose", **sent | {"seconds": 9})]
    assert states[0] == states[1]
    for other in ({"choice": "right"}, {"better": "y"}, {"comment": "z"}):
        assert "chosen already about this pair" in table.send("choose", 409, **sent | other)["error"]
    reopened(table).send("choose", **sent)  # the answer was lost in a kill
    assert len(table.rows) == 1


def test_a_pair_of_somebody_else_is_not_taken(table):
    table.choose("left")  # the first is common
    pair = table.state()["pair"]["id"]
    for name in (pair, "none", None, ["a"], 7):
        said = table.send("choose", 409, person="Bo", pair=name, choice="left")["error"]
        assert said == "this pair is not yours to choose; here is the next one"
        table.send("names", 409, person="Bo", pair=name)
    assert len(table.rows) == 1


def test_a_reload_and_a_restart_show_the_same_pair_on_the_same_sides(table):
    for count in range(3):
        seen = table.state()
        assert table.state() == seen and reopened(table).state() == seen
        assert table.state("Bo")["pair"]["id"] != seen["pair"]["id"] or count == 0
        table.choose("left")


def test_undo_is_a_line_of_its_own_and_sent_twice_it_is_written_once(table):
    pairs = [table.state()["pair"]]
    table.choose("left", better="typed")
    pairs.append(table.state()["pair"])
    last = table.choose("right")["last"]
    assert last == pairs[1]["id"]
    state = table.send("undo", pair=last)
    assert table.send("undo", pair=last) == state == reopened(table).state()
    assert state["pair"] == pairs[1] and state["last"] == pairs[0]["id"]
    assert table.send("undo", pair=state["last"])["pair"] == pairs[0]  # further back
    assert [row["choice"] for row in table.rows] == ["left", "right", "undo", "undo"]
    assert table.rows[2] | {"time": None} == dict.fromkeys(FIELDS) | {
        "pair": last,
        "choice": "undo",
        "prompt": pairs[1]["prompt"],
        "person": "Ada",
        "models": MODELS,
        "sampling": SAMPLING,
    }
    assert table.choose("right")["pair"] == pairs[1]  # the undone pairs, then the third one
    assert table.choose("right")["pair"]["id"] not in {pair["id"] for pair in pairs}
    assert progress(table.file.rows, "Ada")["ready"] == 2


def test_there_is_nothing_to_undo_for_who_did_not_choose(table):
    pair = table.state()["pair"]["id"]
    table.choose("left")
    for person, name in (("Bo", pair), ("Ada", "none"), ("Ada", None)):
        assert "no choice of yours to undo" in table.send("undo", 409, person=person, pair=name)["error"]
    assert len(table.rows) == 1 and table.state("Bo")["last"] is None


def test_after_ten_choices_an_earlier_pair_comes_back_with_its_sides_swapped(table):
    seen = []
    for _ in range(24):
        seen.append(table.state()["pair"])
        table.choose("left")
    repeats = [row for row in table.rows if row["repeat_of"]]
    assert [table.rows.index(row) for row in repeats] == [10, 21]
    for row in repeats:
        first = next(one for one in table.rows if one["pair"] == row["repeat_of"])
        assert (row["left"], row["right"], row["prompt"]) == (first["right"], first["left"], first["prompt"])
    assert table.state()["progress"]["steady"] == [0, 2]  # always left: never the same answer
    assert len({pair["id"] for pair in seen}) == 24


def test_a_repeated_pair_that_is_skipped_does_not_come_again_and_again(table):
    for _ in range(10):
        table.choose("left")
    repeated = table.state()["pair"]["id"]
    state = table.choose("skip")
    assert table.rows[-1]["repeat_of"] and state["pair"]["id"] != repeated
    for _ in range(9):
        state = table.choose("left")
    assert sum(row["repeat_of"] is not None for row in table.rows) == 1 and len(table.rows) == 20
    assert state["progress"]["steady"] == [0, 0]


def test_skipped_pairs_bring_no_repeat(table):
    for _ in range(15):
        table.choose("skip")
    assert not any(row["repeat_of"] for row in table.rows)


def test_names_are_hidden_until_asked_for_and_the_choice_says_so(table):
    state = table.state()
    assert "runs/" not in json.dumps(state)
    pair = state["pair"]["id"]
    named = table.send("names", pair=pair)
    assert named == state | {"names": {"left": "runs/one", "right": "runs/two"}}
    assert reopened(table).state() == named  # a reload, a restart: still no blind choice
    state = table.choose("left")
    assert state["names"] is None
    table.choose("right")
    assert [row["blind"] for row in table.rows] == [False, True]
    table.send("undo", pair=pair)
    table.send("choose", pair=pair, choice="right", blind=True)
    assert table.rows[-1]["blind"] is False


def test_a_better_answer_has_to_be_another_than_the_one_it_beats(table):
    pair = table.state()["pair"]
    for choice, other in (("left", "right"), ("right", "left"), ("both_bad", "left")):
        said = table.send("choose", 409, pair=pair["id"], choice=choice, better=f" {pair[other]}\n")["error"]
        assert said.startswith("your better answer is the one that it would beat")
    table.send("choose", pair=pair["id"], choice="left", better=pair["left"])
    assert len(table.rows) == 1


def test_a_prompt_of_ones_own_comes_next(table):
    first = table.state()["pair"]
    state = table.send("ask", text=" Why?\n")
    table.send("ask", text="Why?")  # sent again after a kill
    assert state["pair"] == first and not state["own"]
    state = table.choose("left")
    assert state["own"] and state["pair"]["prompt"] == asked("Why?")
    assert table.state("Bo")["pair"]["prompt"] != asked("Why?")
    state = table.choose("left")
    assert not state["own"] and state["pair"]["prompt"] != asked("Why?")
    assert [row["prompt"] for row in table.rows] == [first["prompt"], asked("Why?")]
    for text, said in (
        ("", "write a prompt first"),
        (" \n", "write a"),
        ("x" * 1000, "no room to answer"),
        (7, "text"),
    ):
        assert said in table.send("ask", 409, text=text)["error"]


def test_who_asked_in_vain_is_told_beside_the_next_pair(tmp_path):
    table = Table(tmp_path, Canned())
    table.choose("left")
    table.stock.maker.dry = 0
    state = table.send("ask", text="Why?")
    while table.stock.is_asking("Ada"):
        table.stock.wait("Ada", 1)
    after = table.state()
    said = state["notice"] or after["notice"]  # it may be over before the answer
    assert said.startswith("No pair came of your prompt: the two answers are the same")
    assert after["pair"] == state["pair"] and table.state()["notice"] is None
    table.close()


BROKEN = [b"", b"{", b"[]", b"7", b'"a"', b"\xff", b"[" * 200_000, b'{"a": ' * 100_000, b"1" * 10_000]
ODD = [
    {"person": value} for value in (None, "", " ", "a" * 61, "a\u202eb", "a\x00b", "\ud800", "a\u200bb", [], False, 0)
]
ODD += [{"choice": value} for value in (None, "undo", "best", 1, [], {}, "l" * 1000)]
ODD += [{"better": value} for value in (1, [], {}, True, "x" * 100_001)] + [{"comment": ["a"]}]


def test_a_request_that_makes_no_sense_is_refused_in_words(table):
    table.state()
    head = {"Content-Type": "application/json"}
    for path in ("state", "choose", "undo", "ask", "names"):
        for body in BROKEN:
            answer = table.client.post(f"/api/{path}", content=body, headers=head)
            assert answer.status_code == 409 and answer.json()["error"], (path, body[:20])
    pair = table.state()["pair"]["id"]
    for odd in ODD:
        body = json.dumps({"person": "Ada", "pair": pair, "choice": "left"} | odd)
        answer = table.client.post("/api/choose", content=body, headers=head)
        assert answer.status_code == 409 and answer.json()["error"], odd
    assert table.rows == []


@pytest.mark.parametrize("seconds", [-1, 1e9, "1", None, True, float("nan"), float("inf"), [], 10**400])
def test_a_time_that_cannot_be_counts_as_none_taken(table, seconds):
    pair = table.state()["pair"]["id"]
    body = json.dumps({"person": "Ada", "pair": pair, "choice": "left", "seconds": seconds})
    answer = table.client.post("/api/choose", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 200 and table.rows[0]["seconds"] == 0.0


def test_half_characters_and_hostile_texts_are_kept_as_text(table):
    pair = table.state()["pair"]["id"]
    comment = "<img src=x onerror=alert(1)> \u202e \ud800 \x00"
    body = json.dumps({"person": "A d\u00e9", "pair": pair, "choice": "left", "comment": comment})
    table.state("A d\u00e9")
    table.client.post("/api/choose", content=body, headers={"Content-Type": "application/json"})
    assert table.rows[0]["comment"] == comment.replace("\ud800", "?") and table.rows[0]["person"] == "A d\u00e9"


def test_progress_against_a_hand_count(table):
    for choice, seconds in (("left", 1), ("left", 2), ("right", 9), ("both_good", 3), ("skip", 4)):
        table.choose(choice, seconds=seconds)
    table.choose("right", "Bo", seconds=5)  # the common first pair, which Ada chose as left
    table.send("undo", pair=table.choose("left")["last"])
    assert table.state()["progress"] == {
        "counts": {"left": 2, "right": 1, "both_good": 1, "skip": 1},
        "pace": 3,
        "left": pytest.approx(2 / 3),
        "steady": [0, 0],
        "agree": [0, 1],
        "ready": 4,
        "people": 2,
    }
    row = table.rows[0] | {"seconds": None}  # as an edited file may have it
    assert progress([row], "Ada")["pace"] is None


def test_people_at_once_lose_nothing_and_double_nothing(table):
    problems = []

    def work(person):
        try:
            client = TestClient(table.client.app, "http://127.0.0.1:8420", headers=table.client.headers)
            for i in range(40):
                state = {"pair": None}
                while not state["pair"]:
                    state = client.post("/api/state", json={"person": person}).json()
                body = {"person": person, "pair": state["pair"]["id"], "choice": "left", "comment": str(i)}
                assert client.post("/api/choose", json=body).status_code == 200
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=work, args=(person,)) for person in ("Ada", "Bo", "Ada", "Cy")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = [(row["person"], row["pair"]) for row in table.rows]
    assert len(lines) == len({*lines}) and not [one for one in problems if not isinstance(one, AssertionError)]
    assert [person for person, _ in lines].count("Bo") == [person for person, _ in lines].count("Cy") == 40
    assert [row for row in table.rows] == table.file.rows


def test_enough_ends_the_server_and_says_what_there_is(table):
    table.choose("left")
    assert not table.ended.is_set()
    assert table.send("enough") == {"rows": 1} and table.ended.is_set()
