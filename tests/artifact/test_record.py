"""Which run.json are the same run: by hand, for settings that came after the older one was written."""

import copy

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
