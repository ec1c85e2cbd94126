"""A model that talks: opened from whatever it is, its text as it comes, with control characters escaped."""

import inspect
import json
import signal
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from jinja2 import TemplateError
from transformers import (
    DynamicCache,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.cache_utils import DynamicLayer
from transformers.generation.streamers import BaseStreamer
from transformers.utils import logging

from fourstage.errors import one_line
from fourstage.models.checkpoint import is_classifier, open_causal_lm
from fourstage.models.encoding import conversation_ids, turn_end
from fourstage.models.facts import context_of, stop_ids
from fourstage.models.opening import open_tokenizer
from fourstage.parent import check_parent, find_parent
from fourstage.printing import CONTROLS, visible

# field -> (type, whether a value is allowed, what is)
_FIELDS = {
    "temperature": (float, lambda x: x == 0 or 0.01 <= x <= 100, "0 (the likeliest token), or 0.01 to 100"),
    "top_p": (float, lambda x: 0 < x <= 1, "above 0, at most 1 (all tokens)"),
    "top_k": (int, lambda x: x >= 0, "0 (all tokens) or more"),
    "max_new_tokens": (int, lambda x: x >= 1, "1 or more"),
}


def escaped_json(row: dict) -> str:
    """One line of JSON in which such characters are escapes, so that `cat` of it is harmless too."""
    return CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(row, ensure_ascii=False))


def note(text: str) -> None:
    """One line for the person, on stderr: stdout holds what was asked and answered alone."""
    print(visible(" ".join(text.split())), file=sys.stderr, flush=True)


@dataclass
class Sampling:
    """How tokens are drawn. Temperature 0 takes the likeliest; top_p 1 and top_k 0 leave all of them in."""

    temperature: float
    top_p: float
    top_k: int
    max_new_tokens: int

    def __post_init__(self):
        for name in _FIELDS:
            self.set(name, getattr(self, name))

    def set(self, name: str, value: str | float) -> None:
        """Sets a field; raises ValueError naming the fields there are, or the values that it takes."""
        if name not in _FIELDS:
            raise ValueError(f"{name!r} is not a sampling setting; choose from {', '.join(_FIELDS)}")
        kind, is_allowed, allowed = _FIELDS[name]
        try:
            number = kind(value)
        except (ValueError, TypeError, OverflowError):
            number = None
        if number is None or not is_allowed(number):
            raise ValueError(f"{name}={value} must be {allowed}")
        setattr(self, name, number)

    def config(self, room: int) -> GenerationConfig:
        """For `generate`, with at most `room` new tokens. A field left open would take transformers' own default."""
        longest = min(self.max_new_tokens, room)
        if self.temperature == 0:
            return GenerationConfig(do_sample=False, max_new_tokens=longest)
        chosen = {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}
        return GenerationConfig(do_sample=True, max_new_tokens=longest, **chosen)


@dataclass
class Memory:
    """Keys and values of the token `ids` that a model has read, so that the next turn reads only what is new.

    Only attention that sees everything can be cut back to a beginning that two turns share. Windows, recurrent layers
    and rotary angles that depend on the length read each turn from its first token.
    """

    ids: list[int] = field(default_factory=list)
    cache: DynamicCache | None = None

    def recall(self, model: PreTrainedModel, ids: list[int]) -> DynamicCache | None:
        """A cache of the longest beginning of `ids` (never all of them) that was read before; None for no cache.

        It is the caller's until `keep`: what ends in between, however, leaves nothing half-read behind.
        """
        cache, read = self.cache, self.ids
        self.cache, self.ids = None, []
        if cache is None:
            return _empty_cache(model)
        pairs = zip(read, ids[:-1], strict=False)
        shared = next((i for i, (old, new) in enumerate(pairs) if old != new), min(len(read), len(ids) - 1))
        cache.crop(shared - len(read))  # minus the number of tokens to forget
        return cache

    def keep(self, cache: DynamicCache | None, ids: list[int]) -> None:
        """Remembers a cache after the model has read `ids`, all but the last ones of them."""
        layers = cache.layers if cache is not None else []
        lengths = {layer.get_seq_length() for layer in layers if isinstance(layer, DynamicLayer)}
        if len(lengths) == 1 and 0 not in lengths:  # else layers keep their states elsewhere
            self.cache, self.ids = cache, ids[: lengths.pop()]


def _empty_cache(model: PreTrainedModel) -> DynamicCache | None:
    if "past_key_values" not in inspect.signature(model.forward).parameters:
        return None
    rotary = str(getattr(model.config.get_text_config(), "rope_parameters", None))
    cache = DynamicCache(config=model.config)
    whole = all(type(layer) is DynamicLayer for layer in cache.layers)
    return cache if whole and not any(kind in rotary for kind in ("'dynamic'", "'longrope'")) else None


@dataclass
class Speaker:
    """An opened model. `chats`: it gets turns in its chat template, else bare text that it continues."""

    name: str
    stage: str | None
    chats: bool
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    memory: Memory = field(default_factory=Memory)

    @property
    def context(self) -> int:
        """Tokens that it can read, prompt and answer together; practically endless if its configuration has none."""
        return context_of(self.model) or sys.maxsize

    @property
    def stops(self) -> list[int]:
        return self.model.generation_config.eos_token_id

    def describe(self) -> str:
        """What it is, in one line."""
        parts = [self.stage] if self.stage else []
        parts += [self.model.config.model_type, f"{self.model.num_parameters():,} parameters"]
        parts += [str(self.model.dtype).removeprefix("torch."), self.model.device.type]
        does = "it chats" if self.chats else "it continues text, and does not answer"
        return f"{self.name}: {', '.join(parts)}; {does}"


def open_speaker(
    name: str,
    revision: str | None = None,
    dtype: str = "auto",
    trust_remote_code: bool = False,
    continues: bool = False,
) -> Speaker:
    """Opens a run folder, a saved model, a Hub id or a GGUF file, on the accelerator if there is one.

    It chats if its tokenizer has a chat template, unless `continues` is asked for or it is a base model of fourstage
    (a folder or on the Hub), which was never trained on its template. Sampling settings of its own generation_config
    are dropped: `generate` would take them for every field left open.
    Raises:
        ValueError: in one line: missing or unfinished, pickles, remote code, no network, a reward model.
    """
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    parent, hub = find_parent(name, revision), {"revision": revision or "main", "trust_remote_code": trust_remote_code}
    if is_reward_model(name, **hub):
        raise ValueError(f"{name} is a reward model: it scores answers and writes none; give it to `fourstage compare`")
    tokenizer = open_tokenizer(name, **hub)
    model = open_causal_lm(name, note, dtype=dtype, **hub)
    model = model.to(torch.accelerator.current_accelerator(check_available=True) or "cpu").eval()
    model.generation_config = _plain_config(model, tokenizer)
    chats = tokenizer.chat_template is not None and not parent.is_base and not continues
    return Speaker(name, parent.stage, chats, model, tokenizer)


def is_reward_model(name: str, **options) -> bool:
    """Whether the folder or Hub id holds a sequence classifier; raises ValueError as `open_speaker` does."""
    check_parent(name)
    return is_classifier(name, **options)


def _plain_config(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> GenerationConfig:
    """Where the model stops, and nothing else: at its end tokens, the tokenizer's, and what closes its turns."""
    ends = (*stop_ids(model.generation_config), tokenizer.eos_token_id, turn_end(tokenizer))
    stops = {end for end in ends if end is not None}
    if not all(isinstance(end, int) for end in stops):
        raise ValueError("eos_token_id in generation_config.json must be a number or several; correct it")
    pad = next((i for i in (tokenizer.pad_token_id, *sorted(stops)) if i is not None), 0)
    return GenerationConfig(bos_token_id=tokenizer.bos_token_id, eos_token_id=sorted(stops), pad_token_id=pad)


def chat_ids(speaker: Speaker, turns: list[dict]) -> list[int]:
    """Token ids of the turns in the chat template, up to where the answer begins; ValueError if it refuses them."""
    try:
        ids = conversation_ids(speaker.tokenizer, turns, add_generation_prompt=True)
    except Exception as error:  # a template may fail with any exception of its engine
        why = one_line(error, longest=200, with_type=not isinstance(error, TemplateError | ValueError))
        raise ValueError(f"the chat template of {speaker.name} refuses this conversation: {why}") from None
    if not ids:
        raise ValueError(
            f"the chat template of {speaker.name} writes nothing of this conversation; choose another model"
        )
    return _known_ids(speaker, ids)


def _known_ids(speaker: Speaker, ids: list[int]) -> list[int]:
    """The same ids; ValueError where the model has no embedding for one."""
    rows = cast(torch.nn.Embedding, speaker.model.get_input_embeddings()).num_embeddings
    if max(ids) >= rows:
        raise ValueError(
            f"the tokenizer of {speaker.name} gives token {max(ids):,} and the model embeds {rows:,}; they do not "
            "belong together, fetch both again"
        )
    return ids


def text_ids(speaker: Speaker, text: str) -> list[int]:
    """Token ids of bare text that goes on: no end token stands behind it, and there is at least one to go on from."""
    ids = speaker.tokenizer(text, verbose=False)["input_ids"]
    while ids and ids[-1] in speaker.stops and ids[-1] != speaker.tokenizer.bos_token_id:
        ids = ids[:-1]
    begin = speaker.tokenizer.bos_token_id
    return _known_ids(speaker, ids or [speaker.stops[0] if begin is None else begin])


class Stream(BaseStreamer):
    """The text of `generate`, handed to `write` once for each token; only unfinished characters are kept back.

    (transformers' TextStreamer keeps each word back until the next has begun.) `text` is all of it so far, `tokens`
    how many, `stopped` whether the model ended it, `interrupted` whether Ctrl-C did. Special tokens are left out.
    """

    def __init__(self, speaker: Speaker, write: Callable[[str], object]):
        self.tokenizer, self.stops, self.write = speaker.tokenizer, speaker.stops, write
        self.text, self.tokens, self.stopped, self.interrupted = "", 0, False, False
        self._ids: list[int] = []
        self._first = self._read = 0  # the tokens between them, written already, tell how the next is spelt
        self._is_prompt = True

    def put(self, value: torch.Tensor) -> None:
        """Takes the prompt first, of which nothing is written, then tokens."""
        if self.interrupted:  # and a library has swallowed the KeyboardInterrupt
            raise KeyboardInterrupt
        if self._is_prompt:
            self._is_prompt = False
            return
        ids = value.flatten().tolist()
        self.tokens += len(ids)
        self.stopped = self.stopped or any(i in self.stops for i in ids)
        self._ids += [i for i in ids if i not in self.stops]
        self._hand_on(final=False)

    def end(self) -> None:
        """Writes what was kept back."""
        self._hand_on(final=True)

    def _hand_on(self, final: bool) -> None:
        before, after = self._decode(self._ids[self._first : self._read]), self._decode(self._ids[self._first :])
        new = ""
        if final or not after.endswith("\ufffd"):
            new = after[len(before) :]
            self._first, self._read = self._read, len(self._ids)
            self.text += new
        self.write(new)

    def _decode(self, ids: list[int]) -> str:
        text = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return cast(str, text)  # one list of ids gives one text


@contextmanager
def _remembered_interrupt(stream: Stream) -> Generator[None]:
    """Where Ctrl-C raises KeyboardInterrupt, the stream knows of it too, and raises it again at its next token."""
    at_main = threading.current_thread() is threading.main_thread()
    if not at_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return

    def interrupt(*_: object) -> None:
        stream.interrupted = True
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _ignore(text: str) -> None:
    """Takes text that nobody waits for: the Stream has all of it in the end."""


@torch.no_grad()
def speak(
    speaker: Speaker, ids: list[int], sampling: Sampling, write: Callable[[str], object] = _ignore, **more: Any
) -> Stream:
    """Generates what follows `ids`, at most to the end of the context, handing the text to `write` as it comes.

    Ctrl-C stops it: the Stream has what was said so far, and `interrupted`. `more` goes to `generate`.
    """
    stream = Stream(speaker, write)
    inputs = torch.tensor([ids], device=speaker.model.device)
    cache = speaker.memory.recall(speaker.model, ids)
    options = {"attention_mask": torch.ones_like(inputs), "streamer": stream, **more}
    options |= {"past_key_values": cache} if cache is not None else {}
    generate = cast(Any, speaker.model).generate  # a mixin's, which nn.Module's types hide
    try:
        with _remembered_interrupt(stream):
            said = generate(inputs, generation_config=sampling.config(speaker.context - len(ids)), **options)
        speaker.memory.keep(cache, said[0].tolist())
    except RuntimeError as error:
        if "probability tensor" not in str(error):
            raise
        raise ValueError(f"{speaker.name} gives probabilities that are not finite, so nothing can be drawn") from None
    except KeyboardInterrupt:
        stream.interrupted = True
        stream.end()
    return stream
