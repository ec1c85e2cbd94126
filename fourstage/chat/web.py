"""The page of `fourstage chat --web runs/demo`: one model or two side by side, each answer streamed as it comes."""

import argparse
import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from fourstage.chat.asked import Asked, checked
from fourstage.chat.votes import Votes
from fourstage.chat.watched import Token, speak_watched
from fourstage.errors import one_line
from fourstage.models.checkpoint import check_openable
from fourstage.parent import find_parent, read_record
from fourstage.speaking import Sampling, Speaker, is_reward_model, note, open_speaker
from fourstage.stages import STAGES
from fourstage.web.serving import serve

_KEPT = 4 << 30  # bytes of weights that stay opened; the two models last spoken to always do


@dataclass
class Models:
    """The models of the page by name. Each is opened when it is first spoken to, and says one thing at a time.

    `options` are those of `open_speaker`.
    """

    names: list[str]
    options: dict[str, Any] = field(default_factory=dict)
    opened: dict[str, Speaker] = field(default_factory=dict)  # the one last spoken to stands last

    def __post_init__(self):
        self.locks, self._opening = {name: Lock() for name in self.names}, Lock()

    def speaker(self, name: str) -> Speaker:
        """The model, opened; those that were not spoken to for longest make room. Raises ValueError, in one line."""
        with self._opening:
            speaker = self.opened.pop(name, None) or open_speaker(name, **self.options)
            self.opened[name] = speaker
            while len(self.opened) > 2 and sum(map(_size, self.opened.values())) > _KEPT:
                del self.opened[next(iter(self.opened))]
            return speaker

    @cached_property
    def rows(self) -> list[dict]:
        """Name, stage and whether it only continues text, as far as that is known before it is opened."""
        parents = [find_parent(name, self.options.get("revision")) for name in self.names]
        continues = self.options.get("continues", False)
        return [{"name": p.name, "stage": p.stage, "continues": continues or p.is_base} for p in parents]


def _size(speaker: Speaker) -> int:
    return sum(weight.numel() * weight.element_size() for weight in speaker.model.parameters())


def named_models(names: Sequence[str], **hub: Any) -> list[str]:
    """The models that the names stand for: a folder of a chain stands for its finished stages that answer.

    Raises:
        ValueError: for a name that is no model, a reward model, or a chain in which nothing answers yet.
    """
    found = [stage for name in names for stage in _stages_in(name)]
    for name in dict.fromkeys(found):
        find_parent(name, hub.get("revision"))
        if is_reward_model(name, **hub):
            raise ValueError(f"{name} is a reward model: it scores answers and writes none; leave it out")
        check_openable(name, scores=False, **hub)
    return list(dict.fromkeys(found))


def _stages_in(name: str) -> list[str]:
    folder = Path(name)
    if not folder.is_dir() or any((folder / file).is_file() for file in ("config.json", "adapter_config.json")):
        return [name]
    records = {stage: read_record(folder / stage.name) for stage in STAGES.values()}
    if read_record(folder) or not any(records.values()):
        return [name]
    done = [stage for stage, record in records.items() if record and record["status"] == "finished"]
    answering = [str(folder / stage.name) for stage in done if not stage.scores]
    if not answering:
        raise ValueError(f"{name} has no finished stage that answers yet; name a model, or finish its stages first")
    return answering


def answer(models: Models, asked: Asked, put: Callable[[dict], object], gone: Event) -> None:
    """Hands the rows of an answer to `put`: `start`, a `token` each, `end`; or an `error` in one line.

    A character that the last tokens leave unfinished is the `rest` of the end.
    """
    try:
        while not models.locks[asked.name].acquire(timeout=0.2):
            if gone.is_set():
                return
        try:
            if not gone.is_set():
                _answer(models.speaker(asked.name), asked, put, gone)
        finally:
            models.locks[asked.name].release()
    except Exception as error:  # whatever it is, the page has to say so rather than wait
        put({"kind": "error", "error": one_line(error, with_type=not isinstance(error, ValueError))})


def _answer(speaker: Speaker, asked: Asked, put: Callable[[dict], object], gone: Event) -> None:
    ids, left_out = asked.ids(speaker)
    about = {"what": speaker.describe(), "chats": speaker.chats, "left_out": left_out, "seed": asked.seed}
    put({"kind": "start", **about})
    told: list[str] = []

    def take(token: Token) -> None:
        told.append(token.text)
        put({"kind": "token", **asdict(token)})

    stream = speak_watched(speaker, ids, asked.sampling, asked.seed, take, gone.is_set)
    why = "it ended" if stream.stopped else "max_new_tokens"
    if not stream.stopped and stream.tokens < asked.sampling.max_new_tokens:
        why = "its context is full"
    rest = stream.text[len("".join(told)) :]
    put({"kind": "end", "rest": rest, "tokens": stream.tokens, "why": why})


async def _streamed(models: Models, asked: Asked) -> AsyncIterator[str]:
    """The rows of an answer as lines of JSON. The browser going away ends the loop, and that the answer."""
    loop, gone = asyncio.get_running_loop(), Event()
    rows: asyncio.Queue[dict | None] = asyncio.Queue()

    def put(row: dict | None) -> None:
        with suppress(RuntimeError):  # the server has ended
            loop.call_soon_threadsafe(rows.put_nowait, row)

    def work() -> None:
        answer(models, asked, put, gone)
        put(None)

    Thread(target=work, daemon=True).start()
    try:
        while (row := await rows.get()) is not None:
            yield json.dumps(row) + "\n"
    finally:
        gone.set()


def routes(models: Models, defaults: Sampling, votes: Votes, begin: Mapping | None = None) -> list[Route]:
    """The routes under /api/. All but `say` take and give one JSON object; an error has the text to show.

    `begin` is what the page starts with beside the sampling: a seed and a system prompt.
    """

    def start(body: Mapping) -> dict:
        """What the page needs to begin."""
        return {"models": models.rows, "output": str(votes.path), **vars(defaults), **(begin or {})}

    def vote(body: Mapping) -> dict:
        """Writes which of two answers was better."""
        names = body.get("models")
        if not isinstance(names, list) or len(names) != 2:
            raise ValueError("models must be the names of the left and of the right one")
        asked, _ = [checked({**body, "model": name}, models.names, defaults) for name in names]
        sampling = {name: getattr(asked.sampling, name) for name in ("temperature", "max_new_tokens")}
        return votes.vote(names, asked.messages(), sampling, body)

    def say(body: Mapping) -> Response:
        """An answer, as lines of JSON."""
        asked = checked(body, models.names, defaults)
        return StreamingResponse(_streamed(models, asked), media_type="application/x-ndjson")

    return [_route("start", start), _route("vote", vote), _route("undo", votes.undo), _route("say", say)]


def _route(name: str, act: Callable[[Mapping], dict | Response]) -> Route:
    async def endpoint(request: Request) -> Response:
        try:
            body = await request.json()
            if not isinstance(body, dict):
                raise ValueError("a request is a JSON object")
            given = await run_in_threadpool(act, body)
            return given if isinstance(given, Response) else JSONResponse(given)
        except OSError as error:
            return JSONResponse({"error": f"{error.strerror or error}. Make room, then choose again."}, 507)
        except ValueError as error:  # JSON that is broken is one too
            return JSONResponse({"error": one_line(error)}, 400)

    return Route(f"/{name}", endpoint, methods=["POST"])


def run_web(arguments: argparse.Namespace) -> int:
    """`fourstage chat --web`: serves the page until Ctrl-C; raises ValueError for what cannot be opened or used."""
    if arguments.prompt is not None:
        raise ValueError(f"prompt={arguments.prompt!r:.40} is for the terminal; leave it out with --web")
    hub = {"revision": arguments.revision or "main", "trust_remote_code": arguments.trust_remote_code == "true"}
    names = ("temperature", "top_p", "top_k", "max_new_tokens")
    defaults = Sampling(**{name: getattr(arguments, name) for name in names})
    found = named_models(arguments.models or ["runs/demo"], **hub)
    models = Models(found, {**hub, "dtype": arguments.dtype, "continues": arguments.continue_text})
    begin = {"seed": arguments.seed, "system": arguments.system}
    page = routes(models, defaults, Votes(arguments.output), begin)
    serve("chat.html", page, arguments.host, arguments.port, note, f"{', '.join(found)}; talk at")
    return 0
