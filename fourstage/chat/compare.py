"""Several stages answer the same prompts, side by side: `fourstage compare runs/pretrain runs/sft runs/ppo`."""

import argparse
import gc
import shutil
import sys
import textwrap
import unicodedata
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import torch

from fourstage.evaluation.reward_model import score_conversations
from fourstage.models.checkpoint import open_classifier
from fourstage.models.facts import check_one_label
from fourstage.models.opening import open_tokenizer
from fourstage.speaking import (
    Sampling,
    Speaker,
    chat_ids,
    is_reward_model,
    note,
    open_speaker,
    speak,
    text_ids,
    visible,
)

_NARROWEST = 20  # cells: the narrowest column that can still be read


@dataclass
class Answer:
    """An answer, whether it was cut off, and its (name, score) from each reward model."""

    text: str
    is_cut: bool
    scores: list[tuple[str, float]] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The answer as it is printed, with its scores below."""
        lines = visible(self.text).strip("\n").rstrip().split("\n") if self.text.strip() else ["(nothing)"]
        lines += ["(cut off)"] if self.is_cut else []
        return lines + [f"score {score:+.2f} ({visible(name)})" for name, score in self.scores]


@dataclass
class Column:
    """A model's name, what it is, and its answers in the order of the prompts."""

    name: str
    what: str
    answers: list[Answer]


def run_compare(arguments: argparse.Namespace) -> int:
    """`fourstage compare`: one model after the other is opened, answers every prompt, and makes room for the next.

    Raises:
        ValueError: for a wrong setting or a model that cannot be opened; in most cases before any model is opened.
    """
    names = ("temperature", "top_p", "top_k", "max_new_tokens")
    sampling = Sampling(**{name: getattr(arguments, name) for name in names})
    hub: dict[str, Any] = {
        "revision": arguments.revision or "main",
        "trust_remote_code": arguments.trust_remote_code == "true",
    }
    scorers = [name for name in arguments.models if is_reward_model(name, **hub)]
    speakers = [name for name in arguments.models if name not in scorers]
    if not speakers:
        raise ValueError(f"models={', '.join(scorers)}: reward models only score; name a model that answers too")
    prompts = [text.encode(errors="replace").decode() for text in arguments.prompt or ["What is an LLM?"]]
    columns = []
    for name in speakers:
        speaker = open_speaker(name, dtype=arguments.dtype, **hub)
        note(speaker.describe())
        torch.manual_seed(arguments.seed)
        columns.append(_ask(speaker, prompts, arguments.system, sampling))
        del speaker
        gc.collect()  # a model's modules refer to each other
    for name in scorers:
        _score(name, prompts, arguments.system, columns, hub)
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
    for i, prompt in enumerate(prompts):
        print(f"> {visible(prompt)}\n")
        print("\n".join(layout([(c.name, c.what, c.answers[i]) for c in columns], width)) + "\n")
    return 0


def _ask(speaker: Speaker, prompts: list[str], system: str | None, sampling: Sampling) -> Column:
    answers = []
    for prompt in prompts:
        ids = chat_ids(speaker, _turns(prompt, system)) if speaker.chats else text_ids(speaker, prompt)
        if len(ids) >= speaker.context:
            raise ValueError(
                f"prompt={prompt[:40]!r} has {len(ids)} tokens, the context of {speaker.name} is {speaker.context}; "
                "shorten the prompt"
            )
        stream = speak(speaker, ids, sampling)
        if stream.interrupted:
            raise KeyboardInterrupt
        answers.append(Answer(stream.text, not stream.stopped))
    what = f"{speaker.stage or speaker.model.config.model_type}, {speaker.model.num_parameters():,} parameters"
    return Column(speaker.name, what + ("" if speaker.chats else ", continues the text"), answers)


def _turns(prompt: str, system: str | None) -> list[dict]:
    system_turns = [{"role": "system", "content": system}] if system else []
    return [*system_turns, {"role": "user", "content": prompt}]


def _score(name: str, prompts: list[str], system: str | None, columns: list[Column], hub: dict) -> None:
    """Adds the score of the reward model `name` to every answer, read in the model's chat template as in training."""
    tokenizer = open_tokenizer(name, **hub)
    model = open_classifier(name, note, dtype=torch.float32, **hub)
    check_one_label(model.config.num_labels, name)
    model.to(torch.accelerator.current_accelerator(check_available=True) or "cpu")
    note(f"{name}: a reward model, {model.num_parameters():,} parameters; it scores the answers")
    for column in columns:
        answers = [{"role": "assistant", "content": answer.text} for answer in column.answers]
        conversations = [[*_turns(prompt, system), turn] for prompt, turn in zip(prompts, answers, strict=True)]
        scores = score_conversations(model, tokenizer, conversations)
        for answer, score in zip(column.answers, scores, strict=True):
            answer.scores.append((name, score))


def layout(answers: list[tuple[str, str, Answer]], width: int) -> list[str]:
    """Lines for the answers (name, what it is, answer): in columns if `width` cells are enough, else one by one."""
    column = (width - 3 * (len(answers) - 1)) // len(answers)
    if column < _NARROWEST:
        return [line for name, what, answer in answers for line in _stacked(name, what, answer)][:-1]
    heads = [_wrap(visible(name), column) + _wrap(visible(what), column) for name, what, _ in answers]
    bodies = [[part for line in answer.lines() for part in _wrap(line, column)] for _, _, answer in answers]
    rows = [_row(cells, column) for cells in zip_longest(*heads, fillvalue="")]
    rows.append("-+-".join("-" * column for _ in answers))
    return rows + [_row(cells, column) for cells in zip_longest(*bodies, fillvalue="")]


def _stacked(name: str, what: str, answer: Answer) -> list[str]:
    return [visible(f"{name} ({what})"), *(f"  {line}" for line in answer.lines()), ""]


def _row(cells: tuple[str, ...], width: int) -> str:
    return " | ".join(cell + " " * (width - _cells(cell)) for cell in cells).rstrip()


def _wrap(line: str, width: int) -> list[str]:
    """The line in pieces of at most `width` cells of a terminal."""
    line = line.expandtabs(4)
    narrow = width // 2 if _cells(line) > len(line) else width
    return textwrap.wrap(line, narrow, replace_whitespace=False) or [""]


def _cells(text: str) -> int:
    """Cells of a terminal that the text takes: two for a wide character, none for a mark on the one before."""
    return sum(0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF") for c in text)
