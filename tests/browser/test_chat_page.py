"""The page of `fourstage chat --web` in Chromium: an answer streams, a vote is written, a phone shows all of it."""

import json
import re
import signal
import subprocess
import sys

import pytest
from chat_helpers import chain, parrot
from helpers import ROOT, environment

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def served(tmp_path_factory, tokenizer):
    """The command with two models that say different things: (address, its file of votes)."""
    root = tmp_path_factory.mktemp("chat")
    for name, text in (("one", "bab, gef!"), ("two", "dim.")):
        parrot(tokenizer, chain(tokenizer, text)).save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    words = ["chat", "--web", root / "one", root / "two", "--output", root / "votes.jsonl", "--port", 0]
    command = [str(word) for word in (sys.executable, "-m", "fourstage.cli", *words)]
    server = subprocess.Popen(command, cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True)
    try:
        said = ""
        while not (found := re.search(r"http://\S+", said)):
            said = server.stderr.readline()
            assert said, "the command has ended"
        yield found.group(), root / "votes.jsonl"
        server.send_signal(signal.SIGINT)
        server.communicate(timeout=60)
        assert server.returncode == 0
    finally:
        server.kill()


def test_an_answer_streams_and_its_tokens_are_there(served, watched):
    page = watched(served[0])
    page.fill("#text", "dim")
    page.keyboard.press("Enter")
    page.wait_for_selector("article p:has-text('It ended after')")
    answer = page.locator("article .said")
    assert answer.inner_text().strip() == "bab, gef!" and answer.locator("span").count() > 2
    assert page.is_visible("#send") and page.is_hidden("#message")


def test_a_vote_between_two_is_written_and_undone(served, watched):
    url, votes = served
    page = watched(url)
    page.check("#two")
    page.select_option("#first", index=0)
    page.select_option("#second", index=1)
    page.fill("#text", "dim")
    page.click("#send")
    page.click(".vote button:has-text('Right is better')")
    page.wait_for_selector(".vote p:has-text('Saved in')")
    (row,) = [json.loads(line) for line in votes.read_text().splitlines()]
    assert (row["choice"], row["left"], row["right"], row["person"]) == ("right", "bab, gef!", "dim.", "me")
    assert [model["name"].rpartition("/")[2] for model in row["models"]] == ["one", "two"]
    page.click(".vote button:has-text('Undo')")
    page.wait_for_selector(".vote p:has-text('Undone in')")
    assert [json.loads(line)["choice"] for line in votes.read_text().splitlines()] == ["right", "undo"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone(served, watched, scheme):
    page = watched(served[0], width=360, height=740, color_scheme=scheme)
    page.click("#settings summary")
    page.check("#two")
    page.fill("#text", "<img src=x onerror=alert(1)> " + "a" * 300)
    page.click("#send")
    page.wait_for_selector(".vote")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.locator("#talk img").count() == 0
