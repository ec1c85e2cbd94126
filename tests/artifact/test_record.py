"""Which run.json are the same run: by hand, for settings that came after the older one was written."""

import copy
import json

from fourstage.arguments import DataArguments, InstructConfig, ModelArguments
from fourstage.artifact.record import differences, new_record


def record(**data):
    arguments = DataArguments(dataset_name="chats.jsonl", **data)
    return new_record("sft", arguments, InstructConfig(report_to=[]), ModelArguments(), None, [])


def test_a_setting_of_a_later_version_was_at_its_default():
    older = copy.deepcopy(record())
    del older["arguments"]["data"]["unreadable"], older["arguments"]["data"]["fold_system"]
    assert differences(older, record()) == []
    assert differences(older, record(unreadable="drop")) == ["unreadable was 'error', now 'drop'"]
    assert differences(record(fold_system=True), record()) == ["fold_system was True, now False"]


def test_no_token_stands_anywhere_in_a_record(monkeypatch):
    """In the license of the data, in a path, in a setting: all of run.json, and so what the card is made of."""
    token = "hf_" + "aB3dE6gH9j" * 3
    monkeypatch.setenv("HF_TOKEN", "secret-of-another-form")
    written = new_record(
        "sft",
        DataArguments(dataset_name=f"{token}/chats.jsonl", dataset_license="secret-of-another-form"),
        InstructConfig(report_to=[], run_name=token),
        ModelArguments(model_license=token),
        None,
        [],
    )
    said = json.dumps(written)
    assert token not in said and "secret-of-another-form" not in said and said.count("hf_***") >= 5
    assert written["datasets"] == [{"name": "chats.jsonl", "kind": "local", "license": "hf_***"}]
