"""`fourstage doctor TARGET ...`: all that can be known before the first step."""

import argparse
import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import FunctionType, SimpleNamespace
from typing import Any, NoReturn, cast

from fourstage.imports import lean_imports, quiet_libraries

_USAGE = "fourstage doctor TARGET [--json] [--show_mask N] [--rows KIND] [recipe flags ...]"
_TARGET = "a recipe's YAML or name (its flags may follow), a run's folder, a model, or a file of data"
_ROWS = ("text", "conversations", "pairs", "prompts", "problems")


def run_doctor(words: Sequence[str]) -> int:
    """Prints what the checks find; the exit status, 1 if one of them fails.

    Raises:
        ValueError: of one line, for a target that is nothing that the doctor knows.
    """
    own, flags = _parser().parse_known_args(list(words))
    with lean_imports():
        from fourstage.doctor.findings import in_words
        from fourstage.doctor.masks import masked_rows, shown
        from fourstage.printing import visible
    quiet_libraries()
    subject = _subject(own.target, own.rows, flags)
    groups = _examine(subject)
    findings = [{**asdict(finding), "group": group} for group, found in groups.items() for finding in found]
    failed = sum(finding["level"] == "FAIL" for finding in findings)
    warned = sum(finding["level"] == "warning" for finding in findings)
    rows = masked_rows(subject, own.show_mask) if own.show_mask else []
    if own.json:
        head = {"target": own.target, "kind": subject.kind, "stage": subject.stage}
        content = head | {"failed": failed, "warnings": warned, "findings": findings} | ({"rows": rows} if rows else {})
        print(json.dumps(content, indent=1))
        return int(failed > 0)
    print(visible(f"{own.target}: {_name(subject)}"))
    for group, found in groups.items():
        print(group)
        for finding in found:
            print(f"  {_LABELS[finding.level]:<8}{visible(in_words(finding))}")
    print("\n".join(shown(rows)) + "\n" if rows else "", end="")
    print(f"{failed} failed, {warned} warnings, {len(findings) - failed - warned} others", flush=True)
    return int(failed > 0)


_LABELS = {"ok": "ok", "unknown": "?", "warning": "warning", "FAIL": "FAIL"}


def _name(subject: Any) -> str:
    rows = {"pretrain": "text", "sft": "conversations", "reward": "pairs", "ppo": "prompts", "grpo": "problems"}
    if subject.kind == "data" and subject.stage:
        return f"data, read as {rows[subject.stage]} (--rows chooses)"
    article = {"recipe": "the ", "settings": "the ", "data": ""}.get(subject.kind, "a ")
    return f"{article}{subject.kind}{' of ' + subject.stage if subject.stage else ''}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fourstage doctor", usage=_USAGE, allow_abbrev=False)
    parser.error = _refuse
    add = parser.add_argument
    add("target", metavar="TARGET", help=_TARGET)
    add("--json", action="store_true", help="one document instead of lines")
    add(
        "--show_mask", type=_count, default=0, metavar="N", help="the first N rows token by token, with what is trained"
    )
    add("--rows", choices=_ROWS, help="of data: what its rows are (default: by their columns)")
    return parser


def _count(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of rows")
    return int(text)


def _refuse(message: str) -> NoReturn:
    raise ValueError(f"doctor: {message}; fourstage doctor --help lists what it takes")


def _subject(target: str, rows: str | None, flags: list[str]) -> Any:
    """The opened subject of a target."""
    from fourstage.data.files import BUILDERS
    from fourstage.doctor.reading import STAGE_OF
    from fourstage.doctor.subject import Subject, attempt, open_data, open_recipe
    from fourstage.parent import adapter_of, is_gguf, read_record
    from fourstage.plan.recipe import CONFIGS, read_settings

    path = Path(target)
    if (target in CONFIGS and not path.exists()) or path.suffix in (".yaml", ".yml"):
        stage = target if target in CONFIGS else _stage_of_yaml(path)
        words = flags if target in CONFIGS else ["--config", target, *flags]
        subject = Subject(target, "settings", stage)
        settings = attempt(subject.found, "settings", lambda: read_settings(stage, words))
        return open_recipe(target, settings) if settings else subject
    if path.is_dir() and read_record(path) is not None:
        return _open_run(target)
    if runs := sorted(file.parent.name for file in path.glob("*/run.json")):
        raise ValueError(f"TARGET={target} holds the runs {', '.join(runs)}; name one, such as {path / runs[0]}")
    is_model = is_gguf(target) or (path / "config.json").is_file() or (path.is_dir() and adapter_of(target) is not None)
    is_data = Path(path.name.removesuffix(".gz")).suffix in BUILDERS or (path.is_dir() and not is_model)
    if rows or is_data or target == "fourstage/demo" or target.startswith("reasoning-gym/"):
        found: list = []
        kind = rows or attempt(found, "rows", lambda: _kind_of_data(target))
        if kind is None:
            return Subject(target, "data", found=found)
        stage = STAGE_OF[kind]
        return open_data(target, read_settings(stage, ["--dataset_name", target, *flags]))
    if not is_model and ("/" not in target or target.startswith((".", "/", "~", "runs/")) or target.count("/") > 1):
        raise ValueError(f"TARGET={target}: no such recipe, file or folder; it takes {_TARGET}, or an id of the Hub")
    return _open_model(target, flags)


def _stage_of_yaml(path: Path) -> str:
    """By the command in its first lines, else by its name."""
    from fourstage.plan.recipe import CONFIGS

    if not path.is_file():
        raise ValueError(f"TARGET={path}: no such file; give the path of a YAML file")
    text = path.read_text(encoding="utf-8", errors="replace")
    named = re.search(r"recipes/(\w+)\.py", text)
    found = named[1] if named else path.stem.partition("-")[0]
    if found not in CONFIGS:
        raise ValueError(f"TARGET={path} does not say whose it is; give fourstage doctor RECIPE --config {path}")
    return found


def _kind_of_data(target: str) -> str:
    from fourstage.arguments import DataArguments
    from fourstage.data.sources import load_source
    from fourstage.doctor.reading import kind_of_rows

    train, _ = load_source({"dataset_name": target}, DataArguments(dataset_name=target), "pretrain")
    return kind_of_rows(next(iter(train), {}))


def _open_run(target: str) -> Any:
    from fourstage.arguments import DataArguments, ModelArguments, restored
    from fourstage.doctor.subject import open_model
    from fourstage.parent import is_run, read_record
    from fourstage.plan.recipe import Settings

    record = read_record(target)
    if record is None or not is_run(record):
        raise ValueError(f"TARGET={target}: its run.json is not one of fourstage; mend it, or remove it")
    given = record["arguments"]
    training = SimpleNamespace(**given["training"])  # as it was recorded: a run's rows are read by a few of its fields
    model = restored(ModelArguments, given["model"])
    settings = Settings(record["stage"], restored(DataArguments, given["data"]), training, model, set())
    subject = open_model(target, settings, record)
    subject.settings = settings
    return subject


def _open_model(target: str, flags: list[str]) -> Any:
    from fourstage.doctor.subject import open_model
    from fourstage.plan.recipe import read_settings

    return open_model(target, read_settings("sft", ["--model_name_or_path", target, *flags]))


def _examine(subject: Any) -> dict[str, list]:
    """What every check finds, by group; groups in which there was nothing to look at are left out."""
    from fourstage.doctor import launching, pairs, rows, runs, texts
    from fourstage.doctor.encoding import look
    from fourstage.doctor.subject import attempt

    checks: dict[str, list[FunctionType]] = {
        "run": [runs.status, runs.checkpoints, runs.weights, runs.parents, runs.data],
        "texts": [
            *(texts.not_opened, texts.pad_against_end, texts.end_of_turn, texts.double_bos, texts.same_text),
            *(texts.markers_in_texts, texts.vocabulary, texts.stops, texts.reward_tokenizer),
        ],
        "rows": [
            *(rows.readable, rows.ptx, rows.reserved_columns, rows.duplicates, rows.overlap, rows.truncated),
            *(
                rows.masked,
                rows.one_kind_of_answer,
                pairs.length_tells,
                pairs.equal_pairs,
                pairs.contradictions,
                pairs.leaks,
            ),
            pairs.golds,
        ],
        "start": [
            *(launching.prompts_fit, launching.groups, launching.packed_documents, launching.accumulation),
            *(launching.output_folder, launching.memory_and_disk, launching.versions),
        ],
    }
    look(subject)
    groups: dict[str, list] = {"opened": subject.found} if subject.found else {}
    for group, functions in checks.items():
        found = []
        for check in functions:
            found += attempt(found, check.__name__.replace("_", " "), lambda check=check: check(subject)) or []
        groups |= {group: found} if found else {}
    return cast(dict[str, list], groups)
