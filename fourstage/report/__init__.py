"""The illustrated report: run folders -> one self-contained HTML page.

    fourstage report runs/demo

It reads files only and imports no torch. The page has no script and loads nothing; everything that a model wrote is
escaped.
"""

import os
from pathlib import Path

from jinja2 import Environment, FileSystemLoader

from fourstage.report import formatting, prose
from fourstage.report.figures import CHARTS, draw
from fourstage.report.load import STAGES, Source, StageRun, cut, last_question, read_source, section

_LONGEST_SAMPLE = 600  # characters
_MOST_PROMPTS = 40
_QUESTION = "What is an LLM?"
# The settings shown, with the names that the recipes have for them.
_SETTINGS = ("dataset_name", "max_steps", "num_train_epochs", "learning_rate", "lr_scheduler_type", "max_length")
_SETTINGS += ("max_completion_length", "num_generations", "temperature", "beta", "num_iterations", "epsilon")
_SETTINGS += ("epsilon_high", "gamma", "lam", "reward_funcs", "control")


def write_report(folder: Path, output: Path | None = None) -> Path:
    """Writes the report on `folder` (a pipeline's, or one stage's) to `output`, by default report.html in it.

    Returns:
        The path of the page. A former one is replaced in one step.
    Raises:
        ValueError: if the folder has nothing of fourstage, stages.json is broken, or `output` is a folder.
    """
    output = Path(output) if output else Path(folder) / "report.html"
    if output.is_dir():
        raise ValueError(f"{output} is a folder; name the file to write, such as {output / 'report.html'}")
    page = _page(read_source(Path(folder)))
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(output.name + ".tmp")
    temporary.write_text(page, encoding="utf-8")
    os.replace(temporary, output)
    return output


def _page(source: Source) -> str:
    here = Path(__file__).parent
    environment = Environment(loader=FileSystemLoader(here), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(
        value=formatting.value, measured=formatting.measured, count=formatting.count, duration=formatting.duration,
        operations=formatting.operations, sample=_sample, share=_share,
    )  # fmt: skip
    table = source.table or {"rows": [], "columns": []}
    rows = {row["stage"]: row for row in reversed(table["rows"])}
    compared = _compared(source, table["rows"])
    return environment.get_template("page.html.jinja").render(
        source=source,
        table=table,
        has_table=source.table is not None,
        parameters=max((formatting.finite(row.get("parameters")) or 0 for row in table["rows"]), default=None),
        seeds=max((len(runs) for runs in source.runs.values()), default=0),
        question=_QUESTION,
        first_answers=next((p["answers"] for p in compared if p["prompt"].strip() == _QUESTION), []),
        stages=[_stage(stage, source, rows, table["columns"]) for stage in prose.STAGES if _is_told(stage, source)],
        compared=compared[:_MOST_PROMPTS],
        left_out=max(0, len(compared) - _MOST_PROMPTS),
        kinds=_kinds(table.get("reward_model")),
        limits=prose.limits(table) if source.table else [],
        lineage=[(run, settings(run), _origins(run)) for runs in source.runs.values() for run in runs],
    )


def _is_told(stage: prose.Stage, source: Source) -> bool:
    """A page on one run tells of its stage alone."""
    if not source.single:
        return True
    told = "grpo" if source.runs["control"] else next(name for name in STAGES if source.runs[name])
    return stage.key == told


def _stage(stage: prose.Stage, source: Source, rows: dict[str, dict], columns: list[dict]) -> dict:
    """What the page shows of one stage. Notes of the control stand with GRPO, which it belongs to."""
    keys = ("grpo", "control") if stage.key == "grpo" else (stage.key,)
    runs = [run for key in keys for run in source.runs.get(key, [])]
    charts = [draw(chart, source.runs) for chart in CHARTS.get(stage.key, ())]
    own = source.runs.get(stage.key) or runs
    return {
        "about": stage,
        "was_run": bool(runs) or stage.key in rows,
        "changes": prose.changes(stage, columns, rows),
        "charts": [chart for chart in charts if chart],
        "settings": settings(own[0]) if own else [],
        "notes": [(run, note) for run in runs for note in run.notes],
        "ruled": any(_setting(run, "dataset_name") == "fourstage/demo" for run in source.runs.get("reward", [])),
        "samples": own[0].samples[:4] if source.single and own else [],
    }


def settings(run: StageRun) -> list[tuple[str, str]]:
    """The settings of a run that a reader asks for, by the names that the recipes have for them."""
    training = section(run.record, "arguments", "training")
    found = [(name, _setting(run, name)) for name in _SETTINGS]
    if training.get("max_steps", -1) == -1:
        found = [pair for pair in found if pair[0] != "max_steps"]
    else:
        found = [pair for pair in found if pair[0] != "num_train_epochs"]
    batch = [training.get("per_device_train_batch_size"), training.get("gradient_accumulation_steps")]
    rows = [formatting.finite(number) for number in (*batch, run.record.get("processes", 1))]
    if None not in rows:
        found.insert(2, ("rows a step", f"{rows[0] * rows[1] * rows[2]:,.0f}"))
    known = [(name, formatting.short(value)) for name, value in found if value not in (None, "", [])]
    metrics = section(run.record, "metrics")
    measured = [
        ("parameters", formatting.count(run.record.get("parameters"))),
        ("tokens", formatting.count(run.record.get("tokens"))),
        ("training time", formatting.duration(metrics.get("train_runtime"))),
    ]
    return known + [pair for pair in measured if pair[1] != formatting.DASH]


def _setting(run: StageRun, name: str) -> object:
    for group in ("data", "training", "model"):
        value = section(run.record, "arguments", group).get(name)
        if value is not None:
            return value
    return None


def _origins(run: StageRun) -> list[tuple[str, str]]:
    """Where a run comes from: parent, reward model, seed, code, data."""
    record = run.record
    found = []
    for name in ("parent", "reward_model"):
        origin = section(record, name)
        if origin:
            digest = origin.get("sha256")
            found.append(
                (name.replace("_", " "), f"{origin.get('path')} ({str(digest)[:12] if digest else 'no hash'})")
            )
    found += [(key, str(record[key])) for key in ("seed", "started", "finished") if record.get(key) is not None]
    found += [("code", str(record["git_sha"])[:12])] if record.get("git_sha") else []
    found += [(f"data, {split}", str(print_)) for split, print_ in section(record, "data").items()]
    versions = ", ".join(f"{library} {version}" for library, version in section(record, "versions").items())
    return [*found, ("versions", versions)] if versions else found


def _compared(source: Source, rows: list[dict]) -> list[dict]:
    """Every prompt with the answers of all stages: from the stage table, without it from the runs' samples."""
    answers = [(row["stage"], row["title"], answer) for row in rows for answer in row.get("answers") or []]
    if not answers:
        names = {stage.key: stage.name for stage in prose.STAGES} | {"control": "Control"}
        first = [runs[0] for stage, runs in source.runs.items() if runs and stage != "reward"]
        answers = [(run.stage, names[run.stage], sample) for run in first for sample in run.samples]
    prompts: dict[str, dict] = {}
    for stage, title, answer in answers:
        asked = last_question(answer.get("prompt", ""))
        prompt = prompts.setdefault(asked, {"prompt": asked, "kind": None, "reference": None, "answers": []})
        prompt["kind"] = prompt["kind"] or answer.get("kind")
        prompt["reference"] = prompt["reference"] or answer.get("reference")
        said = last_question(answer.get("completion", ""))
        prompt["answers"].append({"stage": stage, "title": title, "text": said, "right": answer.get("right")})
    return list(prompts.values())


def _kinds(reward_model: dict | None) -> list[tuple[str, dict]]:
    """The reward model's accuracies by kind of pair, that over all of them first."""
    kinds = section(reward_model or {}, "metrics")
    overall = [("all kinds", kinds["accuracy"])] if "accuracy" in kinds else []
    return overall + [(key.replace("_", " "), metric) for key, metric in kinds.items() if key != "accuracy"]


def _sample(text: object) -> str:
    return cut(str(text).strip(), _LONGEST_SAMPLE)


def _share(metric: object) -> str | None:
    """The length of the bar behind a share, in percent of its cell."""
    mean = formatting.finite(metric.get("mean")) if isinstance(metric, dict) else None
    return None if mean is None else f"{100 * min(max(mean, 0), 1):.1f}%"
