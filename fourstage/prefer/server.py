"""The page of `fourstage prefer` from its server's side: who sees which pair, and what a choice becomes."""

import random
import statistics
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from threading import Lock

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from fourstage.data.picks import CHOICES, FIELDS, left_out, standing
from fourstage.prefer.pairs import Pair
from fourstage.prefer.record import ChoiceFile
from fourstage.prefer.stock import Stock
from fourstage.speaking import note

REPEAT_EVERY = 10  # choices, after which a person sees one of the earlier pairs again
_PATIENCE = 1.5  # seconds that a page waits for a pair before it asks again; a server that ends leaves it 2
_SIDES = ("left", "right")
_KEPT = ("pair", "prompt", "person", "models", "sampling", "repeat_of")  # of a choice, in the line that undoes it
_LONGEST_NAME, _LONGEST_TEXT = 60, 100_000  # characters


class Refused(ValueError):
    """A request that cannot be done; the page shows why."""


class Desk:
    """What people choose: every method is one request, and one at a time runs.

    Args:
        file: where choices go. stock: the pairs. end: what ends the server.
        trains_next: whether something trains on the choices when the server ends.
    """

    def __init__(self, file: ChoiceFile, stock: Stock, end: Callable[[], object], trains_next: bool = False):
        self.file, self.stock, self.end, self.trains_next = file, stock, end, trains_next
        self._lock = Lock()

    def state(self, request: Mapping) -> dict:
        """What a person sees: the pair at hand, the same until it is chosen, and how far they are."""
        person = _person(request)
        pair = self._pair_for(person)
        if pair is None:
            self.stock.wait(person, _PATIENCE)
            pair = self._pair_for(person)
        waiting = pair is None and (self.stock.problem is None or self.stock.is_asking(person))
        named = pair is not None and (person, pair.pair) in self.stock.named
        return {
            "pair": pair and {"id": pair.pair, "prompt": pair.prompt, "left": pair.left, "right": pair.right},
            "own": bool(pair and pair.person and pair.repeat_of is None),
            "names": {side: m["name"] for side, m in zip(_SIDES, pair.models, strict=True)} if pair and named else None,
            "last": next(reversed(self._standing(person)), None),
            "waiting": waiting,
            "problem": None if pair or waiting else self.stock.problem,
            "notice": self.stock.notice(person) if pair else None,
            "trains_next": self.trains_next,
            "progress": progress(self.file.rows, person),
        }

    def choose(self, request: Mapping) -> dict:
        """Writes a choice to the disk, and only then moves on; the same choice sent twice is written once."""
        person, choice = _person(request), request.get("choice")
        if choice not in CHOICES or choice == "undo":
            raise Refused(f"choice={choice!r:.40} must be one of {', '.join(CHOICES[:-1])}")
        pair = self._dealt(request)
        with self._lock:
            blind = (person, pair.pair) not in self.stock.named
            row = _row(pair, person, str(choice), blind, request)
            former = self._standing(person).get(pair.pair)
            if former and any(former[name] != row[name] for name in ("choice", "better", "comment")):
                raise Refused("you have chosen already about this pair, in another tab or before; here is the next one")
            if not former:
                self.file.append(row)
        return self.state(request)

    def undo(self, request: Mapping) -> dict:
        """Takes a choice back, the `last` of a state: that is written too, once, and the pair is at hand again."""
        person, pair = _person(request), request.get("pair")
        with self._lock:
            mine = [row for row in self.file.rows if row["person"] == person and row["pair"] == pair]
            if not mine:
                raise Refused("there is no choice of yours to undo")
            if mine[-1]["choice"] != "undo":
                kept = {name: mine[-1][name] for name in _KEPT}
                self.file.append({**dict.fromkeys(FIELDS), **kept, "choice": "undo", "time": _now()})
        return self.state(request)

    def ask(self, request: Mapping) -> dict:
        """Has the models answer a prompt of the person's own, which comes next."""
        text = _text(request, "text")
        if text is None:
            raise Refused("write a prompt first")
        prompt = [{"role": "user", "content": text}]
        if not self.stock.maker.fits(prompt):
            raise Refused("this prompt leaves the model no room to answer; write a shorter one")
        self.stock.ask(prompt, _person(request))
        return self.state(request)

    def names(self, request: Mapping) -> dict:
        """From now on the state has the pair's `names`, which model wrote which; a choice is not a blind one then."""
        self.stock.name(self._dealt(request), _person(request))
        return self.state(request)

    def enough(self, request: Mapping) -> dict:
        """Ends the server."""
        self.end()
        return {"rows": progress(self.file.rows, _person(request))["ready"]}

    def _dealt(self, request: Mapping) -> Pair:
        """The pair that the request names, if this person got it."""
        pair = self.stock.pairs.get(str(request.get("pair")))
        if pair is None or pair.pair not in self.stock.dealt.get(_person(request), []):
            raise Refused("this pair is not yours to choose; here is the next one")
        return pair

    def _pair_for(self, person: str) -> Pair | None:
        with self._lock:
            return self._at_hand(person) or self._next(person)

    def _standing(self, person: str) -> dict[str, Mapping]:
        """The person's standing choices by pair, in the order in which they were made."""
        return {row["pair"]: row for row in standing(row for row in self.file.rows if row["person"] == person)}

    def _at_hand(self, person: str) -> Pair | None:
        """The pair that was dealt and not chosen; after an undo, that of the undone choice."""
        chosen = self._standing(person)
        lines = [row for row in self.file.rows if row["person"] == person]
        undone = [row["pair"] for row in lines[-1:] if row["choice"] == "undo"]
        dealt = [*undone, *self.stock.dealt.get(person, [])]
        return next((self.stock.pairs[name] for name in dealt if name in self.stock.pairs and name not in chosen), None)

    def _next(self, person: str) -> Pair | None:
        rows = self._standing(person).values()
        repeated = {row["repeat_of"] for row in rows if row["repeat_of"]}  # skipped ones too: they were shown
        own = [row for row in rows if not row["repeat_of"] and row["choice"] != "skip"]
        if not self.stock.is_asking(person) and len(own) >= REPEAT_EVERY * (len(repeated) + 1):
            earlier = [row["pair"] for row in own[:-3] if row["pair"] in self.stock.pairs.keys() - repeated]
            if earlier:
                again = random.Random(f"{person} {len(own)}").choice(earlier)
                return self.stock.repeat(self.stock.pairs[again], person)
        return self.stock.deal(person)


def progress(rows: list[dict], person: str) -> dict:
    """Counts for the page: the person's choices by kind, pace in seconds, share of left, and what all people made.

    Example: {"counts": {"left": 3, "skip": 1}, "pace": 4.2, "left": 1.0, "steady": [1, 1], "agree": [0, 0],
        "ready": 3, "people": 1}; `steady` and `agree` are (alike, of how many).
    """
    stand = standing(rows)
    mine = [row for row in stand if row["person"] == person]
    counts = Counter(row["choice"] for row in mine)
    sides = counts["left"] + counts["right"]
    seconds = [row["seconds"] for row in mine if row["seconds"] is not None]  # an edited file may have none
    return {
        "counts": counts,
        "pace": statistics.median(seconds) if seconds else None,
        "left": counts["left"] / sides if sides else None,
        "steady": _steady(mine),
        "agree": _agreeing(stand, person),
        "ready": sum(left_out(row) is None for row in stand),
        "people": len({row["person"] for row in stand}),
    }


def _steady(mine: list[Mapping]) -> tuple[int, int]:
    """How many repeated pairs were chosen alike, of how many."""
    by_pair = {row["pair"]: row["choice"] for row in mine if row["choice"] != "skip"}
    swapped = {"left": "right", "right": "left"}
    again = [
        (by_pair[r["repeat_of"]], r["choice"]) for r in mine if r["repeat_of"] in by_pair and r["choice"] != "skip"
    ]
    return sum(swapped.get(first, first) == second for first, second in again), len(again)


def _agreeing(stand: list[Mapping], person: str) -> tuple[int, int]:
    """Of the pairs that others chose too, how often this person chose as they did."""
    mine = {row["pair"]: row["choice"] for row in stand if row["person"] == person and row["choice"] != "skip"}
    others = [row for row in stand if row["person"] != person and row["choice"] != "skip" and row["pair"] in mine]
    return sum(mine[row["pair"]] == row["choice"] for row in others), len(others)


def _row(pair: Pair, person: str, choice: str, blind: bool, request: Mapping) -> dict:
    """The line of a choice. A better answer becomes the chosen one; of two bad ones it beats the left."""
    better, sides = _text(request, "better"), {"left": pair.left, "right": pair.right}
    chosen = rejected = None
    if choice in sides:
        chosen, rejected = better or sides[choice], sides["right" if choice == "left" else "left"]
    elif better and choice != "skip":
        chosen, rejected = better, pair.left
    if chosen and rejected and chosen.strip() == rejected.strip():
        raise Refused("your better answer is the one that it would beat; change it, or choose that one")
    return {
        "pair": pair.pair,
        "choice": choice,
        "prompt": pair.prompt,
        "chosen": None if chosen is None else [{"role": "assistant", "content": chosen}],
        "rejected": None if rejected is None else [{"role": "assistant", "content": rejected}],
        **sides,
        "better": better,
        "comment": _text(request, "comment"),
        "person": person,
        "seconds": _seconds(request.get("seconds")),
        "time": _now(),
        "models": pair.models,
        "sampling": pair.sampling,
        "blind": blind,
        "repeat_of": pair.repeat_of,
    }


def _person(request: Mapping) -> str:
    name = " ".join(str(request.get("person") or "").split())
    if not 1 <= len(name) <= _LONGEST_NAME or not name.isprintable():
        raise Refused(f"a name has 1 to {_LONGEST_NAME} printable characters")
    return name


def _text(request: Mapping, field: str) -> str | None:
    text = request.get(field)
    if text is not None and not isinstance(text, str):
        raise Refused(f"{field} has to be text")
    if text and len(text) > _LONGEST_TEXT:
        raise Refused(f"{field} has {len(text):,} characters, at most {_LONGEST_TEXT:,} are taken")
    return (text or "").encode(errors="replace").decode().strip() or None


def _seconds(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e6:
        return 0.0
    return round(float(value), 2)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def routes(desk: Desk) -> list[Route]:
    """The routes under /api/: every one takes and gives JSON, an error with the text to show."""

    def route(name: str) -> Route:
        act: Callable[[Mapping], dict] = getattr(desk, name)

        async def endpoint(request: Request) -> JSONResponse:
            try:
                body = await request.json()
                if not isinstance(body, dict):
                    raise Refused("a request is a JSON object")
                return JSONResponse(await run_in_threadpool(act, body))
            except OSError as error:
                where = f"{desk.file.path} cannot be written: {error.strerror or error}"
                note(f"not saved: {where}")
                return JSONResponse({"error": f"Not saved. {where}. Mend that, then choose again."}, 507)
            except (ValueError, RecursionError) as error:  # broken JSON, and JSON that is too deep
                return JSONResponse({"error": str(error)}, 409)

        return Route(f"/{name}", endpoint, methods=["POST"])

    return [route(name) for name in ("state", "choose", "undo", "ask", "names", "enough")]
