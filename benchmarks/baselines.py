"""Bits per byte of held-out text: base models beside what needs no neural network, on the same bytes.

    python benchmarks/baselines.py --dataset_name FOLDER --models runs/base --output FILE

xz -9 alone and after the training text, an interpolated 5-gram model of bytes, and one of the first model's tokens.

The n-gram models are Witten-Bell interpolation over all training text (of tokens: begin token, text and end token of
every document). A model reads windows as long as it was trained on.
"""

import argparse
import json
import lzma
import math

import numpy as np
from transformers import AutoModelForCausalLM, AutoTokenizer

from fourstage.arguments import DataArguments
from fourstage.data.loading import load_texts
from fourstage.evaluation.generation import text_nats


def ngram_nats(train: np.ndarray, test: np.ndarray, alphabet: int, order: int = 5) -> float:
    """Cost in nats of `test` under an interpolated n-gram model of `train`; both are symbols below `alphabet`.

    p_k(c | h) = (count(h c) + T(h) p_{k-1}(c | h')) / (count(h) + T(h)), where T(h) is the number of different symbols
    seen after h, h' is h without its oldest symbol, and p_0 is uniform; an unseen h leaves p_{k-1} as it is
    (Witten and Bell 1991; Chen and Goodman 1998, section 2.4).
    """
    probability = np.full(len(test), 1 / alphabet)
    for k in range(1, order + 1):
        # Histories of k - 1 symbols get dense ids; -1 marks one that training never saw.
        history_train, history_test, histories = _ids(train, test, alphabet, k - 1)
        keys, counts = np.unique(history_train * alphabet + train[k - 1 :], return_counts=True)
        seen = np.bincount(keys // alphabet, weights=counts, minlength=histories)
        kinds = np.bincount(keys // alphabet, minlength=histories)
        wanted = history_test * alphabet + test[k - 1 :]
        at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        count = np.where((keys[at] == wanted) & (history_test >= 0), counts[at], 0)
        lower = probability[k - 1 :]
        higher = (count + kinds[history_test] * lower) / (seen[history_test] + kinds[history_test])
        probability[k - 1 :] = np.where(history_test >= 0, higher, lower)
    return float(-np.log(probability).sum())


def _ids(train: np.ndarray, test: np.ndarray, alphabet: int, length: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Dense ids of the `length` symbols before each position from `length` on, in both texts, and their number."""
    train_ids, test_ids, number = np.zeros(len(train), np.int64), np.zeros(len(test), np.int64), 1
    for step in range(length):
        keys, train_ids = np.unique(
            train_ids[:-1] * alphabet + train[step : len(train) - 1][: len(train_ids) - 1], return_inverse=True
        )
        wanted = test_ids[:-1] * alphabet + test[step : len(test) - 1][: len(test_ids) - 1]
        at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        test_ids = np.where((keys[at] == wanted) & (test_ids[:-1] >= 0), at, -1)
        number = len(keys)
    return train_ids, test_ids, number


def xz_bits(train: bytes, test: bytes) -> dict:
    """Bits per byte of the test text alone, and of what it adds to the compressed training text."""
    alone = len(lzma.compress(test, preset=9))
    after = len(lzma.compress(train + test, preset=9)) - len(lzma.compress(train, preset=9))
    return {"xz -9": 8 * alone / len(test), "xz -9 after the training text": 8 * after / len(test)}


def tokens_of(texts: list[str], tokenizer) -> np.ndarray:
    ids = (tokenizer(text, verbose=False)["input_ids"] + [tokenizer.eos_token_id] for text in texts)
    return np.fromiter((i for document in ids for i in document), np.int64)


def measure(args: argparse.Namespace) -> dict:
    train, test = load_texts(DataArguments(dataset_name=args.dataset_name), seed=0)
    train_texts, test_text = list(train["text"]), "\n\n".join(test["text"])[: args.characters]
    train_bytes, test_bytes = "\n\n".join(train_texts).encode(), test_text.encode()
    rows = xz_bits(train_bytes, test_bytes)
    symbols = [np.frombuffer(text, np.uint8).astype(np.int64) for text in (train_bytes, test_bytes)]
    rows["5-gram of bytes"] = ngram_nats(*symbols, alphabet=256) / math.log(2) / len(test_bytes)
    for name in args.models:
        model, tokenizer = AutoModelForCausalLM.from_pretrained(name), AutoTokenizer.from_pretrained(name)
        if name == args.models[0]:
            tokens = [tokens_of(train_texts, tokenizer), np.array(tokenizer(test_text)["input_ids"], np.int64)]
            nats = ngram_nats(*tokens, alphabet=len(tokenizer))
            rows[f"5-gram of the tokens of {name}"] = nats / math.log(2) / len(test_bytes)
        nats = text_nats(model, tokenizer, test_text, model.config.get_text_config().max_position_embeddings)
        rows[f"{name}, {model.num_parameters() / 1e6:.2f}M"] = nats / math.log(2) / len(test_bytes)
    return {"train_bytes": len(train_bytes), "test_bytes": len(test_bytes), "bits_per_byte": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_name", required=True, help="as for recipes/pretrain.py")
    parser.add_argument("--characters", type=int, default=200_000, help="held-out characters read (default: 200,000)")
    parser.add_argument("--models", nargs="*", default=[], help="base models, folders or Hub ids")
    parser.add_argument("--output", help="write the result as JSON")
    args = parser.parse_args()
    result = measure(args)
    for name, bits in result["bits_per_byte"].items():
        print(f"{name:<44} {bits:.3f} bits per byte")
    if args.output:
        with open(args.output, "w", encoding="utf-8") as file:
            json.dump(result, file, indent=1)


if __name__ == "__main__":
    main()
