"""Loads rows from the Hub, local files, folders or a mixture; checks them and converts them to TRL's formats."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

from datasets import Dataset, IterableDataset, concatenate_datasets, interleave_datasets
from transformers import PreTrainedTokenizerBase

from fourstage.arguments import DataArguments
from fourstage.data import formats
from fourstage.data.columns import INSPECTED_ROWS
from fourstage.data.converting import GoldError, Reader, convert_all, extras_of
from fourstage.data.problems import ProblemArguments, gold_check, problem_row
from fourstage.data.sources import Rows, load_source, sources

_STREAM_BUFFER, _STREAM_HELD_OUT = 1_000, 200


def load_texts(data_args: DataArguments, seed: int, text_field: str = "text") -> tuple[Rows, Dataset]:
    """Documents to train on and documents held out: one column, `text`, in which no text is empty.

    Raises:
        ValueError: for a missing column or file, a broken line, bytes that are not UTF-8, or only empty texts.
    """
    return _load(data_args, seed, Reader("pretrain", lambda row: formats.text_row(row, text_field), data_args))


def load_conversations(
    data_args: DataArguments, seed: int, tokenizer: PreTrainedTokenizerBase | None = None
) -> tuple[Rows, Dataset]:
    """Conversations to train on and held out: `prompt` (turns before the first answer) and `completion` (the rest).

    Accepts `messages`, ShareGPT `conversations`, `prompt`/`completion`, Alpaca and `question`/`answer` rows. Turns have
    `reasoning_content`, `tool_calls`, `name` and `tool_call_id` where some row has one; likewise there are columns
    `tools` and `chat_template_kwargs`. With a tokenizer, its chat template has to take every row.

    Raises:
        ValueError: for a row that cannot be read, with its number, unless `data_args.unreadable` is "drop".
    """
    return _load(data_args, seed, Reader("sft", formats.conversation_row, data_args, tokenizer))


def load_preferences(
    data_args: DataArguments, seed: int, tokenizer: PreTrainedTokenizerBase | None = None
) -> tuple[Rows, Dataset]:
    """Pairs to train on and held out: `prompt`, `chosen` and `rejected` as turns; extra keys and columns as above.

    There are columns `margin` and `kind` if any row has one; of a stream, any of the first 1,000 rows. No prompt is in
    both parts. `formats.preference_row` documents what is accepted and what is left out.
    """
    train, test = _load(data_args, seed, Reader("reward", formats.preference_row, data_args, tokenizer))
    parts = [part if isinstance(part, Dataset) else part.take(INSPECTED_ROWS) for part in (train, test)]
    rows = [row for part in parts for row in part.select_columns(["margin", "kind"])]
    unused = [name for name in ("margin", "kind") if not any(row[name] for row in rows)]
    return train.remove_columns(unused), test.remove_columns(unused)


def load_prompts(
    data_args: DataArguments, seed: int, tokenizer: PreTrainedTokenizerBase | None = None
) -> tuple[Rows, Dataset]:
    """Prompts to train on and held out: `prompt` as turns, and every other column for the reward functions.

    Reads the rows of any stage (`formats.prompt_row`). No prompt is in both parts.
    """
    return _load(data_args, seed, Reader("ppo", formats.prompt_row, data_args, tokenizer))


def load_problems(
    data_args: DataArguments,
    seed: int,
    functions: Sequence[Callable],
    training_args: ProblemArguments,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> tuple[Rows, Dataset]:
    """Problems to train on and held out: `prompt` as turns, `answer`, and every other column for the reward functions.

    Reads the rows that `problems.problem_row` documents, puts `training_args.system_prompt` before each prompt, and
    checks each right answer with the verifiers among `functions` (`problems.gold_check`). No prompt is in both parts.
    """
    convert = problem_format(functions, training_args.unverifiable, training_args.system_prompt)
    return _load(data_args, seed, Reader("grpo", convert, data_args, tokenizer))


def problem_format(functions: Sequence[Callable], unverifiable: str, system_prompt: str | None) -> formats.Convert:
    """The conversion that `load_problems` applies: from a row to a checked problem."""
    check = gold_check(functions, unverifiable)

    def convert(row: Mapping) -> dict | str | None:
        problem = problem_row(row, system_prompt)
        if not isinstance(problem, dict):
            return problem
        try:
            return check(problem) or problem
        except ValueError as error:
            raise GoldError(str(error)) from None

    return convert


def held_out_rows(
    stage: str,
    dataset_name: str | None,
    data_args: DataArguments | None,
    seed: int,
    convert: formats.Convert | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Rows:
    """The rows to measure a model on.

    Args:
        stage: the stage of the model.
        dataset_name: data to measure on, by its test split, or all of it where it has none.
        data_args: of a run, by which rows are read; without `dataset_name` the run which held these rows out.
        seed: of that run.
        convert: the format of the rows; by default the stage's own.
        tokenizer: as in `load_conversations`.
    """
    stage_formats: dict[str, formats.Convert] = {
        "pretrain": formats.text_row,
        "sft": formats.conversation_row,
        "reward": formats.preference_row,
        "ppo": formats.prompt_row,
    }
    convert = convert or stage_formats[stage]
    run_args = data_args or DataArguments()
    reader = Reader(stage, convert, run_args, tokenizer)
    if not dataset_name:
        return _load(run_args, seed, reader)[1]
    train, test = load_source({"dataset_name": dataset_name}, DataArguments(dataset_name=dataset_name), stage)
    return convert_all([(train if test is None else test, dataset_name)], reader)[0]


def fingerprint(data: Rows) -> str:
    """A hash of the first 1,000 rows, followed by the number of rows, or by "stream" where that is unknown."""
    digest = hashlib.sha256()
    for row in data.take(INSPECTED_ROWS):
        digest.update(json.dumps(row, sort_keys=True, default=str).encode())
    return f"{digest.hexdigest()[:16]}-{len(data) if isinstance(data, Dataset) else 'stream'}"


def rows_hash(data: Rows) -> str | None:
    """A hash of every row, a second for 100,000 of 500 characters; None for a stream, which is not read to its end."""
    if not isinstance(data, Dataset):
        return None
    digest = hashlib.sha256()
    for part in data.with_format("arrow").iter(INSPECTED_ROWS):
        digest.update(json.dumps(part.to_pydict(), sort_keys=True, default=str).encode())
    return digest.hexdigest()[:16]


def describe(data: Rows) -> str:
    """The number of rows for people, such as "9,000 rows"; "a stream" where it is unknown."""
    return f"{len(data):,} rows" if isinstance(data, Dataset) else "a stream"


def _load(data_args: DataArguments, seed: int, reader: Reader) -> tuple[Rows, Dataset]:
    """Loads and converts every source. Those without a test split are split together, so that no copy is in both parts.

    The training rows of several sources are mixed by weight; their held-out rows are joined.
    """
    entries = sources(data_args, reader.stage)
    loaded = _load_sources(entries, data_args, reader)
    undivided = [train for train, test in loaded if test is None]
    key = "prompt" if reader.stage in ("reward", "ppo", "grpo") else None
    divided = iter(hold_out(undivided, data_args.test_split_size, seed, key) if undivided else [])
    parts = [next(divided) if test is None else (train, test) for train, test in loaded]
    train, test = parts[0]
    if len(parts) > 1:
        weights = [float(source.get("weight", 1.0)) for source in entries]
        train = _mix([train for train, _ in parts], weights, seed)
        test = concatenate_datasets([test for _, test in parts])
    if isinstance(train, IterableDataset):
        train = train.shuffle(seed=seed, buffer_size=_STREAM_BUFFER)
    return train, test


def _load_sources(
    entries: Sequence[dict], data_args: DataArguments, reader: Reader
) -> list[tuple[Rows, Dataset | None]]:
    """Converted rows of every source; test rows too if it has a test split, or is one long document, which is cut."""
    raw = [load_source(source, data_args, reader.stage) for source in entries]
    names = [source["dataset_name"] for source in entries]
    parts = [(part, name) for name, pair in zip(names, raw, strict=True) for part in pair if part is not None]
    converted = iter(convert_all(parts, reader))
    loaded: list[tuple[Rows, Dataset | None]] = []
    for _, raw_test in raw:
        train, test = next(converted), None if raw_test is None else next(converted)
        if test is not None:
            loaded.append((train, _first_rows(test) if isinstance(test, IterableDataset) else test))
        elif reader.stage == "pretrain" and isinstance(train, Dataset) and len(train) == 1:
            loaded.append(_split_long_document(train, data_args.test_split_size))
        else:
            loaded.append((train, None))
    return loaded


def _mix(parts: Sequence[Rows], weights: Sequence[float], seed: int) -> Rows:
    """Rows drawn from all parts at random, by their weights, until the last part has been read once."""
    shares = [weight / sum(weights) for weight in weights]
    same_kind = cast("list[Dataset]", parts)  # a run streams all of its sources or none; datasets refuses a mixture
    return interleave_datasets(same_kind, probabilities=shares, seed=seed, stopping_strategy="all_exhausted")


def hold_out(parts: Sequence[Rows], share: float, seed: int, key: str | None = None) -> list[tuple[Rows, Dataset]]:
    """Splits each part into rows to train on and rows held out: the same split every time.

    A seeded hash of a row's content, or of its column `key`, decides. So copies of a row (or rows with the same `key`)
    are either all held out or all trained on, whichever parts they are in. Keys that hold nothing do not count: a row
    stays where it is when other rows have more.

    Args:
        parts: all of them data sets, or all of them streams.
        share: of the rows, to hold out. Of data sets it is at least one row; of a stream, the first 200 held-out rows
            are returned.
    Raises:
        ValueError: if there are not two different rows, or if all rows of a part would be held out.
    """

    has_extras = any(extras_of(part.features) for part in parts)

    def position(row: dict) -> float:
        counted = row[key] if key else row
        counted = _without_empty(counted) if has_extras else counted
        content = json.dumps(counted, sort_keys=True, ensure_ascii=False).encode()
        digest = hashlib.sha256(str(seed).encode() + b"\0" + content).digest()
        return int.from_bytes(digest[:8]) / 2**64

    if isinstance(parts[0], IterableDataset):
        streams = cast("Sequence[IterableDataset]", parts)
        return [_divide_stream(stream, lambda row: position(row) < share) for stream in streams]
    tables = cast("Sequence[Dataset]", parts)
    positions = [[position(row) for row in table] for table in tables]
    ranked = sorted({place for places in positions for place in places})
    if len(ranked) < 2:
        raise ValueError("nothing can be held out of one document or copies of one; give at least two different ones")
    threshold = ranked[min(max(1, round(share * len(ranked))), len(ranked) - 1) - 1]
    divided: list[tuple[Rows, Dataset]] = []
    for table, places in zip(tables, positions, strict=True):
        train = table.select([i for i, place in enumerate(places) if place > threshold])
        if not len(train):
            raise ValueError(f"all {len(table):,} rows of a source would be held out; give it more, or leave it out")
        divided.append((train, table.select([i for i, place in enumerate(places) if place <= threshold])))
    return divided


def _without_empty(value: Any) -> Any:
    """Rows or turns without keys that hold None or no settings."""
    if isinstance(value, Mapping):
        return {key: _without_empty(part) for key, part in value.items() if part is not None and part != {}}
    return [_without_empty(part) for part in value] if isinstance(value, list) else value


def _divide_stream(data: IterableDataset, is_held_out: Callable[[dict], bool]) -> tuple[IterableDataset, Dataset]:
    train = data.filter(lambda row: not is_held_out(row))
    test = data.filter(is_held_out)
    if next(iter(train), None) is None or next(iter(test), None) is None:
        raise ValueError("a stream has too few rows to hold some out; drop --dataset_streaming, or give more data")
    return train, _first_rows(test)


def _first_rows(data: IterableDataset) -> Dataset:
    """The start of a stream in memory, so that evaluations need not read the stream again."""
    return Dataset.from_list(list(data.take(_STREAM_HELD_OUT)), features=data.features)


def _split_long_document(data: Dataset, share: float) -> tuple[Dataset, Dataset]:
    """Cuts a single document in two: its end is held out, from the first paragraph or line break after `1 - share`."""
    text = data[0]["text"]
    target = int(len(text) * (1 - share))
    candidates = (text.find("\n\n", target), text.find("\n", target), target)
    cut = next((position for position in candidates if 0 < position < len(text)), 0)
    head, tail = text[:cut], text[cut:].lstrip("\n")
    if not head.strip() or not tail.strip():
        raise ValueError("the data is one short document, so nothing can be held out; give more documents")
    print(f"one document: its last {len(tail):,} of {len(text):,} characters are held out")
    return Dataset.from_list([{"text": head}]), Dataset.from_list([{"text": tail}])


def texts_of(data: Rows) -> Iterator[str]:
    """The `text` of every row, one at a time."""
    return (row["text"] for row in data)
