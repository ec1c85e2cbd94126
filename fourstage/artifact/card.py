"""The model card of a stage: where it comes from, what was measured, how it was made, how to load it, what it says.

Model text is hostile: it stands in one <pre> with `<`, `>` and `&` escaped, so that it is neither markdown nor HTML.
"""

import html
import json
import re
from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData

from fourstage.artifact.lineage import evaluation_of, measured
from fourstage.artifact.upload import parent_on_hub
from fourstage.models.adapters import describe_merge
from fourstage.stages import STAGES

_LIMITS = """It is as good as its data and its size allow: it states falsehoods fluently, repeats what its training text
says of people and of the world, and was not tested for safety. Numbers are of the data named above, on rows held out
from training; other text gives other numbers."""
_REWARD_LIMITS = " Its scores compare answers to one prompt; they do not measure truth."


def model_card(record: dict, samples: list[dict], repo_id: str | None = None, evaluation: dict | None = None) -> str:
    """The card as markdown with the Hub's metadata before it.

    Args:
        record: run.json of a finished stage. repo_id: its repository on the Hub, for the lines that load it.
        evaluation: what recipes/measure.py measured, beside the record's own metrics.
    """
    title = f"# {_text(repo_id.split('/')[1])}" if repo_id else f"# fourstage {record['stage']} model"
    parts = [
        f"---\n{card_data(record, evaluation).to_yaml()}\n---",
        title,
        f"{record['parameters']:,} parameters: {STAGES[record['stage']].makes}. Made by fourstage "
        f"{record['versions']['fourstage']}.",
        "## How to load it",
        _loading(record, repo_id or "."),
        "## Where it comes from",
        _lineage(record),
        "## Data",
        _data(record),
        "## Measured",
        _table(record, evaluation),
        "## Settings",
        _settings(record),
        "## Samples",
        "Fixed prompts and what it answered, as it came.",
        _samples(samples),
        "## Limits",
        _LIMITS + (_REWARD_LIMITS if STAGES[record["stage"]].scores else ""),
    ]
    return "\n\n".join(parts) + "\n"


def pushed_card(folder: Path, record: dict, repo_id: str) -> str:
    """The card to upload: that of the folder with the repository's name and a later evaluation in it; one that was
    written by hand since is left as it is."""
    written = (folder / "README.md").read_text(encoding="utf-8")
    lines = (folder / "samples.jsonl").read_text(encoding="utf-8").split("\n")
    samples = [json.loads(line) for line in lines if line]
    if written != model_card(record, samples):
        return written
    return model_card(record, samples, repo_id, evaluation_of(folder))


def card_data(record: dict, evaluation: dict | None = None) -> ModelCardData:
    """The Hub's metadata: only ids of the Hub as base_model and datasets, and every finite number as a result."""
    datasets = record.get("datasets", [])
    name = f"fourstage {record['stage']}"
    task = "text-classification" if STAGES[record["stage"]].scores else "text-generation"
    on_hub = [part["name"] for part in datasets if part["kind"] == "hub"]
    data_name = ", ".join(part["name"] for part in datasets) or "held-out rows"
    results = [
        EvalResult(
            task_type=task,
            dataset_type=on_hub[0] if on_hub and len(datasets) == 1 else "other",
            dataset_name=data_name,
            dataset_split="test",
            metric_type=metric,
            metric_name=metric,
            metric_value=value,
        )
        for metric, value in measured(record.get("metrics", {}), evaluation).items()
    ]
    return ModelCardData(
        model_name=name,
        base_model=parent_on_hub(record),
        datasets=on_hub or None,
        license=record["arguments"]["model"].get("model_license"),
        library_name="transformers",
        pipeline_tag=task,
        tags=["fourstage", record["stage"]],
        eval_results=results or None,
    )


def _loading(record: dict, name: str) -> str:
    scores = STAGES[record["stage"]].scores
    kind = "AutoModelForSequenceClassification" if scores else "AutoModelForCausalLM"
    lines = [
        f"from transformers import {kind}, AutoTokenizer",
        f"tokenizer = AutoTokenizer.from_pretrained({name!r})",
        f"model = {kind}.from_pretrained({name!r})",
    ]
    return "\n".join(["```python", *lines, "```"])


def _lineage(record: dict) -> str:
    lines = [_ancestor(parent) for parent in record.get("lineage", [])]
    lines.append(f"this model: {STAGES[record['stage']].makes}")
    numbered = [f"{number}. {line}" for number, line in enumerate(lines, start=1)]
    if scorer := record.get("rewarded_by"):
        numbered.append(f"\nIts rewards came from {_ancestor(scorer)}")
    if control := record["arguments"]["training"].get("control"):
        numbered.append(f"\nA control: its rewards were `{_text(control)}`, it was taught nothing.")
    return "\n".join(numbered)


def _ancestor(parent: dict) -> str:
    hub = parent.get("hub") or {}
    name = f"[{hub['repo_id']}](https://huggingface.co/{hub['repo_id']})" if hub else _text(parent["name"])
    facts = [_text(parent["stage"])] if parent.get("stage") else ["a model from elsewhere"]
    facts += [f"{parent['parameters']:,} parameters"] if parent.get("parameters") else []
    facts += [f"seed {parent['seed']}"] if parent.get("seed") is not None else []
    facts += [f"commit {_text(hub['commit'][:12])}"] if hub.get("commit") else []
    facts += [f"data {', '.join(_dataset(part) for part in parent['datasets'])}"] if parent.get("datasets") else []
    facts += [f"license {_text(parent['license'])}"] if parent.get("license") else []
    return f"{name}: {', '.join(facts)}"


def _data(record: dict) -> str:
    lines = [f"- {_dataset(part)}" for part in record.get("datasets", [])] or ["- not recorded"]
    return "\n".join([*lines, "", f"{record['tokens']:,} tokens were read in training."])


def _dataset(part: dict) -> str:
    where = {
        "hub": f"[{part['name']}](https://huggingface.co/datasets/{part['name']})",
        "demo": "the data embedded in fourstage",
        "generated": f"{_text(part['name'])}, generated",
        "local": f"{_text(part['name'])}, a file or folder of the author's",
    }
    license = f" (license {_text(str(part['license']))})" if part.get("license") else ""
    return where[part["kind"]] + license


def _table(record: dict, evaluation: dict | None) -> str:
    """A column for each stage, a row for each number; `value ± standard error` where there is one."""
    mine = measured(record["metrics"], evaluation)
    columns = [(parent.get("stage") or parent["name"], parent["metrics"]) for parent in record.get("lineage", [])]
    columns.append((f"{record['stage']} (this)", mine))
    names = dict.fromkeys([*mine, *(name for _, metrics in columns for name in metrics)])
    rows = [f"| | {' | '.join(_text(title) for title, _ in columns)} |", f"|---{'|---' * len(columns)}|"]
    for name in names:
        if not (name.endswith("_stderr") and name.removesuffix("_stderr") in names):
            rows.append(f"| {_text(name)} | {' | '.join(_number(metrics, name) for _, metrics in columns)} |")
    note = "Each stage on the rows held out of its own data, so a row compares only stages of the same data."
    return "\n".join([*rows, "", note])


def _number(metrics: dict, name: str) -> str:
    if name not in metrics:
        return ""
    value, error = metrics[name], metrics.get(f"{name}_stderr")
    text = f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
    return text if error is None else f"{text} ± {error:.2g}"


def _settings(record: dict) -> str:
    training, model = record["arguments"]["training"], record["arguments"]["model"]
    batch = training["per_device_train_batch_size"] * training["gradient_accumulation_steps"] * record["processes"]
    # An older run.json has the rate at its top where the arguments left it open.
    rate = record["learning_rate"] if training["learning_rate"] is None else training["learning_rate"]
    rows = {
        "learning rate": f"{rate:.3g}, {training['lr_scheduler_type']}",
        "steps": record.get("steps"),
        "rows a step": f"{batch} ({record['processes']} processes)",
        "context": training.get("max_length") or training.get("max_completion_length"),
        "seed": record["seed"],
        "weights": f"{model['dtype']}{', bfloat16 mixed precision' if training.get('bf16') else ''}",
    }
    if model.get("use_peft"):
        names = ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules")
        rows["LoRA, merged"] = ", ".join(f"{name.removeprefix('lora_')} {model[name]}" for name in names)
    if record.get("adapter"):
        rows["of the adapter"] = describe_merge(record["adapter"])
    if record.get("tokenizer_repairs"):
        rows["repaired in the tokenizer"] = "; ".join(record["tokenizer_repairs"])
    if training.get("use_muon"):
        rows["optimizer"] = "Muon and AdamW"
    rows["versions"] = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
    lines = [f"| {name} | {_text(str(value))} |" for name, value in rows.items() if value is not None]
    return "\n".join(["| setting | value |", "|---|---|", *lines, "", "`run.json` has every other one."])


def _samples(samples: list[dict]) -> str:
    """Each on lines of its own, quoted as Python quotes, so that no text begins or ends anything."""
    lines = []
    for sample in samples:
        turns = sample["prompt"]
        prompt = turns if isinstance(turns, str) else turns[-1]["content"]
        score = f"{sample['score']:+.2f} " if "score" in sample else ""
        lines.append(f"{prompt[-500:]!r}\n -> {score}{sample['completion'][:1000]!r}")
        if "rejected" in sample:
            lines.append(f"    {sample['rejected_score']:+.2f} {sample['rejected'][:1000]!r}")
    return f"<pre>\n{html.escape(chr(10).join(lines), quote=False)}\n</pre>"


def _text(text: str) -> str:
    """Names and settings as plain text within a line: no markdown, no HTML, no end of the line or of a table's cell."""
    line = "".join(c if c.isprintable() else " " for c in text)
    return re.sub(r"([\\`*\[\]|~$!#])|(?<!\w)_|_(?!\w)", lambda found: "\\" + found[0], html.escape(line, quote=False))
