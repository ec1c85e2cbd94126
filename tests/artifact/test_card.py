"""The model card: metadata that huggingface_hub reads back, numbers with their errors, and text that breaks out of
nothing, as a markdown reader that we did not write sees it."""

import html.parser
import json
import re

import pytest
from huggingface_hub import ModelCard, ModelCardData

from fourstage.artifact.card import card_data, model_card, pushed_card
from fourstage.artifact.lineage import measured, named_data, summary
from fourstage.artifact.upload import public_record, without_paths
from fourstage.parent import find_parent

HOSTILE = [
    "</pre><script>alert(1)</script>",
    "```\n# A heading\n```",
    "\n---\nlicense: mit\n---\n",
    "| a | b |\n|---|---|\n[x](javascript:alert(1)) ![i](http://x/y.png)",
    "<img src=x onerror=alert(1)>\x00\x1b[31m\u202e\u2028",
    "&lt;b&gt; {{ 7 * 7 }} {% raw %} $x$",
]


def record_with(**more):
    training = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "learning_rate": 1e-3}
    training |= {"lr_scheduler_type": "cosine", "max_length": 64, "bf16": False}
    record = {
        "status": "finished",
        "stage": "sft",
        "seed": 7,
        "processes": 2,
        "parameters": 1234567,
        "tokens": 8900,
        "steps": 10,
        "learning_rate": 1e-3,
        "command": "accelerate launch recipes/sft.py",
        "versions": {"fourstage": "0.1.0", "torch": "2.13.0"},
        "metrics": {"eval_loss": 1.5, "reward_accuracy": 0.75, "reward_accuracy_stderr": 0.0123, "train_runtime": 9.0},
        "datasets": [{"name": "me/chats", "kind": "hub", "license": "cc-by-4.0"}],
        "lineage": [],
        "arguments": {"training": training, "model": {"dtype": "float32", "use_peft": False, "model_license": "mit"}},
    }
    return record | more


def parent(**more):
    about = {"name": "base", "stage": "pretrain", "parameters": 5, "tokens": 6, "seed": 1, "license": None}
    about |= {"metrics": {"eval_loss": 2.5, "eval_bits_per_byte": 1.25}, "hub": None, "datasets": []}
    return about | more


def cells(card, name):
    (row,) = [line for line in card.splitlines() if line.startswith(f"| {name} |")]
    return [cell.strip() for cell in row.strip("|").split("|")][1:]


def test_a_parser_reads_the_metadata_back():
    on_hub = {"repo_id": "me/base", "revision": "main", "commit": "ab" * 20}
    record = record_with(lineage=[parent(hub=on_hub)])
    card = ModelCard(model_card(record, [], "me/chat"))
    assert isinstance(card.data, ModelCardData)
    assert (card.data.base_model, card.data.datasets, card.data.license) == ("me/base", ["me/chats"], "mit")
    assert (card.data.library_name, card.data.pipeline_tag) == ("transformers", "text-generation")
    assert set(card.data.tags) == {"fourstage", "sft"}
    numbers = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert numbers == {"eval_loss": 1.5, "reward_accuracy": 0.75, "reward_accuracy_stderr": 0.0123}
    assert "[me/base](https://huggingface.co/me/base)" in card.text and "commit abababababab" in card.text


def test_only_ids_of_the_hub_are_metadata():
    data = [{"name": "secret.jsonl", "kind": "local", "license": None}, {"name": "a/b", "kind": "hub", "license": None}]
    data.append({"name": "reasoning-gym/chain_sum", "kind": "generated", "license": None})
    card = ModelCard(model_card(record_with(datasets=data, lineage=[parent()]), []))
    assert card.data.base_model is None and card.data.datasets == ["a/b"]
    assert "secret.jsonl" in card.text and "reasoning-gym/chain\\_sum" not in card.text


def test_every_stage_is_a_column_and_errors_stand_beside_their_values():
    evaluation = {"model": "x", "rows": 100, "pass@1": 0.5, "pass@1_stderr": 0.05, "eval_loss": 9.0, "parameters": 1}
    text = model_card(record_with(lineage=[parent()]), [], evaluation=evaluation)
    assert "\n| | pretrain | sft (this) |\n|---|---|---|\n" in text
    assert cells(text, "eval_loss") == ["2.5", "1.5"]  # the record's own, not the later evaluation's
    assert cells(text, "eval_bits_per_byte") == ["1.25", ""]
    assert cells(text, "reward_accuracy") == ["", "0.75 ± 0.012"]
    assert cells(text, "pass@1") == ["", "0.5 ± 0.05"]
    assert "_stderr |" not in text
    assert cells(text, "rows a step") == ["16 (2 processes)"]  # 4 rows, 2 accumulated, 2 processes


def test_numbers_that_are_none_are_left_out():
    metrics = {"a": float("nan"), "b": float("inf"), "c": True, "d": "text", "e": 0, "eval_runtime": 3.0, "epoch": 1.0}
    assert measured(metrics) == {"e": 0}
    assert card_data(record_with(metrics={"a": float("nan")})).eval_results is None


class Tags(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.found, self.text, self.inside = [], "", False

    def handle_starttag(self, tag, attrs):
        self.found.append(tag)
        self.inside = tag == "pre"

    def handle_endtag(self, tag):
        self.found.append(f"/{tag}")
        self.inside = self.inside and tag != "pre"

    def handle_data(self, data):
        self.text += data if self.inside else ""


@pytest.mark.parametrize("text", HOSTILE)
def test_what_a_model_says_breaks_out_of_nothing(text):
    """A browser's reading of the part finds one <pre>, and in it the text as Python quotes it."""
    samples = [{"prompt": [{"role": "user", "content": text}], "completion": text, "score": 1.0}]
    samples.append({"prompt": text, "completion": text, "rejected": text, "rejected_score": -1.0})
    record = record_with(metrics={text: 1.0}, lineage=[parent(name=text, stage=text, license=text)])
    record["datasets"] = [{"name": text, "kind": "local", "license": text}]
    card = ModelCard(model_card(record, samples))
    reader = Tags()
    reader.feed(card.text)
    assert reader.found == ["pre", "/pre"]
    assert reader.text.count(repr(text)) == 5
    assert card.data.license == "mit"  # metadata is what stands first, and it was not ended by the text
    assert card.data.eval_results[0].metric_type == text
    outside = re.sub(r"<pre>.*</pre>", "", card.text, flags=re.S)
    assert not re.search(r"(?<!\\)\]\((?!https://huggingface\.co)", outside)  # no link, no picture
    assert outside.count("\n# ") + outside.startswith("# ") == 1 and "\x1b" not in card.text
    assert outside.count("```") == 2


def test_a_reward_model_loads_as_what_it_is():
    text = model_card(record_with(stage="reward"), [], "me/scorer")
    assert "AutoModelForSequenceClassification.from_pretrained('me/scorer')" in text
    assert ModelCard(text).data.pipeline_tag == "text-classification"
    code = re.search(r"```python\n(.*?)\n```", text, re.S)[1]
    compile(code, "card", "exec")
    assert len(code.splitlines()) == 3


def test_a_card_that_a_person_changed_is_pushed_as_it_is(tmp_path):
    record, samples = record_with(), [{"prompt": "a", "completion": "b\u2028c"}]
    (tmp_path / "samples.jsonl").write_text(json.dumps(samples[0], ensure_ascii=False) + "\n")
    (tmp_path / "README.md").write_text(model_card(record, samples))
    (tmp_path / "evaluation.json").write_text(json.dumps({"pass@1": 0.5}))
    pushed = pushed_card(tmp_path, record, "me/chat")
    assert "from_pretrained('me/chat')" in pushed and cells(pushed, "pass@1") == ["0.5"]
    (tmp_path / "README.md").write_text("# Mine")
    assert pushed_card(tmp_path, record, "me/chat") == "# Mine"


def test_a_parent_s_record_is_not_trusted(tmp_path):
    bad = {"repo_id": "x](javascript:alert(1))", "commit": "<b>"}
    record = record_with(parameters="1", seed=None, hub=bad, datasets=[1, {"kind": "hub", "name": "<b>"}])
    (tmp_path / "run.json").write_text(json.dumps(record | {"metrics": {"a": "x", "b": 1.0}}))
    short = summary(find_parent(str(tmp_path)))
    assert (short["parameters"], short["hub"], short["datasets"], short["metrics"]) == (None, None, [], {"b": 1.0})
    assert model_card(record_with(lineage=[short]), [])


def test_data_go_by_their_last_part_unless_the_hub_knows_them(tmp_path):
    from fourstage.arguments import DataArguments

    folder = tmp_path / "private" / "chats"
    folder.mkdir(parents=True)
    entries = [{"dataset_name": name} for name in (str(folder), "me/chats", "fourstage/demo", "x/y.jsonl", "squad")]
    entries[1]["license"] = "mit"
    named = named_data(DataArguments(datasets=entries, dataset_license="other"))
    assert [(part["name"], part["kind"], part["license"]) for part in named] == [
        ("chats", "local", "other"),
        ("me/chats", "hub", "mit"),
        ("fourstage/demo", "demo", "other"),
        ("y.jsonl", "local", "other"),
        ("squad", "hub", "other"),
    ]


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("/data/runs/base", "base"),
        ("/data/my runs/base/", "base"),
        ("--output_dir=/data/my runs/a", "--output_dir=a"),
        ('{"file": "/data/x/y.json"}', '{"file": "y.json"}'),
        ("file:///data/x/y.json", "y.json"),
        ("~/runs/base", "base"),
        ("https://huggingface.co/me/chat", "https://huggingface.co/me/chat"),
        ("runs/base", "runs/base"),
        ("me/chat and a/b", "me/chat and a/b"),
        ("see /data/x/y, and 1/2", "see y, and 1/2"),
    ],
)
def test_paths_become_their_last_part(text, wanted):
    assert without_paths(text) == wanted
    assert without_paths({"a": [text, 1, None]}) == {"a": [wanted, 1, None]}


def test_a_public_record_s_command_still_runs():
    command = "accelerate launch /data/recipes/sft.py --a '/data/my runs/x' '--b={\"c\": 1}'"
    public = public_record(record_with(command=command, hub={"repo_id": "me/a"}))
    assert public["command"] == "accelerate launch sft.py --a x '--b={\"c\": 1}'"
    assert "hub" not in public
