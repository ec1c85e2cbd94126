"""The page of `fourstage chat --web` from its server's side: the model's own numbers, and what the terminal says."""

import asyncio
import json
import re
import signal
import subprocess
import sys
import urllib.request
from threading import Event, Thread

import pytest
import torch
from chat_helpers import HOSTILE, chain, parrot
from helpers import ROOT, environment
from starlette.testclient import TestClient

from fourstage.chat import web
from fourstage.chat.asked import Asked, bare_text
from fourstage.chat.votes import Votes
from fourstage.chat.watched import speak_watched
from fourstage.chat.web import Models, answer, named_models, routes
from fourstage.data.picks import FIELDS, left_out, standing
from fourstage.prefer.record import ChoiceFile
from fourstage.speaking import Sampling, chat_ids, open_speaker, speak, text_ids
from fourstage.web.serving import page_app

PORT = 8421
HERE = f"http://127.0.0.1:{PORT}"
GREEDY = Sampling(0.0, 1.0, 0, 12)
DIM = [{"role": "user", "content": "dim"}]


def app_of(models, votes="prefs.jsonl"):
    return page_app("chat.html", routes(models, GREEDY, Votes(votes)), PORT, None)


@pytest.fixture
def page(folders, tmp_path):
    """A client that comes from the page: three models, one of which never stops, and a place for the choices."""
    models = Models([str(folders / name) for name in ("answers", "hostile", "base", "endless")])
    client = TestClient(app_of(models, tmp_path / "new" / "prefs.jsonl"), HERE, headers={"Origin": HERE})
    client.models = models
    return client


def said(page, name, **more):
    """The rows of an answer."""
    model = next(full for full in page.models.names if full.endswith(name))
    response = page.post("/api/say", json={"model": model, "turns": DIM, **more})
    assert response.status_code == 200, response.text
    return [json.loads(line) for line in response.text.splitlines()]


# Tokens


def test_probabilities_are_those_of_the_model(model, tokenizer, tmp_path):
    """At temperature 1 whatever the temperature of the draw, by one pass over all that was said."""
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    speaker, tokens = open_speaker(str(tmp_path), continues=True), []
    ids = text_ids(speaker, "bab gef")
    stream = speak_watched(speaker, ids, Sampling(3.0, 1.0, 0, 20), 5, tokens.append, lambda: False)
    assert stream.tokens == len(tokens) > 5 and stream.text.startswith("".join(token.text for token in tokens))
    said = speaker.memory.ids
    shares = speaker.model(torch.tensor([said])).logits[0].detach().softmax(-1)
    for i, token in enumerate(tokens[:-1]):  # of the last one nothing is remembered
        share, drawn = shares[len(ids) + i - 1], said[len(ids) + i]
        assert token.token == tokenizer.decode([drawn]) and token.ends == (drawn == tokenizer.eos_token_id)
        assert token.probability == pytest.approx(float(share[drawn]), abs=1e-5)
        best = share.topk(5)
        assert [text for text, _ in token.likeliest] == [tokenizer.decode([j]) for j in best.indices]
        assert [p for _, p in token.likeliest] == pytest.approx(best.values.tolist(), abs=1e-5)


@pytest.mark.parametrize("sampling", [Sampling(0.0, 1.0, 0, 20), Sampling(1.5, 0.9, 40, 20), Sampling(0.7, 1.0, 0, 20)])
def test_a_seed_says_what_it_says_in_the_terminal(model, tokenizer, tmp_path, sampling):
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    speaker = open_speaker(str(tmp_path), continues=True)
    ids = text_ids(speaker, "bab gef")
    for seed in (0, 1):
        torch.manual_seed(seed)
        plain = speak(speaker, ids, sampling).text
        assert speak_watched(speaker, ids, sampling, seed, lambda token: None, lambda: False).text == plain


def test_parts_of_a_character_add_no_text(tokenizer, tmp_path):
    parrot(tokenizer, chain(tokenizer, "日🙂")).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    speaker, tokens = open_speaker(str(tmp_path)), []
    speak_watched(speaker, chat_ids(speaker, DIM), GREEDY, 0, tokens.append, lambda: False)
    assert [token.text for token in tokens] == ["", "", "日", "", "", "", "🙂", ""]
    assert [token.ends for token in tokens] == [False] * 7 + [True]


# Requests


def test_an_answer_comes_as_lines_of_plain_json(page):
    """All that a model says is ASCII on its way: no line separator, and nothing to obey."""
    model = page.models.names[1]
    raw = page.post("/api/say", json={"model": model, "turns": DIM, "max_new_tokens": 50, "seed": 3})
    assert raw.headers["content-type"] == "application/x-ndjson" and raw.text.isascii()
    rows = [json.loads(line) for line in raw.text.splitlines()]
    assert [row["kind"] for row in rows] == ["start", *["token"] * (len(rows) - 2), "end"]
    assert "".join(row["text"] for row in rows[1:-1]) == HOSTILE
    assert rows[0]["chats"] and rows[0]["seed"] == 3 and rows[-1]["why"] == "it ended"
    assert rows[-1]["tokens"] == len(rows) - 2 and rows[-2]["ends"]
    assert said(page, "endless", max_new_tokens=3)[-1]["why"] == "max_new_tokens"


def test_a_conversation_is_handed_on(page, folders):
    """A model that chats gets the turns in its template, a base model gets paragraphs that it goes on with."""
    turns = [
        {"role": "user", "content": "gef"},
        {"role": "assistant", "content": " hub", "continues": True},
        {"role": "user", "content": "the dim"},
    ]
    assert bare_text(turns) == "gef hub\n\nthe dim"
    speaker = open_speaker(str(folders / "answers"))
    plain = [{"role": turn["role"], "content": turn["content"]} for turn in turns]
    system = {"role": "system", "content": "fut"}
    assert Asked("answers", turns, "fut", GREEDY, 0).ids(speaker) == (chat_ids(speaker, [system, *plain]), 0)
    rows = said(page, "base", turns=turns)
    assert not rows[0]["chats"] and "".join(row["text"] for row in rows[1:-1]) == " fut."
    assert page.post("/api/start", json={}).json()["models"][2]["continues"]


def test_what_does_not_fit_is_told(folders, page):
    narrow = Asked("narrow", [*[*DIM, {"role": "assistant", "content": "bab"}] * 9, *DIM], "", GREEDY, 0)
    speaker = open_speaker(str(folders / "narrow"))
    ids, left_out = narrow.ids(speaker)
    assert len(ids) <= 32 - 8 and left_out % 2 == 0 and ids == chat_ids(speaker, narrow.messages()[left_out:])
    rows = said(page, "answers", turns=[{"role": "user", "content": "bab " * 5000}])
    assert [row["kind"] for row in rows] == ["error"] and "shorten the text" in rows[0]["error"]


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        ("temperature", -1, "0 (the likeliest token), or 0.01 to 100"),
        ("temperature", "hot", "must be a number"),
        ("temperature", True, "must be a number"),
        ("temperature", float("nan"), "temperature=nan"),
        ("max_new_tokens", 0, "1 or more"),
        ("max_new_tokens", 2.5, "whole number"),
        ("seed", -1, "seed=-1"),
        ("seed", 2**53, "seed"),
        ("model", "runs/other", "must be one of"),
        ("model", ["x"], "must be one of"),
        ("turns", [], "turns must be"),
        ("turns", [{"role": "tool", "content": "x"}], "turns must be"),
        ("system", 5, "system a text"),
    ],
)
def test_wrong_settings_are_refused_in_one_line(page, field, value, why):
    body = {"model": page.models.names[0], "turns": DIM, field: value}
    for path, more in (("say", {}), ("vote", {"models": [body["model"]] * 2})):
        if not (path == "vote" and field == "model"):
            given = json.dumps({**body, **more})
            answer = page.post(f"/api/{path}", content=given, headers={"Content-Type": "application/json"})
            assert answer.status_code == 400 and why in answer.json()["error"] and "\n" not in answer.json()["error"]
    assert not page.models.opened


def test_only_this_page_may_ask(page):
    body = {"model": page.models.names[0], "turns": DIM}
    for headers, status in (
        ({"Origin": "http://evil.example"}, 403),
        ({"Host": f"evil.example:{PORT}"}, 421),
        ({"Content-Type": "text/plain"}, 415),
    ):
        answer = page.post("/api/say", content=json.dumps(body), headers={"Content-Type": "application/json"} | headers)
        assert answer.status_code == status and not page.models.opened
    policy = page.get("/").headers["content-security-policy"]
    assert "script-src 'self'" in policy and "unsafe" not in policy
    for name in re.findall(r'(?:href|src)="(/static/[^"]+)"', page.get("/").text):
        assert page.get(name).status_code == 200


# Several at once


def test_two_at_once_say_what_each_says_alone(model, tokenizer, tmp_path):
    """Two models, and the same one twice, which then speaks one answer after the other: seeds do not mix."""
    names = []
    for place in ("a", "b"):
        names.append(str(tmp_path / place))
        model.save_pretrained(names[-1])
        tokenizer.save_pretrained(names[-1])
    models, results = Models(names), {}
    asked = [Asked(name, DIM, "", Sampling(1.0, 1.0, 0, 30), seed) for name in names for seed in (0, 1)]

    def run(one, key):
        answer(models, one, results.setdefault(key, []).append, Event())

    threads = [Thread(target=run, args=(one, (one.name, one.seed, "together"))) for one in asked]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one in asked:
        run(one, (one.name, one.seed))
        texts = [
            [row["text"] for row in rows[1:-1]] for key, rows in results.items() if key[:2] == (one.name, one.seed)
        ]
        assert texts[0] == texts[1] and len(texts[0]) > 5
    assert [row["text"] for row in results[names[0], 0][1:-1]] != [row["text"] for row in results[names[0], 1][1:-1]]


def test_the_browser_going_away_ends_the_answer(folders):
    name = str(folders / "endless")
    models, sent = Models([name]), []
    body = json.dumps({"model": name, "turns": DIM, "max_new_tokens": 90_000}).encode()
    headers = {"host": f"127.0.0.1:{PORT}", "origin": HERE, "content-type": "application/json"}
    headers["content-length"] = str(len(body))
    scope = {"type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1"}
    scope |= {"method": "POST", "path": "/api/say", "raw_path": b"/api/say", "root_path": "", "query_string": b""}
    scope |= {"scheme": "http", "headers": [(name.encode(), value.encode()) for name, value in headers.items()]}

    async def talk():
        told, seen = [], asyncio.Event()

        async def receive():
            if not told:
                told.append(1)
                return {"type": "http.request", "body": body, "more_body": False}
            await seen.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            sent.append(message)
            if len(sent) == 6:
                seen.set()

        await app_of(models)(scope, receive, send)

    asyncio.run(talk())
    assert models.locks[name].acquire(timeout=60)  # it is free to speak again
    assert sent[0]["status"] == 200 and len(sent) < 5_000
    assert len(models.opened[name].memory.ids) < 5_000  # and has stopped between two tokens


def test_models_make_room(page, monkeypatch):
    for name in page.models.names[:3]:
        page.models.speaker(name)
    assert [*page.models.opened] == page.models.names[:3]
    monkeypatch.setattr(web, "_KEPT", 0)
    page.models.speaker(page.models.names[0])
    assert [*page.models.opened] == [page.models.names[2], page.models.names[0]]


# Votes


def vote(page, choice="left", **more):
    left, right, *_ = page.models.names
    answers = {"left": "bab, gef!", "right": HOSTILE, "models": [left, right]}
    return page.post("/api/vote", json={"choice": choice, "turns": DIM, "person": "Ada", **answers, **more})


def test_votes_are_choices(page, tmp_path):
    path = tmp_path / "new" / "prefs.jsonl"
    said(page, "answers")
    assert not path.exists()  # who only talks leaves nothing
    first = vote(page, "left", seconds=2.5, temperature=0.5, system="fut").json()
    assert vote(page, "right").json()["count"] == 2 and vote(page, "both_bad").json()["count"] == 3
    undone = page.post("/api/undo", json={"pair": first["pair"], "person": "Ada"})
    assert undone.status_code == 200 and undone.json()["count"] == 2
    assert page.post("/api/undo", json={"pair": first["pair"], "person": "Ada"}).status_code == 400
    with pytest.raises(ValueError, match="is open in another"):
        ChoiceFile(path)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert all([*row] == [*FIELDS] for row in rows) and path.read_text().isascii()
    left, right, tie, undo = rows
    assert left["prompt"] == [{"role": "system", "content": "fut"}, *DIM] and left["blind"] is False
    assert left["chosen"] == [{"role": "assistant", "content": "bab, gef!"}] == right["rejected"]
    assert left["rejected"] == [{"role": "assistant", "content": HOSTILE}] == right["chosen"]
    assert left["seconds"] == 2.5 and left["sampling"] == {"temperature": 0.5, "max_new_tokens": 12}
    assert len({model["weights"] for model in left["models"]}) == 2 and len(left["models"][0]["weights"]) == 64
    assert tie["chosen"] is None and left_out(tie) == "ties" and undo["choice"] == "undo"
    assert [row["choice"] for row in standing(rows)] == ["right", "both_bad"]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"choice": "skip"}, "choice='skip' must be one of left, right, both_good, both_bad"),
        ({"left": 5}, "must be the texts"),
        ({"person": "\u202e"}, "printable"),
        ({"models": ["x"]}, "models must be"),
    ],
)
def test_wrong_votes_are_refused(page, tmp_path, change, why):
    answer = vote(page, **change)
    assert answer.status_code == 400 and why in answer.json()["error"] and not (tmp_path / "new").exists()


def test_a_vote_that_cannot_be_written_is_not_pretended(page, tmp_path, monkeypatch):
    (tmp_path / "new").write_text("in the way")
    answer = vote(page, "left")
    assert answer.status_code == 400 and "cannot be written" in answer.json()["error"]
    (tmp_path / "new").unlink()
    with monkeypatch.context() as full:
        full.setattr("os.fsync", lambda file: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        answer = vote(page, "left")
    assert answer.status_code in (400, 507) and "No space left on device" in answer.json()["error"]
    assert vote(page, "left").json()["count"] == 1


# The command


def test_a_chain_stands_for_its_stages_that_answer(folders, tmp_path):
    records = {"pretrain": "finished", "sft": "finished", "reward": "finished", "ppo": "running"}
    for name, status in records.items():
        target = tmp_path / "demo" / name
        target.mkdir(parents=True)
        for file in (folders / ("reward" if name == "reward" else "answers")).iterdir():
            (target / file.name).symlink_to(file)
        (target / "run.json").write_text(json.dumps({"status": status, "stage": name, "command": "make it"}))
    demo = str(tmp_path / "demo")
    both = [f"{demo}/pretrain", f"{demo}/sft"]
    assert named_models([demo]) == both == named_models([demo, both[0]])
    assert named_models([str(folders / "answers"), both[1]]) == [str(folders / "answers"), both[1]]
    with pytest.raises(ValueError, match="is a reward model"):
        named_models([f"{demo}/reward"])
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "reward").symlink_to(tmp_path / "demo" / "reward")
    with pytest.raises(ValueError, match="no finished stage that answers"):
        named_models([str(tmp_path / "only")])


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (["--web", "runs/nothing"], "runs/nothing does not exist"),
        (["--web", "{empty}"], "{empty}"),
        (["--web", "{answers}", "--temperature", "-1"], "temperature"),
        (["--web", "{answers}", "--port", "99999"], "port=99999"),
        (["--web", "{answers}", "--prompt", "x"], "leave it out with --web"),
        ([], "name one model"),
        (["{answers}", "{answers}"], "name one model"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_served(folders, tmp_path, cli, flags, why):
    places = {"answers": folders / "answers", "empty": tmp_path}
    status, out, err = cli("chat", *[flag.format(**places) for flag in flags])
    assert status == 1 and not out and err.count("\n") == 1 and why.format(**places) in err


def test_the_command_serves_the_page(folders, tmp_path):
    command = [sys.executable, "-m", "fourstage.cli", "chat", "--web", str(folders / "answers")]
    command += ["--port", "0", "--output", str(tmp_path / "prefs.jsonl")]
    server = subprocess.Popen(command, cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True)
    try:
        address = re.search(r"http://127\.0\.0\.1:\d+", server.stderr.readline()).group()
        with urllib.request.urlopen(address) as page:
            assert "Talk to the stages" in page.read().decode()
        body = json.dumps({"model": str(folders / "answers"), "turns": DIM, "temperature": 0}).encode()
        headers = {"Origin": address, "Content-Type": "application/json"}
        with urllib.request.urlopen(urllib.request.Request(f"{address}/api/say", body, headers)) as answer:
            rows = [json.loads(line) for line in answer]
        assert "".join(row["text"] for row in rows[1:-1]) == "bab, gef!" and not [*tmp_path.iterdir()]
    finally:
        server.send_signal(signal.SIGINT)
        assert server.wait(60) in (0, 130)
