"""Serves a page to this machine, or with a token to others: nothing from elsewhere is loaded or may speak to it."""

import hmac
import ipaddress
import re
import secrets
import signal
import socket
from collections.abc import Callable, Sequence
from http import HTTPStatus
from pathlib import Path
from urllib.parse import quote

import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers, QueryParams
from starlette.responses import FileResponse, JSONResponse
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fourstage.signals import as_before

STATIC = Path(__file__).parent / "static"
LARGEST_REQUEST = 1_000_000  # bytes
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]@/\s]+)(?::(\d{1,5}))?")  # a name, and a port unless that is 80


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the host."""
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class Guard:
    """ASGI middleware that answers what another site or another person could send before the app sees it.

    Args:
        port: of this server; a request has to name it and a loopback host, so that no name of another site leads here.
        token: None on loopback. Else the page needs it in its address and all under /api/ in the header X-Token, and
            any host may be named.
    A POST has to come from a page of this server (Origin), as JSON of at most LARGEST_REQUEST bytes.
    """

    def __init__(self, app: ASGIApp, port: int, token: str | None):
        self.app, self.port, self.token = app, port, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                safe = [(name.lower().encode(), value.encode()) for name, value in _HEADERS.items()]
                message["headers"] = [*message["headers"], *safe]
            await send(message)

        refusal = self._refusal(scope)
        if refusal:
            status, why = refusal
            await JSONResponse({"error": why}, status)(scope, receive, send_safely)
        else:
            await self.app(scope, receive, send_safely)

    def _refusal(self, scope: Scope) -> tuple[HTTPStatus, str] | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        named = _HOST.fullmatch(host)
        if self.token is None and not (named and is_loopback(named[1]) and int(named[2] or 80) == self.port):
            return HTTPStatus.MISDIRECTED_REQUEST, f"this server is not called {host!r}"
        if self.token is not None and not scope["path"].startswith("/static/"):
            given = headers.get("x-token") or QueryParams(scope["query_string"]).get("token", "")
            if not hmac.compare_digest(given.encode(), self.token.encode()):
                return HTTPStatus.FORBIDDEN, "the address needs the token that was printed in the terminal"
        if scope["method"] in ("GET", "HEAD"):
            return None
        if headers.get("origin") != f"http://{host}":
            return HTTPStatus.FORBIDDEN, "only a page of this server may send that"
        if headers.get("content-type", "").split(";")[0].strip() != "application/json":
            return HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "a request has to be JSON"
        size = headers.get("content-length", "")
        if not size.isdecimal() or int(size) > LARGEST_REQUEST:
            return HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a request has to have at most {LARGEST_REQUEST:,} bytes"
        return None


def page_app(page: str, routes: Sequence[BaseRoute], port: int, token: str | None) -> ASGIApp:
    """The app of one page: the file `page` of static/ at /, the other files there, and `routes` under /api/."""

    async def first_page(request: object) -> FileResponse:
        return FileResponse(STATIC / page)

    files = Mount("/static", StaticFiles(directory=STATIC))
    return Guard(Starlette(routes=[Route("/", first_page), files, Mount("/api", routes=list(routes))]), port, token)


def listen(host: str, port: int) -> socket.socket:
    """A socket bound to the address; port 0 is any free one. Raises ValueError naming the port or the host."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen()  # another process can bind the address until then
    except OverflowError:
        raise ValueError(f"port={port} must be 0 (any free one) to 65535") from None
    except socket.gaierror:
        raise ValueError(f"host={host} is no address of this machine; 127.0.0.1 is for this machine alone") from None
    except OSError as error:
        raise ValueError(
            f"port={port} on {host} cannot be used ({error.strerror}); choose another with --port, 0 for any free one"
        ) from None
    return sock


def serve(
    page: str, routes: Sequence[BaseRoute], host: str, port: int, say: Callable[[str], object], what: str
) -> None:
    """Serves the page until Ctrl-C or SIGTERM, after saying the address where to open it."""
    sock = listen(host, port)
    port = sock.getsockname()[1]
    token = None if is_loopback(host) else secrets.token_urlsafe(24)
    shown = socket.gethostname() if host in ("", "0.0.0.0", "::") else host
    shown = f"[{shown}]" if ":" in shown else shown
    app = page_app(page, routes, port, token)
    config = uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off", timeout_graceful_shutdown=2)
    server = uvicorn.Server(config)

    def stop(*_: object) -> None:
        server.should_exit = True

    # uvicorn sends itself the signal that ended it once more, by which the process would die without its last words
    with as_before():
        before = {sign: signal.signal(sign, stop) for sign in (signal.SIGINT, signal.SIGTERM)}
        say(f"{what}: http://{shown}:{port}/" + (f"?token={quote(token)}" if token else ""))
        try:
            server.run(sockets=[sock])
        finally:
            for sign, handler in before.items():
                signal.signal(sign, handler)
