"""The page of `fourstage prefer` in Chromium: what it shows, what a hand does to it, and what reaches the disk."""

import errno
import json
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time

import pytest
from chat_helpers import chain, parrot
from helpers import ROOT, environment
from prefer_helpers import Canned, Live, Table, asked

pytestmark = pytest.mark.browser
PAUSE = 0.4  # a little more than the page's own, in which no choice counts


@pytest.fixture
def at(tmp_path):
    """Serves a desk, with a maker of pairs of its own if one is given."""
    running = []

    def start(maker=None, token=None, **options):
        table = Table(tmp_path, maker, **options)
        running.append(Live(table, token=token))
        return running[-1]

    yield start
    for live in running:
        live.stop()
        live.table.close()


SHOWN = "['#prompt .said', '#left', '#right'].map((where) => document.querySelector(where).textContent)"


def shown(page):
    """The pair on the page: [prompt, left, right]."""
    page.wait_for_selector("#pair:visible")
    return page.evaluate(SHOWN)


def settled(page):
    """Waits until the answer to the last thing done is on the page."""
    page.wait_for_selector("body[data-busy=false]", timeout=60_000)


def rest(page):
    """Until a new pair takes a choice."""
    settled(page)
    page.wait_for_selector("#pair:visible")
    time.sleep(PAUSE)


def press(page, key):
    """Presses a key for a choice and waits for the next pair."""
    before = shown(page)
    rest(page)
    page.keyboard.press(key)
    page.wait_for_function(f"texts => String({SHOWN}) !== String(texts)", arg=before)
    return before


def counted(page, number, or_message=False):
    """Waits until the page is at rest and shows so many choices, or shows a message."""
    said = "document.querySelector('#progress dd')?.textContent === String(n) && document.body.dataset.busy === 'false'"
    said += " || !document.querySelector('#message').hidden" if or_message else ""
    page.wait_for_function(f"n => {said}", arg=number, timeout=60_000)


def choices(live):
    return [row["choice"] for row in live.table.rows]


def tab_to(page, selector):
    """Goes to an element by the tab key alone."""
    for _ in range(40):
        if page.evaluate("selector => document.activeElement?.matches(selector)", selector):
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"no way to {selector} by Tab")


def test_all_is_done_by_the_keyboard_alone(at, watched):
    live = at()
    page = watched(live.url)
    pairs = [press(page, key) for key in "1234sS"]
    assert choices(live) == ["left", "right", "both_good", "both_bad", "skip", "skip"]
    assert [row["left"] for row in live.table.rows] == [left for _, left, _ in pairs]
    page.keyboard.press("u")
    page.wait_for_function("text => document.querySelector('#left').textContent === text", arg=pairs[-1][1])
    assert choices(live)[-1] == "undo" and len(live.table.rows) == 7
    tab_to(page, "[data-choice=right]")
    time.sleep(PAUSE)
    page.keyboard.press("Enter")
    page.wait_for_function("text => document.querySelector('#left').textContent !== text", arg=pairs[-1][1])
    tab_to(page, "#names")
    page.keyboard.press("Enter")
    page.wait_for_selector("#left-name:has-text('runs/one')")
    tab_to(page, "summary")
    page.keyboard.press("Space")
    tab_to(page, "#better")
    page.keyboard.type("1 better s")  # no shortcut while typing
    tab_to(page, "#comment")
    page.keyboard.type("u 2")
    tab_to(page, "#own")
    page.keyboard.type("my own u1")
    tab_to(page, "#ask button")
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.querySelector('#own').value === ''")
    page.locator("#prompt").focus()
    press(page, "1")
    assert shown(page)[0] == "my own u1" and page.locator("#prompt h2").inner_text().upper() == "YOUR PROMPT"
    assert [live.table.rows[-1][field] for field in ("choice", "better", "comment", "blind")] == [
        "left",
        "1 better s",
        "u 2",
        False,
    ]
    page.keyboard.press("Shift+Tab")
    tab_to(page, "#person")
    page.keyboard.press("Control+a")
    page.keyboard.type("Bo")
    page.keyboard.press("Enter")
    counted(page, 0)
    page.locator("#prompt").focus()
    press(page, "2")
    assert live.table.rows[-1]["person"] == "Bo"


def test_one_press_is_one_choice(at, watched):
    live = at()
    page = watched(live.url)
    rest(page)
    page.dblclick("[data-choice=left]")
    counted(page, 1)
    rest(page)
    page.click("[data-choice=left]", click_count=1)
    counted(page, 2)
    page.click("[data-choice=left]")  # at once: meant for the last one
    rest(page)
    page.mouse.click(*centre(page, "[data-choice=left]"), click_count=2, delay=PAUSE * 1000)  # a slow double click
    counted(page, 3)
    rest(page)
    assert choices(live) == ["left"] * 3
    for key in ("2", "u", "Enter"):
        before = len(live.table.rows)
        if key == "Enter":
            page.locator("[data-choice=right]").focus()
        for _ in range(30):  # held: one down is followed by repeats
            page.keyboard.down(key)
            time.sleep(0.03)
        page.keyboard.up(key)
        rest(page)
        assert len(live.table.rows) == before + 1, key


def centre(page, selector):
    box = page.locator(selector).bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def test_nothing_of_one_pair_is_carried_over_to_the_next(at, watched):
    live = at()
    page = watched(live.url)
    rest(page)
    page.click("summary")
    page.fill("#better", "mine")
    page.fill("#comment", "why")
    page.click("[data-choice=right]")
    counted(page, 1)
    state = "[...document.querySelectorAll('.picked')].length + document.querySelector('#better').value"
    assert page.evaluate(state + " + document.querySelector('#comment').value") == "0"
    assert not page.evaluate("document.querySelector('#more').open")
    rest(page)
    page.click("[data-choice=left]")
    counted(page, 2)
    assert [(row["better"], row["comment"]) for row in live.table.rows] == [("mine", "why"), (None, None)]
    assert live.table.rows[0]["chosen"][0]["content"] == "mine"
    for _ in range(2):
        page.click("#undo")
        rest(page)
    assert page.input_value("#better") == "mine" and page.input_value("#comment") == "why"  # to be mended
    page.fill("#person", "Bo")
    page.press("#person", "Enter")
    counted(page, 0)
    assert page.input_value("#better") == ""  # the same pair, another person


def test_an_edit_in_the_last_moment_is_in_the_choice(at, watched):
    live = at()
    page = watched(live.url)
    rest(page)
    page.click("summary")
    page.evaluate("""() => {
        const better = document.querySelector('#better');
        better.value = 'last';
        better.dispatchEvent(new Event('input', { bubbles: true }));
        document.querySelector('[data-choice=left]').click();
        better.focus();
    }""")
    page.keyboard.type(" typed too late")  # while it is being saved nothing can be typed that would be lost
    counted(page, 1)
    assert live.table.rows[0]["better"] == "last" and page.input_value("#better") in ("", " typed too late")


def test_a_draft_outlives_a_reload(at, watched):
    page = watched(at().url)
    before = shown(page)
    page.click("summary")
    page.fill("#better", "half a sen")
    page.reload()
    assert shown(page) == before and page.input_value("#better") == "half a sen"


def test_reload_back_and_another_tab_show_the_same_pair_until_it_is_chosen(at, watched):
    live = at()
    page = watched(live.url)
    press(page, "1")
    seen = shown(page)
    page.reload()
    assert shown(page) == seen
    other = watched(live.url, context=page.context)
    assert shown(other) == seen
    rest(page)
    page.keyboard.press("2")
    counted(page, 2)
    other.keyboard.press("1")  # the other tab still shows the pair
    other.wait_for_selector("#message:visible")
    assert "chosen already about this pair" in other.inner_text("#message")
    assert shown(other) == shown(page) != seen
    assert choices(live) == ["left", "right"]
    page.goto(live.url + "static/prefer.css")
    page.go_back()
    assert shown(page) == shown(other)
    press(page, "1")
    page.go_forward()
    page.go_back()
    assert shown(page) not in (seen, shown(other)) and choices(live) == ["left", "right", "left"]


def test_what_is_chosen_while_the_server_is_away_is_saved_when_it_is_back_once_and_for_who_chose(at, watched):
    live = at()
    page = watched(live.url)
    seen = press(page, "1"), shown(page)
    live.stop()
    live.table.close()
    rest(page)
    page.keyboard.press("2")
    page.wait_for_selector("#message:visible")
    assert "The server does not answer. What you chose is kept on this page" in page.inner_text("#message")
    assert page.is_disabled("#person") and page.is_disabled("#undo") and shown(page) == seen[1]
    assert page.inner_text("#live").startswith("Saved: left")  # of the first one
    table = Table(live.table.path.parent)
    again = Live(table, port=live.port)
    counted(page, 2)
    assert page.is_hidden("#message") and [row["left"] for row in table.rows] == [left for _, left, _ in seen]
    assert shown(page) not in seen
    again.stop()
    table.close()


def test_an_undo_whose_answer_was_lost_takes_back_one_choice(at, watched):
    live = at()
    page = watched(live.url)
    press(page, "1")
    press(page, "2")
    lost = []

    def lose(route):
        if not lost:
            lost.append(route.fetch())  # the server has done it
            route.abort()
        else:
            route.continue_()

    page.route("**/api/undo", lose)
    page.keyboard.press("u")
    counted(page, 1)
    assert choices(live) == ["left", "right", "undo"]


@pytest.mark.parametrize("fault", [errno.ENOSPC, errno.EROFS])
def test_a_choice_that_is_not_saved_is_not_pretended(at, watched, monkeypatch, fault):
    live = at()
    page = watched(live.url)
    rest(page)

    def refuse(*_):
        raise OSError(fault, os.strerror(fault))

    before = shown(page)
    page.click("summary")
    page.fill("#better", "mine")
    with monkeypatch.context() as patch:
        patch.setattr(live.table.file, "append", refuse)
        page.click("[data-choice=left]")
        page.wait_for_selector("#message:visible")
    said = page.inner_text("#message")
    assert "Not saved." in said and os.strerror(fault) in said and "prefs.jsonl" in said
    assert page.locator(".picked").count() == 0 and page.inner_text("#live") == "" and shown(page) == before
    assert live.table.rows == [] and page.input_value("#better") == "mine"
    page.click("[data-choice=left]")
    counted(page, 1)
    assert page.is_hidden("#message") and live.table.rows[0]["better"] == "mine"


def test_names_are_hidden_until_asked_for(at, watched):
    live = at()
    page = watched(live.url)
    rest(page)
    assert "runs/" not in page.content()
    page.click("#names")
    page.wait_for_selector("#right-name:has-text('runs/two')")
    page.reload()
    page.wait_for_selector("#right-name:has-text('runs/two')")
    press(page, "1")
    assert "runs/" not in page.content() and live.table.rows[0]["blind"] is False
    press(page, "1")
    assert live.table.rows[1]["blind"] is True


def test_while_a_pair_is_made_the_page_says_so_and_can_be_used(at, watched):
    may = threading.Event()

    class Slow(Canned):
        def make(self, prompts, number):
            if number:
                may.wait(60)
            return super().make(prompts, number)

    live = at(Slow(prompts=2))
    page = watched(live.url)
    press(page, "1")
    rest(page)
    page.keyboard.press("1")
    page.wait_for_selector("#waiting:visible")
    page.click("#own")
    page.keyboard.type("typed while the page waits, " * 6, delay=20)  # over several of its requests
    assert page.input_value("#own") == "typed while the page waits, " * 6
    page.locator("h1").click()
    page.keyboard.press("u")
    assert shown(page)[1].endswith("left 0")
    press_again = choices(live)
    assert press_again == ["left", "left", "undo"]
    may.set()
    press(page, "2")
    assert shown(page)[1].endswith("left 1")


def test_why_there_is_no_pair_is_said_and_tried_again(at, watched):
    maker = Canned(failures=10**6)
    page = watched(at(maker).url)
    page.wait_for_selector("#again:visible")
    assert "answering failed: RuntimeError: no memory at all" in page.inner_text("#message")
    maker.failures = 0
    page.click("#again")
    shown(page)
    assert page.is_hidden("#message") and page.is_hidden("#again")


SCRIPTS = [
    "<script>window.hacked = 1; alert(1)</script>",
    "<img src=x onerror='window.hacked = 1; alert(1)'><svg onload=alert(1)>",
    "</div></section><style>* { display: none }</style><iframe src='http://127.0.0.9/'></iframe>",
    "\u202eabc\u2066\u200f \x1b[31m \x00\x08 \u2028\u2029 \ufeff",
    "a" * 1_000_000,
    "word " * 200_000,
    "Z" + "\u0301" * 3000,
    " \n\t ",
    "\U0001f469\u200d\U0001f4bb \u0627\u0644\u0633\u0644\u0627\u0645 " * 50,
]


@pytest.mark.parametrize("width", [360, 1280])
def test_hostile_texts_are_shown_as_text_and_stay_in_their_place(at, watched, width):
    live = at(
        Canned(prompts=[asked(text) for text in SCRIPTS], texts=lambda n, i: (SCRIPTS[i % 9], SCRIPTS[i % 9] + "!"))
    )
    page = watched(live.url, width=width)
    for count in range(8):  # one batch
        texts = page.wait_for_selector("#pair:visible") and {
            side: page.locator(f"#{side}").text_content() for side in ("left", "right")
        }
        raw = next(iter(live.table.stock.pairs.values())) if count == 0 else None
        if raw:
            assert texts == {"left": raw.left, "right": raw.right}
        assert not re.search("[\x00-\x08\x1b\u202e\u2066\u200f\u2028\ufeff]", "".join(texts.values()))
        assert page.evaluate("window.hacked") is None
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert page.locator("#pair script, #pair img, #pair iframe, #pair style, #pair svg").count() == 0
        rest(page)
        page.click("[data-choice=left]")
        counted(page, count + 1)
    assert len(live.table.rows) == 8 and {row["left"] for row in live.table.rows} >= {SCRIPTS[0], SCRIPTS[4]}


WIDTHS = [(360, "dark"), (360, "light"), (1280, "dark")]
CONTRAST = """() => {
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = (c) => c.slice(0, 3).map((v) => v / 255)
    .map((v) => (v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const ground = (e) => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor);
    if (c.length < 4 || c[3] > 0) return c; } return [255, 255, 255]; };
  const found = [];
  for (const e of document.querySelectorAll('body *')) {
    const words = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!words || !e.checkVisibility() || e.disabled) continue;
    const [a, b] = [light(rgb(getComputedStyle(e).color)), light(ground(e))].sort((x, y) => y - x);
    if ((a + .05) / (b + .05) < 4.5) found.push([e.id || e.tagName, e.textContent.slice(0, 30), (a + .05) / (b + .05)]);
  }
  return found;
}"""


@pytest.mark.parametrize(("width", "scheme"), WIDTHS)
def test_it_fits_a_phone_and_can_be_read_in_light_and_dark(at, watched, width, scheme):
    page = watched(at().url, width=width, height=740, color_scheme=scheme)
    press(page, "1")
    page.click("summary")
    page.click("#names")
    page.wait_for_selector("#left-name:has-text('runs/')")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(CONTRAST) == []
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0] < 128")
    assert dark is (scheme == "dark")
    small = "[...document.querySelectorAll('button')].filter((b) => b.checkVisibility() && b.offsetHeight < 40).length"
    assert page.evaluate(small) == 0


def test_on_a_phone_a_new_pair_is_read_from_its_beginning(at, watched):
    live = at(Canned(texts=lambda n, i: (f"{n} {i} " + "left " * 400, f"{n} {i} " + "right " * 400)))
    page = watched(live.url, width=360, height=640)
    rest(page)
    page.locator("#right").scroll_into_view_if_needed()
    page.evaluate("scrollTo(0, 500); document.querySelector('#left').scrollTop = 99")
    press(page, "1")
    assert page.evaluate("document.querySelector('#prompt').getBoundingClientRect().top") > -1
    assert page.evaluate("document.querySelector('#left').scrollTop") == 0
    assert page.locator("[data-choice=left]").bounding_box()["y"] < 640  # in reach of a thumb


def test_every_control_has_a_name_for_a_screen_reader(at, watched):
    page = watched(at().url)
    rest(page)
    page.click("summary")
    session = page.context.new_cdp_session(page)
    nodes = session.send("Accessibility.getFullAXTree")["nodes"]
    kinds = {"button", "textbox", "region", "DisclosureTriangle", "link"}
    named = {}
    for node in nodes:
        role = node.get("role", {}).get("value")
        if role in kinds and not node.get("ignored"):
            named.setdefault(role, []).append(node.get("name", {}).get("value", ""))
    assert all(all(names) for names in named.values()), named
    assert len({*named["region"]}) == len(named["region"])
    assert len(named["button"]) >= 11 and len(named["textbox"]) == 4
    assert {"Left is better", "Both bad", "Undo", "Skip"} <= {*named["button"]}  # without the key's letter
    assert page.locator("[role=status]").count() == page.locator("[role=alert]").count() == 1
    page.evaluate("document.querySelector('#prompt').focus()")
    press(page, "1")
    assert "Saved: left. The next pair is here." in page.inner_text("#live")
    assert page.evaluate("document.activeElement.id") == "prompt"  # so that it is read next


def test_people_by_name_have_their_own_pairs_and_a_name_in_the_address_is_for_the_start(at, watched):
    live = at()
    page = watched(live.url + "?person=Ada")
    first = press(page, "1")
    other = watched(live.url + "?person=Bo")
    assert shown(other) == first  # common
    press(other, "2")
    assert shown(other) != shown(page)
    page.fill("#person", "Cy")
    page.press("#person", "Enter")
    counted(page, 0)
    page.reload()
    assert page.input_value("#person") == "Cy" and shown(page) == first
    page.fill("#person", "a\u202eb")
    page.press("#person", "Enter")
    page.wait_for_selector("#message:visible")
    assert "printable characters" in page.inner_text("#message")
    assert [row["person"] for row in live.table.rows] == ["Ada", "Bo"]


def test_enough_ends_it_and_says_how_many(at, watched):
    live = at(trains_next=True)
    page = watched(live.url)
    press(page, "1")
    assert page.inner_text("#enough") == "That is enough: train on my choices"
    page.click("#enough")
    page.wait_for_selector("main:has-text('1 pairs to learn from')")
    assert live.table.ended.wait(10) and page.locator("button").count() == 0


ATTACK = """async ({ url, pair }) => {
  const body = JSON.stringify({ person: 'me', pair, choice: 'left' });
  const told = [];
  for (const type of ['application/json', 'text/plain'])
    for (const mode of ['cors', 'no-cors'])
      try {
        const sent = { method: 'POST', body, mode, headers: { 'Content-Type': type } };
        told.push((await fetch(url + 'api/choose', sent)).type);
      } catch { told.push('refused'); }
  try { told.push(await (await fetch(url)).text()); } catch { told.push('refused'); }
  const form = document.body.appendChild(document.createElement('form'));
  Object.assign(form, { method: 'post', enctype: 'text/plain', action: url + 'api/choose', target: 'frame' });
  const input = form.appendChild(document.createElement('input'));
  [input.name, input.value] = [body.slice(0, -1) + ', "comment": "', '"}'];
  form.submit();
  const frame = document.body.appendChild(document.createElement('iframe'));
  frame.src = url;
  await new Promise((done) => setTimeout(done, 500));
  let inside; try { inside = frame.contentDocument?.body?.textContent ?? null; } catch { inside = null; }
  return { told, inside };
}"""


def test_no_other_site_chooses_or_reads(at, browser):
    live = at()
    with browser.new_context() as context:
        page = context.new_page()
        bare = {"body": "<iframe name=frame></iframe>", "content_type": "text/html"}
        page.route("http://evil.example/**", lambda route: route.fulfill(**bare))
        page.goto("http://evil.example/")
        pair = live.table.state("me")["pair"]["id"]
        got = page.evaluate(ATTACK, {"url": live.url, "pair": pair})
    assert {*got["told"]} <= {"refused", "opaque"} and not got["inside"]
    assert live.table.rows == [] and live.table.state("me")["pair"]["id"] == pair


def test_with_a_token_the_page_is_used_as_without(at, watched):
    live = at(token="secret")
    page = watched(live.url + "?token=secret")
    press(page, "1")
    page.fill("#person", "Bo")
    page.press("#person", "Enter")
    counted(page, 0)
    page.reload()  # the name is no part of the address, the token is
    press(page, "2")
    assert [(row["person"], row["choice"]) for row in live.table.rows] == [("me", "left"), ("Bo", "right")]
    page.goto(live.url)
    assert "token that was printed in the terminal" in page.inner_text("body") and page.locator("button").count() == 0


def test_the_page_may_run_and_load_nothing_else(at, browser):
    page = browser.new_page()
    page.goto(at().url)
    shown(page)
    blocked = page.evaluate("""async () => {
        const seen = [];
        document.addEventListener('securitypolicyviolation', (event) => seen.push(event.effectiveDirective));
        const script = document.createElement('script');
        script.textContent = 'window.hacked = 1';
        document.body.append(script);
        const div = document.createElement('div');
        div.innerHTML = "<b onclick='window.hacked = 1' style='color: red'>x</b>";
        document.body.append(div);
        div.firstChild.click();
        await fetch('data:text/plain,x').catch(() => 0);
        await new Promise((done) => setTimeout(done, 200));
        return { seen, hacked: window.hacked ?? null };
    }""")
    page.close()
    assert blocked["hacked"] is None
    assert {"script-src-elem", "script-src-attr", "style-src-attr", "connect-src"} <= {*blocked["seen"]}


class Command:
    """`fourstage prefer` as a process of its own, which can be killed and started again with the same files."""

    running = []

    def __init__(self, folder, models, port=0, largest=None):
        limit = (lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))) if largest else None
        words = [*models, "--prompts", folder / "p.txt", "--output", folder / "prefs.jsonl", "--port", port]
        command = [sys.executable, "-m", "fourstage.cli", "prefer", *words, "--max_new_tokens", 12]
        self.process = subprocess.Popen(
            list(map(str, command)), cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True, preexec_fn=limit
        )
        self.running.append(self.process)
        self.said = []
        while "http://" not in (self.said or [""])[-1]:
            line = self.process.stderr.readline()
            assert line, self.said
            self.said.append(line)
        self.url = re.search(r"http://\S+", self.said[-1]).group()
        self.port = int(self.url.rstrip("/").rpartition(":")[2])

    def end(self, sign):
        self.process.send_signal(sign)
        rest = self.process.communicate(timeout=60)[1]
        return self.process.returncode, "".join(self.said) + rest


@pytest.fixture
def folder(tmp_path, tokenizer, model):
    """Prompts, a model of random weights, and one that always says the same."""
    model.save_pretrained(tmp_path / "random")
    parrot(tokenizer, chain(tokenizer, "bab, gef!")).save_pretrained(tmp_path / "parrot")
    for name in ("random", "parrot"):
        tokenizer.save_pretrained(tmp_path / name)
    (tmp_path / "p.txt").write_text("".join(f"bab {i}\n" for i in range(30)) + "<script>alert(1)</script>\n")
    yield tmp_path
    for server in Command.running:
        server.kill()


def test_the_command_killed_and_ended_keeps_every_choice(folder, watched):
    models = [folder / "random", folder / "parrot"]
    server = Command(folder, models)
    page = watched(server.url)
    seen = []
    for kill in range(3):
        seen += [press(page, "1") for _ in range(4)]
        server.end(signal.SIGKILL)
        rest(page)
        seen.append(shown(page))
        page.keyboard.press("2")
        page.wait_for_selector("#message:visible")
        server = Command(folder, models, server.port)
        counted(page, 5 * (kill + 1))
    status, said = server.end(signal.SIGTERM)
    rows = [json.loads(line) for line in (folder / "prefs.jsonl").read_text().splitlines()]
    assert [row["prompt"][0]["content"] for row in rows] == [prompt for prompt, _, _ in seen]
    for row, (_, left, _) in zip(rows, seen, strict=True):  # the page writes control characters out
        written = re.sub(r"\\u([0-9a-f]{4})", lambda found: chr(int(found[1], 16)), left)
        assert row["left"].strip() == ("" if left == "(nothing)" else written.strip())
    assert [row["choice"] for row in rows] == (["left"] * 4 + ["right"]) * 3
    assert len({row["pair"] for row in rows}) == 15 and [row["repeat_of"] is not None for row in rows].count(True) == 1
    assert all({model["name"] for model in row["models"]} == {*map(str, models)} for row in rows)
    assert status == 0 and "prefs.jsonl: 15 choices, 14 of them pairs for a reward model" in said
    assert f"next: accelerate launch recipes/reward.py --model_name_or_path {models[0]}" in said


def test_on_a_full_disk_the_command_and_the_page_say_so(folder, watched):
    server = Command(folder, [folder / "random", folder / "parrot"], largest=12_000)
    page = watched(server.url)
    saved = 0
    while page.is_hidden("#message"):
        rest(page)
        page.keyboard.press("1")
        counted(page, saved + 1, or_message=True)
        saved += page.is_hidden("#message")
    said = page.inner_text("#message")
    assert "Not saved." in said and "File too large" in said
    assert len((folder / "prefs.jsonl").read_text().splitlines()) == saved > 3
    assert page.text_content("#progress dd") == str(saved) and page.locator(".picked").count() == 0
    status, said = server.end(signal.SIGINT)
    assert status == 0 and "not saved: " in said and f"{saved} choices" in said
