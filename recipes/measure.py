"""A checkpoint -> its row of the stage table, printed and written to DIR/evaluation.json.

    python recipes/measure.py runs/base
    python recipes/measure.py runs/sft --dataset_name DATA --max_rows 500

    python recipes/measure.py runs/sft --stage grpo --dataset_name DATA --verifier number --samples 8
    python recipes/measure.py runs/sft --tasks arc_easy,piqa
    python recipes/measure.py runs/sft --tasks sums_generate,sums_choose --include_path recipes/tasks

A base model is measured in bits per byte of held-out text, a tuned one by its answers to held-out questions, a reward
model by its choices on held-out pairs, a reasoning model by how often it solves held-out problems: greedily, sampled,
and with the form of its answers forced. Without --dataset_name it is the part that the stage itself held out; the kind
of measurement follows the stage in run.json. --tasks measures with lm-eval instead (docs/elsewhere.md).
"""

import argparse
import json
from dataclasses import replace
from functools import partial
from pathlib import Path

from fourstage.arguments import DataArguments, restored
from fourstage.errors import reported_errors
from fourstage.ranges import number, whole_number
from fourstage.stages import RECIPES, STAGES


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="python recipes/measure.py DIR [--flag value ...]",
    )
    parser.add_argument("model", metavar="DIR", help="a finished stage, any saved model, or a Hub id")
    parser.add_argument("--stage", choices=RECIPES, help="what to measure (default: as run.json says)")
    parser.add_argument("--dataset_name", help="rows to measure on, all of them (default: what the stage held out)")
    parser.add_argument(
        "--max_rows",
        type=whole_number(0),
        default=200,
        help="rows read, from the first (default: 200; of --tasks: 0 for all)",
    )
    parser.add_argument(
        "--window", type=whole_number(2), help="tokens a base model sees at once (default: its context, at most 1024)"
    )
    parser.add_argument("--max_new_tokens", type=whole_number(1), default=128, help="longest answer (default: 128)")
    parser.add_argument(
        "--unreadable", choices=("error", "drop"), help="rows that cannot be read (default: as the run did)"
    )
    parser.add_argument(
        "--fold_system",
        action=argparse.BooleanOptionalAction,
        help="system texts at the beginning of the user's next turn (default: as the run did)",
    )
    problems = parser.add_argument_group("problems (stage grpo)")
    problems.add_argument("--verifier", help="says what is right (default: the first of the run's reward_funcs)")
    problems.add_argument("--format_func", help="says what is in the form wanted, such as think_format")
    problems.add_argument("--begin", default="", help="text that every answer is forced to begin with, such as <think>")
    problems.add_argument(
        "--samples", type=whole_number(1), default=4, help="answers sampled of each problem (default: 4)"
    )
    problems.add_argument(
        "--temperature", type=number("above 0", lambda x: x > 0), default=1.0, help="of those samples (default: 1)"
    )
    problems.add_argument("--seed", type=whole_number(0, 2**32 - 1), default=0, help="of those samples (default: 0)")
    problems.add_argument("--answers", type=Path, help="file for every problem's answer, as JSON lines")
    tasks = parser.add_argument_group("tasks of lm-eval (extra eval)")
    tasks.add_argument("--tasks", metavar="TASK[,TASK...]", help="names of tasks, groups or tags")
    tasks.add_argument("--include_path", type=Path, metavar="DIR", help="folder with .yaml files of tasks of yours")
    tasks.add_argument("--batch_size", type=whole_number(1), default=8, help="rows at once (default: 8)")
    tasks.add_argument(
        "--apply_chat_template",
        action=argparse.BooleanOptionalAction,
        help="ask through the chat template (default: a tuned model yes, a base model no)",
    )
    args = parser.parse_args()
    if not args.tasks and args.max_rows < 1:
        parser.error("argument --max_rows: 0 stands for all rows of --tasks alone; give at least 1")
    return args


def main(args: argparse.Namespace) -> None:
    from fourstage.models.checkpoint import open_causal_lm, open_classifier
    from fourstage.models.opening import open_tokenizer
    from fourstage.parent import find_parent, is_run

    record = find_parent(args.model).record
    record = record if is_run(record) else None
    if args.tasks:
        from fourstage.evaluation.lm_eval import TaskSettings, measure_tasks

        if args.stage or args.dataset_name:
            raise ValueError("--tasks brings rows and measure of its own; leave out --stage and --dataset_name")
        names = args.tasks.split(",")
        settings = TaskSettings(names, args.include_path, args.max_rows, args.batch_size, args.apply_chat_template)
        former = former_row(args.model)
        tasks = former.get("tasks", {}) | measure_tasks(args.model, record["stage"] if record else None, settings)
        write_row(args.model, {"model": args.model} | former | {"tasks": tasks})
        return
    stage = args.stage or (record["stage"] if record else None)
    if stage is None:
        raise ValueError(f"{args.model} has no run.json; say what to measure with --stage, such as sft or grpo")
    if not (args.dataset_name or record):
        raise ValueError(f"{args.model} has no run.json; name the rows to measure on with --dataset_name")
    measurement = measurement_of(stage)
    if measurement is measure_answers and not args.dataset_name and STAGES[stage].rows != "conversations":
        raise ValueError(
            f"{args.model} learned from {STAGES[stage].rows}, not from answers; name rows with --dataset_name"
        )
    tokenizer = open_tokenizer(args.model)
    model = (open_classifier if STAGES[stage].scores else open_causal_lm)(args.model)
    metrics, answers = measurement(args, record, model, tokenizer)
    row = {"model": args.model, "stage": stage, "parameters": model.num_parameters(), **metrics}
    for answer in answers[:8]:
        print(f"  {answer['prompt'][-1]['content'][-100:]!r}\n    -> {answer['completion'][:160]!r}")
        print(f"    reference: {answer['reference'][:160]!r}")
    print(json.dumps(row))
    tasks = former_row(args.model).get("tasks")
    write_row(args.model, row | ({"tasks": tasks} if tasks else {}))


def measurement_of(stage: str):
    """How the model of a stage is measured: by what it learned from, and whether it scores answers or writes them."""
    if STAGES[stage].scores:
        return measure_pairs
    return {"text": measure_texts, "problems": measure_problems}.get(STAGES[stage].rows, measure_answers)


def former_row(model: str) -> dict:
    from fourstage.artifact.lineage import evaluation_of

    return evaluation_of(Path(model))


def write_row(model: str, row: dict) -> None:
    from fourstage.atomic import write_atomically

    path = Path(model) / "evaluation.json"
    try:
        if path.parent.is_dir():
            write_atomically(path, json.dumps(row, indent=1) + "\n")
    except OSError as error:
        raise ValueError(f"{path} cannot be written ({error.strerror}); the row is printed above") from None


def held_out(args, record: dict | None, model, tokenizer, stage: str, convert=None):
    """The rows to measure on, read as the run read them, and says how many; not yet in memory."""
    from fourstage.data.loading import describe, held_out_rows

    data_args = restored(DataArguments, record["arguments"]["data"]) if record else DataArguments()
    given = {name: getattr(args, name) for name in ("unreadable", "fold_system") if getattr(args, name) is not None}
    data_args = replace(data_args, **given)
    seed = record["seed"] if record else 0
    asked = tokenizer if tokenizer.chat_template else None
    rows = held_out_rows(stage, args.dataset_name, data_args, seed, convert, asked).take(args.max_rows)
    print(f"{args.model}: {model.num_parameters():,} parameters, {describe(rows)} held out")
    return rows


def settings_of(record: dict | None) -> dict:
    return record["arguments"]["training"] if record else {}


def longest_of(model) -> int:
    """Tokens of a row that a run of ours would take by default."""
    from fourstage.models.facts import context_of

    return min(context_of(model) or 1024, 1024)


def measure_texts(args, record: dict | None, model, tokenizer) -> tuple[dict, list]:
    from fourstage.data.formats import text_row
    from fourstage.evaluation.metrics import bits_per_byte

    field = "text" if args.dataset_name else settings_of(record).get("dataset_text_field", "text")
    rows = held_out(args, record, model, tokenizer, "pretrain", lambda row: text_row(row, field))
    window = args.window or longest_of(model)
    texts = [row["text"] for row in rows]
    return {"rows": len(texts), "window": window, "bits_per_byte": bits_per_byte(model, tokenizer, texts, window)}, []


def measure_pairs(args, record: dict | None, model, tokenizer) -> tuple[dict, list]:
    from fourstage.data.lengths import drop_overlong, pair_tokens
    from fourstage.evaluation.reward_model import describe_report, measure

    rows = held_out(args, record, model, tokenizer, "reward")
    longest = settings_of(record).get("max_length") or longest_of(model)
    rows = list(drop_overlong(rows, partial(pair_tokens, tokenizer), longest, "drop", "held-out"))
    longer = not record or record["metrics"].get("length_baseline") != "shorter wins"  # as on its training rows
    report, _ = measure(model, tokenizer, rows, longer)
    print(describe_report(report))
    return {"rows": len(rows), **report}, []


def measure_answers(args, record: dict | None, model, tokenizer) -> tuple[dict, list]:
    from fourstage.evaluation.metrics import score_answers

    held = list(held_out(args, record, model, tokenizer, "sft"))
    rows = [row for row in held if not asks_for_more(row)]
    if len(rows) < len(held):
        print(f"{len(held) - len(rows)} of {len(held)} rows need tools or settings of the template and are not asked")
    if not rows:
        raise ValueError(f"{args.model}: no held-out row can be asked; name other rows with --dataset_name")
    metrics, answers = score_answers(model, tokenizer, rows, args.max_new_tokens)
    return {"rows": len(rows), **metrics}, answers


def asks_for_more(row: dict) -> bool:
    """Whether the first answer of a row calls a tool, or the row is asked with tools or settings of the template."""
    first = next(turn for turn in row["completion"] if turn["role"] == "assistant")
    return bool(first.get("tool_calls") or row.get("tools") or row.get("chat_template_kwargs"))


def is_code_of_others(reward_func: str) -> bool:
    """Whether a name in a run.json, which may come from anywhere, would be imported from outside of fourstage."""
    return "." in reward_func and not reward_func.startswith("fourstage.")


def measure_problems(args, record: dict | None, model, tokenizer) -> tuple[dict, list]:
    from transformers import set_seed

    from fourstage.data.loading import problem_format
    from fourstage.evaluation.metrics import ProblemSettings, score_problems
    from fourstage.rl.rewards import load_reward_func

    if record and record["stage"] != "grpo" and not args.dataset_name:
        raise ValueError(f"{args.model} was not tuned on problems; name some with --dataset_name")
    training = settings_of(record) if record and record["stage"] == "grpo" else {}
    names = [str(name) for name in training.get("reward_funcs") or []]
    verifier = args.verifier or next(iter(names), None)
    if verifier is None:
        raise ValueError("no verifier is known; name one with --verifier, such as number")
    if verifier != args.verifier and is_code_of_others(verifier):
        raise ValueError(
            f"run.json of {args.model} names the reward function {verifier}, which would be imported and run; read it, "
            "and where you trust it name it with --verifier"
        )
    settings = ProblemSettings(
        verifier=load_reward_func(verifier),
        format_func=load_reward_func(args.format_func) if args.format_func else None,
        begin=args.begin,
        samples=args.samples,
        temperature=args.temperature,
        max_new_tokens=args.max_new_tokens,
    )
    # The run's own rows and checks, so that what it held out is the same here; code of others checks no rows.
    known = [name for name in names or [verifier] if name == args.verifier or not is_code_of_others(name)]
    functions = [load_reward_func(name) for name in known]
    convert = problem_format(functions, training.get("unverifiable", "drop"), training.get("system_prompt"))
    rows = list(held_out(args, record, model, tokenizer, "grpo", convert))
    set_seed(args.seed)
    metrics, answers = score_problems(model, tokenizer, rows, settings)
    if args.answers:
        lines = [json.dumps(answer, ensure_ascii=False) + "\n" for answer in answers]
        args.answers.write_text("".join(lines), encoding="utf-8")
    return {"rows": len(rows), "verifier": verifier, **metrics}, answers


if __name__ == "__main__":
    with reported_errors():
        main(arguments())
