"""The server of the pages: no other site reads or sends anything, and its end leaves time for last words."""

import re
import signal
import socket
import subprocess
import sys
import urllib.request

import pytest
from helpers import ROOT, environment
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from fourstage.web.serving import LARGEST_REQUEST, STATIC, is_loopback, listen, page_app

OWN = "http://127.0.0.1:8420"
SENT = []


async def take(request):
    SENT.append(await request.body())
    return JSONResponse({})


def client(port=8420, token=None, base=OWN):
    return TestClient(page_app("prefer.html", [Route("/take", take, methods=["POST"])], port, token), base)


GOOD = {"Host": "127.0.0.1:8420", "Origin": OWN, "Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Content-Type": "application/json; charset=utf-8"}, 200),
        ({"Host": "localhost:8420", "Origin": "http://localhost:8420"}, 200),
        ({"Host": "[::1]:8420", "Origin": "http://[::1]:8420"}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": ""}, 403),
        ({"Origin": "https://127.0.0.1:8420"}, 403),
        ({"Origin": "http://127.0.0.1:8421"}, 403),
        ({"Origin": "http://127.0.0.1"}, 403),
        ({"Origin": "http://localhost:8420"}, 403),
        ({"Origin": f"{OWN}.evil.example"}, 403),
        ({"Host": "evil.example:8420", "Origin": "http://evil.example:8420"}, 421),  # DNS rebinding
        ({"Host": "127.0.0.1.evil.example:8420", "Origin": "http://127.0.0.1.evil.example:8420"}, 421),
        ({"Host": "evil.example@127.0.0.1:8420", "Origin": "http://evil.example@127.0.0.1:8420"}, 421),
        ({"Host": "127.0.0.1:80", "Origin": "http://127.0.0.1:80"}, 421),
        ({"Host": "127.0.0.1", "Origin": "http://127.0.0.1"}, 421),
        ({"Host": "", "Origin": "http://"}, 421),
        ({"Host": "127.0.0.1:8420:8420", "Origin": "http://127.0.0.1:8420:8420"}, 421),
        ({"Content-Type": "text/plain"}, 415),  # what a form or a script of another site may send unasked
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({"Content-Type": "multipart/form-data; boundary=application/json"}, 415),
        ({"Content-Type": ""}, 415),
        ({"Content-Length": str(LARGEST_REQUEST + 1)}, 413),
        ({"Content-Length": "-1"}, 413),
        ({"Content-Length": "²"}, 413),
    ],
)
def test_who_may_send(headers, status):
    SENT.clear()
    headers = {name: value.encode("latin-1") for name, value in (GOOD | headers).items()}
    answer = client().post("/api/take", content=b"{}", headers=headers)
    assert answer.status_code == status and len(SENT) == (status == 200)
    assert status == 200 or answer.json()["error"]


def test_every_header_is_needed_and_a_body_without_a_length_is_refused():
    SENT.clear()
    for name, status in (("Origin", 403), ("Content-Type", 415)):
        headers = {key: value for key, value in GOOD.items() if key != name}
        assert client().post("/api/take", content=b"{}", headers=headers).status_code == status
    assert client().post("/api/take", content=iter([b"{}"]), headers=GOOD).status_code == 413
    for method in ("PUT", "DELETE", "OPTIONS", "PATCH"):
        assert client().request(method, "/api/take", headers=GOOD).status_code >= 400
        assert client().request(method, "/api/take", headers={"Origin": "http://evil.example"}).status_code == 403
    assert client().get("/api/take").status_code == 405 and SENT == []


def test_a_body_of_the_largest_size_is_taken():
    SENT.clear()
    assert client().post("/api/take", content=b" " * LARGEST_REQUEST, headers=GOOD).status_code == 200
    assert len(SENT[0]) == LARGEST_REQUEST


def test_port_80_needs_no_port_in_the_name():
    there = client(port=80, base="http://127.0.0.1")
    assert there.get("/").status_code == 200
    assert there.post("/api/take", json={}, headers={"Origin": "http://127.0.0.1"}).status_code == 200


def test_with_a_token_any_name_serves_and_nothing_is_read_or_sent_without_it():
    SENT.clear()
    there = client(token="secret", base="http://box:8420")
    assert there.get("/").status_code == there.get("/?token=wrong").status_code == 403
    assert there.get("/?token=%ff").status_code == 403
    assert there.get("/?token=secret").status_code == 200
    assert there.get("/static/prefer.js").status_code == 200  # nothing of anybody's in it
    own = {"Origin": "http://box:8420"}
    assert there.post("/api/take", json={}, headers=own).status_code == 403
    assert there.post("/api/take", json={}, headers=own | {"X-Token": b"\xff"}).status_code == 403
    assert there.post("/api/take", json={}, headers={"Origin": "http://a", "X-Token": "secret"}).status_code == 403
    assert SENT == []
    assert there.post("/api/take", json={}, headers=own | {"X-Token": "secret"}).status_code == 200


@pytest.mark.parametrize("path", ["/", "/static/prefer.js", "/static/missing", "/api/take", "/elsewhere"])
def test_every_answer_forbids_what_is_not_of_this_server(path):
    for base in (OWN, "http://evil.example"):
        headers = client(base=base).get(path).headers
        policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
        assert policy["default-src"] == "'none'" and policy["frame-ancestors"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert "unsafe" not in str(policy) and "http" not in str(policy) and "*" not in str(policy)
        assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"
        assert "access-control-allow-origin" not in headers and headers["cache-control"] == "no-store"


@pytest.mark.parametrize("path", ["/static/../serving.py", "/static/%2e%2e/serving.py", "/static//etc/passwd"])
def test_only_files_of_the_page_are_served(path):
    assert client().get(path).status_code == 404


def test_no_page_has_a_script_a_style_or_an_address_in_it():
    for path in STATIC.glob("*.html"):
        text = path.read_text()
        assert not re.findall(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=|javascript:", text), path.name
        assert not re.findall(r"""(?:src|href)=["'](?!/static/|data:,)""", text), path.name
    risky = r"https?:|//\w+\.|@import|innerHTML|outerHTML|insertAdjacentHTML|\beval\(|document\.write"
    for path in [*STATIC.glob("*.js"), *STATIC.glob("*.css")]:
        assert not re.findall(risky, path.read_text()), path.name


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("localhost", True), ("127.9.9.9", True), ("::1", True), ("[::1]", True), ("0.0.0.0", False),
     ("", False), ("::", False), ("192.168.0.1", False), ("localhost.evil.example", False), ("127.0.0.1.nip", False)],
)  # fmt: skip
def test_loopback(host, expected):
    assert is_loopback(host) is expected


@pytest.mark.parametrize(
    ("host", "port", "said"),
    [("127.0.0.1", 99999, "^port=99999 must be 0"), ("127.0.0.1", -1, "^port=-1 must be 0"),
     ("203.0.113.7", 0, "^port=0 on 203.0.113.7 cannot be used"), ("::ffff:300", 0, "port=0|host=")],
)  # fmt: skip
def test_an_address_that_cannot_be_used(host, port, said):
    with pytest.raises(ValueError, match=said) as caught:
        listen(host, port)
    assert "\n" not in str(caught.value)


def test_a_port_in_use_is_named():
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"^port={port} on 127.0.0.1 cannot be used .Address already in use"):
            listen("127.0.0.1", port)
    listen("127.0.0.1", port).close()


PROGRAM = """
import sys
from fourstage.web.serving import serve
serve("prefer.html", [], sys.argv[1], 0, lambda text: print(text, flush=True), "open")
print("last words")
"""


@pytest.mark.parametrize(
    ("host", "sign"), [("127.0.0.1", signal.SIGINT), ("127.0.0.2", signal.SIGTERM), ("0.0.0.0", 2)]
)
def test_a_server_that_is_ended_has_last_words_and_its_address_is_the_right_one(host, sign):
    command = [sys.executable, "-c", PROGRAM, host]
    with subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True) as server:
        try:
            address = server.stdout.readline().strip().removeprefix("open: ")
            name, port, token = re.fullmatch(r"http://([^:]+):(\d+)/(\?token=[\w-]{20,})?", address).groups()
            assert name == (socket.gethostname() if host == "0.0.0.0" else host) and bool(token) is (host == "0.0.0.0")
            reached = f"http://{'127.0.0.1' if token else host}:{port}/{token or ''}"
            if host != "127.0.0.2":  # these tests may speak to 127.0.0.1 alone
                assert b"Which answer" in urllib.request.urlopen(reached, timeout=60).read()
            else:
                assert server.poll() is None
            server.send_signal(sign)
            assert server.communicate(timeout=60)[0] == "last words\n" and server.returncode == 0
        finally:
            server.kill()
