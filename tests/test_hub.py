"""Pushing to the Hub and back: the recipes and the real client against a small Hub on this machine (stub_hub.py)."""

import json
import subprocess
import sys

import pytest
from helpers import ROOT, SMALL_RUN, TINY, environment, files_in, record_of, write_chats, write_texts
from stub_hub import StubHub

TOKEN = "hf_" + "pushPULLxy" * 3
RUN_HERE = "import json, sys; from helpers import run_here; [run_here(*run) for run in json.loads(sys.argv[1])]"


@pytest.fixture
def hub():
    with StubHub().serve() as stub:
        stub.tokens = {TOKEN: "write"}
        yield stub


def online(hub, home, *runs, token=TOKEN, ok=True):
    """Runs recipes, [stage, flags...] each, one after the other in one program that knows `hub` as the Hub."""
    env = environment(
        HF_ENDPOINT=hub.url,
        HF_HUB_OFFLINE="0",
        HF_HUB_DISABLE_XET="1",
        HF_HUB_DISABLE_TELEMETRY="1",
        HF_HOME=str(home),
        HF_DATASETS_CACHE=str(home / "datasets"),
        PYTHONPATH=f"{ROOT}:{ROOT / 'tests'}",
        **({"HF_TOKEN": token} if token else {}),
    )
    words = [[str(word) for word in run] for run in runs]
    done = subprocess.run(
        [sys.executable, "-c", RUN_HERE, json.dumps(words)], cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert (done.returncode == 0) is ok, done.stdout[-3000:] + done.stderr[-6000:]
    return done


def test_a_pushed_assistant_is_on_the_hub_and_loads_from_there(hub, tmp_path):
    texts, chats = write_texts(tmp_path / "texts.jsonl"), write_chats(tmp_path / "chats.jsonl")
    base = ["--dataset_name", texts, "--max_length=64", "--output_dir", tmp_path / "base", *TINY, *SMALL_RUN]
    push = ["--push_to_hub", "--hub_model_id", "me/chat"]
    tune = ["--model_name_or_path", tmp_path / "base", "--dataset_name", chats, "--output_dir", tmp_path / "chat"]
    done = online(hub, tmp_path / "home", ["pretrain", *base], ["sft", *tune, *SMALL_RUN, *push])
    print(done.stdout, done.stderr)
    print(sorted(hub.files("me/chat")))
    print(hub.repos["model", "me/chat"].titles())
    print(hub.files("me/chat")["README.md"].decode())
    assert hub.files("me/chat")["model.safetensors"] == (tmp_path / "chat" / "model.safetensors").read_bytes()
    assert record_of(tmp_path / "chat")["hub"]["commit"] == hub.repos["model", "me/chat"].refs["main"]
    print(files_in(tmp_path / "chat"))
    assert 0
