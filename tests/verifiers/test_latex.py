"""`math` against answers labelled by hand, and its worker against everything that ends a worker."""

import importlib
import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest
from helpers import ROOT, environment
from hypothesis import example, given, settings
from hypothesis import strategies as st

pytest.importorskip("math_verify")

from fourstage.verifiers.latex import math, refused, worker_counts
from fourstage.verifiers.latex_worker import LANES

pytestmark = pytest.mark.filterwarnings("ignore:verifier math")  # of processes ended on purpose
MODULE = importlib.import_module("fourstage.verifiers.latex")  # the package's `math` is the function

# What passes the guards and keeps SymPy busy for hours.
ENDLESS = (r"((((9^{9999})^{9999})^{9999})^{9999})", r"(9^9)!", r"\binom{10^9}{5\cdot 10^8}", "(x+y+z+w)^{9999}")

RIGHT = [
    (r"So the answer is $\boxed{\frac{2}{4}}$.", "0.5"),
    (r"\boxed{\dfrac12}", r"\frac{1}{2}"),
    (r"\boxed{\sqrt{8}}", r"2\sqrt{2}"),
    (r"\boxed{2\sqrt2}", "sqrt(8)"),
    (r"\boxed{(x+1)^2}", "x^2+2x+1"),
    (r"\boxed{3,1,2}", "1, 2, 3"),
    (r"\boxed{x=5}", "5"),
    (r"\boxed{(2,3)}", "(2, 3)"),
    (r"\boxed{[0, 1)}", "[0,1)"),
    (r"\boxed{(-\infty,2)\cup(3,\infty)}", r"(-\infty, 2) \cup (3, \infty)"),
    (r"\boxed{\begin{pmatrix} 1 \\ 2 \end{pmatrix}}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
    (r"\boxed{\text{Evelyn}}", "evelyn"),
    (r"\boxed{\text{(A)}}", "A"),
    (r"\boxed{12\text{ km}}", "12"),
    (r"\boxed{12{,}345}", "12345"),
    (r"\boxed{111,\!111}", "111111"),
    (r"\boxed{3+4i}", "4i+3"),
    (r"\boxed{\pm 2}", "-2, 2"),
    (r"\boxed{\frac{\pi}{2}}", r"0.5\pi"),
    (r"\boxed{1\frac12}", "3/2"),
    (r"\boxed{2^{2005}}", r"2 \cdot 2^{2004}"),
    ("12 apples and 3 pears, 15 in all.\n#### 15", "15"),
    (r"\boxed{3}, no:" + "\n#### 4", "4"),
    ("#### Result\n" + r"\boxed{4}", "4"),
    ("#### 1,250", "1250"),
    ("The answer is 7. I hope that helps", "7"),
    ("The answer is: **7**", "7"),
    ("the final answer to this is $x=7$", "7"),
    ("Answer:\n$$7$$", "7"),
    ("so we get\n$$\nx = 7\n$$", "7"),
    ("2 + 5 = 7", "7"),
    ("Tom has 7 apples", "7"),
    ("<think>is it 3? \\boxed{3}</think>7", "7"),
    ("5e3", "5000"),
    ("1 250", "1250"),
    ("pi/2", r"\frac{\pi}{2}"),
    ("\u0667", "7"),
    ("\uff17\uff15", "75"),
    ("\u22127", "-7"),
    ("x\u00b2", "x^2"),
    ("\u202e7\u202c", "7"),
    ("3\u00d74", "12"),
    ("7", 7),
    ("7.5", 7.5),
    ("no real solutions", r"\text{No real solutions}"),
    ("50%", r"50\%"),
    ("7", "It is 3 + 4.\n#### 7"),
    ("7", r"so it is $\boxed{7}$"),
]
WRONG = [
    (r"\boxed{\frac{1}{3}}", "0.5"),
    (r"\boxed{0.33}", r"\frac{1}{3}"),
    (r"\boxed{-2}", "2"),
    (r"\boxed{(3,2)}", "(2,3)"),
    (r"\boxed{[0,1]}", "[0,1)"),
    (r"\boxed{1,2}", "1,2,3"),
    (r"\boxed{5}", "5, 6"),
    (r"\boxed{5 \text{ or } 6}", "5"),
    (r"\boxed{y=5}", "x=5"),
    (r"\boxed{x^2+2x}", "x^2+2x+1"),
    (r"\boxed{\begin{pmatrix} 1 \\ 3 \end{pmatrix}}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
    (r"\boxed{\text{odd}}", r"\text{even}"),
    (r"\boxed{12_7}", "12_5"),
    (r"\boxed{3-4i}", "3+4i"),
    (r"\boxed{7}" + "\n#### 8", "7"),
    ("<think>\\boxed{7}</think>8", "7"),
    ("1 2", "12"),
    ("", "7"),
    ("   \n", "7"),
    (r"\boxed{}", "7"),
    (r"\boxed{7", "7"),
    ("I do not know", "7"),
    ("__import__('os').getpid()", "7"),
    ("9" * 600, "9"),
]


@pytest.mark.parametrize(("completion", "gold"), RIGHT)
def test_right(completion, gold):
    assert math([completion], [gold]) == [1.0]


@pytest.mark.parametrize(("completion", "gold"), WRONG)
def test_wrong(completion, gold):
    assert math([completion], [gold]) == [0.0]


@pytest.mark.parametrize("gold", [None, "", "  ", True, float("nan"), ["7"], "9^{9^{9^9}}", "(" * 30 + "7" + ")" * 30])
def test_none_is_for_golds_alone(gold):
    assert math(["7", r"\boxed{" + "(" * 600, ""], [gold] * 3) == [None] * 3


def test_conversations_and_columns():
    turns = [{"role": "assistant", "content": r"\boxed{7}"}]
    assert math(completions=[turns, turns], answer=["7", "8"], prompts=["a", "b"], level=[1, 2]) == [1.0, 0.0]


def test_as_math_verify_says():
    """Asked directly, without our search for the answer and without our worker."""
    from math_verify import parse, verify

    texts = [
        "1/2",
        "0.5",
        r"\frac{2}{4}",
        "x^2-1",
        "(x-1)(x+1)",
        r"\sqrt{4}",
        "2",
        r"\{1,2\}",
        r"\{2,1\}",
        "(3,4)",
        "-2",
    ]
    pairs = [(gold, text) for gold in texts for text in texts]
    expected = [float(verify(parse(f"${gold}$"), parse(f"${text}$"))) for gold, text in pairs]
    assert math([rf"\boxed{{{text}}}" for _, text in pairs], [gold for gold, _ in pairs]) == expected
    assert len(texts) < sum(expected) < 60


@pytest.mark.parametrize(
    "text",
    [
        "9^9^9",
        "9**9**9",
        "9^{9^9}",
        "9^{(9^9)}",
        "9^{{9}^{9}}",
        "9 ^ { 9 ^ 9 }",
        "x^{9^{x^9}}",
        "2^{10001}",
        r"\frac{1}{9^{99999999}}",
        "10^{-100000}",
        "(99999)!",
        "9!!!!",
        "((9!)!)!",
        "1" * 101,
        "(" * 21 + ")" * 21,
        "x+" * 300,
    ],
)
def test_refused(text):
    assert refused(text) and MODULE._answers(rf"\boxed{{{text}}}", "7") == ()


@pytest.mark.parametrize(
    "text",
    [
        "2^{2005}",
        "e^{-x^2}",
        "2^{2^n}",
        "4^{4^2}",
        r"e^{\frac{x^2}{2}}",
        r"\frac{1}{2004!}",
        "n!",
        "(5!)(3!)",
        "x != 70000",
        "(-1)^{n+1}",
        "10^{-7}",
        "f^{(4)}(x)",
        "((((((((((x))))))))))",
    ],
)
def test_not_refused(text):
    assert not refused(text) and MODULE._answers(rf"\boxed{{{text}}}", "x") == (text,)


PIECES = list("0123456789xyeE.,!^_{}()[]$%*+-=/ \n\\") + ["**", "####", "\\boxed{", "answer is", "\\frac", "\\text{"]


@given(st.lists(st.sampled_from(PIECES) | st.characters(), max_size=60).map("".join))
@settings(max_examples=1000, deadline=None)
@example("9^{\u2464^5}")  # a digit that is no decimal
def test_no_text_raises(text):
    for found in (*MODULE._answers(text, "7"), *MODULE._answers(rf"\boxed{{{text}}}", "1, 2"), MODULE._gold(text)):
        assert found is None or (0 < len(found) <= 1024 and MODULE._normal_form(found) is not None)


def test_the_missing_extra_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'pip install "fourstage\[math\]"'):
        math(["7"], ["7"])


# The worker


def worker() -> psutil.Process:
    """The process that this one's comparisons run in."""
    MODULE._worker()._verdicts.clear()
    math(["3+4"], ["7"])
    found = [child for child in psutil.Process().children() if any("latex_worker" in word for word in child.cmdline())]
    assert len(found) == 1
    return found[0]


@pytest.fixture
def short(monkeypatch):
    """A quarter of the time for a comparison, so that tests of what never ends are quick."""
    monkeypatch.setattr(MODULE, "SECONDS", 0.5)


@pytest.mark.parametrize("endless", ENDLESS)
def test_an_endless_comparison_is_cut_off_and_counted(short, endless):
    math(["3+4"], ["7"])
    before, start = worker_counts(), time.monotonic()
    with pytest.warns(UserWarning, match="worker_counts"):
        MODULE._warn_once.cache_clear()
        rewards = math([r"\boxed{3+4}", rf"\boxed{{{endless}}}", r"\boxed{4+3}"], ["7"] * 3)
    assert rewards == [1.0, None, 1.0] and time.monotonic() - start < 120
    assert sum(worker_counts().values()) == sum(before.values()) + 1


def test_an_endless_gold_is_tried_once_by_each_lane(short):
    before = worker_counts()
    completions = [f"{i}+4" for i in range(12)]
    assert math(completions, [ENDLESS[2]] * 12) == [None] * 12
    assert 1 <= worker_counts()["deadline"] - before["deadline"] <= LANES


def test_endless_comparisons_take_nothing_from_the_others(short):
    """Each has its own budget: right answers before and after them are right, in the batch and alone."""
    MODULE._worker()._verdicts.clear()
    endless = [rf"\boxed{{{i}+{ENDLESS[1]}}}" for i in range(6)]
    right = [rf"\boxed{{(x+{k})^2}}" for k in range(2, 30)]
    golds = [f"x^2+{2 * k}x+{k * k}" for k in range(2, 30)]
    assert math([*endless, *right, *endless], ["7"] * 6 + golds + ["7"] * 6) == [None] * 6 + [1.0] * 28 + [None] * 6


def test_64_power_towers_cost_nothing():
    before = worker_counts()
    towers = ["9^{9^{9^9}}", "9**9**9**9", r"\boxed{10^{10^{10}}}", "#### 7^9^9^9"] * 16
    assert math(towers, ["7"] * 64) == [0.0] * 64 and worker_counts() == before


def test_a_worker_that_died_is_replaced_and_counted():
    first, before = worker(), worker_counts()
    os.kill(first.pid, signal.SIGKILL)
    first.wait(30)
    assert math(["2+5", "2+6"], ["7"] * 2) == [1.0, 0.0]
    assert worker().pid != first.pid and worker_counts() == before | {"died": before["died"] + 1}


def test_a_worker_that_dies_at_work_is_replaced_and_counted():
    first, before = worker(), worker_counts()
    timer = threading.Timer(0.3, os.kill, (first.pid, signal.SIGKILL))
    timer.start()
    MODULE._worker()._verdicts.clear()
    assert math([rf"\boxed{{{ENDLESS[0]}}}", "2+6"], ["7", "8"]) == [None, 1.0]
    timer.join()
    assert math(["2+7"], ["9"]) == [1.0]
    assert worker_counts()["died"] == before["died"] + 1 and not psutil.pid_exists(first.pid)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="psutil reads the limits of another process on Linux")
def test_memory_is_bounded_and_no_file_can_be_written():
    limits = {name: worker().rlimit(getattr(psutil, name)) for name in ("RLIMIT_AS", "RLIMIT_FSIZE")}
    assert limits == {"RLIMIT_AS": (1 << 29, 1 << 29), "RLIMIT_FSIZE": (0, 0)}


def test_several_threads_share_the_worker():
    results = {}

    def ask(i):
        results[i] = math([f"{i}+1", f"{i}+2"], [str(i + 1)] * 2)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results == {i: [1.0, 0.0] for i in range(8)}
    assert worker().status() != psutil.STATUS_ZOMBIE


SCRIPT = """
import os, signal, sys
from fourstage.verifiers.latex import math, _worker
assert math(["1+6"], ["7"]) == [1.0]
mine = _worker()._process.pid
_worker()._verdicts.clear()
child = os.fork()
if child == 0:  # as a data loader's worker: one of its own, and the parent's is left alone
    right = math(["2+5", "2+6"], ["7"] * 2) == [1.0, 0.0] and _worker()._process.pid != mine
    _worker().stop()
    os._exit(0 if right else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert math(["3+4", "1+6"], ["7"] * 2) == [1.0] * 2 and _worker()._process.pid == mine and "torch" not in sys.modules
print(mine, flush=True)
if sys.argv[1] == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("end", ["exits", "killed"])
def test_the_worker_ends_with_its_parent_and_a_fork_has_its_own(end):
    command = [sys.executable, "-W", "error", "-c", SCRIPT, end]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == (0 if end == "exits" else -signal.SIGKILL) and done.stderr == "", done.stderr
    gone, alive = psutil.wait_procs([p for p in psutil.process_iter() if p.pid == int(done.stdout)], timeout=30)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
