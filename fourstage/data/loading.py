"""Loads rows from the Hub, local files, folders or a mixture; checks them and converts them to TRL's formats."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import cast

from datasets import Dataset, Features, IterableDataset, Value, concatenate_datasets, interleave_datasets

from fourstage.arguments import DataArguments
from fourstage.data import formats
from fourstage.data.columns import INSPECTED_ROWS, TURNS, problem_features, prompt_features
from fourstage.data.problems import ProblemArguments, gold_check, problem_row
from fourstage.data.sources import RowError, Rows, load_source, numbered, one_line_errors, sources

_STREAM_BUFFER, _STREAM_HELD_OUT = 1_000, 200
_BATCH = 100  # rows converted at once: documents can be whole books
_FEATURES = {
    "pretrain": Features({"text": Value("string")}),
    "sft": Features({"prompt": TURNS, "completion": TURNS}),
    "reward": Features(
        {"prompt": TURNS, "chosen": TURNS, "rejected": TURNS, "margin": Value("float64"), "kind": Value("string")}
    ),
}


def load_texts(data_args: DataArguments, seed: int, text_field: str = "text") -> tuple[Rows, Dataset]:
    """Documents to train on and documents held out: one column, `text`, in which no text is empty.

    Raises:
        ValueError: for a missing column or file, a broken line, bytes that are not UTF-8, or only empty texts.
    """
    return _load(data_args, "pretrain", seed, lambda row: formats.text_row(row, text_field))


def load_conversations(data_args: DataArguments, seed: int) -> tuple[Rows, Dataset]:
    """Conversations to train on and held out: `prompt` (turns before the first answer) and `completion` (the rest).

    Accepts `messages`, ShareGPT `conversations`, `prompt`/`completion`, Alpaca and `question`/`answer` rows.
    """
    return _load(data_args, "sft", seed, formats.conversation_row)


def load_preferences(data_args: DataArguments, seed: int) -> tuple[Rows, Dataset]:
    """Pairs to train on and held out: `prompt`, `chosen` and `rejected` as turns.

    There are columns `margin` and `kind` if any row has one; of a stream, any of the first 1,000 rows. No prompt is in
    both parts. `formats.preference_row` documents what is accepted and what is left out.
    """
    train, test = _load(data_args, "reward", seed, formats.preference_row)
    parts = [part if isinstance(part, Dataset) else part.take(INSPECTED_ROWS) for part in (train, test)]
    rows = [row for part in parts for row in part.select_columns(["margin", "kind"])]
    unused = [name for name in ("margin", "kind") if not any(row[name] for row in rows)]
    return train.remove_columns(unused), test.remove_columns(unused)


def load_prompts(data_args: DataArguments, seed: int) -> tuple[Rows, Dataset]:
    """Prompts to train on and held out: `prompt` as turns, and every other column for the reward functions.

    Reads the rows of any stage (`formats.prompt_row`). No prompt is in both parts.
    """
    return _load(data_args, "ppo", seed, formats.prompt_row)


def load_problems(
    data_args: DataArguments, seed: int, functions: Sequence[Callable], training_args: ProblemArguments
) -> tuple[Rows, Dataset]:
    """Problems to train on and held out: `prompt` as turns, `answer`, and every other column for the reward functions.

    Reads the rows that `problems.problem_row` documents, puts `training_args.system_prompt` before each prompt, and
    checks each right answer with the verifiers among `functions` (`problems.gold_check`). No prompt is in both parts.
    """
    return _load(
        data_args, "grpo", seed, problem_format(functions, training_args.unverifiable, training_args.system_prompt)
    )


def problem_format(functions: Sequence[Callable], unverifiable: str, system_prompt: str | None) -> formats.Convert:
    """The conversion that `load_problems` applies: from a row to a checked problem."""
    check = gold_check(functions, unverifiable)

    def convert(row: Mapping) -> dict | str | None:
        problem = problem_row(row, system_prompt)
        return (check(problem) or problem) if isinstance(problem, dict) else problem

    return convert


def held_out_rows(
    stage: str,
    dataset_name: str | None,
    data_args: DataArguments | None,
    seed: int,
    convert: formats.Convert | None = None,
) -> Rows:
    """The rows to measure a model on.

    Args:
        stage: the stage of the model.
        dataset_name: data to measure on, by its test split, or all of it where it has none.
        data_args: used without `dataset_name`: those of a run, which held these rows out.
        seed: of that run.
        convert: the format of the rows; by default the stage's own.
    """
    stage_formats: dict[str, formats.Convert] = {
        "pretrain": formats.text_row,
        "sft": formats.conversation_row,
        "reward": formats.preference_row,
        "ppo": formats.prompt_row,
    }
    convert = convert or stage_formats[stage]
    if not dataset_name:
        assert data_args is not None, "held_out_rows needs dataset_name or data_args"
        return _load(data_args, stage, seed, convert)[1]
    train, test = load_source({"dataset_name": dataset_name}, DataArguments(dataset_name=dataset_name), stage)
    return _convert(train if test is None else test, convert, stage, dataset_name)


def fingerprint(data: Rows) -> str:
    """A hash of the first 1,000 rows, followed by the number of rows, or by "stream" where that is unknown."""
    digest = hashlib.sha256()
    for row in data.take(INSPECTED_ROWS):
        digest.update(json.dumps(row, sort_keys=True, default=str).encode())
    return f"{digest.hexdigest()[:16]}-{len(data) if isinstance(data, Dataset) else 'stream'}"


def describe(data: Rows) -> str:
    """The number of rows for people, such as "9,000 rows"; "a stream" where it is unknown."""
    return f"{len(data):,} rows" if isinstance(data, Dataset) else "a stream"


def _load(data_args: DataArguments, stage: str, seed: int, convert: formats.Convert) -> tuple[Rows, Dataset]:
    """Loads and converts every source. Those without a test split are split together, so that no copy is in both parts.

    The training rows of several sources are mixed by weight; their held-out rows are joined.
    """
    entries = sources(data_args, stage)
    loaded = [_load_source(source, data_args, convert, stage) for source in entries]
    undivided = [train for train, test in loaded if test is None]
    key = "prompt" if stage in ("reward", "ppo", "grpo") else None
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


def _load_source(
    source: dict, data_args: DataArguments, convert: formats.Convert, stage: str
) -> tuple[Rows, Dataset | None]:
    """Converted training rows; test rows too if the source has a test split, or is one long document, which is cut."""
    name = source["dataset_name"]
    train, test = load_source(source, data_args, stage)
    train = _convert(train, convert, stage, name)
    if test is not None:
        test = _convert(test, convert, stage, name)
        return train, _first_rows(test) if isinstance(test, IterableDataset) else test
    if stage == "pretrain" and isinstance(train, Dataset) and len(train) == 1:
        return _split_long_document(train, data_args.test_split_size)
    return train, None


def _mix(parts: Sequence[Rows], weights: Sequence[float], seed: int) -> Rows:
    """Rows drawn from all parts at random, by their weights, until the last part has been read once."""
    shares = [weight / sum(weights) for weight in weights]
    same_kind = cast("list[Dataset]", parts)  # a run streams all of its sources or none; datasets refuses a mixture
    return interleave_datasets(same_kind, probabilities=shares, seed=seed, stopping_strategy="all_exhausted")


def _convert(data: Rows, convert: formats.Convert, stage: str, name: str) -> Rows:
    """Applies `convert` to every row; of data with a length, the rows left out are counted and printed by reason."""
    features = _FEATURES.get(stage)
    left_out: Counter[str] = Counter()
    if features is None:
        features = prompt_features(data) if stage == "ppo" else problem_features(data, convert, name)

    def convert_batch(batch: dict[str, list], indices: list[int]) -> dict[str, list]:
        converted = []
        for index, *values in zip(indices, *batch.values(), strict=True):
            with numbered(name, index):
                converted.append(convert(dict(zip(batch, values, strict=True))))
        left_out.update(row or "empty" for row in converted if not isinstance(row, dict))
        return {key: [row.get(key) for row in converted if isinstance(row, dict)] for key in features}

    with one_line_errors(name):
        first = next(iter(data), None)
        if first is None:
            raise RowError(f"{name} has no rows; fill it or choose another")
        columns = list(first)
        if isinstance(data, IterableDataset):
            rows = data.map(
                convert_batch,
                with_indices=True,
                batched=True,
                batch_size=_BATCH,
                remove_columns=columns,
                features=features,
            )
            is_empty = not list(rows.take(INSPECTED_ROWS))  # a bad row stops before the first step
        else:
            # Not from the cache, which would not notice another version of this package.
            rows = data.map(
                convert_batch,
                with_indices=True,
                batched=True,
                batch_size=_BATCH,
                remove_columns=columns,
                features=features,
                load_from_cache_file=False,
            )
            is_empty = not len(rows)
            for reason, count in left_out.items():
                print(f"{name}: {count:,} of {len(data):,} rows are {reason} and left out")
    if is_empty:
        why = "have empty texts" if "empty" in left_out else f"are {' or '.join(left_out)}"
        raise ValueError(f"{name}: all rows {why}, so there is nothing to train on; choose other data")
    return rows


def hold_out(parts: Sequence[Rows], share: float, seed: int, key: str | None = None) -> list[tuple[Rows, Dataset]]:
    """Splits each part into rows to train on and rows held out: the same split every time.

    A seeded hash of a row's content, or of its column `key`, decides. So copies of a row (or rows with the same `key`)
    are either all held out or all trained on, whichever parts they are in.

    Args:
        parts: all of them data sets, or all of them streams.
        share: of the rows, to hold out. Of data sets it is at least one row; of a stream, the first 200 held-out rows
            are returned.
    Raises:
        ValueError: if there are not two different rows, or if all rows of a part would be held out.
    """

    def position(row: dict) -> float:
        content = json.dumps(row[key] if key else row, sort_keys=True, ensure_ascii=False).encode()
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
