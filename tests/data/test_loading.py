"""Loading, holding out and mixing, from files written here; and what bad input says before any training."""

import copy
import csv
import gzip
import json
import sys
from collections import Counter
from functools import partial

import pytest
from datasets import Dataset, IterableDataset
from hypothesis import given, settings
from hypothesis import strategies as st

from fourstage.arguments import DataArguments, InstructConfig, ModelArguments, PretrainConfig, parse
from fourstage.data.embedded.rows import demo_rows
from fourstage.data.formats import text_row
from fourstage.data.lengths import drop_overlong, prompt_tokens
from fourstage.data.loading import (
    fingerprint,
    held_out_rows,
    hold_out,
    load_conversations,
    load_preferences,
    load_texts,
)

TEXTS = [f"Document {i}, with an é and a \U0001f600." for i in range(40)]


def jsonl(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def texts(data):
    return [row["text"] for row in data]


def write(path, content, compressed=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if compressed else content)
    return str(path)


def load(name, loader=load_texts, seed=0, **fields):
    return loader(DataArguments(dataset_name=str(name), **fields), seed)


def assert_refused(call, *words):
    """The call ends with a ValueError of one line that holds all the words."""
    with pytest.raises(ValueError) as error:
        call()
    message = str(error.value)
    assert "\n" not in message and all(word in message for word in words), message


# Formats


def as_csv(path):
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerows([["text", "n"], *([text, 1] for text in TEXTS)])


WRITERS = {
    "jsonl": lambda path: path.write_bytes(jsonl({"text": text, "n": 1} for text in TEXTS)),
    "json": lambda path: path.write_text(json.dumps([{"text": text} for text in TEXTS], indent=1), encoding="utf-8"),
    "csv": as_csv,
    "parquet": lambda path: Dataset.from_dict({"text": TEXTS, "n": [1] * len(TEXTS)}).to_parquet(path),
}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "parquet", "jsonl.gz", "json.gz", "csv.gz"])
def test_every_format_gives_the_same_rows(tmp_path, ending, streaming):
    plain = tmp_path / f"a.{ending.removesuffix('.gz')}"
    WRITERS[ending.removesuffix(".gz")](plain)
    if ending.endswith(".gz"):
        (tmp_path / f"a.{ending}").write_bytes(gzip.compress(plain.read_bytes()))
    train, test = load(tmp_path / f"a.{ending}", dataset_streaming=streaming, test_split_size=0.2)
    assert sorted(texts(train) + texts(test)) == sorted(TEXTS)
    assert train.column_names == test.column_names == ["text"]
    assert isinstance(train, IterableDataset) is streaming


@pytest.mark.parametrize("compressed", [False, True])
def test_one_text_file_is_one_document_split_at_a_paragraph(tmp_path, compressed):
    text = "\n\n".join(f"Paragraph {i}\nof two lines." for i in range(20))
    name = write(tmp_path / ("a.txt.gz" if compressed else "a.txt"), text.encode(), compressed)
    (train,), (test,) = map(texts, load(name, test_split_size=0.25))
    assert train + "\n\n" + test == text and test.startswith("Paragraph ")
    assert 0.2 < len(test) / len(text) < 0.27


def test_a_folder_of_text_files_is_one_document_each(tmp_path):
    for i in range(5):
        write(tmp_path / f"{i}.txt", f"One\n\ntwo {i}\n".encode())
    train, test = load(tmp_path)
    assert (len(train), len(test)) == (4, 1)
    assert sorted(texts(train) + texts(test)) == [f"One\n\ntwo {i}\n" for i in range(5)]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    "names", [("train.jsonl", "validation.jsonl"), ("train/0.jsonl", "test/0.jsonl"), ("a", "b-dev")]
)
def test_a_folder_with_a_split_of_its_own(tmp_path, names, streaming):
    ours, theirs = (name if "." in name else f"{name}.jsonl.gz" for name in names)
    write(tmp_path / ours, jsonl([{"text": "a"}, {"text": "b"}]), ours.endswith("gz"))
    write(tmp_path / theirs, jsonl([{"text": "c"}, {"text": ""}]), theirs.endswith("gz"))
    train, test = load(tmp_path, dataset_streaming=streaming)
    assert sorted(texts(train)) == ["a", "b"] and texts(test) == ["c"]
    assert texts(held_out_rows("pretrain", str(tmp_path), None, 0)) == ["c"]


def test_text_of_another_column(tmp_path):
    name = write(tmp_path / "a.jsonl", jsonl([{"story": "a", "text": 1}, {"story": "b", "text": 2}]))
    train, test = load_texts(DataArguments(dataset_name=name), 0, "story")
    assert sorted(texts(train) + texts(test)) == ["a", "b"]
    assert sorted(texts(held_out_rows("pretrain", name, None, 0, lambda row: text_row(row, "story")))) == ["a", "b"]


@pytest.mark.parametrize("streaming", [False, True])
def test_conversations_of_several_formats_in_one_file(tmp_path, streaming):
    turns = [{"role": "user", "content": "q0"}, {"role": "assistant", "content": "a0"}]
    rows = [{"messages": turns}, {"question": "q1", "answer": "a1"}, {"question": "q2", "answer": ""}]
    rows += [{"instruction": "q3", "input": "", "output": "a3"}, {"prompt": "q4", "completion": "a4"}]
    name = write(tmp_path / "a.jsonl", jsonl(rows))
    train, test = load(name, load_conversations, dataset_streaming=streaming, test_split_size=0.5)
    got = sorted(
        (row["prompt"][0]["content"], row["completion"][0]["content"]) for part in (train, test) for row in part
    )
    assert got == [("q0", "a0"), ("q1", "a1"), ("q3", "a3"), ("q4", "a4")]  # an empty answer is left out


def test_many_empty_rows_at_the_beginning(tmp_path, capsys):
    name = write(tmp_path / "a.jsonl", jsonl([{"text": ""}] * 1_500 + [{"text": text} for text in TEXTS]))
    train, test = load(name)
    assert sorted(texts(train) + texts(test)) == sorted(TEXTS)
    assert "1,500 of 1,540 rows are empty" in capsys.readouterr().out


def test_sources_of_unlike_types_mix(tmp_path):
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    rows = [{"prompt": [], "completion": [{"role": "system", "content": str(i)}, *turns]} for i in range(9)]
    name = write(tmp_path / "a.jsonl", jsonl(rows))  # Arrow takes the prompts for lists of nothing
    sources = [{"dataset_name": name}, {"dataset_name": "fourstage/demo"}]
    train, _ = load_conversations(DataArguments(datasets=sources), 0)
    assert {len(row["prompt"]) for row in train} == {0, 1}


# Holding out

documents = st.lists(st.text(max_size=3), min_size=2, max_size=40).filter(lambda rows: len(set(rows)) > 1)


@settings(max_examples=60, deadline=None)
@given(rows=documents, share=st.floats(0.001, 0.999), seed=st.integers(0, 3))
def test_hold_out(rows, share, seed):
    data = Dataset.from_dict({"text": rows})
    ((train, test),) = hold_out([data], share, seed)
    assert Counter(texts(train)) + Counter(texts(test)) == Counter(rows)
    assert texts(train) and texts(test) and not set(texts(train)) & set(texts(test))
    distinct = len(set(rows))
    assert abs(len(set(texts(test))) - share * distinct) <= 1
    ((again, _),) = hold_out([Dataset.from_dict({"text": rows[::-1]})], share, seed)  # the order does not matter
    assert Counter(texts(again)) == Counter(texts(train))


def test_another_seed_holds_out_others():
    data = Dataset.from_dict({"text": TEXTS})
    first, second = (hold_out([data], 0.2, seed)[0][1] for seed in (0, 1))
    assert len(first) == len(second) == 8 and texts(first) != texts(second)


def test_a_document_in_two_sources_is_never_on_both_sides(tmp_path):
    one = write(tmp_path / "one.jsonl", jsonl({"text": text} for text in TEXTS))
    two = write(tmp_path / "two.jsonl", jsonl({"text": text} for text in TEXTS[20:] * 2))
    for seed in range(4):
        sources = [{"dataset_name": one}, {"dataset_name": two}]
        train, test = load_texts(DataArguments(datasets=sources, test_split_size=0.3), seed)
        assert not set(texts(train)) & set(texts(test)) and set(texts(train)) | set(texts(test)) == set(TEXTS)


def test_a_stream_decides_by_the_same_hash_and_trains_on_no_held_out_document(tmp_path):
    rows = [{"text": f"{text} {i}"} for i, text in enumerate(TEXTS * 30)]
    name = write(tmp_path / "a.jsonl", jsonl(rows))
    train, test = load(name, test_split_size=0.1, seed=3)
    streamed, streamed_test = load(name, test_split_size=0.1, seed=3, dataset_streaming=True)
    assert len(streamed_test) == pytest.approx(120, abs=40)
    assert not set(texts(streamed)) & set(texts(streamed_test))
    assert sorted(texts(streamed) + texts(streamed_test)) == sorted(row["text"] for row in rows)
    # One holds out exactly a tenth, the other all below a tenth: of one ranking, so one set holds the other.
    ours, theirs = set(texts(test)), set(texts(streamed_test))
    assert ours <= theirs or theirs <= ours
    assert texts(streamed) == texts(streamed) != sorted(texts(streamed))  # shuffled, the same way every time


def preferences(count, prompts, **more):
    return [{"prompt": f"q{i % prompts}", "chosen": f"good {i}", "rejected": f"bad {i}", **more} for i in range(count)]


def asked(data):
    return [row["prompt"][0]["content"] for row in data]


@pytest.mark.parametrize("streaming", [False, True])
def test_pairs_are_held_out_by_prompt(tmp_path, streaming):
    """Few prompts with many pairs of answers, in two sources: no prompt is on both sides."""
    one = write(tmp_path / "one.jsonl", jsonl(preferences(400, 40)))
    two = write(tmp_path / "two.jsonl", jsonl(preferences(300, 30, margin=0.5)))
    for seed in range(3):
        sources = [{"dataset_name": one}, {"dataset_name": two}]
        arguments = DataArguments(datasets=sources, test_split_size=0.25, dataset_streaming=streaming)
        train, test = load_preferences(arguments, seed)
        train = list(train)
        assert not set(asked(train)) & set(asked(test)) and {f"q{i}" for i in range(40)} == {
            *asked(train),
            *asked(test),
        }
        assert 4 <= len(set(asked(test))) <= 16
        assert {row["margin"] for row in train} == {0.0, 0.5}  # a source without margins has the margin 0
    train, _ = load_preferences(DataArguments(dataset_name=one, test_split_size=0.25), 0)
    assert len(train) % 10 == 0  # whole prompts


def test_margin_and_kind_are_there_where_some_row_has_one(tmp_path):
    both = write(tmp_path / "both.jsonl", jsonl([*preferences(9, 9, margin=1, kind="rude"), *preferences(9, 9)]))
    for part in load_preferences(DataArguments(dataset_name=both, test_split_size=0.5), 0):
        assert part.column_names == ["prompt", "chosen", "rejected", "margin", "kind"]
    plain = write(tmp_path / "plain.jsonl", jsonl(preferences(9, 9, margin=None, other=3)))
    for streaming in (False, True):
        arguments = DataArguments(dataset_name=plain, dataset_streaming=streaming, test_split_size=0.5)
        for part in load_preferences(arguments, 0):
            assert part.column_names == ["prompt", "chosen", "rejected"]
    assert held_out_rows("reward", both, None, 0)[0]["kind"] == "rude"


@pytest.mark.parametrize("streaming", [False, True])
def test_pairs_that_teach_nothing_are_left_out_and_counted(tmp_path, capsys, streaming):
    rows = preferences(20, 20) + preferences(3, 3, chosen="") + preferences(4, 4, chosen="a", rejected="a")
    name = write(tmp_path / "a.jsonl", jsonl([*rows, *preferences(1, 1, rejected="")]))
    train, test = load(name, load_preferences, dataset_streaming=streaming, test_split_size=0.2)
    assert len(list(train)) + len(test) == 21
    said = capsys.readouterr().out
    assert streaming or "a.jsonl: 3 of 28 rows are without a chosen answer and left out" in said
    assert streaming or "a.jsonl: 4 of 28 rows are equal in chosen and rejected and left out" in said
    name = write(tmp_path / "b.jsonl", jsonl(rows[20:]))
    words = ("all rows are", "without a chosen answer", "equal in chosen and rejected", "choose other data")
    assert_refused(lambda: load(name, load_preferences, dataset_streaming=streaming), *words)


def test_one_document_in_copies_cannot_be_divided(tmp_path):
    name = write(tmp_path / "a.jsonl", jsonl([{"text": "a"}] * 5))
    assert_refused(lambda: load(name), "copies of one", "at least two")
    assert_refused(lambda: load(name, dataset_streaming=True), "too few rows")
    short = write(tmp_path / "b.txt", b"a")
    assert_refused(lambda: load(short), "one short document", "give more documents")


# Mixing


def mixture(tmp_path, weights, streaming=False, seed=0):
    sources = []
    for kind, weight in weights.items():
        name = write(tmp_path / f"{kind}.jsonl", jsonl({"text": f"{kind} {i}"} for i in range(400)))
        sources.append({"dataset_name": name, "weight": weight})
    return load_texts(DataArguments(datasets=sources, dataset_streaming=streaming), seed)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_mixture_follows_its_weights(tmp_path, streaming):
    weights = {"a": 3, "b": 1, "c": 0.5}
    train, test = mixture(tmp_path, weights, streaming)
    order = [text[0] for text in texts(train.take(800))]
    for kind, weight in weights.items():
        share = weight / 4.5
        assert order.count(kind) / 800 == pytest.approx(share, abs=4 * (share * (1 - share) / 800) ** 0.5)
    assert {text[0] for text in texts(test)} == {"a", "b", "c"} and not set(texts(train)) & set(texts(test))
    assert len(test) == pytest.approx(60, abs=20)
    assert set(texts(train)) | set(texts(test)) == {f"{kind} {i}" for kind in "abc" for i in range(400)}


@pytest.mark.parametrize("streaming", [False, True])
def test_a_mixture_has_the_same_order_twice(tmp_path, streaming):
    first, second, other = (texts(mixture(tmp_path, {"a": 2, "b": 1}, streaming, seed)[0]) for seed in (0, 0, 1))
    assert first == second != other


def test_the_embedded_data_in_a_mixture(tmp_path):
    name = write(tmp_path / "a.jsonl", jsonl({"text": text} for text in TEXTS))
    for streaming in (False, True):
        sources = [{"dataset_name": name}, {"dataset_name": "fourstage/demo"}]
        train, test = load_texts(DataArguments(datasets=sources, dataset_streaming=streaming), 0)
        assert {text[:8] == "Document" for text in texts(train.take(50))} == {True, False}
        assert len(test) > 100


# Fingerprint, overlong rows


def test_the_fingerprint_changes_with_the_content():
    def of(rows):
        return fingerprint(Dataset.from_dict({"text": rows}))

    many = [str(i) for i in range(1_200)]
    assert of(["a", "b"]) == of(["a", "b"]) and of(many) == of(many)
    assert len({of(rows) for rows in (["a", "b"], ["b", "a"], ["ab"], ["a", "c"], many, many[:-1])}) == 6
    stream = Dataset.from_dict({"text": ["a", "b"]}).to_iterable_dataset()
    assert fingerprint(stream).split("-") == [of(["a", "b"]).split("-")[0], "stream"]


def test_a_row_whose_words_the_template_refuses_is_named(tokenizer):
    tokenizer = copy.deepcopy(tokenizer)
    refuses = "{% for m in messages %}{% if 'dog' in m['content'] %}{{ raise_exception('No dogs') }}{% endif %}"
    tokenizer.chat_template = refuses + "{{ m['content'] }}{% endfor %}"
    turns = [{"prompt": [{"role": "user", "content": text}]} for text in ("a cat", "a dog")]
    count = partial(prompt_tokens, tokenizer)
    assert_refused(
        lambda: drop_overlong(Dataset.from_list(turns), count, 99, "drop", "train"), "train row 2", "a dog", "No dogs"
    )


def test_overlong_rows_are_dropped_and_counted_or_an_error(capsys):
    data = Dataset.from_dict({"text": ["aa", "aaa", "aaaa", "a", "aaaaa"]})

    def count(batch):
        return [len(text) for text in batch["text"]]

    assert texts(drop_overlong(data, count, 3, "drop", "train")) == ["aa", "aaa", "a"]
    assert "train: 2 of 5 rows dropped, longer than 3 tokens" in capsys.readouterr().out
    assert texts(drop_overlong(data.to_iterable_dataset(), count, 3, "drop", "train")) == ["aa", "aaa", "a"]
    assert_refused(lambda: drop_overlong(data, count, 3, "error", "train"), "train row 3 has 4", "--max_length")
    assert_refused(lambda: drop_overlong(data, count, 0, "drop", "train"), "all 5 train rows", "raise --max_length")


# Bad input

TURNS = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
LONG_GZIP = gzip.compress(jsonl({"text": f"{i * 7919}"} for i in range(3_000)))
BAD_FILES = {
    "missing column": ("a.jsonl", jsonl([{"body": "a"}]), ["no column 'text'", "['body']", "--dataset_text_field"]),
    "empty file": ("a.jsonl", b"", ["a.jsonl is empty; remove it"]),
    "empty text": ("a.txt", b"", ["a.txt is empty; remove it"]),
    "empty inside": ("a.jsonl.gz", gzip.compress(b""), ["a.jsonl.gz is empty; remove it"]),
    "broken line": ("a.jsonl", jsonl([{"text": "a"}]) + b'{"text": "b"\n', ["line 2: broken JSON", "mend"]),
    "broken list": ("a.json", b'[{"text": "a"},\n {"text": ', ["a.json", "mend"]),
    "half a character": ("a.jsonl", b'{"text": "a"}\n{"text": "\\ud800"}\n', ["line 2: half a surrogate", "mend"]),
    "only empty texts": ("a.jsonl", jsonl([{"text": " "}] * 3), ["all rows have empty texts", "choose other"]),
    "not UTF-8": (
        "a.jsonl",
        b'{"text": "a"}\n{"text": "caf\xe9"}\n',
        ["a.jsonl line 2: not UTF-8 (byte 0xe9)", "convert"],
    ),
    "text not UTF-8": ("a.txt", b"a\nb\n\xff\xfe", ["a.txt line 3: not UTF-8 (byte 0xff)", "convert it"]),
    "table not UTF-8": ("a.csv", b"text\na\ncaf\xe9\n", ["a.csv line 3: not UTF-8", "convert it"]),
    "unfinished gzip": (
        "a.jsonl.gz",
        LONG_GZIP[:-200],
        ["a.jsonl.gz: an incomplete or broken gzip file", "fetch it again"],
    ),
    "unfinished text": (
        "a.txt.gz",
        LONG_GZIP[:-200],
        ["a.txt.gz: an incomplete or broken gzip file", "fetch it again"],
    ),
    "damaged gzip": ("a.jsonl.gz", LONG_GZIP[:900] + b"\0" * 90 + LONG_GZIP[990:], ["broken gzip", "fetch"]),
    "no gzip": (
        "a.jsonl.gz",
        jsonl([{"text": "a"}]),
        ["a.jsonl.gz: an incomplete or broken gzip file", "fetch it again"],
    ),
    "broken parquet": ("a.parquet", b"PAR1\xff\xfe", ["a.parquet", "mend it or choose another"]),
    "bad row in the middle": (
        "a.jsonl",
        jsonl([{"text": "a"}] * 700 + [{"text": 5}]),
        ["a.jsonl row 701: ", "holds int"],
    ),
}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_says_where_and_what_to_do(tmp_path, case, streaming):
    name, content, words = BAD_FILES[case]
    path = write(tmp_path / name, content)
    assert_refused(lambda: load(path, dataset_streaming=streaming), path, *words)
    write(tmp_path / name.replace("a.", "b."), content)  # in a folder it is the same
    assert_refused(lambda: load(tmp_path, dataset_streaming=streaming), str(tmp_path))


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    "row, words",
    [
        ({"messages": [{"role": "alien", "content": "x"}, TURNS[1]]}, "role 'alien' is unknown"),
        ({"messages": TURNS[:1]}, "the last turn must be the assistant's"),
        ({"messages": None}, "no known format; expected messages"),
    ],
)
def test_a_bad_conversation_says_its_number(tmp_path, row, words, streaming):
    name = write(tmp_path / "a.jsonl", jsonl([{"messages": TURNS}] * 250 + [row] + [{"messages": TURNS}]))
    assert_refused(lambda: load(name, load_conversations, dataset_streaming=streaming), f"{name} row 251: ", words)


def test_folders_and_paths(tmp_path):
    assert_refused(lambda: load(tmp_path), "files of one kind", "no data file")
    write(tmp_path / "a.txt", b"a")
    write(tmp_path / "b.jsonl", jsonl([{"text": "a"}]))
    assert_refused(lambda: load(tmp_path), "files of one kind (.txt", "a.txt, b.jsonl")
    assert_refused(lambda: load(tmp_path / "none.jsonl"), "none.jsonl: no such file or folder")
    assert_refused(lambda: load("none"), "none: no such file or folder")
    assert_refused(lambda: load("nobody/nothing"), "nobody/nothing cannot be read")
    write(tmp_path / "c.pdf", b"a")
    assert_refused(lambda: load(tmp_path / "c.pdf"), "files of one kind")


def test_splits(tmp_path):
    name = write(tmp_path / "a.jsonl", jsonl({"text": text} for text in TEXTS))
    assert_refused(
        lambda: load(name, dataset_train_split="trian"), "no split 'trian', it has ['train']", "--dataset_train"
    )
    for size in (0, 1, -0.1, 5, float("nan")):
        assert_refused(lambda size=size: load(name, test_split_size=size), "between 0 and 1, such as 0.05")


def test_data_names():
    both = DataArguments(dataset_name="fourstage/demo", datasets=[{"dataset_name": "fourstage/demo"}])
    assert_refused(lambda: load_texts(both, 0), "dataset_name", "`datasets:`", "both", "--config")
    assert_refused(lambda: load_texts(DataArguments(), 0), "neither", "demo/pretrain.yaml")
    for weight in (0, -1, float("nan"), float("inf"), "much", None, True):
        entry = {"dataset_name": "fourstage/demo", "weight": weight}
        assert_refused(lambda e=entry: load_texts(DataArguments(datasets=[e]), 0), "entry 1 has weight", "above 0")
    for entry in ({"weight": 1}, "fourstage/demo", {"dataset_name": "fourstage/demo", "wieght": 2}):
        assert_refused(
            lambda e=entry: load_texts(DataArguments(datasets=[e]), 0), "entry 1 is", "it needs dataset_name"
        )
    assert_refused(lambda: load_texts(DataArguments(datasets={"dataset_name": "a"}), 0), "must be a list")


# Arguments


def read(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["sft.py", *map(str, arguments)])
    return parse("recipes/sft.py", DataArguments, InstructConfig, ModelArguments)


@pytest.mark.parametrize(
    "yaml, words",
    [
        ("learning_rte: 1", ["learning_rte: unknown", "did you mean learning_rate?"]),
        ("qqqq: 1", ["qqqq: unknown", "see --help"]),
        ("decay_ratio: 0.5", ["decay_ratio: unknown"]),  # another stage's
        ("hub_token: hf_secret", ["hub_token", "hf auth login", "HF_TOKEN"]),
        ("- a\n- b", ["must hold `key: value` lines", "list"]),
        ("", ["must hold `key: value` lines"]),
        ("a: [1\nb: 2", ["not valid YAML"]),
    ],
)
def test_a_bad_yaml_file(monkeypatch, tmp_path, yaml, words):
    path = write(tmp_path / "a.yaml", yaml.encode())
    for flags in (["--config", path], [f"--config={path}"]):
        assert_refused(lambda flags=flags: read(monkeypatch, *flags), path, *words)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--learning_rte", "1"], ["--learning_rte"]),
        (["runs/base"], ["runs/base"]),
        (["--hub_token", "hf_secret"], ["--hub_token", "hf auth login"]),
        (["--hub_token=hf_secret"], ["--hub_token", "hf auth login"]),
        (["--hub-token", "hf_secret"], ["--hub_token", "hf auth login"]),
        (["--config", "nowhere.yaml"], ["--config nowhere.yaml: no such file"]),
        (["--config"], ["--config", "give the path of a YAML file"]),
        (["--config", "--learning_rate", "1"], ["give the path of a YAML file"]),
    ],
)
def test_bad_arguments(monkeypatch, arguments, words):
    with pytest.raises(ValueError) as error:
        read(monkeypatch, *arguments)
    message = str(error.value)
    assert "\n" not in message and all(word in message for word in words) and "hf_secret" not in message


def test_defaults_then_yaml_then_the_command_line(monkeypatch, tmp_path):
    lines = "learning_rate: 0.5\nseed: 7\ndatasets:\n  - {dataset_name: a, weight: 2}\n"
    path = write(tmp_path / "a.yaml", lines.encode())
    data, training, model = read(monkeypatch, "--config", path, "--learning_rate", "0.25", "--dtype", "bfloat16")
    assert (training.learning_rate, training.seed, training.lr_scheduler_type) == (0.25, 7, "cosine")
    assert data.datasets == [{"dataset_name": "a", "weight": 2}] and model.dtype == "bfloat16"


@pytest.mark.parametrize(
    "arguments, bf16, checkpointing",
    [
        (["--bf16"], True, False),
        (["--bf16", "--gradient-checkpointing", "--seed", "1"], True, True),
        (["--bf16", "false", "--gradient_checkpointing", "true"], False, True),
        (["--gradient_checkpointing=true", "--bf16"], True, True),
        ([], False, False),
    ],
)
def test_a_flag_alone_says_true_though_its_default_depends_on_the_device(monkeypatch, arguments, bf16, checkpointing):
    _, training, _ = read(monkeypatch, *arguments, "--max_steps", "1")
    assert (training.bf16, training.activation_checkpointing) == (bf16, checkpointing)


def test_the_stages_own_defaults_are_used_without_arguments(monkeypatch, tmp_path):
    path = write(tmp_path / "configs" / "demo" / "pretrain.yaml", b"dataset_name: fourstage/demo\nmax_steps: 3\n")
    monkeypatch.setattr(sys, "argv", ["pretrain.py"])
    data, training = parse(str(tmp_path / "pretrain.py"), DataArguments, PretrainConfig)
    assert (data.dataset_name, training.max_steps) == ("fourstage/demo", 3), path


# Embedded data: its own tests are in test_demo.py


def test_stages_without_embedded_data():
    assert_refused(lambda: demo_rows("dance"), "no data for 'dance'", "pretrain, sft")
