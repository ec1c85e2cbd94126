"""The pairs there are: made ahead, so that nobody waits, dealt fairly, and kept on disk for a restart.

Beside the file of choices there is one of pairs (`prefs.pairs.jsonl`): a line for each pair, and one each time that a
pair is dealt to a person, its models' names are shown, a person asks a prompt, or a batch was made.
"""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from threading import Condition, Thread
from typing import BinaryIO

from fourstage.errors import one_line
from fourstage.prefer.pairs import Maker, Pair

AHEAD = 12  # pairs that are ready for every person
_BATCH = 8  # prompts answered at once
_OWN = 4  # tries at once to get two different answers to a person's own prompt
_COMMON = 5  # every fifth pair goes to everybody, for their agreement
_BARREN = 5  # batches without a new pair, after which a person is told
_FAREWELL = 10.0  # seconds that the batch at hand may take when the server ends
_NOTHING_NEW = "the two answers are the same, or were shown before; try a higher --temperature, or more prompts"


class Stock:
    """The pairs there are and who got which; a thread of its own makes more whenever somebody runs low.

    Pairs that a former run made with other models, another sampling or other prompts and that nobody got are not dealt.

    Args:
        path: of the file of pairs; what it holds already comes first.
        maker: of new pairs. pick: "random" deals them in order, "uncertain" the smallest gap first.
    Raises:
        ValueError: for a file that holds something else, or cannot be read and written.
    """

    def __init__(self, path: Path, maker: Maker, pick: str = "random"):
        self.path, self.maker, self.pick = path, maker, pick
        self.pairs: dict[str, Pair] = {}
        self.dealt: dict[str, list[str]] = {}  # person -> pairs, in order
        self.named: set[tuple[str, str]] = set()  # (person, pair) whose models' names were shown
        self.problem: str | None = None
        self._notices: dict[str, str] = {}  # person -> why there is no pair for their own prompt
        self._wanted: list[tuple[list[dict], str]] = []  # prompts of a person's own
        self._unwritten: list[dict] = []  # lines for which there was no room
        self._changed, self._ended = Condition(), False
        self._batches = self._barren = 0
        try:
            self._read()
        except OSError as error:
            raise ValueError(
                f"{path} cannot be read and written ({error.strerror}); name another file with --output"
            ) from None
        prompts = {repr(prompt) for prompt in maker.prompts}
        self._stale = {
            name
            for name, pair in self.pairs.items()
            if pair.made_by() != maker.signature() or (pair.person is None and repr(pair.prompt) not in prompts)
        }
        self._contents = {pair.content() for pair in self.pairs.values()}
        self._thread = Thread(target=self._work, daemon=True)

    def start(self) -> None:
        """Starts making pairs."""
        self._thread.start()

    def end(self) -> None:
        """Stops making pairs, after the batch at hand."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        if self._thread.is_alive():  # torch must not be at work when the interpreter goes
            self._thread.join(_FAREWELL)

    def deal(self, person: str) -> Pair | None:
        """The next pair for a person, who gets it once; None where none is ready (`problem` may say why)."""
        with self._changed:
            self.dealt.setdefault(person, [])
            self._changed.notify_all()
            if self.is_asking(person):
                return None
            choice = self._open_to(person)
            if not choice:
                return None
            own = choice[0].person is not None
            by_gap = self.pick == "uncertain" and not own
            pair = min(choice, key=lambda p: math.inf if p.gap is None else p.gap) if by_gap else choice[0]
            self._give(pair, person)
            return pair

    def wait(self, person: str, seconds: float) -> None:
        """Waits until a pair is ready for a person, at most so long; what was a problem is tried again."""
        with self._changed:
            if self.problem:
                self.problem, self._barren = None, 0
            self._changed.notify_all()
            self._changed.wait_for(
                lambda: self.problem or self._ended or (self._open_to(person) and not self.is_asking(person)), seconds
            )

    def repeat(self, pair: Pair, person: str) -> Pair:
        """The pair once more for this person, sides swapped."""
        again = pair.swapped(person)
        with self._changed:
            self._keep([again])
            self._give(again, person)
        return again

    def ask(self, prompt: list[dict], person: str) -> None:
        """Has a pair made for a prompt of the person's own; `deal` gives it to this person first.

        Sent twice, it is made once: a page sends again what was not answered.
        """
        with self._changed:
            waiting = [pair.prompt for pair in self._open_to(person) if pair.person == person]
            if prompt in waiting or (prompt, person) in self._wanted:
                return
            self._wanted.append((prompt, person))
            self._write([{"asked": prompt, "person": person}])
            self.problem = None
            self._changed.notify_all()

    def is_asking(self, person: str) -> bool:
        """Whether a pair for a prompt of the person's own is still to be made."""
        return any(who == person for _, who in self._wanted)

    def notice(self, person: str) -> str | None:
        """Why no pair came of the person's own prompt, once; else None."""
        return self._notices.pop(person, None)

    def name(self, pair: Pair, person: str) -> None:
        """Keeps that the person has seen the names of the pair's models."""
        with self._changed:
            if (person, pair.pair) not in self.named:
                self.named.add((person, pair.pair))
                self._write([{"named": pair.pair, "person": person}])

    def _open_to(self, person: str) -> list[Pair]:
        """Pairs that this person may get: own ones first, then common ones and those that nobody has, in order."""
        mine = {*self.dealt.get(person, [])}
        taken = {name for who, names in self.dealt.items() if who != person for name in names}
        fresh = [pair for pair in self.pairs.values() if pair.repeat_of is None and pair.pair not in mine]
        places = {name: place for place, name in enumerate(n for n, p in self.pairs.items() if _is_anybodys(p))}
        own = [pair for pair in fresh if pair.person == person and pair.pair not in self._stale]
        return own + [
            pair
            for pair in fresh
            if pair.person is None
            and pair.pair not in self._stale
            and (places[pair.pair] % _COMMON == 0 or pair.pair not in taken)
        ]

    def _give(self, pair: Pair, person: str) -> None:
        self._write([{"dealt": pair.pair, "person": person}])
        self.dealt.setdefault(person, []).append(pair.pair)
        self._changed.notify_all()

    def _keep(self, pairs: list[Pair]) -> None:
        self._write([asdict(pair) for pair in pairs])
        self.pairs |= {pair.pair: pair for pair in pairs}
        self._contents |= {pair.content() for pair in pairs}
        self._changed.notify_all()

    def _write(self, rows: list[dict]) -> None:
        """Appends lines, all or none; where that fails `problem` says so, and they are written with the next ones."""
        self._unwritten += rows
        content = "".join(json.dumps(row) + "\n" for row in self._unwritten).encode()
        try:
            with self.path.open("ab", buffering=0) as file:
                _append(file, content)
            self._unwritten = []
        except OSError as error:
            self.problem = f"{self.path} cannot be written ({error.strerror})"

    def _read(self) -> None:
        """What a former run left; a line that a kill cut off is taken away."""
        with self.path.open("a+b") as file:
            file.seek(0)
            content = file.read()
            whole = content[: content.rfind(b"\n") + 1]
            if len(whole) < len(content):
                file.truncate(len(whole))
        for number, line in enumerate(whole.split(b"\n")[:-1], start=1):
            try:
                self._take(json.loads(line))
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
                raise ValueError(
                    f"{self.path}: line {number} is no pair of `fourstage prefer`; name another file with --output"
                ) from None

    def _take(self, row: dict) -> None:
        if "dealt" in row:
            self.dealt.setdefault(row["person"], []).append(row["dealt"])
        elif "named" in row:
            self.named.add((row["person"], row["named"]))
        elif "asked" in row:
            self._wanted.append((row["asked"], row["person"]))
        elif "batch" in row:
            self._batches = max(self._batches, int(row["batch"]) + 1)
        else:
            pair = Pair(**row)
            pair.content(), pair.made_by()  # raises for what is no pair
            self.pairs.setdefault(pair.pair, pair)
            asked = (pair.prompt, str(pair.person))
            if pair.repeat_of is None and asked in self._wanted:
                self._wanted.remove(asked)

    def _is_low(self) -> bool:
        return any(len(self._open_to(person)) < AHEAD for person in self.dealt or {"": []})

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._ended or self._wanted or (self._is_low() and not self.problem))
                if self._ended:
                    return
                own = self._wanted[0] if self._wanted else None
                number = self._batches
            prompts = self.maker.prompts
            batch = [own[0]] * _OWN if own else [prompts[(number * _BATCH + i) % len(prompts)] for i in range(_BATCH)]
            self._add(lambda batch=batch, number=number: self.maker.make(batch, number), own)

    def _add(self, make: Callable[[], list[Pair]], own: tuple[list[dict], str] | None) -> None:
        """Keeps what `make` makes and nobody has read; what goes wrong becomes `problem`, or a notice to who asked."""
        problem, made = None, []
        try:
            made = make()
        except Exception as error:
            problem = f"answering failed: {one_line(error, with_type=True)}"
        with self._changed:
            self.problem = None
            self._write([{"batch": self._batches}])  # before its pairs: a number never makes two different batches
            self._batches += 1
            new = {pair.content(): pair for pair in made if pair.content() not in self._contents}
            pairs = [pair for pair in new.values() if pair.pair not in self.pairs]
            if own:
                pairs = [replace(pair, person=own[1]) for pair in pairs[:1]]
                self._wanted.remove(own)
                if not pairs:
                    self._notices[own[1]] = f"No pair came of your prompt: {problem or _NOTHING_NEW}."
            else:
                self._barren = 0 if pairs else self._barren + 1
                problem = problem or (_NOTHING_NEW if self._barren >= _BARREN else None)
                self.problem = problem or self.problem
            self._keep(pairs)
            self._changed.notify_all()


def _is_anybodys(pair: Pair) -> bool:
    return pair.person is None and pair.repeat_of is None


def _append(file: BinaryIO, content: bytes) -> None:
    """Writes all of the content to the end of an unbuffered file, or none of it."""
    end, written = file.seek(0, 2), 0
    try:
        while written < len(content):
            written += file.write(content[written:])
    except OSError:
        file.truncate(end)
        raise
