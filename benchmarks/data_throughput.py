"""Megabytes of text per second from a file to packed rows, beside what the tokenizer itself encodes, and the memory.

    python benchmarks/data_throughput.py --dataset_name FOLDER --pairs 5 --output FILE

In each pair `encode_batch` of the library tokenizers encodes the training texts from memory, and the trainer of
recipes/pretrain.py prepares its rows: from a data set on disk, again from what that left in the cache, and as a stream
that is read to its end. Reading, checking and holding out the documents counts. The ratios are of one pair; shown are
their median, smallest and largest. Every pair begins with an empty cache. Memory is the growth of the resident set
while the stream of the first pair is read, at each tenth of the text.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import psutil
from datasets import config

from fourstage.arguments import DataArguments, ModelArguments, PretrainConfig
from fourstage.data.loading import load_texts, texts_of
from fourstage.models.random_init import random_causal_lm
from fourstage.models.tokenizer import first_characters, train_tokenizer
from fourstage.pretraining import PretrainTrainer, bytes_per_token

LENGTH, VOCABULARY = 256, 4096


def megabytes() -> float:
    return psutil.Process().memory_info().rss / 1e6


def timed(function: Callable) -> tuple[dict[str, float], object]:
    """(wall and processor seconds, what the function returns)"""
    wall, processor = time.perf_counter(), time.process_time()
    result = function()
    return {"wall": time.perf_counter() - wall, "processor": time.process_time() - processor}, result


def prepared(tokenizer, dataset_name: str, streaming: bool):
    """The packed training rows of the recipe's trainer."""
    train, test = load_texts(DataArguments(dataset_name=dataset_name, dataset_streaming=streaming), seed=0)
    settings = PretrainConfig(
        output_dir=tempfile.mkdtemp(), max_steps=1, max_length=LENGTH, packing_strategy="wrapped", learning_rate=1e-2
    )
    model = random_causal_lm(ModelArguments(num_parameters="1M", scaled_init=False), tokenizer, LENGTH)
    trainer = PretrainTrainer(
        model=model,
        args=settings,
        train_dataset=train,
        eval_dataset=test,
        processing_class=tokenizer,
        bytes_per_token=bytes_per_token(texts_of(test), tokenizer),
    )
    return trainer.train_dataset


def encode(tokenizer, texts: list[str]) -> None:
    """What the library does alone, a hundred documents at a time."""
    for start in range(0, len(texts), 100):
        tokenizer.backend_tokenizer.encode_batch(texts[start : start + 100])


def read_stream(tokenizer, dataset_name: str, tokens: int) -> list[int]:
    """Reads the stream to its end; the growth of memory in MB at each tenth of the tokens."""
    before, seen, growth = megabytes(), 0, []
    for row in prepared(tokenizer, dataset_name, streaming=True):
        seen += len(row["input_ids"])
        if seen >= tokens * (len(growth) + 1) / 10:
            growth.append(round(megabytes() - before))
    return growth


def one_pair(tokenizer, dataset_name: str, texts: list[str], tokens: int) -> tuple[dict[str, dict], list[int]]:
    """({way: seconds}, growth of memory)"""
    with tempfile.TemporaryDirectory() as folder:
        config.HF_DATASETS_CACHE = Path(folder)
        seconds = {"encode_batch": timed(lambda: encode(tokenizer, texts))[0]}
        seconds["on disk"] = timed(lambda: prepared(tokenizer, dataset_name, streaming=False))[0]
        seconds["from the cache"] = timed(lambda: prepared(tokenizer, dataset_name, streaming=False))[0]
        seconds["stream"], growth = timed(lambda: read_stream(tokenizer, dataset_name, tokens))
    return seconds, growth


def measure(dataset_name: str, pairs: int) -> dict:
    train, _ = load_texts(DataArguments(dataset_name=dataset_name), seed=0)
    size = sum(len(text.encode()) for text in texts_of(train)) / 1e6
    training, tokenizer = timed(lambda: train_tokenizer(first_characters(train), VOCABULARY, LENGTH))
    tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
    texts, tokens = list(texts_of(train)), round(size * 1e6 / bytes_per_token(texts_of(train), tokenizer))
    results = [one_pair(tokenizer, dataset_name, texts, tokens) for _ in range(pairs)]
    summary: dict = {"text_MB": size, "pairs": pairs, "cores": len(os.sched_getaffinity(0))}
    summary["tokenizer_MB_per_second"] = size / training["wall"]
    for way in results[0][0]:
        clocks = {clock: [seconds[way][clock] for seconds, _ in results] for clock in ("wall", "processor")}
        alone = {clock: [seconds["encode_batch"][clock] for seconds, _ in results] for clock in clocks}
        summary[way] = {f"{clock}_seconds": round(median(values), 2) for clock, values in clocks.items()}
        summary[way]["MB_per_second"] = round(size / median(clocks["wall"]), 2)
        for clock, values in clocks.items():
            ratios = [a / b for a, b in zip(alone[clock], values, strict=True)]
            summary[way][f"ratio_{clock}"] = [round(x, 2) for x in (median(ratios), min(ratios), max(ratios))]
    return summary | {"stream_memory_at_tenths_MB": results[0][1]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_name", required=True, help="as for recipes/pretrain.py")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--output", help="write the result as JSON")
    args = parser.parse_args()
    result = measure(args.dataset_name, args.pairs)
    for name, value in result.items():
        print(f"{name}: {json.dumps(value)}")
    if args.output:
        with open(args.output, "w", encoding="utf-8") as file:
            json.dump(result, file, indent=1)


if __name__ == "__main__":
    main()
