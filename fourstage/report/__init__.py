"""The illustrated report: run folders -> one self-contained HTML page.

    fourstage report runs/demo

It reads files only and does not import torch. The page has no script and loads nothing. All text from the run folders,
such as what a model wrote, is escaped.
"""

import math
from pathlib import Path

from jinja2 import Environment, FileSystemLoader

from fourstage.atomic import write_atomically
from fourstage.report import formatting, prose
from fourstage.report.figures import CHARTS, draw
from fourstage.report.load import Source, StageRun, cut, last_question, read_source, section
from fourstage.stages import STAGES

TEMPLATES = Path(__file__).parent
_LONGEST_SAMPLE = 600  # characters
_MOST_PROMPTS = 40
_QUESTION = "What is an LLM?"
# The settings shown, by their names in the recipes.
_SETTINGS = ("dataset_name", "max_steps", "num_train_epochs", "learning_rate", "lr_scheduler_type", "max_length")
_SETTINGS += ("max_completion_length", "num_generations", "temperature", "beta", "num_iterations", "epsilon")
_SETTINGS += ("epsilon_high", "gamma", "lam", "ptx_dataset_name", "ptx_coef", "reward_funcs", "control")


def write_report(folder: Path, output: Path | None = None) -> Path:
    """Writes the report on `folder` (a pipeline's, or one stage's) to `output`, by default report.html in `folder`.

    Returns:
        The path of the page. An older page is replaced in one step.
    Raises:
        ValueError: if the folder contains no run, stages.json is broken, or `output` is a folder or cannot be written.
    """
    source = read_source(Path(folder))
    output = Path(output) if output else Path(folder) / "report.html"
    if output.is_dir():
        raise ValueError(f"{output} is a folder; name the file to write, such as {output / 'report.html'}")
    page = _page(source)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(output, page)
    except OSError as error:
        raise ValueError(f"{output} cannot be written ({error.strerror}); name another file with --output") from None
    return output


def template_environment() -> Environment:
    """Jinja for the templates of this folder. It escapes every value that is put into them."""
    return Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True)


def _page(source: Source) -> str:
    environment = template_environment()
    environment.filters.update(
        value=formatting.value, measured=formatting.with_error, count=formatting.count, duration=formatting.duration,
        operations=formatting.operations, sample=_shortened, share=_share,
    )  # fmt: skip
    table = source.table or {"rows": [], "columns": []}
    rows = {row["stage"]: row for row in reversed(table["rows"])}
    prompts = _compared(source, table["rows"])
    return environment.get_template("page.html.jinja").render(
        source=source,
        table=table,
        has_table=source.table is not None,
        parameters=max((formatting.finite(row.get("parameters")) or 0 for row in table["rows"]), default=None),
        seeds=max((len(runs) for runs in source.runs.values()), default=0),
        question=_QUESTION,
        first_answers=next((p["answers"] for p in prompts if p["prompt"].strip() == _QUESTION), []),
        chapters=[
            _contents(chapter, source, rows, table["columns"])
            for chapter in prose.CHAPTERS
            if _is_shown(chapter, source)
        ],
        prompts=prompts[:_MOST_PROMPTS],
        left_out=max(0, len(prompts) - _MOST_PROMPTS),
        kinds=_kinds(table.get("reward_model")),
        limits=prose.limits(table) if source.table else [],
        lineage=[(run, settings(run), _origins(run)) for runs in source.runs.values() for run in runs],
    )


def _is_shown(chapter: prose.Chapter, source: Source) -> bool:
    """Whether the page has this chapter: all of them for a pipeline, only that of its stage for a single run."""
    if not source.single:
        return True
    stage = next(name for name, runs in source.runs.items() if runs)
    return chapter.stage == ("grpo" if stage == "control" else stage)


def _contents(chapter: prose.Chapter, source: Source, rows: dict[str, dict], columns: list[dict]) -> dict[str, object]:
    """What the page shows in one chapter. The control of GRPO is part of the chapter on GRPO."""
    stages = ("grpo", "control") if chapter.stage == "grpo" else (chapter.stage,)
    runs = [run for stage in stages for run in source.runs.get(stage, [])]
    charts = [draw(chart, source.runs) for chart in CHARTS.get(chapter.stage, ())]
    own = source.runs.get(chapter.stage) or runs
    return {
        "about": chapter,
        "also": prose.PTX if own and _setting(own[0], "ptx_dataset_name") else None,
        "was_run": bool(runs) or chapter.stage in rows,
        "changes": prose.changes(chapter, columns, rows),
        "charts": [chart for chart in charts if chart],
        "settings": settings(own[0]) if own else [],
        "notes": [(run, note) for run in runs for note in run.notes],
        "ruled": any(_setting(run, "dataset_name") == "fourstage/demo" for run in source.runs.get("reward", [])),
        "samples": own[0].samples[:4] if source.single and own else [],
    }


def settings(run: StageRun) -> list[tuple[str, str]]:
    """The settings and the cost of a run as pairs of name and value. Settings have the names of the recipes' flags."""
    training = section(run.record, "arguments", "training")
    unused = ["max_steps" if training.get("max_steps", -1) == -1 else "num_train_epochs"]
    unused += [] if training.get("ptx_dataset_name") else ["ptx_coef"]
    values = [(name, _setting(run, name)) for name in _SETTINGS if name not in unused]
    values.insert(2, ("rows per step", _rows_per_step(run)))
    pairs = [(name, formatting.short(value)) for name, value in values if value not in (None, "", [])]
    metrics = section(run.record, "metrics")
    cost = [
        ("parameters", formatting.count(run.record.get("parameters"))),
        ("tokens", formatting.count(run.record.get("tokens"))),
        ("training time", formatting.duration(metrics.get("train_runtime"))),
    ]
    return pairs + [pair for pair in cost if pair[1] != formatting.DASH]


def _rows_per_step(run: StageRun) -> str | None:
    """Batch size x accumulation x processes, or None if one of them is unknown."""
    training = section(run.record, "arguments", "training")
    factors = [training.get("per_device_train_batch_size"), training.get("gradient_accumulation_steps")]
    numbers = [formatting.finite(factor) for factor in (*factors, run.record.get("processes", 1))]
    known = [number for number in numbers if number is not None]
    return f"{math.prod(known):,.0f}" if len(known) == len(numbers) else None


def _setting(run: StageRun, name: str) -> object:
    for group in ("data", "training", "model"):
        value = section(run.record, "arguments", group).get(name)
        if value is not None:
            return value
    return None


def _origins(run: StageRun) -> list[tuple[str, str]]:
    """What a run was made from, as pairs of name and value: parent, reward model, seed, dates, code, data, versions."""
    record = run.record
    pairs: list[tuple[str, str]] = []
    for name in ("parent", "reward_model"):
        origin = section(record, name)
        if origin:
            digest = str(origin["sha256"])[:12] if origin.get("sha256") else "no hash"
            pairs.append((name.replace("_", " "), f"{origin.get('path')} ({digest})"))
    pairs += [(key, str(record[key])) for key in ("seed", "started", "finished") if record.get(key) is not None]
    if record.get("git_sha"):
        pairs.append(("code", str(record["git_sha"])[:12]))
    pairs += [(f"data, {split}", str(digest)) for split, digest in section(record, "data").items()]
    versions = ", ".join(f"{library} {version}" for library, version in section(record, "versions").items())
    return [*pairs, ("versions", versions)] if versions else pairs


def _compared(source: Source, rows: list[dict]) -> list[dict]:
    """Every prompt with the answers of all stages: those of the stage table, or else the samples of the runs."""
    answers = [(row["stage"], row["title"], answer) for row in rows for answer in row.get("answers") or []]
    if not answers:
        titles = {name: stage.title for name, stage in STAGES.items()}
        names = titles | {chapter.stage: chapter.name for chapter in prose.CHAPTERS} | {"control": "Control"}
        first = [runs[0] for name, runs in source.runs.items() if runs and not STAGES[name].scores]
        answers = [(run.stage, names[run.stage], sample) for run in first for sample in run.samples]
    prompts: dict[str, dict] = {}
    for stage, title, answer in answers:
        text = last_question(answer.get("prompt", ""))
        prompt = prompts.setdefault(text, {"prompt": text, "kind": None, "reference": None, "answers": []})
        prompt["kind"] = prompt["kind"] or answer.get("kind")
        prompt["reference"] = prompt["reference"] or answer.get("reference")
        completion = last_question(answer.get("completion", ""))
        prompt["answers"].append({"stage": stage, "title": title, "text": completion, "right": answer.get("right")})
    return list(prompts.values())


def _kinds(reward_model: dict | None) -> list[tuple[str, dict]]:
    """The reward model's accuracy on each kind of pair, after its accuracy on all pairs."""
    kinds = section(reward_model or {}, "metrics")
    overall = [("all kinds", kinds["accuracy"])] if "accuracy" in kinds else []
    return overall + [(key.replace("_", " "), metric) for key, metric in kinds.items() if key != "accuracy"]


def _shortened(text: object) -> str:
    return cut(str(text).strip(), _LONGEST_SAMPLE)


def _share(metric: object) -> str | None:
    """The length of the bar behind a share: a percentage of the width of its cell."""
    mean = formatting.finite(metric.get("mean")) if isinstance(metric, dict) else None
    return None if mean is None else f"{100 * min(max(mean, 0), 1):.1f}%"
