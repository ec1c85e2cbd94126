"""How soon `fourstage prefer` shows the next pair, and whether it loses a choice when it is killed, in Chromium.

    python benchmarks/prefer_page.py MODEL [--choices 500] [--kills 20] [--paces 1 0.4] [--timed 100]

MODEL is a finished run, whose held-out prompts are asked. First one person chooses at each pace (seconds between two
choices); a time goes from the key to the frame in which the browser shows the next pair, whether it was made ahead or
not. Then two people choose by turns while the server is killed (SIGKILL) within 40 ms of a choice and started again;
what the pages showed is compared with the file. Needs the extra browser and Chromium. The server has one thread,
the browser the other core.
"""

import argparse
import json
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
NAMES = ("chromium", "chromium-browser", "google-chrome")
PAUSE = 0.36  # in which the page takes no choice after a new pair
KEYS = {"1": "left", "2": "right", "3": "both_good", "4": "both_bad", "s": "skip"}
PAIR = "['#prompt .said', '#left', '#right'].map((where) => document.querySelector(where)?.textContent)"
COUNT = "document.querySelector('#progress dd')?.textContent"
TIMER = """() => {
  window.times = [];
  document.addEventListener('keydown', () => { window.pressed = performance.now(); }, true);
  new MutationObserver(() => requestAnimationFrame(() => requestAnimationFrame(() => {
    if (window.pressed) window.times.push(performance.now() - window.pressed);
    window.pressed = null;
  }))).observe(document.querySelector('#prompt'), { childList: true });
}"""


def start(model: str, output: Path, port: int = 0) -> tuple[subprocess.Popen, int]:
    """The command, once it serves, and its port."""
    words = ["prefer", model, "--output", output, "--port", port]
    command = [str(word) for word in (sys.executable, "-m", "fourstage.cli", *words)]
    server = subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    for line in server.stderr:
        if found := re.search(r"http://[\d.]+:(\d+)/", line):
            return server, int(found[1])
    raise SystemExit(f"the server did not start: {' '.join(command)}")


def open_page(browser: Browser, port: int, person: str) -> Page:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(f"http://127.0.0.1:{port}/?person={person}")
    page.wait_for_selector("#pair:visible", timeout=120_000)
    return page


def until_counted(page: Page, number: int) -> None:
    """Waits until the page shows so many choices, all of them saved, and a pair to choose next."""
    done = f"n => {COUNT} === String(n) && !document.querySelector('#pair').hidden"
    page.wait_for_function(done, arg=number, timeout=300_000)


def next_pair_times(browser: Browser, model: str, folder: Path, pace: float, count: int) -> list[float]:
    """Milliseconds from the key to the next pair, `count` times."""
    server, port = start(model, folder / f"pace-{pace:g}.jsonl")
    try:
        page = open_page(browser, port, "Ada")
        page.evaluate(TIMER)
        time.sleep(15)  # the first pairs are made
        for done in range(1, count + 1):
            time.sleep(max(pace, PAUSE))
            page.keyboard.press("1")
            until_counted(page, done)
        page.wait_for_function("n => window.times.length >= n", arg=count)
        return page.evaluate("window.times")
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait()


def chosen_under_kills(browser: Browser, model: str, output: Path, choices: int, kills: int) -> tuple[list, int]:
    """(person, what the page showed, choice) of two people's choices by turns; and how often the server was killed."""
    rng = random.Random(0)
    server, port = start(model, output)
    pages = {person: open_page(browser, port, person) for person in ("Ada", "Bo")}
    fatal = {*rng.sample(range(choices), kills)}
    seen = []
    for number in range(choices):
        person = ("Ada", "Bo")[number % 2]
        page = pages[person]
        time.sleep(PAUSE)
        key = rng.choice("1122134s")
        seen.append((person, page.evaluate(PAIR), KEYS[key]))
        page.keyboard.press(key)
        if number in fatal:
            time.sleep(rng.random() * 0.04)
            server.kill()
            server.wait()
            server, _ = start(model, output, port)
        until_counted(page, number // 2 + 1)
    server.send_signal(signal.SIGTERM)
    server.wait()
    return seen, len(fatal)


def compare(seen: list, output: Path) -> dict[str, int]:
    """How many choices the file lacks, has twice, or has otherwise than the page showed them."""
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    keys = [(row["person"], row["pair"]) for row in rows]
    said = [(row["person"], row["prompt"][-1]["content"], row["choice"]) for row in rows]
    shown = [(person, pair[0], choice) for person, pair, choice in seen]
    return {
        "choices": len(seen),
        "lines": len(rows),
        "lost": max(0, len(seen) - len({*keys})),
        "doubled": len(keys) - len({*keys}),
        "otherwise": sum(a != b for a, b in zip(said, shown, strict=False)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--choices", type=int, default=500)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--paces", type=float, nargs="*", default=[1, 0.4])
    parser.add_argument("--timed", type=int, default=100)
    arguments = parser.parse_args()
    executable = next((found for name in NAMES if (found := shutil.which(name))), None)
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        print("| choices | seconds between | next pair, median | 95th percentile | longest |\n|---|---|---|---|---|")
        for pace in arguments.paces:
            times = next_pair_times(browser, arguments.model, Path(folder), pace, arguments.timed)
            p95 = statistics.quantiles(times, n=20, method="inclusive")[-1]
            figures = [f"{figure:.0f} ms" for figure in (statistics.median(times), p95, max(times))]
            print(f"| {len(times)} | {pace:g} | {' | '.join(figures)} |", flush=True)
        output = Path(folder) / "kills.jsonl"
        seen, killed = chosen_under_kills(browser, arguments.model, output, arguments.choices, arguments.kills)
        found = compare(seen, output)
        print(f"\n| kills | {' | '.join(found)} |\n|{'---|' * (len(found) + 1)}")
        print(f"| {killed} | {' | '.join(map(str, found.values()))} |")
        browser.close()


if __name__ == "__main__":
    main()
