"""Tokens per second of the recipe's trainer over those of a bare PyTorch loop.

    python benchmarks/pretrain_throughput.py --sizes 1M 3M 10M --output FILE

Same model, batch, loader, optimizer, schedule, clipping and precision; no checkpoints. The two alternate, a ratio is
taken for each pair, and the median of the ratios is reported: whatever else the machine does falls on both.
"""

import argparse
import copy
import json
import random
import statistics
import tempfile
import time

import torch
from datasets import Dataset
from transformers import TrainerCallback, set_seed

from fourstage.arguments import ModelArguments, PretrainConfig
from fourstage.artifact.progress import show_progress
from fourstage.models.random_init import random_causal_lm
from fourstage.models.tokenizer import train_tokenizer
from fourstage.optim import MuonWithAdamW, fill_rates, parameter_groups
from fourstage.pretraining import PretrainTrainer

LENGTH, BATCH, WARMUP_STEPS = 256, 16, 2


class StepClock(TrainerCallback):
    """Seconds between the end of the warm-up steps and the end of the last step."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == WARMUP_STEPS:
            self.start = time.perf_counter()
        elif state.global_step == state.max_steps:
            self.seconds = time.perf_counter() - self.start


def make_trainer(model, tokenizer, rows: Dataset, steps: int) -> PretrainTrainer:
    config = PretrainConfig(
        output_dir=tempfile.mkdtemp(),
        max_steps=WARMUP_STEPS + steps,
        max_length=LENGTH,
        per_device_train_batch_size=BATCH,
        packing=False,
        eval_strategy="no",
        eval_on_start=False,
        save_strategy="no",
    )
    fill_rates(config, scaled_init=True, random_weights=True)
    trainer = PretrainTrainer(
        model=model,
        args=config,
        train_dataset=rows,
        eval_dataset=rows,
        processing_class=tokenizer,
        bytes_per_token=1.0,
    )
    show_progress(trainer)
    return trainer


def time_trainer(model, tokenizer, rows, steps: int) -> float:
    clock = StepClock()
    trainer = make_trainer(model, tokenizer, rows, steps)
    trainer.add_callback(clock)
    trainer.train()
    return clock.seconds


def time_bare_loop(model, tokenizer, rows, steps: int) -> float:
    trainer = make_trainer(model, tokenizer, rows, steps)  # for its loader and schedule only
    loader, args = trainer.get_train_dataloader(), trainer.args
    optimizer = MuonWithAdamW(parameter_groups(model, args))
    scheduler = trainer.create_scheduler(args.max_steps, optimizer)
    model.train()
    batches = iter(loader)
    for step in range(1, args.max_steps + 1):
        batch = next(batches)
        model(input_ids=batch["input_ids"], labels=batch["labels"], use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), args.max_grad_norm)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        if step == WARMUP_STEPS:
            start = time.perf_counter()
    return time.perf_counter() - start


def measure(size: str, steps: int, pairs: int) -> dict:
    vocab = {"1M": 1024, "3M": 2048}.get(size, 4096)
    words = ["".join(random.choices("abcdefghij", k=5)) for _ in range(20_000)]
    tokenizer = train_tokenizer([" ".join(words)], vocab, LENGTH)
    set_seed(0)
    ids = torch.randint(len(tokenizer), ((WARMUP_STEPS + steps) * BATCH, LENGTH)).tolist()
    rows = Dataset.from_dict({"input_ids": ids, "labels": ids})
    model = random_causal_lm(ModelArguments(num_parameters=size), tokenizer, LENGTH)
    tokens, speeds = steps * BATCH * LENGTH, []
    for pair in range(pairs):
        timers = (time_bare_loop, time_trainer) if pair % 2 == 0 else (time_trainer, time_bare_loop)
        seconds = {timer.__name__: timer(copy.deepcopy(model), tokenizer, rows, steps) for timer in timers}
        speeds.append({name: tokens / spent for name, spent in seconds.items()})
        print(f"{size} pair {pair + 1}/{pairs}: {speeds[-1]}", flush=True)
    ratios = [speed["time_trainer"] / speed["time_bare_loop"] for speed in speeds]
    return {
        "size": size,
        "parameters": model.num_parameters(),
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "trainer_tokens_per_second": statistics.median(s["time_trainer"] for s in speeds),
        "bare_tokens_per_second": statistics.median(s["time_bare_loop"] for s in speeds),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["1M", "3M", "10M"])
    parser.add_argument("--steps", type=int, default=20, help="timed steps of 16 x 256 tokens (default: 20)")
    parser.add_argument("--pairs", type=int, default=5, help="repetitions (default: 5)")
    parser.add_argument("--output", help="write the rows as JSON")
    args = parser.parse_args()
    rows = [measure(size, args.steps, args.pairs) for size in args.sizes]
    for row in rows:
        print(f"{row['size']}: {row['ratio']:.3f} of the bare loop ({row['trainer_tokens_per_second']:,.0f} tokens/s)")
    if args.output:
        with open(args.output, "w", encoding="utf-8") as file:
            json.dump({"rows": rows, "threads": torch.get_num_threads()}, file, indent=1)


if __name__ == "__main__":
    main()
