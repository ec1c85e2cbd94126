"""A real browser, which fails a test for any error in its console and for any request to another host."""

import shutil
from urllib.parse import urlsplit

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
DENIED = "Failed to load resource: the server responded with a status of"  # of an answer that the page itself explains


@pytest.fixture(scope="session")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs the extra browser: make test-browser")
    executable = next((found for name in NAMES if (found := shutil.which(name))), None)
    if executable is None:
        pytest.fail(f"no browser found ({', '.join(NAMES)}): install Chromium", pytrace=False)
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def watched(browser):
    """Opens pages; in the end none of them may have asked another host, or reported an error."""
    contexts, problems = [], []

    def open_page(url, width=1280, height=900, context=None, **options):
        if context is None:
            context = browser.new_context(viewport={"width": width, "height": height}, **options)
            contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(30_000)
        own = urlsplit(url).netloc

        def note_request(request):
            if urlsplit(request.url).netloc != own and not request.url.startswith("data:"):
                problems.append(f"asked {request.url[:100]}")

        def note_console(message):
            expected = message.text.startswith(DENIED) or "net::ERR_" in message.text
            if message.type in ("error", "warning") and not expected:
                problems.append(f"console: {message.text}")

        page.on("request", note_request)
        page.on("console", note_console)
        page.on("pageerror", lambda error: problems.append(f"error: {error}"))
        page.on("dialog", lambda dialog: problems.append(f"dialog: {dialog.message}") or dialog.dismiss())
        page.goto(url)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert problems == []
