"""Loads rows from the Hub, local files, folders or a mixture; checks them; brings them into TRL's formats."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from datasets import (
    Dataset,
    Features,
    IterableDataset,
    List,
    Value,
    concatenate_datasets,
    interleave_datasets,
)

from fourstage.arguments import DataArguments
from fourstage.data import formats
from fourstage.data.problems import gold_check, problem_row
from fourstage.data.sources import RowError, Rows, load_source, numbered, one_line_errors, sources

_STREAM_BUFFER, _STREAM_CHECKED, _STREAM_HELD_OUT = 1_000, 1_000, 200
_BATCH = 100  # rows converted at once: documents can be whole books
_TURNS = List({"role": Value("string"), "content": Value("string")})
_FEATURES = {
    "pretrain": Features({"text": Value("string")}),
    "sft": Features({"prompt": _TURNS, "completion": _TURNS}),
    "reward": Features(
        {"prompt": _TURNS, "chosen": _TURNS, "rejected": _TURNS, "margin": Value("float64"), "kind": Value("string")}
    ),
}


def load_texts(data_args, seed: int, text_field: str = "text") -> tuple[Rows, Rows]:
    """Documents to train on and documents held out, each with the one column `text`, none of them empty.

    Raises ValueError for a missing column or file, a broken line, bytes that are not UTF-8, or nothing but empty texts.
    """
    return _load(data_args, "pretrain", seed, lambda row: formats.text_row(row, text_field))


def load_conversations(data_args, seed: int) -> tuple[Rows, Rows]:
    """Conversations to train on and held out: `prompt` (turns before the first answer) and `completion` (the rest).

    Accepts `messages`, ShareGPT `conversations`, `prompt`/`completion`, Alpaca and `question`/`answer` rows.
    """
    return _load(data_args, "sft", seed, formats.conversation_row)


def load_preferences(data_args, seed: int) -> tuple[Rows, Rows]:
    """Pairs to train on and held out: `prompt`, `chosen` and `rejected` as turns, `margin` and `kind` where some row
    has one (of a stream: one of the first 1,000). No prompt is on both sides.

    Accepts what `formats.preference_row` does, and leaves out what it leaves out.
    """
    train, test = _load(data_args, "reward", seed, formats.preference_row)
    parts = [part if isinstance(part, Dataset) else part.take(_STREAM_CHECKED) for part in (train, test)]
    seen = [row for part in parts for row in part.select_columns(["margin", "kind"])]
    unused = [name for name in ("margin", "kind") if not any(row[name] for row in seen)]
    return train.remove_columns(unused), test.remove_columns(unused)


def load_prompts(data_args, seed: int) -> tuple[Rows, Rows]:
    """Prompts to train on and held out: `prompt` as turns, and every other column for the reward functions.

    Reads the rows of any stage (`formats.prompt_row`). No prompt is on both sides.
    """
    return _load(data_args, "ppo", seed, formats.prompt_row)


def load_problems(data_args, seed: int, functions: Sequence[Callable], training_args) -> tuple[Rows, Rows]:
    """Problems to train on and held out: `prompt` as turns, `answer`, and every other column for the reward functions.

    Reads what `problems.problem_row` does, puts `training_args.system_prompt` before it, and asks the verifiers among
    `functions` about each right answer (`problems.gold_check`). No prompt is on both sides.
    """
    return _load(data_args, "grpo", seed, problem_format(functions, training_args))


def problem_format(functions: Sequence[Callable], training_args) -> formats.Convert:
    """The conversion of `load_problems`: a row to a checked problem."""
    check = gold_check(functions, training_args.unverifiable)

    def convert(row: dict) -> dict | str | None:
        problem = problem_row(row, training_args.system_prompt)
        return (check(problem) or problem) if isinstance(problem, dict) else problem

    return convert


def held_out_rows(
    stage: str, dataset_name: str | None, data_args, seed: int, convert: formats.Convert | None = None
) -> Rows:
    """What to measure on: the test split of `dataset_name`, or all of it, if it is given; else the part that a run
    with `data_args` and `seed` held out. `convert` is the format of the rows, the stage's own by default."""
    own = {"pretrain": formats.text_row, "sft": formats.conversation_row, "reward": formats.preference_row}
    convert = convert or (own | {"ppo": formats.prompt_row})[stage]
    if not dataset_name:
        return _load(data_args, stage, seed, convert)[1]
    train, test = load_source({"dataset_name": dataset_name}, DataArguments(dataset_name=dataset_name), stage)
    return _convert(train if test is None else test, convert, stage, dataset_name)


def fingerprint(data: Rows) -> str:
    """A hash of the first 1,000 rows and, where it is known, of the number of rows."""
    digest = hashlib.sha256()
    for row in data.take(_STREAM_CHECKED):
        digest.update(json.dumps(row, sort_keys=True, default=str).encode())
    return f"{digest.hexdigest()[:16]}-{len(data) if isinstance(data, Dataset) else 'stream'}"


def describe(data: Rows) -> str:
    """For people: the number of rows, where it is known."""
    return f"{len(data):,} rows" if isinstance(data, Dataset) else "a stream"


def _load(data_args, stage: str, seed: int, convert: formats.Convert) -> tuple[Rows, Rows]:
    """Every source: load and convert; hold out of all together; mix the training parts by weight, join the others."""
    entries = sources(data_args)
    parts = []
    for source in entries:
        train, test = (
            None if part is None else _convert(part, convert, stage, source["dataset_name"])
            for part in load_source(source, data_args, stage)
        )
        if isinstance(test, IterableDataset):
            test = _first_rows(test)
        if test is None and stage == "pretrain" and isinstance(train, Dataset) and len(train) == 1:
            train, test = _split_long_document(train, data_args.test_split_size)
        parts.append((train, test))
    undivided = [train for train, test in parts if test is None]
    key = "prompt" if stage in ("reward", "ppo", "grpo") else None
    divided = iter(hold_out(undivided, data_args.test_split_size, seed, key) if undivided else [])
    parts = [next(divided) if test is None else (train, test) for train, test in parts]
    train, test = parts[0]
    if len(parts) > 1:
        weights = [float(source.get("weight", 1.0)) for source in entries]
        shares = [weight / sum(weights) for weight in weights]
        train = interleave_datasets(
            [part for part, _ in parts], probabilities=shares, seed=seed, stopping_strategy="all_exhausted"
        )
        test = concatenate_datasets([part for _, part in parts])
    if isinstance(train, IterableDataset):
        train = train.shuffle(seed=seed, buffer_size=_STREAM_BUFFER)
    return train, test


def _convert(data: Rows, convert: formats.Convert, stage: str, name: str) -> Rows:
    """Applies `convert` to every row; rows it leaves out are counted by reason where the data has a length."""
    features, left_out = _FEATURES.get(stage), Counter()
    if features is None:
        features = _prompt_features(data) if stage == "ppo" else _problem_features(data, convert, name)

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
            raise RowError(f"{name}: no rows; it is empty, so fill it or choose another")
        options = {"with_indices": True, "batched": True, "batch_size": _BATCH, "remove_columns": list(first)}
        if isinstance(data, IterableDataset):
            data = data.map(convert_batch, features=features, **options)
            some = next(iter(list(data.take(_STREAM_CHECKED))), None)  # a bad row stops before the first step
        else:
            found = len(data)  # not from the cache: it would not notice another version of this package
            data = data.map(convert_batch, features=features, load_from_cache_file=False, **options)
            some = len(data) or None
            for reason, count in left_out.items():
                print(f"{name}: {count:,} of {found:,} rows are {reason} and left out")
    if some is None:
        why = "have empty texts" if "empty" in left_out else f"are {' or '.join(left_out)}"
        raise ValueError(f"{name}: all rows {why}, there is nothing to train on; choose other data")
    return data


def _prompt_features(data: Rows) -> Features:
    """Prompts as turns, the columns that rewards may need as they are."""
    found = data.features or Dataset.from_list(list(data.take(_STREAM_CHECKED))).features
    kept = {n: kind for n, kind in found.items() if n not in formats.ASKING_COLUMNS + formats.ANSWERED_COLUMNS}
    return Features({"prompt": _TURNS, **kept})


def _problem_features(data: Rows, convert: formats.Convert, name: str) -> Features:
    """Prompts as turns, answers as text, and every other column as the first 1,000 rows have it."""
    with one_line_errors(name):
        found = []
        for index, row in enumerate(data.take(_STREAM_CHECKED)):
            with numbered(name, index):
                found.append(convert(row))
    found = [row for row in found if isinstance(row, dict)] or [{"prompt": []}]
    names = list(dict.fromkeys(key for row in found for key in row))
    columns = Dataset.from_list([{key: row.get(key) for key in names} for row in found]).features
    texts = {key: Value("string") for key in ("answer", "derivation") if key in columns}
    return Features({**columns, **texts, "prompt": _TURNS})


def hold_out(parts: Sequence[Rows], share: float, seed: int, key: str | None = None) -> list[tuple[Rows, Rows]]:
    """Splits each part by a seeded hash of a row's content, or of its column `key`: the same rows every time, and
    copies of a row (or rows with the same `key`), in one part or in several, never on both sides.

    At least one row of data sets is held out, in all. Of a stream the test part is the first 200 held-out rows.
    """

    def position(row: dict) -> float:
        content = json.dumps(row[key] if key else row, sort_keys=True, ensure_ascii=False).encode()
        digest = hashlib.sha256(str(seed).encode() + b"\0" + content).digest()
        return int.from_bytes(digest[:8]) / 2**64

    if isinstance(parts[0], IterableDataset):
        return [_divide_stream(part, lambda row: position(row) < share) for part in parts]
    positions = [[position(row) for row in part] for part in parts]
    ranked = sorted({place for part in positions for place in part})
    if len(ranked) < 2:
        raise ValueError("one document or copies of one are too few to hold some out; give at least two different ones")
    threshold = ranked[min(max(1, round(share * len(ranked))), len(ranked) - 1) - 1]
    divided = []
    for part, places in zip(parts, positions, strict=True):
        train = part.select([i for i, place in enumerate(places) if place > threshold])
        if not len(train):
            raise ValueError(f"all rows of a source ({len(part):,}) would be held out; give it more, or leave it out")
        divided.append((train, part.select([i for i, place in enumerate(places) if place <= threshold])))
    return divided


def _divide_stream(data: IterableDataset, is_held_out: Callable[[dict], bool]) -> tuple[IterableDataset, Dataset]:
    train, test = data.filter(lambda row: not is_held_out(row)), data.filter(is_held_out)
    if next(iter(train), None) is None or next(iter(test), None) is None:
        raise ValueError("a stream has too few rows to hold some out; leave out --dataset_streaming or give more data")
    return train, _first_rows(test)


def _first_rows(data: IterableDataset) -> Dataset:
    """The start of a stream in memory, so that evaluations need not read the stream again."""
    return Dataset.from_list(list(data.take(_STREAM_HELD_OUT)), features=data.features)


def _split_long_document(data: Dataset, share: float) -> tuple[Dataset, Dataset]:
    """One single document: its end is held out, from the paragraph or line break next after `1 - share` of it."""
    text = data[0]["text"]
    wanted = int(len(text) * (1 - share))
    cut = next((at for at in (text.find("\n\n", wanted), text.find("\n", wanted), wanted) if 0 < at < len(text)), 0)
    head, tail = text[:cut], text[cut:].lstrip("\n")
    if not head.strip() or not tail.strip():
        raise ValueError("the data is one short document, so nothing can be held out; give more documents")
    print(f"one document: its last {len(tail):,} of {len(text):,} characters are held out")
    return Dataset.from_list([{"text": head}]), Dataset.from_list([{"text": tail}])


def texts_of(data: Rows) -> Iterator[str]:
    """The `text` of every row, one at a time."""
    return (row["text"] for row in data)
