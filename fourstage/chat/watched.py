"""An answer token by token with what else was likely, drawn from a seed of its own, and stopped from outside."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import cast

import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from fourstage.speaking import Sampling, Speaker, Stream, speak

LIKELIEST = 5


@dataclass
class Token:
    """A token of an answer.

    Args:
        token: how it is spelt by itself. text: what it adds to the answer, nothing for a part of a character.
        probability: of the token, before temperature, top_p and top_k. likeliest: the LIKELIEST tokens with theirs.
        ends: whether the model ends its answer with it.
    """

    token: str
    text: str
    probability: float
    likeliest: list[tuple[str, float]]
    ends: bool


class _Draw(LogitsProcessor):
    """Leaves one token possible, drawn by a generator of its own: two models that speak at once keep to their seeds.

    `drawn` holds (token, its probability, the likeliest tokens, their probabilities) of each, at temperature 1.
    """

    def __init__(self, sampling: Sampling, seed: int, device: torch.device):
        self.drawn: deque[tuple[int, float, list[int], list[float]]] = deque()
        self._generator = torch.Generator(device).manual_seed(seed)
        self._is_greedy = sampling.temperature == 0
        self._warpers = LogitsProcessorList()
        if not self._is_greedy:
            self._warpers.append(TemperatureLogitsWarper(sampling.temperature))
        if sampling.top_k:
            self._warpers.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1:
            self._warpers.append(TopPLogitsWarper(sampling.top_p))

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        if self._is_greedy:
            chosen = int(scores[0].argmax())
        else:
            shares = self._warpers(input_ids, scores).softmax(-1)
            chosen = int(torch.multinomial(shares[0], 1, generator=self._generator))
        probabilities = scores[0].float().softmax(-1)
        best = probabilities.topk(min(LIKELIEST, len(probabilities)))
        self.drawn.append((chosen, float(probabilities[chosen]), best.indices.tolist(), best.values.tolist()))
        only = torch.full_like(scores, -torch.inf)
        only[0, chosen] = 0
        return cast(torch.FloatTensor, only)


def speak_watched(
    speaker: Speaker,
    ids: list[int],
    sampling: Sampling,
    seed: int,
    take: Callable[[Token], object],
    is_over: Callable[[], bool],
) -> Stream:
    """`speak`, which hands every token to `take` as it comes, and stops after the one at which `is_over` says so.

    The tokens are those of `speak` after torch.manual_seed(seed). A character that the last ones leave unfinished is in
    the Stream's text alone.
    """
    draw = _Draw(sampling, seed, speaker.model.device)

    def spell(i: int) -> str:
        return cast(str, speaker.tokenizer.decode([i]))

    def write(text: str) -> None:
        if draw.drawn:
            chosen, probability, best, theirs = draw.drawn.popleft()
            likeliest = list(zip(map(spell, best), theirs, strict=True))
            take(Token(spell(chosen), text, probability, likeliest, chosen in speaker.stops))

    stop = StoppingCriteriaList(
        [lambda all_ids, scores, **_: torch.full((len(all_ids),), is_over(), device=all_ids.device)]
    )
    greedy = replace(sampling, temperature=0.0)
    return speak(speaker, ids, greedy, write, logits_processor=LogitsProcessorList([draw]), stopping_criteria=stop)
