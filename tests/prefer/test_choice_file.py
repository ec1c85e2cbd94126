"""The file of choices: what a kill, a full disk, another process and an editor may do to it."""

import errno
import json
import os
import subprocess
import sys

import pytest
from datasets import load_dataset

from fourstage.data.picks import FIELDS
from fourstage.prefer.record import ChoiceFile, read_choices


def turn(text, role="assistant"):
    return [{"role": role, "content": text}]


def choice(pair="p1", **more):
    row = dict.fromkeys(FIELDS) | {"pair": pair, "choice": "left", "prompt": turn("Hi", "user"), "person": "Ada"}
    row |= {"chosen": turn("a"), "rejected": turn("b"), "left": "a", "right": "b", "seconds": 1.5}
    return row | {"models": [{"name": "m", "weights": None}] * 2, "sampling": {"temperature": 1.0}} | more


def line_of(row):
    return json.dumps(row).encode() + b"\n"


def filled(path, *rows):
    file = ChoiceFile(path)
    for row in rows or (choice(),):
        file.append(row)
    file.close()
    return path


def reopened(path):
    file = ChoiceFile(path)
    file.close()
    return file.rows


def test_what_is_appended_is_there_for_every_reader(tmp_path):
    rows = [
        choice(f"p{i}", comment=text) for i, text in enumerate(["x" * 1_000_000, "\u2028 \r\n \x00 é 😀", None, ""])
    ]
    file = ChoiceFile(tmp_path / "new" / "prefs.jsonl")
    for row in rows:
        file.append(row)
    assert file.rows == rows == read_choices(file.path)  # while it is open, too
    file.close()
    file.close()  # does no harm
    assert reopened(file.path) == rows
    assert [json.loads(line) for line in file.path.read_text().splitlines()] == rows
    assert [row["comment"] for row in load_dataset("json", data_files=str(file.path))["train"]] == [
        row["comment"] for row in rows
    ]


def test_half_a_surrogate_pair_becomes_a_character_and_a_whole_one_stays(tmp_path):
    row = choice(left="a\ud83d", right="\ude00b", comment="\ud83d\ude00", models=[{"name": ("\udcff",)}] * 2)
    path = filled(tmp_path / "prefs.jsonl", row)
    (again,) = reopened(path)
    assert (again["left"], again["right"], again["comment"]) == ("a\ufffd", "\ufffdb", "😀")
    file = ChoiceFile(path)
    file.append(row)
    assert file.rows[0] == file.rows[1]  # in memory as on disk
    file.close()


@pytest.mark.parametrize("share", [1, 3, 8, 9, 100, -2, -1])
def test_a_line_that_a_kill_cut_off_is_gone_and_the_next_one_is_whole(tmp_path, share):
    path = filled(tmp_path / "prefs.jsonl", choice("p1"))
    whole = path.read_bytes()
    path.write_bytes(whole + line_of(choice("p2"))[:-1][:share] + b"\0" * (share == 100) * 50)
    assert read_choices(path) == [choice("p1")]
    file = ChoiceFile(path)
    assert file.rows == [choice("p1")] and path.read_bytes() == whole
    file.append(choice("p3"))
    file.close()
    assert [row["pair"] for row in reopened(path)] == ["p1", "p3"]


def crlf(path):
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))


def marked(path):
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())


def spaced(path):
    path.write_bytes(b"\n" + path.read_bytes() + b"\n\r\n")


def unended(path):
    path.write_bytes(path.read_bytes().removesuffix(b"\n"))


def linked(path):
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


@pytest.mark.parametrize("edit", [crlf, marked, spaced, unended, linked])
def test_what_an_editor_did_to_it_loses_no_choice(tmp_path, edit):
    path = filled(tmp_path / "prefs.jsonl", choice("p1"), choice("p2"))
    edit(path)
    assert read_choices(path) == [choice("p1"), choice("p2")]
    filled(path, choice("p3"))
    assert [row["pair"] for row in reopened(path)] == ["p1", "p2", "p3"]
    assert [row["pair"] for row in load_dataset("json", data_files=str(path))["train"]] == ["p1", "p2", "p3"]
    assert path.is_symlink() is (edit is linked)


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf", b"\0" * 100, b"\n"])
def test_a_file_with_nothing_in_it_has_no_choices(tmp_path, content):
    path = tmp_path / "prefs.jsonl"
    path.write_bytes(content)
    assert read_choices(path) == reopened(path) == []


GOOD = line_of(choice())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"some notes", "line 1 is not a choice of `fourstage prefer`: it is no JSON"),
        (b'{"prompt": "Hi", "chosen": "a", "rejected": "b"}\n', "line 1 .*: it has no pair"),
        (GOOD + b"[1]\n", "line 2 .*: it is list, which must be an object"),
        (
            GOOD + GOOD.replace(b'"left", "prompt"', b'"best", "prompt"'),
            "line 2 .*: its choice is 'best', which must be one of left, .* undo",
        ),
        (GOOD + line_of(choice(person=None)), "line 2 .*: its person is 'None', which must be a text"),
        (GOOD + line_of(choice(seconds="1")), "line 2 .*: its seconds is '1', which must be a number or null"),
        (GOOD + line_of(choice(chosen="a")), "line 2 .*: its chosen is 'a', which must be turns"),
        (GOOD + GOOD.replace(b"Ada", b"J\xfcrg"), "line 2 .*: it is not UTF-8"),
        (GOOD[:40] + b"\n" + GOOD, "line 1 .*: it is no JSON"),
        (GOOD + b"[" * 100_000 + b"\n", "line 2 .*: it is no JSON"),
        (GOOD + b"my notes on it", "line 2 .*: it is no JSON"),
    ],
)
def test_another_file_is_refused_and_left_as_it_is(tmp_path, content, said):
    path = tmp_path / "prefs.jsonl"
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match=f"^output=.*prefs.jsonl holds something else: {said}; mend it, or name"
    ) as one:
        ChoiceFile(path)
    with pytest.raises(ValueError, match=f"prefs.jsonl: {said}; mend or remove") as other:
        read_choices(path)
    assert path.read_bytes() == content and "\n" not in str(one.value) + str(other.value)
    path.write_bytes(b"")
    assert reopened(path) == []  # the refused one holds no lock


def folder(path):
    path.mkdir()


def below_a_file(path):
    path.parent.rmdir()
    path.parent.write_text("")


def pipe(path):
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("make", "said"), [(folder, "Is a directory"), (below_a_file, "cannot be written"), (pipe, "is no regular file")]
)
def test_what_is_no_file_is_refused(tmp_path, make, said):
    path = tmp_path / "sub" / "prefs.jsonl"
    path.parent.mkdir()
    make(path)
    with pytest.raises(ValueError, match=f"output=.*{said}.*; name another with --output"):
        ChoiceFile(path)


def test_a_file_that_may_not_be_written_is_refused(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)  # root may write everything
    with pytest.raises(ValueError, match="cannot be written .Permission denied.; name another with --output"):
        ChoiceFile(tmp_path / "prefs.jsonl")
    with pytest.raises(ValueError, match="missing.jsonl cannot be read .No such file"):
        read_choices(tmp_path / "missing.jsonl")


def test_two_processes_do_not_write_one_file(tmp_path):
    path = filled(tmp_path / "prefs.jsonl")
    file = ChoiceFile(path)
    (tmp_path / "link").symlink_to(path)
    program = "import sys; from pathlib import Path; from fourstage.prefer.record import ChoiceFile\n"
    program += "ChoiceFile(Path(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", program, tmp_path / "link"], capture_output=True, text=True)
    assert "is open in another page of fourstage; end that one" in done.stderr
    file.close()
    assert reopened(path) == [choice()]


def half_written(write, patch):
    """A full disk: os.write takes half of the bytes, then none."""
    taken = []

    def full(file, content):
        if taken:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken.append(write(file, content[: len(content) // 2]))
        return taken[0]

    patch.setattr(os, "write", full)


def not_synced(_, patch):
    def fail(file):
        raise OSError(errno.EIO, "Input/output error")

    patch.setattr(os, "fsync", fail)


def not_taken_back(write, patch):
    half_written(write, patch)

    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    patch.setattr(os, "ftruncate", fail)


@pytest.mark.parametrize("fault", [half_written, not_synced, not_taken_back])
def test_of_a_failed_choice_nothing_remains(tmp_path, fault):
    file = ChoiceFile(filled(tmp_path / "prefs.jsonl", choice("p1")))
    before = file.path.read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        fault(os.write, patch)
        with pytest.raises(OSError, match="No space|Input/output"):
            file.append(choice("p2"))
    assert file.rows == [choice("p1")]
    assert read_choices(file.path) == [choice("p1")]
    assert fault is not_taken_back or file.path.read_bytes() == before
    file.append(choice("p3"))
    assert [row["pair"] for row in file.rows] == ["p1", "p3"]
    file.close()
    assert reopened(file.path) == file.rows


def test_a_real_limit_on_the_size_of_files(tmp_path):
    program = """
import resource, sys
from pathlib import Path
from fourstage.prefer.record import ChoiceFile
from tests.prefer.test_choice_file import choice
file = ChoiceFile(Path(sys.argv[1]))
file.append(choice("p1"))
resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, resource.RLIM_INFINITY))
try:
    file.append(choice("p2", comment="x" * 3_000))
except OSError as error:
    print(error.strerror)
file.append(choice("p3"))
"""
    path = tmp_path / "prefs.jsonl"
    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True)
    assert done.stdout == "File too large\n", done.stderr
    assert [row["pair"] for row in reopened(path)] == ["p1", "p3"]


def deleted(path):
    path.unlink()


def replaced(path):
    path.with_name("new").write_bytes(path.read_bytes())
    path.with_name("new").rename(path)


@pytest.mark.parametrize("change", [deleted, replaced])
def test_a_choice_for_a_file_that_is_gone_is_an_error(tmp_path, change):
    file = ChoiceFile(filled(tmp_path / "prefs.jsonl"))
    change(file.path)
    with pytest.raises(OSError, match="No such file|replaced"):
        file.append(choice("p2"))
    assert len(file.rows) == 1
    file.close()
    with pytest.raises(OSError):
        file.append(choice("p2"))


@pytest.mark.parametrize("wrong", [{"choice": "best"}, {"seconds": float("nan")}, {"pair": 7}, {"more": 1}])
def test_what_could_not_be_read_again_is_not_written(tmp_path, wrong):
    file = ChoiceFile(tmp_path / "prefs.jsonl")
    with pytest.raises(ValueError, match="not a choice|not JSON compliant"):
        file.append(choice() | wrong)
    assert file.path.read_bytes() == b"" and file.rows == []
    file.close()
