"""Reads run folders: files only, no model. A note on the page takes the place of what is missing or broken."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

from fourstage.stages import STAGES

_LONGEST = 4_000  # characters of any one string: a runaway answer must not fill the page
_LARGEST = 1e100  # of numbers: beyond it is no measurement, and axes overflow
_FINAL_CODES = "".join(chr(plane * 0x10000 + last) for plane in range(17) for last in (0xFFFE, 0xFFFF))
# What HTML must not contain, and what changes the direction of the text around it. Tab and newline are allowed.
_UNPRINTABLE = re.compile(
    f"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufdd0-\ufdef{_FINAL_CODES}]"
)
# What the page needs of stages.json: the allowed types of each key, with None for a key that may be missing.
Shape = dict[str, tuple[type | None, ...]]
_TOP_LEVEL: Shape = {
    "columns": (list,),
    "rows": (list,),
    "folders": (list,),
    "seeds": (list, None),
    "checks": (list, None),
    "machine": (dict, None),
    "reward_model": (dict, None),
}
_ENTRIES: dict[str, Shape] = {
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
    """One stage of one seed: `record` is its run.json, `history` its log, `notes` name what is missing or broken."""

    stage: str
    folder: Path
    record: dict = field(default_factory=dict)
    history: list[dict] = field(default_factory=list)
    samples: list[dict] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Source:
    """A folder to report on: one run per seed for each stage, and the content of stages.json (None without it)."""

    folder: Path
    runs: dict[str, list[StageRun]]
    table: dict | None
    single: bool  # whether the folder is the run folder of one stage


def read_source(folder: Path) -> Source:
    """Everything that the report needs from the folder of a pipeline or of one stage.

    Raises:
        ValueError: if the folder contains no run, or a stages.json that cannot be read.
    """
    if not _is_there(folder) or not folder.is_dir():
        raise ValueError(
            f"{str(folder)[:200]} is not a folder; name a folder of runs, such as runs/demo, or one run's folder"
        )
    if (folder / "run.json").is_file():
        run = _read_single(folder)
        return Source(folder, {stage: [run] if stage == run.stage else [] for stage in STAGES}, None, single=True)
    table = read_table(folder / "stages.json")
    seeds = [folder / name for name in table["folders"]] if table else _seed_folders(folder)
    runs = {
        stage: [read_stage_run(stage, seed / stage) for seed in seeds if (seed / stage / "run.json").is_file()]
        for stage in STAGES
    }
    if table is None and not any(runs.values()):
        raise ValueError(
            f"{folder} contains no run: it has neither stages.json nor run.json, and none of its folders "
            f"{', '.join(STAGES)} has a run.json; name the folder of a run, or make one with: make demo"
        )
    return Source(folder, runs, table, single=False)


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that is too long, or has a character that no name may have
        return False


def read_table(path: Path) -> dict | None:
    """The content of stages.json, or None without the file.

    Raises:
        ValueError: if the JSON is broken, or lacks something that the page needs.
    """
    if not path.is_file():
        return None
    fix = "delete it and run the pipeline again, which writes a new one"
    try:
        table = _load(path)
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); {fix}") from None
    if not isinstance(table, dict):
        raise ValueError(f"{path} holds a {type(table).__name__}, not an object; {fix}")
    table.setdefault("folders", ["."])
    problem = _table_problem(table)
    if problem:
        raise ValueError(f"{path}: {problem}; {fix}")
    return table


def read_stage_run(stage: str, folder: Path) -> StageRun:
    """The run of a stage from its folder. Broken content raises no error: `notes` say what could not be read."""
    notes: list[str] = []
    record = _load_object(folder / "run.json", "status", notes)
    if record and record["status"] != "finished":
        notes.append(
            f"This run is not finished. To continue it, repeat its command: {record.get('command', 'unknown')}"
        )
    notes += _warnings_of(record)
    state = _load_object(folder / "trainer_state.json", "log_history", notes)
    history = state.get("log_history")
    rows = [row for row in history if isinstance(row, dict)] if isinstance(history, list) else []
    if section(record, "arguments", "training").get("control"):
        rows = [_with_the_real_reward(row) for row in rows]
    return StageRun(stage, folder, record, rows, _load_lines(folder / "samples.jsonl", notes), notes)


def _warnings_of(record: dict) -> list[str]:
    """What the run was warned of while it trained, a sentence each."""
    found = record.get("warnings")
    entries = [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []
    return [f"Warned at step {entry.get('step')}: {entry.get('message')}." for entry in entries]


def _with_the_real_reward(row: dict) -> dict:
    """A log row of a control, whose rewards are coin flips, with the reward that its answers would have earned.

    That is the number to compare with the log of the real run.
    """
    reward_key = re.compile(r"(eval_)?rewards/(?!random_reward/).*/mean")
    earned = {f"{match[1] or ''}reward": row[key] for key in row if (match := reward_key.fullmatch(str(key)))}
    return row | earned


def section(record: dict, *keys: str) -> dict:
    """The dictionary under `keys` of a nested record, or {} if there is none."""
    value: object = record
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def last_question(prompt: object) -> str:
    """The text of a prompt: the prompt itself if it is a string, the last turn if it is a conversation."""
    if isinstance(prompt, list):
        turn = prompt[-1] if prompt else ""
        prompt = turn.get("content", "") if isinstance(turn, dict) else turn
    return prompt if isinstance(prompt, str) else str(prompt)


def _read_single(folder: Path) -> StageRun:
    run = read_stage_run(folder.resolve().name, folder)
    stage = run.record.get("stage", run.stage)
    if stage == "grpo" and section(run.record, "arguments", "training").get("control"):
        stage = "control"
    if stage not in STAGES:
        raise ValueError(
            f"{folder / 'run.json'}: its 'stage' is {stage!r}, which is not one of {', '.join(STAGES)}; "
            "run the stage again, or name the folder above it"
        )
    return StageRun(stage, folder, run.record, run.history, run.samples, run.notes)


def _seed_folders(folder: Path) -> list[Path]:
    """The folders with a run of each stage: `folder` itself, or its folders seed-0, seed-1 ... in that order."""
    if any((folder / stage / "run.json").is_file() for stage in STAGES):
        return [folder]
    names = ((re.fullmatch(r"seed-(\d+)", path.name), path) for path in folder.iterdir() if path.is_dir())
    numbered = [(int(match[1]), path) for match, path in names if match]
    return [path for _, path in sorted(numbered)]


def _table_problem(table: dict) -> str | None:
    """The first reason why the content of stages.json cannot be shown, in words; None if it can."""
    problem = _misfit(table, _TOP_LEVEL, "the file")
    if problem:
        return problem
    problems = [
        _misfit(entry, shape, f"an entry of {name!r}")
        for name, shape in _ENTRIES.items()
        for entry in table.get(name) or []
    ]
    if not any(problems):
        answers = [answer for row in table["rows"] for answer in row.get("answers") or []]
        problems += [_misfit(answer, {}, "an answer") for answer in answers]
        problems += [_misfit(table.get("reward_model") or {}, {"metrics": (dict, None)}, "'reward_model'")]
        problems += [None if _is_within(name) else "'folders' must name folders below it" for name in table["folders"]]
    return next((problem for problem in problems if problem), None)


def _is_within(name: object) -> bool:
    """Whether an entry of `folders` leads to a place below the folder of stages.json."""
    parts = Path(name).parts if isinstance(name, str) and "\0" not in name else ("..",)
    return not Path(*parts).is_absolute() and ".." not in parts and all(len(part) < 256 for part in parts)


def _misfit(entry: object, shape: Shape, where: str) -> str | None:
    """How `entry` differs from `shape`, in words; None if it fits."""
    if not isinstance(entry, dict):
        return f"{where} is not an object"
    for key, allowed in shape.items():
        if entry.get(key) is None and None in allowed:
            continue
        if not isinstance(entry.get(key), tuple(kind for kind in allowed if kind is not None)):
            return f"{where} has no {key!r}" if key not in entry else f"{key!r} of {where} has the wrong type"
    return None


def _load_object(path: Path, needed: str, notes: list[str]) -> dict:
    if not path.is_file():
        notes.append(f"{path.name} is missing.")
        return {}
    try:
        value = _load(path)
    except (OSError, ValueError, RecursionError) as error:
        notes.append(f"{path.name} cannot be read: it is not valid JSON ({error}).")
        return {}
    if not isinstance(value, dict) or needed not in value:
        notes.append(f"{path.name} cannot be read: it has no {needed!r}.")
        return {}
    return value


def _load_lines(path: Path, notes: list[str]) -> list[dict]:
    """The samples of a .jsonl file. A note counts the lines that are not samples."""
    if not path.is_file():
        notes.append(f"{path.name} is missing.")
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
    """The value fit for a page: strings cut if too long, with U+FFFD for unprintable characters; None for numbers that
    are not finite, or as good as that.
    """
    if isinstance(value, str):
        return _UNPRINTABLE.sub("\ufffd", cut(value, _LONGEST))
    if isinstance(value, int | float) and not -_LARGEST <= value <= _LARGEST:  # a NaN too
        return None
    if isinstance(value, list):
        return [_clean(item) for item in value]
    if isinstance(value, dict):
        return {_clean(key): _clean(item) for key, item in value.items()}
    return value


def cut(text: str, longest: int) -> str:
    """The text, or its beginning with a visible mark.

    Example: cut("abcdef", 2) -> "ab … [2 of 6 characters shown]".
    """
    return text if len(text) <= longest else f"{text[:longest]} … [{longest:,} of {len(text):,} characters shown]"
