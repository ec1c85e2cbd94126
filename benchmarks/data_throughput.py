"""Megabytes of text per second through the tokenizer's training and through tokenizing and packing, and the memory.

    python benchmarks/data_throughput.py --dataset_name FOLDER --output FILE

The same trainer prepares the rows as in recipes/pretrain.py: once from a data set on disk, once as a stream that is
read to its end. Memory is the growth of the resident set; for the stream it is read at each tenth of the
text, so that one can see whether it grows with what was read.
"""

import argparse
import json
import tempfile
import time

import psutil

from fourstage.arguments import DataArguments, ModelArguments, PretrainConfig
from fourstage.data.loading import load_texts, texts_of
from fourstage.models.random_init import random_causal_lm
from fourstage.models.tokenizer import first_characters, train_tokenizer
from fourstage.pretraining import PretrainTrainer

LENGTH, VOCABULARY = 256, 4096


def megabytes() -> float:
    return psutil.Process().memory_info().rss / 1e6


def prepared(tokenizer, dataset_name: str, streaming: bool):
    """The packed training rows of the recipe's trainer."""
    train, test = load_texts(DataArguments(dataset_name=dataset_name, dataset_streaming=streaming), seed=0)
    config = PretrainConfig(
        output_dir=tempfile.mkdtemp(), max_steps=1, max_length=LENGTH, packing_strategy="wrapped", learning_rate=1e-2
    )
    model = random_causal_lm(ModelArguments(num_parameters="1M", scaled_init=False), tokenizer, LENGTH)
    trainer = PretrainTrainer(
        model=model,
        args=config,
        train_dataset=train,
        eval_dataset=test,
        processing_class=tokenizer,
        bytes_per_token=1.0,
    )
    return trainer.train_dataset


def measure_stream(tokenizer, dataset_name: str, tokens: int, before: float) -> dict:
    """Reads the stream to its end; memory at each tenth of the tokens."""
    start, seen, growth = time.perf_counter(), 0, []
    for row in prepared(tokenizer, dataset_name, streaming=True):
        seen += len(row["input_ids"])
        if seen >= tokens * (len(growth) + 1) / 10:
            growth.append(round(megabytes() - before))
    return {"seconds": time.perf_counter() - start, "tokens": seen, "memory_at_tenths_MB": growth}


def measure(dataset_name: str) -> dict:
    train, _ = load_texts(DataArguments(dataset_name=dataset_name), seed=0)
    size = sum(len(text.encode()) for text in texts_of(train)) / 1e6
    before, start = megabytes(), time.perf_counter()
    tokenizer = train_tokenizer(first_characters(train), VOCABULARY, LENGTH)
    tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
    seconds = time.perf_counter() - start
    result = {"text_MB": size, "tokenizer": {"MB_per_second": size / seconds, "memory_MB": megabytes() - before}}
    before = megabytes()
    stream = measure_stream(tokenizer, dataset_name, tokens=round(size * 1e6 / 3.3), before=before)
    result["stream"] = {**stream, "MB_per_second": size / stream["seconds"]}
    before, start = megabytes(), time.perf_counter()
    rows = prepared(tokenizer, dataset_name, streaming=False)
    seconds = time.perf_counter() - start
    result["on_disk"] = {"MB_per_second": size / seconds, "memory_MB": megabytes() - before, "rows": len(rows)}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_name", required=True, help="as for recipes/pretrain.py")
    parser.add_argument("--output", help="write the result as JSON")
    args = parser.parse_args()
    result = measure(args.dataset_name)
    print(json.dumps(result, indent=1))
    if args.output:
        with open(args.output, "w", encoding="utf-8") as file:
            json.dump(result, file, indent=1)


if __name__ == "__main__":
    main()
