"""A conversation in the terminal or through pipes: `fourstage chat runs/sft < questions.txt`."""

import argparse
import io
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from fourstage.chat.fitting import fit_text, fit_turns
from fourstage.signals import as_before
from fourstage.speaking import (
    Sampling,
    Speaker,
    Stream,
    chat_ids,
    escaped_json,
    note,
    open_speaker,
    speak,
    visible,
)

_HELP = """\
/reset            forget the conversation; the system prompt and the settings stay
/system [TEXT]    start over with this system prompt, or without one
/set [NAME VALUE] show the sampling settings, or set one: temperature, top_p, top_k, max_new_tokens
/save FILE        write the conversation to a new file, one line of JSON with `messages`
/help, /exit      Ctrl-C stops an answer, Ctrl-D ends; text that starts with a slash is sent after a space"""


@dataclass
class Chat:
    """A conversation: all its `turns`, of which the model still sees those from index `since` on.

    For a model that continues text it has `texts` instead: pairs of a prompt and its continuation.
    """

    speaker: Speaker
    sampling: Sampling
    system: str | None = None
    turns: list[dict] = field(default_factory=list)
    since: int = 0
    texts: list[tuple[str, str]] = field(default_factory=list)

    def system_turns(self) -> list[dict]:
        """The system prompt as a list of one turn, or of none."""
        return [{"role": "system", "content": self.system}] if self.system else []

    def rows(self) -> list[dict]:
        """What `/save` writes: one row of `messages`, or rows of `prompt` and `completion` (both formats of TRL)."""
        if not self.speaker.chats:
            return [{"prompt": prompt, "completion": text} for prompt, text in self.texts]
        return [{"messages": self.system_turns() + self.turns}] if self.turns else []


def run_chat(arguments: argparse.Namespace) -> int:
    """`fourstage chat`: opens the model and talks until the input ends; the exit status, 1 if a question failed.

    Raises:
        ValueError: for a wrong setting, a model that cannot be opened, and a `prompt` that cannot be answered.
    """
    names = ("temperature", "top_p", "top_k", "max_new_tokens")
    sampling = Sampling(**{name: getattr(arguments, name) for name in names})
    for stream in (sys.stdin, sys.stdout, sys.stderr):  # a byte that is not text must not end the conversation
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    speaker = open_speaker(
        arguments.models[0],
        revision=arguments.revision,
        dtype=arguments.dtype,
        trust_remote_code=arguments.trust_remote_code == "true",
        continues=arguments.continue_text,
    )
    note(speaker.describe())
    if arguments.seed is not None:
        torch.manual_seed(arguments.seed)
    chat = Chat(speaker, sampling)
    set_system(chat, arguments.system)
    if arguments.prompt is not None:
        return 130 if ask(chat, arguments.prompt).interrupted else 0
    if sys.stdin.isatty() and sys.stdout.isatty():
        with as_before():  # Ctrl-C stops an answer, and the dialogue goes on
            return _talk(chat)
    return _answer_lines(chat)


def _talk(chat: Chat) -> int:
    """In a terminal: until /exit or Ctrl-D."""
    import readline  # noqa: F401 (gives `input` line editing and a history)

    note("/help lists the commands; Ctrl-D ends" + ("" if chat.speaker.chats else "; an empty line continues the text"))
    while True:
        try:
            line = input("> ")
            if not _take(chat, line):
                return 0
            if not line.startswith("/"):
                print()
        except EOFError:
            print()
            return 0
        except KeyboardInterrupt:
            print("\n(Ctrl-D or /exit ends)")
        except ValueError as error:
            note(str(error))


def _answer_lines(chat: Chat) -> int:
    """Through pipes: every line is a turn or a command; questions are printed too, so that the output can be read."""
    failed = False
    for line in _lines():
        is_text = not line.startswith("/")
        if is_text:
            print(visible(f"> {line}"), flush=True)
        try:
            if not _take(chat, line):
                break
        except ValueError as error:
            note(str(error))
            failed = True
        if is_text:
            print()
    return int(failed)


def _lines() -> Iterator[str]:
    return filter(str.strip, (line.rstrip("\r\n") for line in sys.stdin))


def _take(chat: Chat, line: str) -> bool:
    """Runs a command or answers a line; False after /exit. An empty line continues the text, if there is one."""
    if line.startswith("/"):
        return command(chat, line)
    if line.strip() or (chat.texts and not chat.speaker.chats):
        ask(chat, line)
    return True


def command(chat: Chat, line: str) -> bool:
    """Runs a line that begins with a slash; False after /exit. Raises ValueError for an unknown or wrong command."""
    name, _, rest = line.strip().partition(" ")
    rest = rest.strip()
    if name == "/exit":
        return False
    if name == "/help":
        print(_HELP, file=sys.stderr)
    elif name == "/reset":
        reset(chat)
        note("forgotten")
    elif name == "/system":
        set_system(chat, rest)
        note("started over " + ("with that system prompt" if rest else "without a system prompt"))
    elif name == "/set":
        _set(chat.sampling, rest)
    elif name == "/save":
        note(save(chat, rest))
    else:
        raise ValueError(
            f"{name} is not a command; /help lists them (put a space before text that starts with a slash)"
        )
    return True


def reset(chat: Chat) -> None:
    """Forgets the conversation."""
    chat.turns, chat.since, chat.texts = [], 0, []


def set_system(chat: Chat, text: str | None) -> None:
    """Starts over, with a system prompt or without; ValueError if the model or its template cannot have one."""
    if text and not chat.speaker.chats:
        raise ValueError(f"system={text!r}: {chat.speaker.name} continues text, and has no system prompt; leave it out")
    former, chat.system = chat.system, text or None
    try:
        if text:
            chat_ids(chat.speaker, [*chat.system_turns(), {"role": "user", "content": "?"}])
    except ValueError:
        chat.system = former
        raise
    reset(chat)


def _set(sampling: Sampling, words: str) -> None:
    setting = re.fullmatch(r"(\w+)[ =]+(\S+)", words)
    if words and not setting:
        raise ValueError(f"/set {words}: give a name and a value, such as /set temperature 0.7")
    if setting:
        sampling.set(setting[1], setting[2])
    note(", ".join(f"{name} {value}" for name, value in vars(sampling).items()))


def save(chat: Chat, name: str) -> str:
    """Writes the conversation to the new file `name` as JSON lines; returns the line that reports it.

    Raises:
        ValueError: if there is nothing to save, no name, or the file cannot be written; an existing file is kept.
    """
    rows = chat.rows()
    if not name or not rows:
        raise ValueError("/save: nothing was said yet" if name else "/save: name a file, such as chat.jsonl")
    try:
        with Path(name).expanduser().open("x", encoding="utf-8") as file:
            file.writelines(escaped_json(row) + "\n" for row in rows)
    except FileExistsError:
        raise ValueError(f"/save: {name} exists already; choose another name") from None
    except OSError as error:
        raise ValueError(f"/save: {name} cannot be written ({error.strerror}); choose another name") from None
    return f"saved to {name}"


def ask(chat: Chat, text: str) -> Stream:
    """Answers one turn, or continues the text, on stdout as it comes, and notes why if the model did not end it.

    Turn and answer are added to the conversation, unless Ctrl-C came before the first word. Raises ValueError for text
    that does not fit into the context.
    """
    text = text.encode(errors="replace").decode()  # for bytes of the command line that are not text
    goes_on = not chat.speaker.chats and not text.strip() and chat.texts
    prompt = "".join(chat.texts[-1]) if goes_on else text
    ids = _turn_ids(chat, prompt) if chat.speaker.chats else _continued_ids(chat, prompt)
    stream = speak(chat.speaker, ids, chat.sampling, _write)
    print(flush=True)
    if stream.text and chat.speaker.chats:
        chat.turns += [{"role": "user", "content": text}, {"role": "assistant", "content": stream.text}]
    elif stream.text:
        chat.texts = [*(chat.texts[:-1] if goes_on else chat.texts), (prompt, stream.text)]
    if not stream.stopped:
        note(_why_it_ended(chat, stream))
    elif not stream.text:
        note("(it ended at once, without a word)")
    return stream


def _write(text: str) -> None:
    print(visible(text), end="", flush=True)


def _why_it_ended(chat: Chat, stream: Stream) -> str:
    if stream.interrupted:
        return "(stopped)" if stream.text or not chat.speaker.chats else "(stopped before it said a word; forgotten)"
    if stream.tokens >= chat.sampling.max_new_tokens:
        return f"(cut off after max_new_tokens={chat.sampling.max_new_tokens})"
    return f"(cut off: the context of {chat.speaker.context} tokens is full)"


def _turn_ids(chat: Chat, text: str) -> list[int]:
    """Ids of the conversation with the new turn; if the context is full, the oldest turns are left out for good."""
    turns = [*chat.turns, {"role": "user", "content": text}]
    ids, since = fit_turns(chat.speaker, chat.system_turns(), turns, chat.sampling.max_new_tokens, chat.since)
    if since > chat.since:
        note(f"(the context of {chat.speaker.context} tokens is full: it no longer sees the first {since} messages)")
    chat.since = since
    return ids


def _continued_ids(chat: Chat, text: str) -> list[int]:
    """Ids of bare text; if the context is full, only the last of them."""
    ids, left_out = fit_text(chat.speaker, text, chat.sampling.max_new_tokens)
    if left_out:
        note(f"(the context of {chat.speaker.context} tokens is full: it sees the last {len(ids)} tokens)")
    return ids
