"""Learning per token: held-out bits per byte of small models on a small budget, one change at a time.

    python benchmarks/pretrain_quality.py ladder --dataset_name FOLDER --seeds 0 1 2 --output FILE
    python benchmarks/pretrain_quality.py optimizers --dataset_name FOLDER --seeds 0 1 2 3 --output FILE

`ladder`: 170 steps of 16 x 256 tokens (0.7M), BPE of 4,096 entries, at most 5M parameters; every rung keeps the
changes of those above it, and the last two are what the recipe does by default (`--last 2` runs them alone).
`optimizers`: a plain 3M Llama with AdamW over N steps against Muon over a full schedule of 0.7 N; the first seed tries
the same four learning rates for both, the other seeds score the best of each.
Scored on the first 200,000 characters of the held-out documents in windows of 256 tokens. Rows are written to FILE as
they come, and those already there are not run again.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

from transformers import set_seed

from fourstage.arguments import DataArguments, ModelArguments, PretrainConfig
from fourstage.artifact.progress import show_progress
from fourstage.data.loading import load_texts
from fourstage.evaluation.generation import text_nats
from fourstage.evaluation.metrics import standard_error
from fourstage.models.random_init import random_causal_lm, uses_scaled_init
from fourstage.models.tokenizer import first_characters, train_tokenizer
from fourstage.optim import fill_rates
from fourstage.pretraining import PretrainTrainer
from fourstage.speed import speed_up

WINDOW, VOCABULARY, CHARACTERS = 256, 4096, 200_000
PLAIN_MODEL = {"model_type": "llama", "num_parameters": "3.4M", "scaled_init": False}
PLAIN_MODEL["config_overrides"] = {"tie_word_embeddings": True}
PLAIN_TRAINING = {"lr_scheduler_type": "cosine", "warmup_steps": 10, "adam_beta1": 0.9}
PLAIN_TRAINING |= {"adam_epsilon": 1e-8, "use_muon": False, "learning_rate": 3e-3}
# (what changes, model arguments, training arguments); None takes a setting back to the recipe's default.
LADDER = [
    ("Llama, AdamW", {}, {}),
    ("Muon for the hidden matrices", {}, {"use_muon": None, "learning_rate": 1e-2}),
    ("query-key norm (Qwen3)", {"model_type": None}, {}),
    (
        "untied, scaled init, rates for embedding and head",
        {"scaled_init": None, "config_overrides": None, "num_parameters": "4.5M"},
        {"learning_rate": None},
    ),
    ("warmup-stable-decay, AdamW's betas: the defaults", {}, dict.fromkeys(PLAIN_TRAINING)),
    ("bfloat16, the default where the CPU multiplies it", {}, {"bf16": True}),
]


def ladder(steps: int):
    """(name, model arguments, training arguments) of every rung, changes accumulated."""
    model, training = dict(PLAIN_MODEL), {**PLAIN_TRAINING, "max_steps": steps}
    for name, model_change, training_change in LADDER:
        model, training = _changed(model, model_change), _changed(training, training_change)
        yield name, model, training


def optimizers(steps: int):
    """The same four learning rates for AdamW over all steps and Muon over 0.7 of them."""
    for optimizer, share in (("AdamW", 1.0), ("Muon", 0.7)):
        for rate in (1e-3, 3e-3, 1e-2, 3e-2):
            name = f"{optimizer}, rate {rate:g}, {round(steps * share)} steps"
            change = {"use_muon": optimizer == "Muon", "learning_rate": rate, "max_steps": round(steps * share)}
            yield name, {**PLAIN_MODEL, "num_parameters": "3M"}, {**PLAIN_TRAINING, **change}


def best_rates(rows: list[dict], seed: int) -> set[str]:
    """The names of the best run of each optimizer with the seed that rates are chosen on."""
    tried = [row for row in rows if row["seed"] == seed]
    kinds = {row["name"].split(",")[0] for row in tried}
    of_kind = {kind: [row for row in tried if row["name"].startswith(kind)] for kind in kinds}
    return {min(group, key=lambda row: row["bits_per_byte"])["name"] for group in of_kind.values()}


def _changed(settings: dict, change: dict) -> dict:
    return {key: value for key, value in {**settings, **change}.items() if value is not None}


def run(model_settings: dict, training_settings: dict, seed: int, data: tuple, batch: int) -> dict:
    """Trains one model with the recipe's own parts and scores it."""
    train, test, tokenizer, held_out = data
    set_seed(seed)
    model_args = ModelArguments(**model_settings)
    config = PretrainConfig(
        output_dir=tempfile.mkdtemp(),
        seed=seed,
        max_length=WINDOW,
        packing_strategy="wrapped",
        per_device_train_batch_size=batch,
        eval_strategy="no",
        eval_on_start=False,
        save_strategy="no",
        disable_tqdm=True,
        logging_steps=50,
        **{"bf16": False, **training_settings},
    )
    fill_rates(config, scaled_init=uses_scaled_init(model_args), random_weights=True)
    model = random_causal_lm(model_args, tokenizer, WINDOW)
    trainer = PretrainTrainer(
        model=model,
        args=config,
        train_dataset=train,
        eval_dataset=test,
        processing_class=tokenizer,
        bytes_per_token=1.0,
    )
    speed_up(trainer, model_args)
    show_progress(trainer)
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start
    bits = text_nats(model, tokenizer, held_out, WINDOW) / 0.6931471805599453 / len(held_out.encode())
    return {"bits_per_byte": bits, "parameters": model.num_parameters(), "seconds": seconds}


def load(dataset_name: str) -> tuple:
    train, test = load_texts(DataArguments(dataset_name=dataset_name), seed=0)
    tokenizer = train_tokenizer(first_characters(train), VOCABULARY, WINDOW)
    return train, test.select(range(1)), tokenizer, "\n\n".join(test["text"])[:CHARACTERS]


def show(rows: list[dict]) -> None:
    for name in dict.fromkeys(row["name"] for row in rows):
        bits = [row["bits_per_byte"] for row in rows if row["name"] == name]
        size = next(row["parameters"] for row in rows if row["name"] == name)
        print(f"{name:<52} {size / 1e6:.2f}M  {statistics.mean(bits):.4f} +- {standard_error(bits):.4f} ({len(bits)})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=("ladder", "optimizers"))
    parser.add_argument("--dataset_name", required=True, help="as for recipes/pretrain.py")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=170, help="steps (default: 170)")
    parser.add_argument("--batch", type=int, default=16, help="rows of 256 tokens in a step (default: 16)")
    parser.add_argument("--last", type=int, default=0, help="only so many of the last settings (default: all)")
    parser.add_argument("--output", help="JSON file that collects the rows")
    args = parser.parse_args()
    output = Path(args.output) if args.output else None
    rows = json.loads(output.read_text())["rows"] if output and output.exists() else []
    data = load(args.dataset_name)
    for seed in args.seeds:
        settings = list({"ladder": ladder, "optimizers": optimizers}[args.study](args.steps))
        for name, model, training in settings[-args.last :]:
            if any(row["name"] == name and row["seed"] == seed for row in rows):
                continue
            if args.study == "optimizers" and seed != args.seeds[0] and name not in best_rates(rows, args.seeds[0]):
                continue
            rows.append({"name": name, "seed": seed, **run(model, training, seed, data, args.batch)})
            print(f"seed {seed}, {name}: {rows[-1]['bits_per_byte']:.4f} ({rows[-1]['seconds']:.0f} s)", flush=True)
            if output:
                shared = {"steps": args.steps, "batch": args.batch, "window": WINDOW, "vocabulary": VOCABULARY}
                output.write_text(json.dumps({**shared, "rows": rows}, indent=1))
    show(rows)


if __name__ == "__main__":
    main()
