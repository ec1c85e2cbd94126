"""Packed rows of ids, against those of TRL's own preparation of the same texts."""

import copy
import random

import pytest
import torch
from datasets import Dataset, config
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from fourstage.arguments import PretrainConfig
from fourstage.data import packed
from fourstage.data.packed import collate_packed, packed_rows
from fourstage.models.encoding import encode_texts
from fourstage.models.markers import Markers
from fourstage.pretraining import PretrainTrainer

SHAPE = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
WORDS = ["red", "kite", "über", "river", "a", "green", "boat\n", "\U0001f3b5", "<|eos|", "12", "  "]
ODD = ["", "<|eos|>", " ", "a" * 3_000, "It ends with <|eos|>", "<|user|>Hi<|assistant|>", "no \ufdd0 sign", "\n\n"]


def texts(count, odd=()):
    chance = random.Random(0)
    rows = [" ".join(chance.choices(WORDS, k=chance.randrange(1, 60))) for _ in range(count)]
    return Dataset.from_dict({"text": [*rows, *odd, *rows[:3]]})


def settings(folder, **chosen):
    chosen = {"max_length": 64, "packing_strategy": "wrapped", "learning_rate": 1e-2, "max_steps": 1} | chosen
    return PretrainConfig(output_dir=str(folder), report_to=[], eval_strategy="no", use_cpu=True, **chosen)


def of_trl(rows, tokenizer, args):
    """(rows of TRL's own trainer, as lists of ids and of labels)"""
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer) + 8, **SHAPE))
    args = copy.deepcopy(args)
    trainer = SFTTrainer(model=model, args=args, train_dataset=rows, processing_class=tokenizer)
    return [row["input_ids"] for row in trainer.train_dataset], [row["labels"] for row in trainer.train_dataset]


def ids_of(rows):
    """Lists, of the arrays of a data set and the lists of a stream."""
    return [list(map(int, row["input_ids"])) for row in rows]


def of_words():
    """A tokenizer of another kind: words, unknown ones among them, and no token at the beginning."""
    words = Tokenizer(models.WordLevel(unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    special = trainers.WordLevelTrainer(special_tokens=["<unk>", "<|eos|>", "<|user|>"], vocab_size=40)
    words.train_from_iterator(WORDS, special)
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<|eos|>", pad_token="<unk>", unk_token="<unk>")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("rows", "kind", "chosen"),
    [
        (texts(40), "own", {}),
        (texts(40, ODD), "own", {}),
        (texts(40, ODD), "words", {}),
        (texts(40, ODD), "own", {"shuffle_dataset": False, "seed": 5}),
        (texts(1_100, ODD), "own", {"max_length": 17, "seed": 3}),
        (texts(997), "own", {"max_length": 2_048, "shuffle_dataset": False}),
    ],
)
def test_rows_are_those_of_trl(tokenizer, tmp_path, rows, kind, chosen, stream):
    tokenizer, args = tokenizer if kind == "own" else of_words(), settings(tmp_path, **chosen)
    given = rows.to_iterable_dataset() if stream else rows
    kept = packed_rows({"train_dataset": given}, tokenizer, args, keep_markers=True)["train_dataset"]
    kept = ids_of(kept)
    ids, labels = of_trl(given, tokenizer, args)
    assert kept == ids == labels  # the collator takes the ids for labels where there are none
    plain = packed_rows({"train_dataset": given}, tokenizer, args, keep_markers=False)["train_dataset"]
    markers = Markers(tokenizer)
    broken = given.map(lambda row: {"text": markers.broken(row["text"])}, features=given.features)
    ids, _ = of_trl(broken, markers.reader, args)
    assert ids_of(plain) == ids
    assert (ids == kept) is not any("<|eos|>" in text or "<|user|>" in text for text in rows["text"])


def test_a_file_of_rows_is_written_once_and_by_what_it_is_made_of(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(packed, "_WORTH_A_FILE", 100)
    read = []
    monkeypatch.setattr(packed, "encode_texts", lambda *args: read.append(1) or encode_texts(*args))

    def packed_of(rows, **chosen):
        before = len(read)
        parts = packed_rows({"train_dataset": rows}, tokenizer, settings(tmp_path, **chosen), keep_markers=False)
        return ids_of(parts["train_dataset"]), len(read) > before

    first, wrote = packed_of(texts(40))
    assert wrote and packed_of(texts(40)) == (first, False)
    assert packed_of(texts(40).select(range(43))) == (first, False)  # the content counts, not where it came from
    assert packed_of(texts(41))[1] and packed_of(texts(40), seed=1)[1] and packed_of(texts(40), max_length=32)[1]
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.add_tokens(["kite"])
    other, wrote = packed_of(texts(40))
    assert wrote and other != first
    files = sorted((tmp_path / "cache" / "fourstage-rows").iterdir())
    assert packed_of(Dataset.from_dict({"text": ["tiny"]}))[1]  # stays in memory
    assert sorted((tmp_path / "cache" / "fourstage-rows").iterdir()) == files
    assert len([file for file in files if not file.name.startswith("cache-")]) == 5


@pytest.mark.parametrize("stream", [False, True])
def test_a_batch_is_trls_without_a_mask_of_ones(tokenizer, tmp_path, stream):
    """Rows of one length, and a last one that is shorter and needs the mask."""
    rows = texts(40).to_iterable_dataset() if stream else texts(40)
    args = settings(tmp_path, shuffle_dataset=False)
    packed = list(packed_rows({"train_dataset": rows}, tokenizer, args, keep_markers=False)["train_dataset"])
    trls = DataCollatorForLanguageModeling(pad_token_id=tokenizer.pad_token_id)
    for some, masked in ((packed[:4], False), (packed[-2:], True)):
        batch, expected = collate_packed(trls, some), trls([{"input_ids": ids} for ids in ids_of(some)])
        assert expected["attention_mask"].all() == (not masked)
        if not masked:
            del expected["attention_mask"]
        assert batch.keys() == expected.keys()
        for name, value in expected.items():
            assert torch.equal(batch[name], value) and batch[name].dtype == value.dtype
        batch["labels"][0, 0] = -100
        assert batch["input_ids"][0, 0] != -100


def test_the_trainer_makes_its_batches_so(tokenizer, tmp_path):
    rows = texts(40)
    trainer = PretrainTrainer(
        model=LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **SHAPE)),
        args=settings(tmp_path, per_device_train_batch_size=4),
        **{"train_dataset": rows, "eval_dataset": rows, "processing_class": tokenizer, "bytes_per_token": 1.0},
    )
    batches = list(trainer.get_train_dataloader())
    assert {tuple(batch) for batch in batches} >= {("input_ids", "labels")}
    assert sum(batch["input_ids"].numel() for batch in batches if "attention_mask" not in batch) > 0
