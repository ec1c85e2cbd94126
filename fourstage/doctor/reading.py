"""Rows as the recipe reads them, each with its place: those it trains on, and those it leaves out and why."""

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from fourstage.data import formats
from fourstage.data.converting import GoldError, Reader
from fourstage.data.loading import problem_format
from fourstage.data.problems import golds_of
from fourstage.data.sources import Rows, load_source, sources
from fourstage.parent import is_hub_id
from fourstage.plan.recipe import Settings

LOOKED_AT = 30_000  # rows of each part that are read; those that are tokenized are fewer (`encoding.ENCODED`)
STAGE_OF = {"text": "pretrain", "conversations": "sft", "pairs": "reward", "prompts": "ppo", "problems": "grpo"}


@dataclass
class Row:
    """One row: its place ("train row 3"), its columns as they are in the data, and as the recipe takes them."""

    at: str
    raw: Mapping
    row: dict


@dataclass
class Encoded:
    """A row as its trainer reads it.

    Args:
        ids: of the whole text, or of a prompt. trained: for each id, whether loss falls on it. side: of a pair: chosen
            or rejected.
    """

    row: Row
    ids: list[int]
    trained: list[bool]
    side: str = ""


@dataclass
class Part:
    """The rows to train on, or those of the data's own test split.

    Args:
        name: train or held-out. total: of the data; None for a stream. columns: of the data as it is.
        left_out: places by the reason for which the recipe leaves rows out without an error.
        broken, rejected: (place, message) of rows that cannot be read, and of golds that their verifier rejects.
    """

    name: str
    total: int | None = 0
    rows: list[Row] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    broken: list[tuple[str, str]] = field(default_factory=list)
    rejected: list[tuple[str, str]] = field(default_factory=list)

    @property
    def read(self) -> int:
        """How many rows were looked at."""
        left_out = sum(map(len, self.left_out.values()))
        return len(self.rows) + left_out + len(self.broken) + len(self.rejected)


def read_rows(
    settings: Settings, functions: Sequence[Callable], tokenizer: PreTrainedTokenizerBase | None
) -> tuple[Part, Part | None]:
    """The first rows of a run's data, and those of its own test split; None where the recipe holds some out itself.

    What is on the Hub is read as a stream, so that no more than these rows are fetched.
    Raises:
        ValueError: of one line, for data that cannot be found or read at all.
    """
    data, convert = settings.data, format_of(settings, functions)
    train, test, has_test = Part("train"), Part("held-out"), False
    entries = sources(data, settings.stage)
    for source in entries:
        name = source["dataset_name"]
        on_hub = name != "fourstage/demo" and is_hub_id(name) and not name.startswith("reasoning-gym/")
        args = dataclasses.replace(data, dataset_streaming=True) if on_hub else data
        reader = Reader(settings.stage, convert, args, tokenizer)
        several = f"{name} " if len(entries) > 1 else ""
        pair = load_source(source, args, settings.stage)
        has_test = has_test or pair[1] is not None
        for part, rows in zip((train, test), pair, strict=True):
            if rows is not None:
                _read(part, rows, reader, several)
    return train, test if has_test else None


def _read(part: Part, data: Rows, reader: Reader, several: str) -> None:
    known = len(data) if isinstance(data, Dataset) else None
    part.total = None if part.total is None or known is None else part.total + known
    part.columns += [name for name in data.column_names or [] if name not in part.columns]
    for number, raw in enumerate(islice(iter(data), LOOKED_AT), start=1):
        at = f"{several}{part.name} row {number}"
        try:
            row = reader.read(raw)
        except GoldError as error:
            part.rejected.append((at, str(error)))
        except ValueError as error:
            part.broken.append((at, str(error)))
        else:
            if isinstance(row, dict):
                part.rows.append(Row(at, raw, row))
            else:
                part.left_out[row or "empty"].append(at)


def format_of(settings: Settings, functions: Sequence[Callable]) -> formats.Convert:
    """From a raw row to one of the stage; golds are checked by the verifiers among `functions`."""
    training = settings.training
    stage_formats: dict[str, formats.Convert] = {
        "pretrain": lambda row: formats.text_row(row, getattr(training, "dataset_text_field", "text")),
        "sft": formats.conversation_row,
        "reward": formats.preference_row,
        "ppo": formats.prompt_row,
    }
    convert = stage_formats.get(settings.stage)
    return convert or problem_format(functions, "error", getattr(training, "system_prompt", None))


def kind_of_rows(row: Mapping) -> str:
    """What a row is, by its columns: text, pairs, conversations, problems or prompts.

    Example: {"question", "answer"} -> "problems", although conversations have such columns too.
    """
    if formats.preference_columns(row):
        return "pairs"
    if isinstance(row.get("text"), str):
        return "text"
    if golds_of(row) and not any(row.get(name) for name in ("messages", "conversations", "completion", "output")):
        return "problems"
    return "conversations" if formats.conversation_columns(row) else "prompts"


def stand_in_texts(part: Part) -> list[str]:
    """Texts enough for a tokenizer that splits about as the run's will."""
    return [row.row["text"][:10_000] for row in part.rows[:2_000]]


def key_of(stage: str, row: Mapping) -> str:
    """What makes two rows copies of each other: the text, the conversation, or what is asked."""
    if stage == "pretrain":
        return " ".join(row["text"].split())
    turns = (
        row["prompt"] if stage in ("ppo", "grpo") else [*row["prompt"], *row.get("completion", row.get("chosen", []))]
    )
    turns = [*turns, *row.get("rejected", [])]
    return "\0".join(f"{turn['role']}\1{said(turn)}" for turn in turns)


def prompt_of(row: Mapping) -> str:
    """What is asked, as one text."""
    return "\0".join(f"{turn['role']}\1{said(turn)}" for turn in row["prompt"])


def said(turn: Mapping) -> str:
    """The words of a turn and its calls of tools, with single spaces."""
    return " ".join(f"{turn.get('content') or ''} {turn.get('tool_calls') or ''}".split())


def answer_of(turns: Sequence[Mapping]) -> str:
    """The words of the assistant in some turns."""
    return " ".join(said(turn) for turn in turns if turn["role"] == "assistant")
