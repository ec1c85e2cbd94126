"""Programs that a model wrote: what passes, what never does, and that none of them reaches out of its sandbox."""

import collections
import json
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import TINY, record_of, run_here, write_texts
from hypothesis import given
from hypothesis import strategies as st

from fourstage.confined import program_of, python_tests, sandbox, syscalls
from fourstage.confined.inside import canonical
from fourstage.data.problems import gold_check, problem_row
from fourstage.rl.rewards import load_reward_func

confines = pytest.mark.skipif(sandbox.why_not() is not None, reason=f"no sandbox here: {sandbox.why_not()}")
DOUBLE = ["assert double(2) == 4", "assert double(-1.5) == -3"]
RIGHT = "def double(x):\n    return 2 * x"
MBPP = {
    "task_id": 1,
    "text": "Write a function that doubles a number.",
    "code": "def double(x):\r\n  return x * two",
    "test_list": DOUBLE,
    "test_setup_code": "two = 2",
    "challenge_test_list": [],
}
SANITIZED = {"prompt": "Root?", "code": "def root(x): return sqrt(x)", "test_imports": ["from math import sqrt"]}
SANITIZED |= {"test_list": ["assert root(9) == 3", "assert math.isclose(root(2), 1.4142135623730951)"]}
SANITIZED["test_imports"] = ["from math import sqrt", "import math"]
HUMAN_EVAL = {
    "task_id": "HumanEval/0",
    "prompt": 'from typing import List\n\n\ndef total(xs: List[int]) -> int:\n    """The sum."""\n',
    "canonical_solution": "    return sum(xs)\n",
    "test": "METADATA = {}\n\n\ndef check(f):\n    assert f([1, 2]) == 3\n    assert f([]) == 0\n",
    "entry_point": "total",
}


def rewards(*programs, tests=DOUBLE, setup=None):
    return python_tests(list(programs), tests=[tests] * len(programs), setup=[setup] * len(programs))


# What passes


@confines
def test_right_wrong_and_broken_programs():
    fenced = f"<think>```python\nexit()\n```</think>Sure:\n```python\n{RIGHT}\n```\nIt multiplies."
    turns = [{"role": "assistant", "content": fenced}]
    wrong = ["def double(x): return 4", "def double(x) return 2 * x", "", "def halve(x): return x", "\0"]
    assert rewards(RIGHT, fenced, turns, f"print('hello')\n{RIGHT}") == [1.0] * 4
    assert rewards(*wrong) == [0.0] * len(wrong)
    assert rewards(f"<think>{RIGHT}", f"```python\n{RIGHT}\n```\n```python\nfor") == [0.0, 0.0]  # never ended; the last


@confines
@pytest.mark.parametrize(
    ("code", "test", "reward"),
    [
        ("def f(): return [1, 2.0, True]", "assert f() == [1, 2, 1]", 1.0),
        ("def f(): return (1, 2)", "assert f() == [1, 2]", 0.0),
        ("def f(): return {'b': {1, 2}, 'a': None}", "assert f() == {'a': None, 'b': {2, 1}}", 1.0),
        ("import collections\ndef f(): return collections.Counter('aab')", "assert f() == {'a': 2, 'b': 1}", 1.0),
        ("def f(): return 'it\\'s'", 'assert f() == "it\'s"', 1.0),
        ("def f(): return 0.1 + 0.2", "assert f() == 0.3", 0.0),
        ("def f(): return 0.1 + 0.2", "assert abs(f() - 0.3) < 1e-9", 1.0),
        ("def f(): return 3", "assert f() == 1 + 2", 1.0),  # no literal: it runs inside
        ("def f(): return 3", "assert f() == 1 + 1", 0.0),
        ("def f(): return None", "assert f() is None", 1.0),
        ("def f(): raise KeyError", "try:\n    f()\nexcept KeyError:\n    pass", 1.0),
        ("class A:\n    def __init__(self): self.x = 1", "a = A()\nassert a.x == 1", 1.0),
        ("import random, json, re, heapq\ndef f(): return 1", "assert f() == 1", 1.0),
        ("x = 1", "assert x == -1", 0.0),
    ],
)
def test_values_are_compared_as_python_compares_them(code, test, reward):
    assert rewards(code, tests=[test]) == [reward]
    assert rewards(code, tests=test) == [reward]  # one text in place of a list


@confines
@pytest.mark.parametrize("tests", [None, [], "", [" "], [1], "assert (", ["assert f() == 1", None], {"a": 1}, 7])
def test_a_row_without_readable_tests_cannot_be_scored(tests):
    assert python_tests(["def f(): return 1"], tests=[tests]) == [None]


# What never passes, and what it cannot reach


CHEATS = {
    "ends early": "import os\nos._exit(0)",
    "exits": "raise SystemExit(0)",
    "equals everything": "class E:\n    def __eq__(self, other): return True\ndef double(x): return E()",
    "a subclass that does": "class E(int):\n    def __eq__(self, other): return True\ndef double(x): return E(5)",
    "other names": "def double(x): return 5\nimport builtins\nbuiltins.eval = lambda *a: 4\nbuiltins.len = lambda x: 2",
    "forged answers": 'import os, json\nfor n in range(9):\n    try: os.write(n, b\'["", ["4", "-3"]]\')\n'
    "    except OSError: pass\nos._exit(0)",
    "another recursion": "def double(x): return double(x)",
    "deep values": "def double(x):\n    y = []\n    for _ in range(10**5): y = [y]\n    return y",
    "a huge number": "def double(x): return 10 ** 10 ** 7",
    "an endless loop": "while True: pass",
    "all memory": "x = [0]\nwhile True: x *= 2",
    "endless output": "import os\nwhile True:\n    for n in range(9):\n        try: os.write(n, b'x' * 10**6)\n"
    "        except OSError: pass",
    "a signal ignored": "import signal\nsignal.signal(signal.SIGXCPU, lambda *a: None)\nwhile True: pass",
}
REACHES = {
    "sleeps": "import time\ntime.sleep(3600)",
    "forks": "import os\nos.fork()",
    "starts a thread": "import threading\nthreading.Thread(target=print).start()",
    "starts a program": "import subprocess\nsubprocess.run(['/usr/bin/env'])",
    "opens a socket": "import socket\nsocket.socket()",
    "reads a home": "import os\nassert os.path.exists(SECRET)",
    "reads passwords": "open('/etc/passwd')",
    "lists processes": "import os\nos.listdir('/proc')",
    "reads the environment": "import os\nassert 'PATH' in os.environ or 'HOME' in os.environ",
    "writes": "open('/tmp/x', 'w')",
    "writes beside it": "open('x', 'w')",
    "writes to /usr": "open('/usr/x', 'w')",
    "writes to /dev": "open('/dev/x', 'w')",
    "imports fourstage": "import fourstage",
    "imports torch": "import torch",
    "more memory": "import resource\nresource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40))",
    "memory of the kernel": "import os\nos.memfd_create('x')",
    "a namespace": "import ctypes\nassert ctypes.CDLL(None).unshare(0x10000000) == 0",
    "kills what it sees": "import os, signal\nassert os.getppid() > 1\nos.kill(os.getppid(), signal.SIGKILL)",
}


@confines
@pytest.mark.parametrize("name", CHEATS)
def test_cheats_and_what_never_ends_earn_nothing(name):
    assert rewards(CHEATS[name], RIGHT) == [0.0, 1.0]


@confines
@pytest.mark.parametrize("name", REACHES)
def test_nothing_can_be_reached(name, tmp_path, monkeypatch):
    """Each program would pass if it could do what it tries."""
    (tmp_path / "secret").write_text("x")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert rewards(f"SECRET = {str(tmp_path / 'secret')!r}\n{REACHES[name]}\n{RIGHT}", RIGHT) == [0.0, 1.0]


def test_these_programs_do_reach_that_without_a_sandbox(tmp_path):
    """So it is the sandbox that stops them, and not a fault of theirs."""
    here = {"reads a home", "reads passwords", "lists processes", "imports fourstage", "forks", "opens a socket"}
    (tmp_path / "secret").write_text("x")
    for name in here:
        code = f"SECRET = {str(tmp_path / 'secret')!r}\n{REACHES[name]}\n"
        assert subprocess.run([sys.executable, "-c", code]).returncode == 0, name


@confines
def test_a_sandbox_that_lets_something_through_is_not_used(monkeypatch):
    words = sandbox._sandbox()
    place = words.index("--remount-ro")
    monkeypatch.setattr(sandbox, "_sandbox", lambda: (*words[:place], *words[place + 2 :]))
    sandbox.why_not.cache_clear()
    try:
        assert "could reach ['writing to /'" in sandbox.why_not()
        with pytest.raises(ValueError, match="in a sandbox only: a program in the sandbox could reach .*choose other"):
            rewards(RIGHT)
    finally:
        sandbox.why_not.cache_clear()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda patch: patch.setattr(shutil, "which", lambda name: None), "bubblewrap is not installed"),
        (
            lambda patch: patch.setattr(syscalls.platform, "machine", lambda: "riscv64"),
            "only Linux on x86-64 and ARM64",
        ),
        (lambda patch: patch.setattr(syscalls.platform, "system", lambda: "Darwin"), "only Linux"),
    ],
)
def test_where_programs_cannot_be_confined_none_runs(monkeypatch, change, reason):
    sandbox.why_not.cache_clear()
    change(monkeypatch)
    monkeypatch.setattr(sandbox, "run", None)
    try:
        with pytest.raises(
            ValueError, match=f"python_tests runs programs that a model wrote.*{reason}.*--reward_funcs"
        ):
            load_reward_func("python_tests")
        with pytest.raises(ValueError, match=reason):
            rewards(RIGHT)
    finally:
        sandbox.why_not.cache_clear()


def test_bubblewrap_that_fails_is_a_reason(monkeypatch, tmp_path):
    """As on a system that forbids user namespaces."""
    failing = tmp_path / "bwrap"
    failing.write_text("#!/bin/sh\necho 'bwrap: No permissions to create a new namespace' >&2\nexit 1\n")
    failing.chmod(0o755)
    monkeypatch.setattr(sandbox, "_sandbox", lambda: (str(failing),))
    monkeypatch.setattr(shutil, "which", lambda name: str(failing))
    sandbox.why_not.cache_clear()
    try:
        assert "cannot make a sandbox: bwrap: No permissions" in sandbox.why_not()
    finally:
        sandbox.why_not.cache_clear()


def test_the_calls_are_those_of_the_kernels_own_headers():
    headers = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
    generic = Path("/usr/include/asm-generic/unistd.h")
    if not headers.is_file() or not generic.is_file():
        pytest.skip("the kernel's headers are not installed")
    for column, path in enumerate((headers, generic)):
        known = {name: int(number) for name, number in re.findall(r"#define __NR_(\w+)\s+(\d+)", path.read_text())}
        ours = {name: numbers[column] for name, numbers in syscalls._CALLS.items() if numbers[column] is not None}
        older = {"memfd_secret"}  # behind a condition, or younger than some headers
        assert {n: ours[n] for n in ours if n in known} == {n: known[n] for n in ours if n in known}
        assert {*ours} - {*known} <= older


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_filter_denies_these_calls_and_no_other(monkeypatch, machine):
    """Run by hand, as the kernel runs it."""
    monkeypatch.setattr(syscalls.platform, "machine", lambda: machine)
    program = list(struct.iter_unpack("=HBBI", syscalls.deny_filter()))

    def verdict(number, architecture):
        place, held = 0, 0
        while True:
            code, yes, no, k = program[place]
            if code == 0x06:
                return k
            if code == 0x20:
                held = {0: number, 4: architecture}[k]
                place += 1
            else:
                place += 1 + (yes if (held == k if code == 0x15 else held >= k) else no)

    column = ["x86_64", "aarch64"].index(machine)
    own, other = [0xC000003E, 0xC00000B7][column], [0xC00000B7, 0xC000003E][column]
    denied = {numbers[column] for numbers in syscalls._CALLS.values()} - {None}
    for number in range(600):
        assert verdict(number, own) == (0x00050001 if number in denied else 0x7FFF0000)
        assert verdict(number, other) == verdict(number + 0x40000000, own) == 0x80000000


# Texts of values


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from([0.5, 1.0, -0.0, 1e300]) | st.text(max_size=2),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.integers(0, 2) | st.text(max_size=1), inner, max_size=2)
        | st.frozensets(st.integers(0, 3) | st.booleans(), max_size=3)
    ),
    max_leaves=6,
)


@given(plain, plain)
def test_equal_values_have_one_text_and_others_do_not(one, other):
    assert (canonical(one) == canonical(other)) == (one == other)
    assert canonical(json.loads(json.dumps(canonical(one)))) == repr(canonical(one))


def test_subclasses_are_what_they_derive_from():
    pair = collections.namedtuple("pair", "a b")
    assert canonical([pair(1, 2), collections.Counter("a"), {}.keys()]) == "[(1,2),{'a':1},<>]"
    with pytest.raises(TypeError, match="object is none of Python's plain types"):
        canonical([object()])


@pytest.mark.parametrize(
    ("text", "program"),
    [
        ("```python\nx = 1\n```", "x = 1\n"),
        ("a\n```py\nx = 1\n```\nb\n``` Python3 \ny = 2\n```\n", "y = 2\n"),
        ("```\nx = 1\n```", "x = 1\n"),
        ("```python\nx = 1", "x = 1"),  # cut off
        ("```bash\nls\n```", "```bash\nls\n```"),
        ("x = '```'", "x = '```'"),
        ("<think>```python\nx\n```", ""),
    ],
)
def test_the_program_of_a_completion(text, program):
    assert program_of(text) == program


# Rows


def test_rows_of_the_known_sets():
    double = problem_row(MBPP, "Be brief.")
    assert double["prompt"][0] == {"role": "system", "content": "Be brief."}
    assert "doubles a number" in double["prompt"][1]["content"] and DOUBLE[1] in double["prompt"][1]["content"]
    assert (double["tests"], double["setup"], double["solution"]) == (DOUBLE, "two = 2", MBPP["code"])
    root = problem_row(SANITIZED)
    assert root["setup"] == "from math import sqrt\nimport math" and "Root?" in root["prompt"][0]["content"]
    total = problem_row(HUMAN_EVAL)
    assert total["setup"] == "from typing import List" and total["tests"][0].endswith("\ncheck(total)")
    assert "def total(xs" in total["prompt"][0]["content"] and total["solution"].endswith("return sum(xs)\n")
    own = problem_row({"question": "Double?", "tests": DOUBLE})
    assert own["tests"] == DOUBLE and own["prompt"] == [{"role": "user", "content": "Double?"}]
    assert all("answer" not in row for row in (double, root, total, own))
    assert problem_row({"question": "2?", "answer": "2", "tests": ["no"]})["answer"] == "2"
    with pytest.raises(ValueError):  # nothing is asked
        problem_row({"code": "x = 1", "test_list": DOUBLE})


@confines
def test_solutions_are_checked_by_their_own_tests():
    check = gold_check([python_tests], "error")
    for row in (MBPP, SANITIZED, HUMAN_EVAL, {"question": "Double?", "tests": DOUBLE}):
        assert check(problem_row(row)) is None
    wrong = problem_row({**MBPP, "test_setup_code": "two = 3"})
    with pytest.raises(ValueError, match="'def double.*is wrong to its own verifier python_tests.*--unverifiable drop"):
        check(wrong)
    assert gold_check([python_tests], "drop")(wrong) == "not verifiable by python_tests"
    with pytest.raises(ValueError, match="python_tests needs the column 'tests'"):
        check({"prompt": [], "answer": "2"})


@confines
def test_grpo_learns_from_it(tmp_path):
    """The whole way: rows, group of programs, rewards in the log. Random weights write no program."""
    rows = [{**MBPP, "text": f"Double {number}."} for number in range(24)]
    (tmp_path / "mbpp.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts = write_texts(tmp_path / "texts.jsonl")
    short = ["--per_device_train_batch_size=4", "--report_to=none", "--max_steps=2", "--eval_strategy=no"]
    run_here("pretrain", "--dataset_name", texts, "--max_length=256", *TINY, *short, "--output_dir", tmp_path / "base")
    flags = ["--model_name_or_path", tmp_path / "base", "--dataset_name", tmp_path / "mbpp.jsonl"]
    flags += ["--num_generations=4", "--max_completion_length=8", "--reward_funcs", "python_tests", *short]
    run_here("grpo", *flags, "--output_dir", tmp_path / "run")
    assert record_of(tmp_path / "run")["status"] == "finished"
    lines = [json.loads(line) for line in (tmp_path / "run" / "completions.jsonl").read_text().splitlines()]
    assert lines and {line["rewards"]["python_tests"] for line in lines} == {0.0}
