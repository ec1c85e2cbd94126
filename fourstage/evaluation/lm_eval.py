"""Tasks of lm-evaluation-harness (the extra `eval`) on a model in memory: what recipes/evaluate.py --tasks runs."""

import difflib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from accelerate import PartialState
from datasets.exceptions import DatasetsError
from transformers import AutoModelForCausalLM, AutoTokenizer

from fourstage.models.opening import opening


def measure_tasks(args, record: dict | None) -> dict[str, dict]:
    """Runs the tasks that recipes/evaluate.py was asked for, prints their table, and returns their `numbers`.

    Args:
        args: of recipes/evaluate.py. record: the model's run.json, if it has one.
    Raises:
        ValueError: if lm-eval is missing, or the model, a task or its data cannot be had; before the first question.
    """
    if not find_spec("lm_eval"):
        raise ValueError('--tasks needs lm-eval: pip install -e ".[eval]" -c constraints.txt')
    if args.stage or args.dataset_name:
        raise ValueError("--tasks brings rows and measure of its own; leave out --stage and --dataset_name")
    if record and record["stage"] == "reward":
        raise ValueError(f"{args.model} is a reward model: it scores answers and writes none, which lm-eval needs")
    names = args.tasks.split(",")
    manager = find_tasks(names, args.include_path)
    with opening(args.model):
        tokenizer = AutoTokenizer.from_pretrained(args.model)
        model = AutoModelForCausalLM.from_pretrained(args.model, use_safetensors=True)
    chat = _asks_in_chat(args, record, tokenizer)
    rows = f"the first {args.max_rows} rows of each" if args.max_rows else "all rows"
    print(f"{args.model}: {model.num_parameters():,} parameters, {rows}, {'as' if chat else 'not as'} chat")
    model = model.to(PartialState().device)
    results = run_tasks(model, tokenizer, names, manager, args.max_rows or None, args.batch_size, chat)
    tasks = {task: row | {"chat": chat} for task, row in numbers(results).items()}
    print(table(tasks))
    return tasks


def _asks_in_chat(args, record: dict | None, tokenizer) -> bool:
    """A tuned model is asked through its template; what has no run.json, if its tokenizer has one."""
    if args.apply_chat_template and not tokenizer.chat_template:
        raise ValueError(f"--apply_chat_template: the tokenizer of {args.model} has no chat template; leave it out")
    if args.apply_chat_template is not None:
        return args.apply_chat_template
    return bool(tokenizer.chat_template) and not (record and record["stage"] == "pretrain")


def find_tasks(names: list[str], include_path: Path | None):
    """An lm-eval TaskManager that knows every one of `names` (tasks, groups or tags), and nothing is loaded yet.

    If the YAML files below `include_path` name them all, lm-eval's own thousands of files are not read.
    Raises:
        ValueError: if a name is unknown, with the nearest known ones, or a task executes what the model writes.
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


def run_tasks(model, tokenizer, names: list[str], manager, limit: int | None, batch_size: int, chat: bool) -> dict:
    """lm-eval's results; `limit` rows of each task, from the first; `chat` asks through the chat template.

    Neither code of a data set's repository is run nor a metric's from the Hub.
    Raises:
        ValueError: if a task's data cannot be loaded, or it asks for longer answers than the model's context.
    """
    import evaluate
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    evaluate.config.HF_EVALUATE_OFFLINE = True  # a metric of the Hub is a script
    logging.getLogger("lm_eval.models.huggingface").addFilter(_worth_saying)
    with _in_one_line(names):
        return simple_evaluate(
            model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size),
            tasks=names,
            task_manager=manager,
            limit=limit,
            apply_chat_template=chat,
            bootstrap_iters=1_000,
            log_samples=False,
        )


def _worth_saying(said: logging.LogRecord) -> bool:
    """lm-eval warns of what is meant here: that the model is one in memory."""
    return not said.getMessage().startswith(("`pretrained` model kwarg is not", "Passed an already-initialized"))


@contextmanager
def _in_one_line(names: list[str]) -> Iterator[None]:
    try:
        yield
    except AssertionError as error:
        if "maximum sequence length" not in str(error):
            raise
        raise ValueError(f"--tasks: max_gen_toks of a task's generation_kwargs is too much: {error}") from error
    except (ConnectionError, FileNotFoundError, DatasetsError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "Dataset scripts" not in str(error):  # what datasets says of code
            raise
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"--tasks {','.join(names)}: the data cannot be loaded: {reason}") from error


def numbers(results: dict) -> dict[str, dict]:
    """What is worth keeping: {task: {metric: value, metric_stderr: ..., n: rows, n_shot: ..., version: of the task}}.

    What a filter of the task's came before is called "metric,filter"; a standard error that lm-eval does not give is
    left out.
    """
    kept = {}
    for task, row in (results["results"] | results.get("groups", {})).items():
        values = {
            key.removesuffix(",none"): float(value) for key, value in row.items() if isinstance(value, float | int)
        }
        n = values.pop("sample_len", None)
        rest = {"n": n and int(n), "n_shot": results["n-shot"].get(task), "version": results["versions"].get(task)}
        kept[task] = values | {key: value for key, value in rest.items() if value is not None}
    return kept


def table(tasks: dict[str, dict]) -> str:
    """Those numbers, a line for each metric: task, metric, value, standard error, rows."""
    lines = []
    for task, row in tasks.items():
        for name in (key for key in row if key not in ("n", "n_shot", "version", "chat") and "_stderr" not in key):
            metric, _, rule = name.partition(",")
            error = row.get(f"{metric}_stderr{',' if rule else ''}{rule}")
            spread = f" ± {error:.4f}" if error is not None else ""
            lines.append(f"  {task:<28} {name:<28} {row[name]:.4f}{spread}  n = {row.get('n', '?')}")
    return "\n".join(lines)
