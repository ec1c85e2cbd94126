"""A model that a run starts from: what is known of it, and that it is looked up once."""

import hashlib
import json
from pathlib import Path

import pytest
from helpers import SMALL_RUN, TINY, record_of, run_here, write_chats, write_texts

from fourstage.parent import Parent, check_parent, find_parent, is_hub_id, needed_parent


def folder_of(path, **record):
    path.mkdir()
    (path / "run.json").write_text(json.dumps({"status": "finished", **record}))
    return str(path)


def test_what_a_folder_is(tmp_path):
    base = find_parent(folder_of(tmp_path / "base", stage="pretrain"))
    tuned = find_parent(folder_of(tmp_path / "tuned", stage="ppo"))
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "run.json").write_text('{"wandb": 1}')
    elsewhere = find_parent(str(foreign))
    assert [(p.stage, p.is_base) for p in (base, tuned, elsewhere)] == [
        ("pretrain", True),
        ("ppo", False),
        (None, False),
    ]
    assert elsewhere.record is None and elsewhere.describe() == f"{foreign} (from elsewhere)"
    assert "(pretrain)" in base.describe()


@pytest.mark.parametrize("beside", [None, "config.json"])  # some programs write both
def test_an_adapter_is_known_as_one(tmp_path, beside):
    base = folder_of(tmp_path / "base", stage="pretrain")
    (tmp_path / "base" / "model.safetensors").write_bytes(b"base")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base, "peft_type": "LORA"}))
    (adapter / "adapter_model.safetensors").write_bytes(b"adapter")
    if beside:
        (adapter / beside).write_text("{}")
    parent, sha256 = find_parent(str(adapter)), {x: hashlib.sha256(x.encode()).hexdigest() for x in ("base", "adapter")}
    assert parent.is_adapter and f"an adapter of {base}" in parent.describe()
    assert parent.identity() == {
        "path": str(adapter),
        "sha256": sha256["adapter"],
        "base": {"path": base, "sha256": sha256["base"]},
    }
    assert not find_parent(base).is_adapter


@pytest.mark.parametrize(
    "name, expected",
    [("owner/name", True), ("gpt2", True), ("./gpt2", False), ("runs/sft", False), ("a/b/c", False), ("m.gguf", False)],
)
def test_which_names_are_of_the_hub(name, expected):
    assert is_hub_id(name) is expected


def test_a_missing_name_names_the_field_and_the_demo():
    with pytest.raises(ValueError, match=r"model_name_or_path is missing.*runs/sft.*configs/demo/ppo\.yaml"):
        needed_parent(None, None, "ppo")


def test_a_missing_folder_is_made_by_the_stage_that_should_have_made_it(tmp_path):
    """Under a name of the person's own, which says nothing about its stage."""
    with pytest.raises(ValueError, match=r"runs/polite does not exist.*recipes/ppo\.py"):
        needed_parent("runs/polite", None, "grpo")
    with pytest.raises(ValueError, match=r"runs/mine does not exist.*recipes/reward\.py"):
        check_parent("runs/mine", expected="reward")


def test_hash_and_commit_are_looked_up_when_asked_for_and_then_kept(monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr("fourstage.parent.weights_hash", lambda name: calls.append(name) or "abc")
    parent = find_parent(folder_of(tmp_path / "base", stage="pretrain"))
    assert not calls
    assert parent.identity() == parent.identity() == {"path": str(tmp_path / "base"), "sha256": "abc"}
    assert len(calls) == 1
    assert Parent("owner/name", None, None).on_hub


def test_a_run_reads_its_parent_s_record_once(monkeypatch, tmp_path):
    """Five readings were two faults: a revision was forgotten in one of them, the Hub in another."""
    texts, chats = write_texts(tmp_path / "texts.jsonl"), write_chats(tmp_path / "chats.jsonl")
    run_here(
        "pretrain", "--dataset_name", texts, "--max_length=64", "--output_dir", tmp_path / "base", *TINY, *SMALL_RUN
    )
    readings, read_text = [], Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda path, *a, **k: readings.append(path) or read_text(path, *a, **k))
    parent = ["--model_name_or_path", tmp_path / "base"]
    run_here("sft", *parent, "--dataset_name", chats, "--output_dir", tmp_path / "sft", "--use_peft", *SMALL_RUN)
    assert readings.count(tmp_path / "base" / "run.json") == 1
    assert record_of(tmp_path / "sft")["parent"]["path"] == str(tmp_path / "base")
