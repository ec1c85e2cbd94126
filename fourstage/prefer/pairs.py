"""Pairs of answers to choose from: made ahead, so that nobody waits, and kept on disk for a restart.

Beside the file of choices there is one of pairs (`prefs.pairs.jsonl`): a line for each pair, and one for each time that
a pair is dealt to a person.
"""

import json
import random
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Condition, Thread

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fourstage.errors import one_line
from fourstage.evaluation.generation import generate
from fourstage.evaluation.reward_model import score_conversations
from fourstage.models.encoding import conversation_ids
from fourstage.rl.decoding import quick_generation
from fourstage.speaking import Speaker

AHEAD = 12  # pairs that are ready for every person
_BATCH = 8  # prompts answered at once
_COMMON = 5  # every fifth pair goes to everybody, for their agreement


@dataclass(frozen=True)
class Pair:
    """Two different answers to a prompt, on the sides where they are shown.

    Args:
        models: of the left and of the right answer: {"name", "weights"}.
        repeat_of: the pair that it repeats with its sides swapped. person: who alone gets it; None for anybody.
        gap: between the scores of the two by a reward model; None without one.
    """

    pair: str
    prompt: list[dict]
    left: str
    right: str
    models: list[dict]
    sampling: dict
    repeat_of: str | None = None
    person: str | None = None
    gap: float | None = None

    def swapped(self, person: str) -> "Pair":
        """The same pair once more for this person, with its sides swapped, under a name that follows from both."""
        name = uuid.uuid5(uuid.NAMESPACE_OID, f"{self.pair} {person}").hex
        return Pair(
            name, self.prompt, self.right, self.left, self.models[::-1], self.sampling, self.pair, person, self.gap
        )


@dataclass
class Maker:
    """What answers, and how.

    Args:
        speakers: one, which answers twice, or two, which answer once each.
        weights: a hash of the weights of each, or None.
        sampling: temperature and max_new_tokens. seed: of the answers and sides.
        scorer: a reward model with its tokenizer, or None.
    """

    speakers: list[Speaker]
    weights: list[str | None]
    prompts: list[list[dict]]
    sampling: dict
    seed: int = 0
    scorer: tuple[PreTrainedModel, PreTrainedTokenizerBase] | None = None

    def make(self, prompts: Sequence[list[dict]], number: int) -> list[Pair]:
        """A pair for each prompt whose answers differ; `number`, of this batch, makes its answers other ones."""
        torch.manual_seed(self.seed * 1_000_003 + number)
        rng = random.Random(f"{self.seed} {number}")
        answered = [self._answers(speaker, prompts) for speaker in (self.speakers * 2)[:2]]
        pairs = []
        for prompt, *texts in zip(prompts, *answered, strict=True):
            sides = rng.sample([0, 1], 2)
            if texts[0].strip() != texts[1].strip():
                places = [side % len(self.speakers) for side in sides]
                models = [{"name": self.speakers[i].name, "weights": self.weights[i]} for i in places]
                name = uuid.UUID(int=rng.getrandbits(128), version=4).hex
                pairs.append(Pair(name, prompt, texts[sides[0]], texts[sides[1]], models, self.sampling))
        return self._with_gaps(pairs)

    def _answers(self, speaker: Speaker, prompts: Sequence[list[dict]]) -> list[str]:
        ids = [conversation_ids(speaker.tokenizer, prompt, add_generation_prompt=True) for prompt in prompts]
        longest, temperature = self.sampling["max_new_tokens"], self.sampling["temperature"]
        with quick_generation(speaker.model):
            tokens = generate(speaker.model, speaker.tokenizer, ids, longest, temperature)
        return speaker.tokenizer.batch_decode(tokens, skip_special_tokens=True)

    def _with_gaps(self, pairs: list[Pair]) -> list[Pair]:
        if self.scorer is None or not pairs:
            return pairs
        sides = [[text for pair in pairs for text in (getattr(pair, side),)] for side in ("left", "right")]
        turns = [
            [*pair.prompt, {"role": "assistant", "content": text}]
            for texts in sides
            for pair, text in zip(pairs, texts, strict=True)
        ]
        scores = score_conversations(*self.scorer, turns)
        gaps = [abs(a - b) for a, b in zip(scores[: len(pairs)], scores[len(pairs) :], strict=True)]
        return [Pair(**asdict(pair) | {"gap": gap}) for pair, gap in zip(pairs, gaps, strict=True)]


class Stock:
    """The pairs there are and who got which; a thread of its own makes more whenever somebody runs low.

    Args:
        path: of the file of pairs; what it holds already comes first.
        maker: of new pairs. pick: "random" deals them in order, "uncertain" the smallest gap first.
    """

    def __init__(self, path: Path, maker: Maker, pick: str = "random"):
        self.path, self.maker, self.pick = path, maker, pick
        self.pairs: dict[str, Pair] = {}
        self.dealt: dict[str, list[str]] = {}  # person -> pairs, in order
        self.problem: str | None = None
        self._wanted: list[tuple[list[dict], str]] = []  # prompts of a person's own
        self._changed, self._ended = Condition(), False
        self._batches = self._barren = 0
        self._read()
        self._thread = Thread(target=self._work, daemon=True)

    def start(self) -> None:
        """Starts making pairs."""
        self._thread.start()

    def end(self) -> None:
        """Stops making pairs, after the batch at hand."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def deal(self, person: str) -> Pair | None:
        """The next pair for a person, who gets it once; None where none is ready (`problem` may say why)."""
        with self._changed:
            self.dealt.setdefault(person, [])
            choice = self._open_to(person)
            own = [pair for pair in choice if pair.person == person]
            if not choice or (not own and self.is_asking(person)):
                return None
            by_gap = self.pick == "uncertain" and not own
            pair = min(choice, key=lambda p: p.gap or 0.0) if by_gap else (own or choice)[0]
            self._give(pair, person)
            return pair

    def wait(self, person: str, seconds: float) -> None:
        """Waits until a pair is ready for a person, at most so long; what was a problem is tried again."""
        with self._changed:
            self.problem = None
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
        """Has a pair made for a prompt of the person's own; `deal` gives it to this person first."""
        with self._changed:
            self._wanted.append((prompt, person))
            self.problem = None
            self._changed.notify_all()

    def is_asking(self, person: str) -> bool:
        """Whether a pair for a prompt of the person's own is still to be made."""
        return any(who == person for _, who in self._wanted)

    def _open_to(self, person: str) -> list[Pair]:
        """Pairs that this person may get: own ones, common ones, and those that nobody has."""
        mine = {*self.dealt.get(person, [])}
        taken = {name for who, names in self.dealt.items() if who != person for name in names}
        anybodys = (pair for pair in self.pairs.values() if pair.repeat_of is None)
        return [
            pair
            for place, pair in enumerate(anybodys)
            if pair.pair not in mine
            and pair.person in (None, person)
            and (place % _COMMON == 0 or pair.pair not in taken)
        ]

    def _give(self, pair: Pair, person: str) -> None:
        self._write([{"dealt": pair.pair, "person": person}])
        self.dealt.setdefault(person, []).append(pair.pair)
        self._changed.notify_all()

    def _keep(self, pairs: list[Pair]) -> None:
        self._write([asdict(pair) for pair in pairs])
        self.pairs |= {pair.pair: pair for pair in pairs}
        self._changed.notify_all()

    def _write(self, rows: list[dict]) -> None:
        """Appends lines; where that fails the pairs are there until this process ends, and `problem` says so."""
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write("".join(json.dumps(row) + "\n" for row in rows))
        except OSError as error:
            self.problem = f"{self.path} cannot be written ({error.strerror})"

    def _read(self) -> None:
        """What a former run left; a line that a kill cut off is taken away."""
        content = self.path.read_bytes() if self.path.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            self.path.write_bytes(whole)
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                row = json.loads(line)
                if "dealt" in row:
                    self.dealt.setdefault(row["person"], []).append(row["dealt"])
                else:
                    self.pairs[row["pair"]] = Pair(**row)
            except (ValueError, TypeError, KeyError):
                raise ValueError(
                    f"{self.path}: line {number} is no pair of `fourstage prefer`; name another file with --output"
                ) from None
        self._batches = len(self.pairs)

    def _is_low(self) -> bool:
        return any(len(self._open_to(person)) < AHEAD for person in self.dealt or {"": []})

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._ended or self._wanted or (self._is_low() and not self.problem))
                if self._ended:
                    return
                own = self._wanted[0] if self._wanted else None
                first = self._batches * _BATCH
            prompts = self.maker.prompts
            batch = [own[0]] * 4 if own else [prompts[(first + i) % len(prompts)] for i in range(_BATCH)]
            self._add(lambda batch=batch: self.maker.make(batch, self._batches), own)

    def _add(self, make: Callable[[], list[Pair]], own: tuple[list[dict], str] | None) -> None:
        """Keeps what `make` makes; what goes wrong becomes `problem`, which the page shows."""
        problem, pairs = None, []
        try:
            pairs = make()
        except Exception as error:
            problem = f"answering failed: {one_line(error, with_type=True)}"
        with self._changed:
            self._batches += 1
            if own:
                pairs = [Pair(**asdict(pair) | {"person": own[1]}) for pair in pairs[:1]]
                self._wanted.remove(own)
            self.problem = None
            self._keep(pairs)
            problem = problem or self.problem
            self._barren = 0 if pairs else self._barren + 1
            if self._barren * _BATCH >= max(len(self.maker.prompts), 3 * _BATCH) or (own and not pairs):
                problem = problem or "the two answers are the same on every prompt; try a higher --temperature"
            self.problem = problem
            self._changed.notify_all()
