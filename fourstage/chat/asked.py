"""What the page of `fourstage chat --web` asks of a model, checked."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace

from fourstage.chat.fitting import fit_text, fit_turns
from fourstage.speaking import Sampling, Speaker

_MOST_SEED = 2**53  # whole numbers below it are exact in JavaScript


@dataclass
class Asked:
    """A checked request for an answer. `turns`: user and assistant; a turn may say that it `continues` the last."""

    name: str
    turns: list[dict]
    system: str
    sampling: Sampling
    seed: int

    def ids(self, speaker: Speaker) -> tuple[list[int], int]:
        """What the model reads, and how many of the first messages (tokens, if it continues text) do not fit."""
        longest = self.sampling.max_new_tokens
        if not speaker.chats:
            return fit_text(speaker, bare_text(self.turns), longest)
        system = 1 if self.system else 0
        messages = self.messages()
        return fit_turns(speaker, messages[:system], messages[system:], longest)

    def messages(self) -> list[dict]:
        """All of it, the system prompt first, with nothing but role and content."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return system + [{"role": turn["role"], "content": turn["content"]} for turn in self.turns]


def bare_text(turns: list[dict]) -> str:
    """A conversation as a base model reads it: paragraphs, and what continued a turn right behind it.

    Example: "The cat", " sat." that continues it, "Then" -> "The cat sat.\\n\\nThen".
    """
    text = ""
    for turn in turns:
        text += ("\n\n" if text and not turn.get("continues") else "") + turn["content"]
    return text


def checked(body: Mapping, names: list[str], defaults: Sampling) -> Asked:
    """Raises ValueError naming what is wrong with a request; `names` are those of the models there are."""
    name, seed = body.get("model"), body.get("seed")
    if name not in names:
        raise ValueError(f"model={name!r:.60} must be one of {', '.join(names)}")
    if seed is not None and not (type(seed) is int and 0 <= seed < _MOST_SEED):
        raise ValueError(f"seed={seed!r:.40} must be a whole number from 0 to {_MOST_SEED - 1}, or left out")
    turns, system = body.get("turns"), body.get("system") or ""
    if not isinstance(turns, list) or not turns or not all(map(_is_turn, turns)) or not isinstance(system, str):
        raise ValueError("turns must be a list of {role, content} with the roles user and assistant, system a text")
    clean = [turn | {"content": _text(turn["content"])} for turn in turns]
    return Asked(
        str(name), clean, _text(system), _sampling(body, defaults), secrets.randbits(31) if seed is None else seed
    )


def _sampling(body: Mapping, defaults: Sampling) -> Sampling:
    """The settings of the command line but for those that the page has."""
    sampling = replace(defaults)
    for setting, kinds in (("temperature", (int, float)), ("max_new_tokens", (int,))):
        value = body.get(setting, getattr(defaults, setting))
        if type(value) not in kinds:
            raise ValueError(f"{setting}={value!r:.40} must be a {'number' if float in kinds else 'whole number'}")
        sampling.set(setting, value)
    return sampling


def _text(text: str) -> str:
    """Without the halves of surrogate pairs, which no tokenizer takes."""
    return text.encode(errors="replace").decode()


def _is_turn(turn: object) -> bool:
    return isinstance(turn, dict) and turn.get("role") in ("user", "assistant") and isinstance(turn.get("content"), str)
