"""Reads run folders: files only, no model. What is missing or broken in a stage becomes a note in its place."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

STAGES = ("pretrain", "sft", "reward", "ppo", "grpo", "control")
_LONGEST = 4_000  # characters of any one string: a runaway answer must not fill the page
_FINAL_CODES = "".join(chr(plane * 0x10000 + last) for plane in range(17) for last in (0xFFFE, 0xFFFF))
# What HTML may not hold or what changes the direction of the text around it. Tab and newline stay.
_UNPRINTABLE = re.compile(
    f"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufdd0-\ufdef{_FINAL_CODES}]"
)
# What stages.json must hold for a page to be made of it: the types of each key, None where it may be missing.
_TABLE = {"columns": (list,), "rows": (list,), "folders": (list,), "seeds": (list, None), "checks": (list, None)}
_TABLE |= {"machine": (dict, None), "reward_model": (dict, None)}
_ENTRIES = {
    "columns": {"key": (str,), "title": (str,)},
    "rows": {
        "stage": (str,),
        "title": (str,),
        "metrics": (dict,),
        "parent": (str, None),
        "parameters": (int, float, None),
        "answers": (list, None),
    },
    "checks": {"name": (str,)},
}


@dataclass(frozen=True)
class StageRun:
    """One stage of one seed. `record` is run.json, `history` the log rows, `notes` what is missing or broken."""

    stage: str
    folder: Path
    record: dict = field(default_factory=dict)
    history: list[dict] = field(default_factory=list)
    samples: list[dict] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Source:
    """A folder to report on: for each stage one run a seed, and what stages.json holds (None without it)."""

    folder: Path
    runs: dict[str, list[StageRun]]
    table: dict | None
    single: bool  # the folder is one stage's run folder


def read_source(folder: Path) -> Source:
    """Everything the report needs from the folder of a pipeline or of one stage.

    Raises:
        ValueError: if it has nothing of fourstage, or a stages.json that cannot be read.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; name a folder of runs, such as runs/demo, or one run's folder")
    if (folder / "run.json").is_file():
        run = _read_single(folder)
        return Source(folder, {stage: [run] if stage == run.stage else [] for stage in STAGES}, None, single=True)
    table = read_table(folder / "stages.json")
    seeds = [folder / name for name in table["folders"]] if table else _seed_folders(folder)
    runs = {
        stage: [read_run(stage, seed / stage) for seed in seeds if (seed / stage / "run.json").is_file()]
        for stage in STAGES
    }
    if table is None and not any(runs.values()):
        raise ValueError(
            f"{folder} holds no run of fourstage: neither stages.json nor run.json, nor one in a folder "
            f"{', '.join(STAGES)} below it; name the folder of a run, or make one with: make demo"
        )
    return Source(folder, runs, table, single=False)


def read_table(path: Path) -> dict | None:
    """What stages.json holds, or None if there is none.

    Raises:
        ValueError: if it is not whole, or lacks what the page is made of.
    """
    if not path.is_file():
        return None
    fix = "delete it and run the pipeline again, which writes it anew"
    try:
        table = _load(path)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not whole JSON ({error}); {fix}") from None
    problem = _table_problem(table)
    if problem:
        raise ValueError(f"{path}: {problem}; {fix}")
    return table


def read_run(stage: str, folder: Path) -> StageRun:
    """A stage from its folder. Never fails on the content: `notes` say what could not be read."""
    notes: list[str] = []
    record = _load_object(folder / "run.json", "status", notes)
    if record and record["status"] != "finished":
        notes.append(f"This run is not finished. The same command goes on with it: {record.get('command', 'unknown')}")
    state = _load_object(folder / "trainer_state.json", "log_history", notes)
    history = state.get("log_history")
    rows = [row for row in history if isinstance(row, dict)] if isinstance(history, list) else []
    if section(record, "arguments", "training").get("control"):
        rows = [_what_the_reward_would_be(row) for row in rows]
    return StageRun(stage, folder, record, rows, _load_lines(folder / "samples.jsonl", notes), notes)


def _what_the_reward_would_be(row: dict) -> dict:
    """A control is rewarded by coin flips; what its answers would have earned is what compares with the real run."""
    told = re.compile(r"(eval_)?rewards/(?!random_reward/).*/mean")
    found = {f"{match[1] or ''}reward": row[key] for key in row if (match := told.fullmatch(str(key)))}
    return row | found


def section(record: dict, *keys: str) -> dict:
    """The dictionary below `keys` of a record, {} where there is none."""
    for key in keys:
        record = record.get(key) if isinstance(record, dict) else None
    return record if isinstance(record, dict) else {}


def last_question(prompt: object) -> str:
    """The text of a prompt that is a string or a list of turns."""
    if isinstance(prompt, list):
        turn = prompt[-1] if prompt else ""
        prompt = turn.get("content", "") if isinstance(turn, dict) else turn
    return prompt if isinstance(prompt, str) else str(prompt)


def _read_single(folder: Path) -> StageRun:
    run = read_run(folder.resolve().name, folder)
    stage = run.record.get("stage", run.stage)
    if stage == "grpo" and section(run.record, "arguments", "training").get("control"):
        stage = "control"
    if stage not in STAGES:
        raise ValueError(
            f"{folder / 'run.json'} does not say which stage it is (found {stage!r}, known: {', '.join(STAGES)}); "
            "run the stage again, or name the folder above it"
        )
    return StageRun(stage, folder, run.record, run.history, run.samples, run.notes)


def _seed_folders(folder: Path) -> list[Path]:
    if any((folder / stage / "run.json").is_file() for stage in STAGES):
        return [folder]
    numbered = [(re.fullmatch(r"seed-(\d+)", path.name), path) for path in folder.iterdir() if path.is_dir()]
    return [path for match, path in sorted(((m, p) for m, p in numbered if m), key=lambda pair: int(pair[0][1]))]


def _table_problem(table: object) -> str | None:
    """What keeps the content of stages.json from being shown, in words."""
    if not isinstance(table, dict):
        return f"it holds a {type(table).__name__}, not an object"
    table.setdefault("folders", ["."])
    problems = [_misfit(table, _TABLE, "the file")]
    for name, shape in _ENTRIES.items():
        entries = table.get(name)
        problems += (
            [_misfit(entry, shape, f"an entry of {name!r}") for entry in entries or []] if not problems[0] else []
        )
    if not any(problems):
        answers = [answer for row in table["rows"] for answer in row.get("answers") or []]
        problems += [_misfit(answer, {}, "an answer") for answer in answers]
        problems += [_misfit(table.get("reward_model") or {}, {"metrics": (dict, None)}, "'reward_model'")]
        problems += [None if isinstance(name, str) else "'folders' must name folders" for name in table["folders"]]
    return next((problem for problem in problems if problem), None)


def _misfit(entry: object, shape: dict[str, tuple], where: str) -> str | None:
    """How `entry` differs from `shape`: for each key the types allowed, None where it may be missing or null."""
    if not isinstance(entry, dict):
        return f"{where} is no object"
    for key, allowed in shape.items():
        if entry.get(key) is None and None in allowed:
            continue
        if not isinstance(entry.get(key), tuple(kind for kind in allowed if kind)):
            return f"{where} has no {key!r}" if key not in entry else f"{key!r} of {where} is not of the right type"
    return None


def _load_object(path: Path, needed: str, notes: list[str]) -> dict:
    if not path.is_file():
        notes.append(f"{path.name} is not there.")
        return {}
    try:
        value = _load(path)
    except (ValueError, RecursionError) as error:
        notes.append(f"{path.name} cannot be read: it is not whole JSON ({error}).")
        return {}
    if not isinstance(value, dict) or needed not in value:
        notes.append(f"{path.name} cannot be read: it has no {needed!r}.")
        return {}
    return value


def _load_lines(path: Path, notes: list[str]) -> list[dict]:
    """The samples of a .jsonl file; lines that are none are counted."""
    if not path.is_file():
        notes.append(f"{path.name} is not there.")
        return []
    rows, broken = [], 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = _clean(json.loads(line))
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict) and {"prompt", "completion"} <= row.keys():
            rows.append(row)
        else:
            broken += 1
    if broken:
        notes.append(f"{broken} lines of {path.name} could not be read.")
    return rows


def _load(path: Path) -> object:
    return _clean(json.loads(path.read_text(encoding="utf-8")))


def _clean(value: object) -> object:
    """The value with every string fit for a page: bounded, unprintable characters replaced by U+FFFD."""
    if isinstance(value, str):
        return _UNPRINTABLE.sub("\ufffd", cut(value, _LONGEST))
    if isinstance(value, list):
        return [_clean(item) for item in value]
    if isinstance(value, dict):
        return {_clean(key): _clean(item) for key, item in value.items()}
    return value


def cut(text: str, longest: int) -> str:
    """The text, or its beginning with a visible mark. Example: cut("abcdef", 2) -> "ab … [2 of 6 characters shown]"."""
    return text if len(text) <= longest else f"{text[:longest]} … [{longest:,} of {len(text):,} characters shown]"
