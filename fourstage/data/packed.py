"""Documents as packed rows of ids for pre-training: tokenized many at a time, and written once for all runs alike."""

import hashlib
import json
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import tokenizers
import torch
from accelerate import PartialState
from datasets import Dataset, Features, IterableDataset, List, Value, config
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from fourstage.arguments import PretrainConfig
from fourstage.data.sources import Rows
from fourstage.models.encoding import encode_texts
from fourstage.models.markers import Markers

_DOCUMENTS = 1_000  # joined before they are cut into rows, as TRL (1.16) joins them
_WORTH_A_FILE = 16_000_000  # bytes of text: less is tokenized within seconds
_FEATURES = Features({"input_ids": List(Value("int32"))})


def packs_here(args: PretrainConfig) -> bool:
    """Whether `packed_rows` packs as these settings ask; best-fit packing is left to TRL."""
    return args.packing and args.packing_strategy == "wrapped" and args.eval_packing is not False


def packed_rows(
    parts: Mapping[str, Rows], tokenizer: PreTrainedTokenizerBase, args: PretrainConfig, keep_markers: bool
) -> dict[str, Rows]:
    """Rows of `max_length` ids, those that SFTTrainer (TRL 1.16) makes of the same texts with packing "wrapped".

    Each document is followed by the end token, and 1,000 documents are joined and cut. Rows of a data set on disk are
    kept under the cache of `datasets`, by what they are made of, and found there by other processes and later runs.

    Args:
        parts: texts in a column `text`, by "train_dataset" and "eval_dataset".
        keep_markers: let a special token that is spelt out in a document be the token; otherwise it is plain text.
    """
    markers = None if keep_markers else Markers(tokenizer)
    seen = {name: _look(data, markers) for name, data in parts.items() if isinstance(data, Dataset)}
    count = sum(look.marked for look in seen.values())
    if count:
        print(
            f"{count:,} documents spell out special tokens; they are read as plain text (--keep_markers: as the tokens)"
        )
    if not count and len(seen) == len(parts):
        markers = None
    wrap = Wrapping(tokenizer, args.max_length or 0, markers)
    return {
        name: _of_table(data, seen[name], wrap, args) if isinstance(data, Dataset) else _of_stream(data, wrap, args)
        for name, data in parts.items()
    }


@dataclass(eq=False)
class Wrapping:
    """From some documents to rows of `length` tokens, the last of them shorter; markers, if given, as plain text."""

    tokenizer: PreTrainedTokenizerBase
    length: int
    markers: Markers | None

    def __call__(self, documents: pa.Table) -> pa.Table:
        """{"text": documents} -> {"input_ids": rows}"""
        ids, end = array("i"), self.tokenizer.eos_token
        texts = (value.as_py() for value in documents["text"])
        if self.markers is not None:
            texts = map(self.markers.broken, texts)
        ended = (text if text.endswith(end) else text + end for text in texts)
        for document in encode_texts(self.markers.reader if self.markers else self.tokenizer, ended):
            ids.fromlist(document)
        cuts = np.append(np.arange(0, len(ids), self.length, dtype=np.int32), np.int32(len(ids)))
        return pa.table({"input_ids": pa.ListArray.from_arrays(pa.array(cuts), pa.array(np.array(ids, np.int32)))})


@dataclass
class _Look:
    """What is found by reading all texts once: a hash of them, their size in bytes, how many have markers."""

    digest: str
    size: int
    marked: int


def _look(data: Dataset, markers: Markers | None) -> _Look:
    digest, size, marked = hashlib.blake2b(digest_size=16), 0, 0
    for batch in data.select_columns("text").with_format("arrow").iter(_DOCUMENTS):
        for value in batch["text"]:
            content = value.as_buffer()
            digest.update(content.size.to_bytes(8))
            digest.update(content)
            size += content.size
            marked += markers is not None and markers.found_in(value.as_py())
    return _Look(digest.hexdigest(), size, marked)


def _of_table(data: Dataset, look: _Look, wrap: Wrapping, args: PretrainConfig) -> Dataset:
    options: Any = {"batched": True, "batch_size": _DOCUMENTS, "remove_columns": data.column_names}
    options |= {"features": _FEATURES, "num_proc": args.dataset_num_proc, "desc": "Tokenizing and packing"}
    data = data.shuffle(seed=args.seed, keep_in_memory=True) if args.shuffle_dataset else data
    data, key = data.with_format("arrow"), _key(look, wrap, args)
    if look.size < _WORTH_A_FILE or not isinstance(wrap.tokenizer, PreTrainedTokenizerFast):
        rows = data.map(wrap, keep_in_memory=True, load_from_cache_file=False, new_fingerprint=key, **options)
    else:
        folder = Path(config.HF_DATASETS_CACHE) / "fourstage-rows"
        folder.mkdir(parents=True, exist_ok=True)
        state = PartialState()
        with state.main_process_first(), state.local_main_process_first():
            rows = data.map(wrap, cache_file_name=str(folder / f"{key}.arrow"), new_fingerprint=key, **options)
    rows = rows.with_format("numpy")
    return rows.shuffle(seed=args.seed) if args.shuffle_dataset else rows


def collate_packed(collate: Callable[[list], dict[str, Any]], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """A batch of rows of ids: of equal length without a mask, which would say nothing, else what `collate` makes.

    Rows of a data set come as arrays, and ids are labels as well: at 32 rows of 1,024 tokens a batch takes 1 ms, with
    lists of integers and TRL's collator 9. Without a mask, a GPU is not asked each time whether it hides anything.
    """
    alike = all(row.keys() == {"input_ids"} for row in rows) and len({len(row["input_ids"]) for row in rows}) == 1
    if not alike:
        return collate([{name: np.asarray(value).tolist() for name, value in row.items()} for row in rows])
    ids = torch.from_numpy(np.stack([np.asarray(row["input_ids"], np.int64) for row in rows]))
    return {"input_ids": ids, "labels": ids.clone()}


def _key(look: _Look, wrap: Wrapping, args: PretrainConfig) -> str:
    """A hash of all that the rows depend on."""
    tokenizer = wrap.tokenizer
    vocabulary = tokenizer.backend_tokenizer.to_str() if isinstance(tokenizer, PreTrainedTokenizerFast) else None
    order = args.seed if args.shuffle_dataset else None
    parts = [look.digest, vocabulary, tokenizers.__version__, tokenizer.eos_token, wrap.length, wrap.markers is None]
    return hashlib.blake2b(json.dumps([*parts, order, args.dataset_num_proc]).encode(), digest_size=16).hexdigest()


def _of_stream(data: IterableDataset, wrap: Wrapping, args: PretrainConfig) -> IterableDataset:
    data = data.select_columns("text")
    data = data.shuffle(seed=args.seed) if args.shuffle_dataset else data
    options: Any = {"batched": True, "batch_size": _DOCUMENTS, "remove_columns": ["text"], "features": _FEATURES}
    rows = data.with_format("arrow").map(wrap, **options).with_format(None)
    return rows.shuffle(seed=args.seed) if args.shuffle_dataset else rows
