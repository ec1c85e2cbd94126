"""Tasks of lm-evaluation-harness (the extra `eval`) on a model in memory: what recipes/measure.py --tasks runs."""

import difflib
import logging
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from accelerate import PartialState
from datasets.exceptions import DatasetsError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fourstage.errors import one_line
from fourstage.models.checkpoint import open_causal_lm
from fourstage.models.opening import open_tokenizer
from fourstage.stages import STAGES

if TYPE_CHECKING:  # an extra, and slow to import
    from lm_eval.tasks import TaskManager


@dataclass
class TaskSettings:
    """Which tasks of lm-eval are run, and how.

    Args:
        names: tasks, groups or tags.
        include_path: a folder with .yaml files of tasks of your own.
        max_rows: rows of each task, from the first; 0 for all.
        batch_size: rows that the model reads at once.
        apply_chat_template: ask through the chat template or not; None: a tuned model yes, a base model no.
    """

    names: list[str]
    include_path: Path | None = None
    max_rows: int = 0
    batch_size: int = 8
    apply_chat_template: bool | None = None


def measure_tasks(name: str, stage: str | None, settings: TaskSettings) -> dict[str, dict]:
    """Runs tasks of lm-eval on a model, prints their table, and returns their `numbers`, with `chat` in each.

    Args:
        name: folder or Hub id of the model. stage: the one that its run.json names, if it has a run.json.
    Raises:
        ValueError: before the first question, if lm-eval, the model, a task or its data is missing or cannot be used.
    """
    if not find_spec("lm_eval"):
        raise ValueError('--tasks needs lm-eval: pip install -e ".[eval]" -c constraints.txt')
    if stage in STAGES and STAGES[stage].scores:
        raise ValueError(f"{name} is a reward model: it scores answers and writes none, which lm-eval needs")
    manager = find_tasks(settings.names, settings.include_path)
    tokenizer = open_tokenizer(name)
    model = open_causal_lm(name)
    chat = _asks_in_chat(name, stage, tokenizer, settings.apply_chat_template)
    rows = f"the first {settings.max_rows} rows of each" if settings.max_rows else "all rows"
    print(f"{name}: {model.num_parameters():,} parameters, {rows}, {'as' if chat else 'not as'} chat")
    model = model.to(PartialState().device)
    limit = settings.max_rows or None
    results = run_tasks(model, tokenizer, settings.names, manager, limit, settings.batch_size, chat)
    tasks = {task: row | {"chat": chat} for task, row in numbers(results).items()}
    print(table(tasks))
    return tasks


def _asks_in_chat(name: str, stage: str | None, tokenizer: PreTrainedTokenizerBase, choice: bool | None) -> bool:
    """The choice, if there is one; else a base model is asked in plain text, and others in chat if they can."""
    if choice and not tokenizer.chat_template:
        raise ValueError(f"--apply_chat_template: the tokenizer of {name} has no chat template; leave it out")
    if choice is not None:
        return choice
    return bool(tokenizer.chat_template) and stage != "pretrain"


def find_tasks(names: list[str], include_path: Path | None) -> "TaskManager":
    """An lm-eval TaskManager that knows all of `names` (tasks, groups or tags); no task is loaded yet.

    If the YAML files below `include_path` define them all, lm-eval's own thousands of files are not read.
    Raises:
        ValueError: if a name is unknown (with the nearest known ones), or a task executes what the model writes.
    """
    from lm_eval.tasks import TaskManager

    if include_path and not include_path.is_dir():
        raise ValueError(f"include_path={include_path}: no such folder; it holds the .yaml files of your tasks")
    manager = TaskManager(include_path=include_path, include_defaults=False) if include_path else None
    if manager is None or not set(names) <= set(manager.all_tasks):
        manager = TaskManager(include_path=include_path)
    for name in names:
        if name not in manager.task_index:
            near = difflib.get_close_matches(name, manager.all_tasks, n=5)
            hint = f"did you mean {', '.join(near)}?" if near else "`lm-eval ls tasks` lists lm-eval's own"
            raise ValueError(f"--tasks {name}: lm-eval has no such task; {hint}")
    for name in _members(manager.task_index, names):
        entry = manager.task_index.get(name)
        if entry and (entry.cfg or {}).get("unsafe_code"):
            raise ValueError(f"--tasks {name}: it executes what the model writes; run it with lm-eval in a sandbox")
    return manager


def _members(index: dict, names: list) -> Iterator[str]:
    """The names, and those of all tasks that their groups and tags stand for."""
    for name in names:
        if isinstance(name, dict):  # a member of a group with settings of its own, or a group written out
            name = name.get("task") or name.get("group")
        if isinstance(name, list):
            yield from _members(index, name)
            continue
        yield name
        entry = index.get(name)
        if entry:
            listed = (entry.cfg or {}).get("task")
            yield from _members(index, listed if isinstance(listed, list) else [])
            yield from _members(index, sorted(entry.tags) if entry.kind.name == "TAG" else [])


def run_tasks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    names: list[str],
    manager: "TaskManager",
    limit: int | None,
    batch_size: int,
    chat: bool,
) -> dict:
    """lm-eval's results on the first `limit` rows of each task (None: all); `chat` asks through the chat template.

    No code from a data set's repository is run, and no metric's code from the Hub.
    Raises:
        ValueError: if a task's data cannot be loaded, or a task asks for longer answers than the model's context.
    """
    import evaluate.config
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    evaluate.config.HF_EVALUATE_OFFLINE = True  # a metric of the Hub is a script
    logging.getLogger("lm_eval.models.huggingface").addFilter(_is_worth_printing)
    with _in_one_line(names):
        return simple_evaluate(
            model=HFLM(pretrained=model, tokenizer=cast(Any, tokenizer), batch_size=batch_size),  # typed too narrowly
            tasks=names,
            task_manager=manager,
            limit=limit,
            apply_chat_template=chat,
            bootstrap_iters=1_000,
            log_samples=False,
        )


def _is_worth_printing(record: logging.LogRecord) -> bool:
    """Drops lm-eval's warnings that the model is already in memory, which is on purpose here."""
    return not record.getMessage().startswith(("`pretrained` model kwarg is not", "Passed an already-initialized"))


@contextmanager
def _in_one_line(names: list[str]) -> Generator[None]:
    try:
        yield
    except AssertionError as error:
        if "maximum sequence length" not in str(error):
            raise
        raise ValueError(f"--tasks: max_gen_toks in a task's generation_kwargs is too large: {error}") from error
    except (ConnectionError, FileNotFoundError, DatasetsError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "Dataset scripts" not in str(error):  # datasets' refusal to run code
            raise
        reason = one_line(error, longest=300)
        raise ValueError(f"--tasks {','.join(names)}: the data cannot be loaded: {reason}") from error


def numbers(results: dict) -> dict[str, dict]:
    """What to keep of lm-eval's results, by task: each metric and its `_stderr`, `n` (rows), `n_shot` and `version`.

    A metric of filtered answers is called "metric,filter". Standard errors that lm-eval does not give are left out.
    """
    by_task = {}
    for task, row in (results["results"] | results.get("groups", {})).items():
        values = {
            key.removesuffix(",none"): float(value) for key, value in row.items() if isinstance(value, float | int)
        }
        n = values.pop("sample_len", None)
        rest = {"n": n and int(n), "n_shot": results["n-shot"].get(task), "version": results["versions"].get(task)}
        by_task[task] = values | {key: value for key, value in rest.items() if value is not None}
    return by_task


def table(tasks: dict[str, dict]) -> str:
    """The `numbers` of tasks as text, a line for each metric: task, metric, value, standard error, rows."""
    lines = []
    for task, row in tasks.items():
        for name in (key for key in row if key not in ("n", "n_shot", "version", "chat") and "_stderr" not in key):
            metric, _, rule = name.partition(",")
            error = row.get(f"{metric}_stderr{',' if rule else ''}{rule}")
            spread = f" ± {error:.4f}" if error is not None else ""
            lines.append(f"  {task:<28} {name:<28} {row[name]:.4f}{spread}  n = {row.get('n', '?')}")
    return "\n".join(lines)
