"""Every verifier on generated hostile text: nothing is executed, nothing hangs, every reward is a number."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
from helpers import ROOT, environment, run_program

from fourstage import verifiers

pytest.importorskip("math_verify")
PROGRAM = ROOT / "benchmarks" / "verifiers_hostile.py"
SPEC = importlib.util.spec_from_file_location("verifiers_hostile", PROGRAM)
hostile = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(hostile)


def run(tmp_path, *flags, timeout=280):
    """The program's report. It runs on its own: an audit hook stays for the life of a process."""
    output = tmp_path / "report.json"
    run_program(sys.executable, PROGRAM, *flags, "--output", output, timeout=timeout)
    return json.loads(output.read_text())


def check(report, count):
    assert report["executed"] == {} and report["left"] == []
    for name, row in report["verifiers"].items():
        assert row["n"] == count and row["bad"] == [], name
    assert report["worker"]["died"] == 0 and report["worker"]["peak_kb"] < 600_000
    assert all(row["growth_kb"] < 200_000 for row in report["verifiers"].values())


@pytest.mark.parametrize("role", ["completion", "gold"])
def test_a_few_hundred_texts(tmp_path, role):
    report = run(tmp_path, "--count", 250, "--seed", 11, "--batch", 25, "--role", role)
    check(report, 250)
    everything = {*verifiers.__all__}
    judging = {"exact", "number", "choice", "math", "steps"}
    assert judging < everything
    assert {*report["verifiers"]} == (judging if role == "gold" else everything)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_twenty_thousand_texts(tmp_path):
    check(run(tmp_path, "--batch", 64, timeout=3500), 20_000)


# That the watch would see it


EVIL = """
import importlib.util, json, os, pickle, sys
spec = importlib.util.spec_from_file_location("hostile", sys.argv[1])
hostile = importlib.util.module_from_spec(spec)
spec.loader.exec_module(hostile)

def evil(completions, **columns):
    for text in completions:
        for run in (eval, lambda text: exec(text), lambda text: pickle.loads(text.encode("latin1"))):
            try:
                run(text)
            except Exception:
                pass
    return [float("nan")] * len(completions)

class args:
    count, seed, batch, role = len(hostile.INJECTIONS), 0, 1, "completion"

hostile.texts = lambda count, seed: iter(hostile.INJECTIONS)
watch = hostile.Watch()
hostile.ask = lambda name, function, batch, role: evil(batch)
row = hostile.measure("evil", evil, args, watch)
print(json.dumps({"seen": watch.seen, "bad": len(row["bad"]), "canary": os.path.exists("CANARY")}))
"""


def test_a_verifier_that_executes_text_is_seen(tmp_path):
    command = [sys.executable, "-W", "ignore", "-c", EVIL, str(PROGRAM)]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["canary"] and report["bad"] == len(hostile.INJECTIONS)
    assert {"os.system", "exec", "compile", "subprocess.Popen", "open", "pickle.find_class"} <= {*report["seen"]}


@pytest.mark.parametrize("evil", ["os.system('true')", "open('x', 'w')", "__import__('socket').socket()"])
def test_a_worker_that_executes_text_is_seen(tmp_path, evil):
    hook = hostile.WORKER_HOOK.format(events=hostile.IN_WORKER, folder=str(tmp_path))
    (tmp_path / "sitecustomize.py").write_text(hook)
    program = [sys.executable, "-P", "-c", f"import os; print(os.getpid(), flush=True); {evil}"]
    for name, status in (("latex_worker", 77), ("other", 0)):
        env = environment(PYTHONPATH=str(tmp_path), PYTHONDONTWRITEBYTECODE="1")
        done = subprocess.run([*program, name], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)
        left = [file for file in os.listdir(tmp_path) if file.endswith(f"-{done.stdout.strip()}")]
        assert done.returncode == status and len(left) == (name == "latex_worker"), done.stderr


def test_the_texts_are_what_they_claim():
    texts = list(hostile.texts(2000, 5))
    assert texts == list(hostile.texts(2000, 5)) and len(texts) == 2000
    joined = "".join(text[:3000] for text in texts)
    assert max(map(len, texts)) >= hostile.MEGABYTE and sum(len(text) > 100_000 for text in texts) > 20
    for sign in (
        "\x00",
        "\ud800",
        "\u202e",
        "\u200b",
        "\uff11",
        "\u0661",
        "\u00b2",
        "9^{9^{9^9}}",
        "os.system",
        "write18",
    ):
        assert sign in joined, ascii(sign)
    pieces = ("#### " * 100, r"\boxed{" * 100, "<think>" * 100, "((((" * 100, r"\frac{" * 100, "1," * 100, "    " * 100)
    assert all(piece in joined for piece in pieces)
