"""A checkpoint -> its row of the stage table, printed and written to DIR/evaluation.json.

    python recipes/evaluate.py runs/base
    python recipes/evaluate.py runs/sft --dataset_name DATA --max_rows 500

A base model is measured in bits per byte of held-out text, a tuned one by its answers to held-out questions, a reward
model by its choices on held-out pairs. Without --dataset_name it is the part that the stage itself held out; the kind
of measurement follows the stage in run.json.
"""

import argparse
import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace

from fourstage.arguments import unshadow_libraries


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="python recipes/evaluate.py DIR [--flag value ...]",
    )
    parser.add_argument("model", metavar="DIR", help="a finished stage, any saved model, or a Hub id")
    parser.add_argument(
        "--stage", choices=("pretrain", "sft", "reward"), help="what to measure (default: as run.json says)"
    )
    parser.add_argument("--dataset_name", help="rows to measure on, all of them (default: what the stage held out)")
    parser.add_argument("--max_rows", type=int, default=200, help="rows read, from the first (default: 200)")
    parser.add_argument(
        "--window", type=int, help="tokens a base model sees at once (default: its context, at most 1024)"
    )
    parser.add_argument("--max_new_tokens", type=int, default=128, help="longest answer (default: 128)")
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    unshadow_libraries(__file__)
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    from fourstage.artifact import check_parent, read_record
    from fourstage.data import drop_overlong, held_out_rows
    from fourstage.metrics import bits_per_byte, score_answers
    from fourstage.preference import describe_report, measure, pair_tokens

    check_parent(args.model)
    record = read_record(args.model)
    stage = args.stage or (record["stage"] if record else None)
    if stage == "ppo":  # its data are prompts alone
        stage = "sft"
        if not args.dataset_name:
            raise ValueError(f"{args.model} learned from prompts without answers; name rows with --dataset_name")
    if stage is None:
        raise ValueError(f"{args.model} has no run.json; say what to measure with --stage pretrain, sft or reward")
    if not (args.dataset_name or record):
        raise ValueError(f"{args.model} has no run.json; name the rows to measure on with --dataset_name")
    data_args = SimpleNamespace(**record["arguments"]["data"]) if record else None
    seed = record["seed"] if record else 0
    training = record["arguments"]["training"] if record else {}
    field = "text" if args.dataset_name else training.get("dataset_text_field", "text")
    rows = held_out_rows(stage, args.dataset_name, data_args, seed, field).take(args.max_rows)

    tokenizer = AutoTokenizer.from_pretrained(args.model)
    kind = AutoModelForSequenceClassification if stage == "reward" else AutoModelForCausalLM
    model = kind.from_pretrained(args.model)
    context = min(getattr(model.config.get_text_config(), "max_position_embeddings", 1024), 1024)
    if stage == "reward":
        longest = training.get("max_length") or context
        rows = drop_overlong(rows, partial(pair_tokens, tokenizer), longest, "drop", "held-out")
    rows = list(rows)
    print(f"{args.model}: {model.num_parameters():,} parameters, {len(rows):,} held-out rows")
    row = {"model": args.model, "stage": stage, "parameters": model.num_parameters(), "rows": len(rows)}
    if stage == "pretrain":
        window = args.window or context
        row |= {"window": window, "bits_per_byte": bits_per_byte(model, tokenizer, (r["text"] for r in rows), window)}
        answers = []
    elif stage == "reward":
        longer = not record or record["metrics"].get("length_baseline") != "shorter wins"  # as on its training rows
        report, _ = measure(model, tokenizer, rows, longer)
        print(describe_report(report))
        row |= report
        answers = []
    else:
        metrics, answers = score_answers(model, tokenizer, rows, args.max_new_tokens)
        row |= metrics
    for answer in answers[:8]:
        print(f"  {answer['prompt'][-1]['content'][-100:]!r}\n    -> {answer['completion'][:160]!r}")
        print(f"    reference: {answer['reference'][:160]!r}")
    print(json.dumps(row))
    if Path(args.model).is_dir():
        (Path(args.model) / "evaluation.json").write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(arguments())
