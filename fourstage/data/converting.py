"""Converts the rows of a source to what a stage trains on, and says which of them, and which columns, it leaves out."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from datasets import Dataset, Features, IterableDataset, Json, List, Value
from transformers import PreTrainedTokenizerBase

from fourstage.arguments import DataArguments
from fourstage.data import formats
from fourstage.data.columns import INSPECTED_ROWS, TURNS, kept_features
from fourstage.data.sources import RowError, Rows, one_line_errors
from fourstage.data.turns import EXTRA_KEYS, folded
from fourstage.models.encoding import template_refusal

_BATCH = 100  # rows converted at once: documents can be whole books
_REASONS_SHOWN = 5
FEATURES = {
    "pretrain": Features({"text": Value("string")}),
    "sft": Features({"prompt": TURNS, "completion": TURNS}),
    "reward": Features(
        {"prompt": TURNS, "chosen": TURNS, "rejected": TURNS, "margin": Value("float64"), "kind": Value("string")}
    ),
}
# Turns that follow one another, as a stage reads them.
_READ_TOGETHER = {
    "pretrain": (),
    "sft": (("prompt", "completion"),),
    "reward": (("prompt", "chosen"), ("prompt", "rejected")),
    "ppo": (("prompt",),),
    "grpo": (("prompt",),),
}
_TURNS_OF = {stage: tuple({name for names in together for name in names}) for stage, together in _READ_TOGETHER.items()}
_TURN_COLUMNS = ("prompt", "completion", "chosen", "rejected")
_EXTRA_COLUMNS = {"tools": Value("string"), "chat_template_kwargs": Json()}
# Keys of raw turns, and raw columns, that become one of EXTRA_KEYS or _EXTRA_COLUMNS.
_BECOMES = {"reasoning": "reasoning_content", "thinking": "reasoning_content", "thought": "reasoning_content"}
_BECOMES |= {"function_call": "tool_calls", "functions": "tools"}


class GoldError(ValueError):
    """A problem whose right answer its verifier rejects; --unverifiable, not --unreadable, says what becomes of it."""


@dataclass
class Reader:
    """How the rows of a run are read.

    Args:
        stage: whose rows they are. convert: from a raw row.
        data_args: what becomes of rows that cannot be read, and of system texts.
        tokenizer: whose chat template has to take every row; None asks no template.
    """

    stage: str
    convert: formats.Convert
    data_args: DataArguments
    tokenizer: PreTrainedTokenizerBase | None = None
    _asked: dict[tuple, str | None] = field(default_factory=dict)  # by what a template looks at

    def read(self, raw: Mapping) -> dict | str | None:
        """A converted row, or why it is left out.

        Raises:
            ValueError: for a row that fits no format, or that the chat template refuses.
        """
        row = self.convert(raw)
        if not isinstance(row, dict) or self.stage == "pretrain":
            return row
        if self.data_args.fold_system:
            row |= self._folded(row)
        if self.tokenizer is not None:
            self._ask_template(self.tokenizer, row)
        return row

    def _folded(self, row: dict) -> dict:
        parts: dict = {}
        for names in _READ_TOGETHER[self.stage]:
            parts |= zip(names, folded([row[name] for name in names]), strict=True)
        return parts

    def _ask_template(self, tokenizer: PreTrainedTokenizerBase, row: Mapping) -> None:
        for names in _READ_TOGETHER[self.stage]:
            shapes = [t["role"] if len(t) == 2 and t["content"] else _shape(t) for name in names for t in row[name]]
            shape = (*shapes, "tools") if row.get("tools") else tuple(shapes)
            if shape not in self._asked:
                turns = [turn for name in names for turn in row[name]]
                self._asked[shape] = _refusal(tokenizer, turns, row.get("tools"), len(names) == 1)
            if self._asked[shape]:
                raise ValueError(self._asked[shape])

    def features(self, data: Rows, name: str) -> Features:
        """The columns of converted rows, without extra keys."""
        if self.stage in FEATURES:
            return FEATURES[self.stage]
        return kept_features(data, self._readable, name)

    def _readable(self, raw: Mapping) -> dict | str | None:
        """As `read`, but where unreadable rows are left out the reason instead of an error."""
        try:
            return self.read(raw)
        except ValueError as error:
            if self.stops_at(error):
                raise
            return "unreadable"

    @property
    def takes_extra_columns(self) -> bool:
        return self.stage in ("sft", "reward")

    def stops_at(self, error: ValueError) -> bool:
        return self.data_args.unreadable == "error" or isinstance(error, GoldError)

    def unused(self, raw: Mapping) -> set[str]:
        """The filled columns of a row that its conversion does not read."""
        read_by = {"sft": formats.conversation_columns, "reward": formats.preference_columns}
        columns = read_by.get(self.stage, formats.prompt_columns)(raw)
        return {name for name, value in raw.items() if value is not None} - {*columns} if columns else set()


@dataclass
class Conversion:
    """One reading of a source: its rows are converted in batches, and what is left out is noted.

    Args:
        name: of the source, for messages. extras: keys and columns that rows may have beyond those of the stage.
        closed: whether a row with another key is an error, and whether new reasons are printed as they come up.
    """

    reader: Reader
    name: str
    features: Features
    extras: set[str]
    closed: bool = False
    met: set[str] = field(default_factory=set)
    left_out: dict[str, int] = field(default_factory=dict)
    unreadable: dict[str, tuple[int, int]] = field(default_factory=dict)  # by reason: how many, the first row's number
    shapes: set[tuple] = field(default_factory=set)
    unused: set[str] = field(default_factory=set)
    rows: int = 0

    def batch(self, batch: dict[str, list], indices: list[int]) -> dict[str, list]:
        """The function for `map`: columns of raw rows to columns of converted ones."""
        converted = []
        for index, *values in zip(indices, *batch.values(), strict=True):
            raw = dict(zip(batch, values, strict=True))
            try:
                row = self.reader.read(raw)
                if isinstance(row, dict):
                    converted.append(self._with_extras(row))
                else:
                    self.left_out[row or "empty"] = self.left_out.get(row or "empty", 0) + 1
            except ValueError as error:
                if self.reader.stops_at(error):
                    fix = "" if ";" in str(error) else "; mend it, or leave such rows out with --unreadable drop"
                    raise RowError(f"{self.name} row {index + 1}: {error}{fix}") from None
                self._note_unreadable(str(error), index + 1)
                continue
            if self.reader.stage != "pretrain":
                self._note_columns(raw)
        self.rows = max(self.rows, indices[-1] + 1)
        without = {"chat_template_kwargs": {}}  # TRL takes no None for it
        return {key: [row.get(key, without.get(key)) for row in converted] for key in self.features}

    def stored_batch(self, batch: dict[str, list], indices: list[int]) -> dict[str, list]:
        """As `batch`, for rows that are written to the disk, where a text in a Json column must be JSON itself."""
        columns = self.batch(batch, indices)
        for key in (key for key, kind in self.features.items() if isinstance(kind, Json)):
            columns[key] = [json.dumps(value) if isinstance(value, str) else value for value in columns[key]]
        return columns

    def _with_extras(self, row: dict) -> dict:
        """Notes what a row has beyond the columns and keys of its stage, and leaves out what `features` lacks."""
        columns = _TURNS_OF[self.reader.stage]
        has = {key for name in columns for turn in row[name] if len(turn) > 2 for key in turn} - {"role", "content"}
        if self.reader.takes_extra_columns:
            has |= row.keys() & _EXTRA_COLUMNS.keys()
        if not has:
            return row
        self.met |= has
        lacking = has - self.extras
        if lacking and self.closed:
            raise ValueError(
                f"the row has {sorted(lacking)[0]!r}, which the first {INSPECTED_ROWS:,} rows of the stream do not "
                "have; put such a row first"
            )
        if lacking:
            row |= {name: [{k: t[k] for k in t.keys() - lacking} for t in row[name]] for name in columns}
        return row

    def _note_unreadable(self, message: str, number: int) -> None:
        reason = _grouped(message)
        if self.closed and reason not in self.unreadable:
            print(f"{self.name} row {number:,}: {reason}; such rows are unreadable and left out")
        count, first = self.unreadable.get(reason, (0, number))
        self.unreadable[reason] = (count + 1, first)

    def _note_columns(self, raw: Mapping) -> None:
        shape = tuple([name for name, value in raw.items() if value is not None])
        if shape not in self.shapes:
            self.shapes.add(shape)
            self.unused |= self.reader.unused(raw)

    def say(self, total: int | None) -> None:
        """Prints which rows are left out, by reason."""
        read = f"{total:,}" if total is not None else f"the first {self.rows:,}"
        if total is not None:
            for reason, count in self.left_out.items():
                print(f"{self.name}: {count:,} of {read} rows are {reason} and left out")
        if self.unreadable:
            count = sum(count for count, _ in self.unreadable.values())
            print(f"{self.name}: {count:,} of {read} rows are unreadable and left out: {self._reasons()}")

    def _reasons(self) -> str:
        ranked = sorted(self.unreadable.items(), key=lambda item: -item[1][0])
        shown = [f"{count:,} {reason} (first: row {first:,})" for reason, (count, first) in ranked[:_REASONS_SHOWN]]
        more = len(ranked) - len(shown)
        return ", ".join(shown) + (f", and {more} more reasons" if more else "")

    def nothing_left(self) -> ValueError:
        reasons = [reason for reason in self.left_out if reason != "empty"]
        parts = ["have empty texts"] if "empty" in self.left_out else []
        parts += [f"are {' or '.join(reasons)}"] if reasons else []
        parts += [f"are unreadable: {self._reasons()}"] if self.unreadable else []
        return ValueError(
            f"{self.name}: all rows {', or '.join(parts)}, so there is nothing to train on; choose other data"
        )


def _refusal(tokenizer: PreTrainedTokenizerBase, turns: Sequence[dict], tools: object, asks: bool) -> str | None:
    """Why the chat template refuses a conversation, and what to do about it; None where it takes it."""
    refusal = template_refusal(tokenizer, turns, tools, add_generation_prompt=asks)
    if not refusal:
        return None
    roles = [turn["role"] for turn in turns]
    can_fold = "system" in roles and "user" in roles[len(roles) - roles[::-1].index("system") :]
    helps = can_fold and not template_refusal(tokenizer, folded([turns])[0], tools, add_generation_prompt=asks)
    fold = "fold the system text into the first user turn with --fold_system, or " if helps else ""
    return f"the chat template refuses it: {refusal}; {fold}leave such rows out with --unreadable drop"


def _shape(turn: Mapping) -> tuple:
    """What a template looks at before it refuses a turn: who speaks, and which keys hold something."""
    return (turn["role"], *sorted(key for key, value in turn.items() if value))


def _grouped(message: str) -> str:
    """The reason of a message: without the fix after its semicolon and without the value of the one row.

    Example: "column 'margin' holds 'big', expected a number" -> "column 'margin' holds a wrong value, expected a ...".
    """
    return re.sub(r"\bholds ('[^']*'|\"[^\"]*\"|-?[\d.]+|nan|-?inf)", "holds a wrong value", message.split(";")[0])


def convert_all(parts: Sequence[tuple[Rows, str]], reader: Reader) -> list[Rows]:
    """The converted rows of several sources, each with its name, all with the same columns and keys of turns.

    Prints what is left out: rows by reason, and columns.
    """
    converted, unused = [], {}
    for data, name in parts:
        rows, columns = _convert(data, reader, name, None)
        converted.append(rows)
        unused[name] = unused.get(name, set()) | columns
    for name, columns in unused.items():
        if columns:
            said = "column {} is" if len(columns) == 1 else "columns {} are"
            print(f"{name}: {said.format(', '.join(sorted(columns)))} not used")
    extras = {extra for rows in converted for extra in extras_of(rows.features)}
    return [
        rows if extras_of(rows.features) == extras else _convert(data, reader, name, extras)[0]
        for rows, (data, name) in zip(converted, parts, strict=True)
    ]


def _convert(data: Rows, reader: Reader, name: str, extras: set[str] | None) -> tuple[Rows, set[str]]:
    """(the converted rows, columns that were not used). The rows have the `extras`; if None those that one of them has,
    and then which rows are left out is printed.
    """
    with one_line_errors(name):
        first = next(iter(data), None)
        if first is None:
            raise RowError(f"{name} has no rows; fill it or choose another")
        base = reader.features(data, name)
        allowed = _announced(data.features, reader) if extras is None else extras
        while True:
            conversion = Conversion(reader, name, _widened(base, allowed), allowed)
            rows = _mapped(data, list(first), conversion)
            is_stream = isinstance(rows, IterableDataset)
            is_empty = not (list(rows.take(INSPECTED_ROWS)) if is_stream else len(rows))  # a bad row stops here
            settled = conversion.met | (allowed if is_stream or extras is not None else set())
            if settled == allowed:
                break
            allowed = settled
        conversion.closed = True
        if extras is None and not is_empty:
            conversion.say(len(data) if isinstance(data, Dataset) else None)
    if is_empty:
        raise conversion.nothing_left()
    return rows, conversion.unused


def _mapped(data: Rows, columns: list[str], conversion: Conversion) -> Rows:
    options: Any = {"with_indices": True, "batched": True, "batch_size": _BATCH}
    options |= {"remove_columns": columns, "features": conversion.features}
    if isinstance(data, IterableDataset):
        return data.map(conversion.batch, **options)
    # Not from the cache, which would not notice another version of this package.
    return data.map(conversion.stored_batch, load_from_cache_file=False, **options)


def _announced(features: Features | None, reader: Reader) -> set[str]:
    """The extra keys and columns that a source's own columns promise."""
    if features is None or reader.stage == "pretrain":
        return set()
    turns = {*formats.ASKING_COLUMNS, *formats.ANSWERED_COLUMNS} - {*formats.SETTINGS}
    keys = {key for name, kind in features.items() if name in turns for key in _keys(kind)}
    names = keys & {*EXTRA_KEYS, *_BECOMES}
    columns = {*features} & {*_EXTRA_COLUMNS, "functions"} if reader.takes_extra_columns else set()
    return {_BECOMES.get(name, name) for name in names | columns}


def _keys(kind: object) -> Iterable[str]:
    """The keys of the turns in a column."""
    inner = getattr(kind, "feature", kind)
    return inner if isinstance(inner, dict) else ()


def _widened(features: Features, extras: set[str]) -> Features:
    """`features` with extra keys in every turn, and extra columns."""
    keys = {key: Value("string") for key in EXTRA_KEYS if key in extras}
    turns = List({**cast(dict, TURNS.feature), **keys})
    columns = {name: kind for name, kind in _EXTRA_COLUMNS.items() if name in extras}
    return Features({name: turns if name in _TURN_COLUMNS else kind for name, kind in features.items()} | columns)


def extras_of(features: Features | None) -> set[str]:
    """The extra keys and columns of converted rows. Example: {"reasoning_content", "tools"}."""
    turns = {key for name, kind in (features or {}).items() if name in _TURN_COLUMNS for key in _keys(kind)}
    return (turns & {*EXTRA_KEYS}) | ({*(features or {})} & {*_EXTRA_COLUMNS})
