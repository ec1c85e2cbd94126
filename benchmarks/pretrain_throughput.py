"""Tokens per second of the recipe's trainer over those of bare PyTorch loops.

    python benchmarks/pretrain_throughput.py --sizes 1M 3M 10M --output FILE
    python benchmarks/pretrain_throughput.py --sizes 124M --length 1024 --batch 32 --peak 989e12 --ways shipped compiled

On a GPU if there is one. With `--peak`, the device's dense FLOP/s in bfloat16, it adds the share of them that is used
(MFU): tokens/s x (6 x parameters without the embedding + 12 x layers x width x length) / peak.

Four ways of the same model, batch, loader, optimizer, schedule and clipping, without checkpoints:

| way      | what it is                                                                        |
|----------|-----------------------------------------------------------------------------------|
| bare     | a bare loop in float32, not compiled                                              |
| trainer  | the recipe's trainer in float32, not compiled                                     |
| shipped  | the recipe's trainer as a long run has it: its choice of precision, compiled      |
| compiled | a bare loop in the same precision, with the whole model given to `torch.compile`  |

They alternate, ratios are taken for each round, and the medians are reported: whatever else the machine does falls on
all of them. The first steps, which compile, are not counted.
"""

import argparse
import contextlib
import copy
import json
import random
import statistics
import tempfile
import time
from dataclasses import dataclass
from functools import partial

import torch
from datasets import Dataset
from transformers import TrainerCallback, set_seed

from fourstage.arguments import ModelArguments, PretrainConfig
from fourstage.artifact.progress import show_progress
from fourstage.data.packed import collate_packed
from fourstage.models.random_init import random_causal_lm
from fourstage.models.tokenizer import train_tokenizer
from fourstage.optim import MuonWithAdamW, fill_rates, parameter_groups
from fourstage.pretraining import PretrainTrainer
from fourstage.speed import fill_precision, speed_up

WARMUP_STEPS = 2
WAYS = ("bare", "trainer", "shipped", "compiled")


@dataclass
class Batch:
    """What a step takes: `rows` of `length` tokens; `steps` are timed."""

    rows: int
    length: int
    steps: int

    @property
    def all_steps(self) -> int:
        return WARMUP_STEPS + self.steps


class StepClock(TrainerCallback):
    """Processor and wall seconds between the end of the warm-up steps and the end of the last step."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == WARMUP_STEPS:
            self.start = now()
        elif state.global_step == state.max_steps:
            self.seconds = now() - self.start


def now() -> torch.Tensor:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return torch.tensor([time.process_time(), time.perf_counter()], dtype=torch.float64)


def make_trainer(model, tokenizer, rows: Dataset, batch: Batch, shipped: bool = False) -> PretrainTrainer:
    config = PretrainConfig(
        output_dir=tempfile.mkdtemp(),
        max_steps=batch.all_steps,
        max_length=batch.length,
        per_device_train_batch_size=batch.rows,
        packing=False,  # the rows are packed as they come
        dataset_kwargs={"skip_prepare_dataset": True},
        eval_strategy="no",
        eval_on_start=False,
        save_strategy="no",
        bf16=None if shipped else False,
        torch_compile=shipped,
    )
    fill_rates(config, scaled_init=True, random_weights=True)
    model_args = ModelArguments()
    if shipped:
        fill_precision(config, model_args, model.num_parameters())
    trainer = PretrainTrainer(
        model=model,
        args=config,
        train_dataset=rows,
        eval_dataset=rows,
        processing_class=tokenizer,
        bytes_per_token=1.0,
    )
    trainer.data_collator = partial(collate_packed, trainer.data_collator)
    if shipped:
        speed_up(trainer, model_args)
    show_progress(trainer)
    return trainer


def time_trainer(model, tokenizer, rows, batch: Batch, shipped: bool) -> torch.Tensor:
    clock = StepClock()
    trainer = make_trainer(model, tokenizer, rows, batch, shipped)
    trainer.add_callback(clock)
    trainer.train()
    return clock.seconds


def time_bare_loop(model, tokenizer, rows, batch: Batch, compiled: bool) -> torch.Tensor:
    trainer = make_trainer(model, tokenizer, rows, batch, shipped=compiled)  # for its loader, schedule and precision
    loader, args = trainer.get_train_dataloader(), trainer.args
    optimizer = MuonWithAdamW(parameter_groups(model, args))
    scheduler = trainer.create_scheduler(args.max_steps, optimizer)
    model.train()
    if compiled:
        model.set_attn_implementation("sdpa")  # as a model comes
        model.compile()
    precision = torch.autocast(model.device.type, torch.bfloat16) if args.bf16 else contextlib.nullcontext()
    batches = iter(loader)
    for step in range(1, args.max_steps + 1):
        part = next(batches)
        with precision:
            loss = model(input_ids=part["input_ids"], labels=part["labels"], use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), args.max_grad_norm)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        if step == WARMUP_STEPS:
            start = now()
    return now() - start


def time_way(way: str, model, tokenizer, rows, batch: Batch) -> torch.Tensor:
    timer = time_bare_loop if way in ("bare", "compiled") else time_trainer
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    return timer(copy.deepcopy(model), tokenizer, rows, batch, way in ("shipped", "compiled"))


def measure(size: str, batch: Batch, rounds: int, ways: tuple[str, ...], peak: float | None) -> dict:
    vocab = {"1M": 1024, "3M": 2048}.get(size, 4096)
    words = ["".join(random.choices("abcdefghij", k=5)) for _ in range(20_000)]
    tokenizer = train_tokenizer([" ".join(words)], vocab, batch.length)
    set_seed(0)
    ids = torch.randint(len(tokenizer), (batch.all_steps * batch.rows, batch.length)).tolist()
    rows = Dataset.from_dict({"input_ids": ids}).with_format("numpy")
    model = random_causal_lm(ModelArguments(num_parameters=size), tokenizer, batch.length)
    done, peaks = [], {}
    for turn in range(rounds):
        order = ways if turn % 2 == 0 else ways[::-1]
        done.append({})
        for way in order:
            done[-1][way] = time_way(way, model, tokenizer, rows, batch).tolist()
            peaks[way] = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
        print(f"{size} round {turn + 1}/{rounds}: {done[-1]}", flush=True)
    result = {"size": size, "parameters": model.num_parameters(), "rounds": rounds, "seconds": done}
    for place, kind in enumerate(("processor", "wall")):
        for way, base in (("trainer", "bare"), ("shipped", "bare"), ("shipped", "compiled")):
            if {way, base} <= {*ways}:
                ratios = [turn[base][place] / turn[way][place] for turn in done]
                result[f"{way}/{base} {kind}"] = round(statistics.median(ratios), 3)
    tokens = batch.steps * batch.rows * batch.length
    speed = {way: tokens / statistics.median(turn[way][1] for turn in done) for way in ways}
    result["tokens_per_second"] = {way: round(each) for way, each in speed.items()}
    if any(peaks.values()):
        result["peak_gib"] = {way: round(each / 2**30, 1) for way, each in peaks.items()}
    if peak:
        result["mfu"] = {way: round(each * flops_of(model, batch.length) / peak, 3) for way, each in speed.items()}
    return result


def flops_of(model, length: int) -> float:
    """Floating-point operations a token of training, forward and backward."""
    weights = model.num_parameters()
    if not model.config.tie_word_embeddings:  # looked up, not multiplied; a tied one is the head as well
        weights -= model.get_input_embeddings().weight.numel()
    return 6 * weights + 12 * model.config.num_hidden_layers * model.config.hidden_size * length


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["1M", "3M", "10M"])
    parser.add_argument("--steps", type=int, default=10, help="timed steps (default: 10)")
    parser.add_argument("--batch", type=int, default=16, help="rows a step (default: 16)")
    parser.add_argument("--length", type=int, default=256, help="tokens a row (default: 256)")
    parser.add_argument("--peak", type=float, help="FLOP/s of the device, for MFU")
    parser.add_argument("--rounds", type=int, default=3, help="repetitions (default: 3)")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--output", help="write the rows as JSON")
    args = parser.parse_args()
    batch = Batch(args.batch, args.length, args.steps)
    rows = [measure(size, batch, args.rounds, tuple(args.ways), args.peak) for size in args.sizes]
    for row in rows:
        print({key: value for key, value in row.items() if key != "seconds"})
    if args.output:
        with open(args.output, "w", encoding="utf-8") as file:
            json.dump({"rows": rows, "threads": torch.get_num_threads()}, file, indent=1)


if __name__ == "__main__":
    main()
