"""No stage executes text of its data or its model, opens a socket, starts a program, or writes outside its folders.

Python's audit events of every recipe, run as a program on rows that are code. What compiled libraries do without Python
(the weights' files, threads) is not among them.
"""

import json
import sys

import pytest
from helpers import RECIPES, SMALL_RUN, TINY, run_program, write_texts

pytestmark = pytest.mark.slow

CODE = "__import__('os').system('touch canary_was_run')"
RUNNER = """
import os, runpy, sys
log, *allowed = sys.argv[1].split(os.pathsep)
file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
ALTERS = {"os.rename": 2, "os.remove": 1, "os.mkdir": 1, "os.rmdir": 1, "os.symlink": 2, "os.link": 2,
          "shutil.rmtree": 1, "os.chmod": 1, "os.utime": 1}
# A removal below an open folder names no whole path; shutil.rmtree, which does so, has an event of its own.
STARTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "pty.spawn")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC

def outside(path):
    if isinstance(path, int):  # opened before
        return False
    path = os.path.realpath(os.fsdecode(path))
    return path != os.devnull and not any(path == folder or path.startswith(folder + "/") for folder in allowed)

def hook(event, args):
    found = None
    if event == "open" and isinstance(args[2], int) and args[2] & WRITES and outside(args[0]):
        found = args[0]
    elif event in ALTERS and args[-1] in (-1, None) and any(map(outside, args[: ALTERS[event]])):
        found = args
    elif event == "subprocess.Popen" and args[1] == ["git", "rev-parse", "HEAD"]:  # for run.json
        pass
    elif event == "socket.bind" and args[1] == ("::1", 0):  # urllib3 asks so whether there is IPv6
        pass
    elif event in ("socket.connect", "socket.bind", "socket.getaddrinfo", "socket.sendto") or event in STARTS:
        found = args
    elif event == "compile" and args[0] is not None and "canary_was_run" in str(args[0]):
        found = args[0]
    if found is not None:
        os.write(file, f"{event} {found!r:.300}\\n".encode())

sys.argv = sys.argv[2:]
sys.path[0] = os.path.dirname(sys.argv[0])
sys.addaudithook(hook)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def audited(folder, program, *words):
    """The events of a recipe that are none of its business."""
    log, scratch, cache = folder / "audit.log", folder / "scratch", folder / "cache"
    for path in (scratch, cache):
        path.mkdir(exist_ok=True)
    allowed = ":".join(map(str, (log, folder)))
    own = {
        "HF_HOME": cache,
        "HF_DATASETS_CACHE": cache / "data",
        "TMPDIR": scratch,
        "TORCHINDUCTOR_CACHE_DIR": cache / "compiled",
    }
    run_program(
        sys.executable, "-c", RUNNER, allowed, program, *words, **{name: str(path) for name, path in own.items()}
    )
    return log.read_text().splitlines() if log.is_file() else []


def write_rows(path, row):
    path.write_text("".join(json.dumps(row(i)) + "\n" for i in range(60)))
    return path


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    chats = write_rows(folder / "chats.jsonl", lambda i: {"question": f"{CODE} {i}", "answer": f"{CODE} #### {i}"})
    pairs = write_rows(
        folder / "pairs.jsonl", lambda i: {"prompt": f"{CODE} {i}", "chosen": f"{CODE} {i}", "rejected": f"no {i}"}
    )
    texts = write_texts(folder / "texts.jsonl")
    with texts.open("a") as file:
        file.writelines(json.dumps({"text": f"{CODE} {i}"}) + "\n" for i in range(60))
    return {"pretrain": texts, "sft": chats, "reward": pairs, "ppo": pairs, "grpo": chats}


def test_the_whole_chain_keeps_to_its_folders(rows, tmp_path):
    short = ["--max_completion_length=8", "--max_eval_rows=4"]
    parents = {"sft": "pretrain", "reward": "sft", "ppo": "sft", "grpo": "ppo"}
    own = {
        "pretrain": [*TINY, "--max_length=64"],
        "ppo": [*short, "--reward_model_name_or_path", tmp_path / "reward"],
        "grpo": [*short, "--num_generations=4", "--reward_funcs", "number"],
    }
    for stage, data in rows.items():
        flags = ["--dataset_name", data, "--output_dir", tmp_path / stage, *own.get(stage, []), *SMALL_RUN]
        flags += ["--model_name_or_path", tmp_path / parents[stage]] if stage in parents else []
        assert audited(tmp_path, RECIPES / f"{stage}.py", *flags) == [], stage
    assert audited(tmp_path, RECIPES / "measure.py", tmp_path / "grpo", "--max_rows", "8") == []


@pytest.mark.parametrize(
    ("line", "event"),
    [
        ("open({outside!r}, 'w')", "open"),
        ("import socket; socket.socket().connect_ex(('127.0.0.1', 9))", "socket.connect"),
        ("import subprocess; subprocess.run(['true'])", "subprocess.Popen"),
        (f"compile({CODE!r}, 'a row', 'eval')", "compile"),
        ("import os; os.mkdir({outside!r})", "os.mkdir"),
    ],
)
def test_the_audit_sees_each_kind(tmp_path, line, event):
    program = tmp_path / "program.py"
    program.write_text(line.format(outside=str(tmp_path.parent / f"{tmp_path.name}-outside")))
    assert any(found.startswith(event) for found in audited(tmp_path, program))
