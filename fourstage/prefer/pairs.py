"""Pairs of answers to choose from, and what makes them."""

import random
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fourstage.evaluation.generation import generate
from fourstage.evaluation.reward_model import score_conversations
from fourstage.models.encoding import conversation_ids
from fourstage.rl.decoding import quick_generation
from fourstage.speaking import Speaker, chat_ids

_ROOM = 8  # tokens that a prompt has to leave for its answer


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

    def made_by(self) -> tuple:
        """As `signature` of a Maker."""
        names = [(model["name"], model["weights"]) for model in self.models]
        return tuple(sorted(names, key=repr)), tuple(sorted(self.sampling.items()))

    def content(self) -> tuple:
        """Equal for pairs in which a person would read the same, whatever their sides."""
        return repr(self.prompt), frozenset({self.left.strip(), self.right.strip()})


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
        answered = self._both(prompts)
        pairs = []
        for prompt, *texts in zip(prompts, *answered, strict=True):
            sides = rng.sample([0, 1], 2)
            if texts[0].strip() != texts[1].strip():
                places = [side % len(self.speakers) for side in sides]
                models = [{"name": self.speakers[i].name, "weights": self.weights[i]} for i in places]
                name = uuid.UUID(int=rng.getrandbits(128), version=4).hex
                pairs.append(Pair(name, prompt, texts[sides[0]], texts[sides[1]], models, self.sampling))
        return self._with_gaps(pairs)

    def fits(self, prompt: list[dict]) -> bool:
        """Whether every model can read the prompt and has room to answer; ValueError where a template refuses it."""
        return all(len(chat_ids(speaker, prompt)) + _ROOM <= speaker.context for speaker in self.speakers)

    def could_differ(self) -> bool:
        """Whether the two answers can be different: not where one model takes the likeliest token twice."""
        one = len(self.speakers) == 1 or (self.weights[0] is not None and self.weights[0] == self.weights[1])
        return not one or self.sampling["temperature"] > 0

    def signature(self) -> tuple:
        """What pairs have in common that are made alike, whatever their sides; `made_by` of a pair gives the same."""
        names = [(speaker.name, weights) for speaker, weights in zip(self.speakers, self.weights, strict=True)]
        return tuple(sorted((names * 2)[:2], key=repr)), tuple(sorted(self.sampling.items()))

    def _both(self, prompts: Sequence[list[dict]]) -> list[list[str]]:
        if len(self.speakers) == 2:
            return [self._answers(speaker, prompts) for speaker in self.speakers]
        texts = self._answers(self.speakers[0], [*prompts, *prompts])  # at once: it reads each prompt once
        return [texts[: len(prompts)], texts[len(prompts) :]]

    def _answers(self, speaker: Speaker, prompts: Sequence[list[dict]]) -> list[str]:
        ids = [conversation_ids(speaker.tokenizer, prompt, add_generation_prompt=True) for prompt in prompts]
        longest, temperature = self.sampling["max_new_tokens"], self.sampling["temperature"]
        with quick_generation(speaker.model):
            tokens = generate(speaker.model, speaker.tokenizer, ids, longest, temperature)
        return speaker.tokenizer.batch_decode(tokens, skip_special_tokens=True)

    def _with_gaps(self, pairs: list[Pair]) -> list[Pair]:
        if self.scorer is None or not pairs:
            return pairs
        sided = [(pair.prompt, text) for side in ("left", "right") for pair in pairs for text in [getattr(pair, side)]]
        turns = [[*prompt, {"role": "assistant", "content": text}] for prompt, text in sided]
        scores = score_conversations(*self.scorer, turns)
        gaps = [abs(a - b) for a, b in zip(scores[: len(pairs)], scores[len(pairs) :], strict=True)]
        return [replace(pair, gap=gap) for pair, gap in zip(pairs, gaps, strict=True)]
