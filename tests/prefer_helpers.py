"""Pairs whose texts are known, and a desk with its app over them: what tests of `fourstage prefer` share."""

import json
import threading

import uvicorn
from starlette.testclient import TestClient

from fourstage.prefer.pairs import Pair
from fourstage.prefer.record import ChoiceFile, read_choices
from fourstage.prefer.server import Desk, routes
from fourstage.prefer.stock import Stock
from fourstage.web.serving import listen, page_app

SAMPLING = {"temperature": 1.0, "max_new_tokens": 16}
MODELS = [{"name": "runs/one", "weights": "1"}, {"name": "runs/two", "weights": "2"}]


def asked(text):
    return [{"role": "user", "content": text}]


class Canned:
    """A maker whose pair of prompt p in batch n is "p: left n" and "p: right n"; `texts` replaces that.

    It fails as often as `failures` says, and answers alike from batch `dry` on.
    """

    def __init__(self, prompts=40, texts=None, gap=None, sampling=SAMPLING, dry=10**9, failures=0):
        self.prompts = [asked(f"q{i}") for i in range(prompts)] if isinstance(prompts, int) else prompts
        self.texts, self.gap, self.sampling, self.dry, self.failures = texts, gap, sampling, dry, failures
        self.batches = []

    def signature(self):
        return Pair("", [], "", "", MODELS, self.sampling).made_by()

    def fits(self, prompt):
        return len(prompt[-1]["content"]) < 1000

    def make(self, prompts, number):
        self.batches.append((number, prompts))
        if self.failures:
            self.failures -= 1
            raise RuntimeError("no memory\nat all")
        if number >= self.dry:
            return []
        pairs = []
        for i, prompt in enumerate(prompts):
            what = f"{prompt[-1]['content']}: "
            left, right = self.texts(number, i) if self.texts else (f"{what}left {number}", f"{what}right {number}")
            gap = self.gap(number, i) if self.gap else None
            pairs.append(Pair(f"{number}-{i}", prompt, left, right, MODELS, self.sampling, gap=gap))
        return pairs


def stock_at(folder, maker=None, pick="random"):
    stock = Stock(folder / "prefs.pairs.jsonl", maker or Canned(), pick)
    stock.start()
    return stock


def dealt(stock, person, count):
    """The next pairs of a person, each waited for."""
    found = []
    for _ in range(count):
        stock.wait(person, 30)
        found.append(stock.deal(person))
    return found


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


class Table:
    """A desk in a folder, and a browser's requests to it without a browser."""

    def __init__(self, folder, maker=None, pick="random", trains_next=False):
        self.path = folder / "prefs.jsonl"
        self.file = ChoiceFile(self.path)
        self.stock = stock_at(folder, maker, pick)
        self.ended = threading.Event()
        self.desk = Desk(self.file, self.stock, self.ended.set, trains_next)
        app = page_app("prefer.html", routes(self.desk), 8420, None)
        self.client = TestClient(app, "http://127.0.0.1:8420", headers={"Origin": "http://127.0.0.1:8420"})

    def send(self, path, status=200, person="Ada", **body):
        answer = self.client.post(f"/api/{path}", json={"person": person} | body)
        assert answer.status_code == status, answer.text
        return answer.json()

    def state(self, person="Ada"):
        """The state with its pair, waited for."""
        while (state := self.send("state", person=person))["waiting"]:
            pass
        return state

    def choose(self, choice, person="Ada", **body):
        """Chooses about the pair at hand; the state after it."""
        self.send("choose", person=person, pair=self.state(person)["pair"]["id"], choice=choice, **body)
        return self.state(person)

    @property
    def rows(self):
        return read_choices(self.path)

    def close(self):
        """As a kill leaves it: nothing is tidied up but what another process needs."""
        self.stock.end()
        self.file.close()


class Live:
    """The desk's app on a port of its own, served by a thread, for a real browser."""

    def __init__(self, table, port=0, token=None):
        self.table, self.sock = table, listen("127.0.0.1", port)
        self.port = self.sock.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/"
        app = page_app("prefer.html", routes(table.desk), self.port, token)
        self.server = uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False, lifespan="off"))
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.sock]}, daemon=True)
        self.thread.start()

    def stop(self):
        self.server.force_exit = self.server.should_exit = True
        self.thread.join(20)
