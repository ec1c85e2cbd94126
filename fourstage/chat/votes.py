"""Which of two answers on the page of `fourstage chat --web` a person found better: rows of the file of choices."""

import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock

from fourstage.data.picks import CHOICES, FIELDS, standing
from fourstage.parent import weights_hash
from fourstage.prefer.record import ChoiceFile

_SIDES = ("left", "right")
_VOTES = CHOICES[:4]  # the page has neither skipping nor undoing among its votes
_LONGEST_NAME = 60  # characters


class Votes:
    """The file of choices at `path`, opened at the first vote: who only talks leaves no file behind."""

    def __init__(self, path: Path):
        self.path, self._lock = path, Lock()
        self._file: ChoiceFile | None = None
        self._hashes: dict[str, str | None] = {}

    def vote(self, names: list[str], prompt: list[dict], sampling: dict, body: Mapping) -> dict:
        """Writes a vote through to the disk; gives its `pair` and how many votes of the person stand.

        Args:
            names: of the models that gave the left and the right answer. prompt: the turns that they answered.
            body: `choice`, the answers `left` and `right`, `person` and `seconds`.
        Raises:
            ValueError: for a vote that is none, or a file that cannot be opened. OSError: if nothing could be written.
        """
        choice, person = body.get("choice"), _person(body)
        if choice not in _VOTES:
            raise ValueError(f"choice={choice!r:.40} must be one of {', '.join(_VOTES)}")
        answers = [body.get(side) for side in _SIDES]
        if not all(isinstance(answer, str) for answer in answers):
            raise ValueError("left and right must be the texts of two answers")
        turns = [[{"role": "assistant", "content": answer}] for answer in answers]
        told = dict(zip(_SIDES, turns, strict=True))
        with self._lock:
            row = {
                **dict.fromkeys(FIELDS),
                "pair": uuid.uuid4().hex,
                "choice": choice,
                "prompt": prompt,
                "chosen": told.get(choice),
                "rejected": told[_SIDES[1 - _SIDES.index(choice)]] if choice in told else None,
                **dict(zip(_SIDES, answers, strict=True)),
                "seconds": _seconds(body.get("seconds")),
                "models": [{"name": name, "weights": self._weights(name)} for name in names],
                "sampling": sampling,
                "blind": False,
            }
            return self._append(row, person)

    def undo(self, body: Mapping) -> dict:
        """Takes back the vote of the person on `pair`, with a line that says so."""
        person = _person(body)
        with self._lock:
            rows = standing(self._file.rows) if self._file else []
            voted = next((row for row in rows if (row["pair"], row["person"]) == (body.get("pair"), person)), None)
            if voted is None:
                raise ValueError("there is no vote of yours on these answers to undo")
            kept = {name: voted[name] for name in ("pair", "prompt", "models", "sampling")}
            return self._append({**dict.fromkeys(FIELDS), **kept, "choice": "undo"}, person)

    def _append(self, row: dict, person: str) -> dict:
        self._file = self._file or ChoiceFile(self.path)
        self._file.append({**row, "person": person, "time": datetime.now(UTC).isoformat(timespec="milliseconds")})
        count = sum(row["person"] == person for row in standing(self._file.rows))
        return {"pair": row["pair"], "count": count, "path": str(self.path)}

    def _weights(self, name: str) -> str | None:
        if name not in self._hashes:
            self._hashes[name] = weights_hash(name)
        return self._hashes[name]


def _seconds(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and 0 <= value < 1e9 else None


def _person(body: Mapping) -> str:
    name = " ".join(str(body.get("person") or "").split())
    if not 1 <= len(name) <= _LONGEST_NAME or not name.isprintable():
        raise ValueError(f"a name has 1 to {_LONGEST_NAME} printable characters")
    return name
