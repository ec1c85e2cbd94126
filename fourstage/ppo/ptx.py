"""PPO-ptx: rows that the policy goes on learning, so that it forgets less of what the rewards do not ask for.

The loss of the policy gets a multiple of the language-model loss on such rows (InstructGPT, arXiv 2203.02155, equation
2), against what its authors call an alignment tax. They took texts of pre-training; here it is conversations, which are
learnt as in stage 2.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import cast

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from fourstage.arguments import DataArguments
from fourstage.data.encoded import encode_conversations
from fourstage.data.loading import load_conversations
from fourstage.models.tokenizer import mark_generation
from fourstage.ppo.config import PPORunConfig

COLUMNS = ["input_ids", "labels"]
LONGEST_PTX = 1024  # tokens of a row


@dataclass
class _AsInStage2:
    """What `encode_conversations` asks of the settings of stage 2."""

    max_length: int | None
    overlong: str = "drop"
    assistant_only_loss: bool = True
    completion_only_loss: bool | None = None


def load_ptx(
    training_args: PPORunConfig, data_args: DataArguments, tokenizer: PreTrainedTokenizerBase, context: int | None
) -> Dataset | None:
    """The training rows of `ptx_dataset_name` with `input_ids` and `labels`; None without such a name.

    Rows of more than 1,024 tokens, or than `context`, are left out and counted, as are those that the run's
    `unreadable` drops. What stage 2 held out of the same data, with the same seed, is left out too.

    Raises:
        ValueError: for rows that are no conversations, as recipes/sft.py refuses them.
    """
    if not training_args.ptx_dataset_name:
        return None
    asked = DataArguments(
        dataset_name=training_args.ptx_dataset_name,
        dataset_config=training_args.ptx_dataset_config,
        unreadable=data_args.unreadable,
        fold_system=data_args.fold_system,
    )
    marked = copy.deepcopy(tokenizer)  # the policy's keeps its own template
    mark_generation(marked)
    rows, _ = load_conversations(asked, training_args.seed, marked)
    settings = _AsInStage2(min(context or LONGEST_PTX, LONGEST_PTX))
    return cast(Dataset, encode_conversations(marked, rows, settings, "ptx")).select_columns(COLUMNS)


def check_ptx(rows: Dataset | None) -> None:
    """Raises ValueError for rows without `input_ids` and `labels`, or without a row."""
    if rows is not None and not (len(rows) and {*COLUMNS} <= {*rows.column_names}):
        raise ValueError(
            f"ptx_dataset has {len(rows):,} rows with the columns {rows.column_names}; it needs at least one row, with "
            "input_ids and labels, as fourstage.ppo.ptx.load_ptx makes them"
        )


def ptx_batch(rows: Dataset, seed: int, place: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, attention mask and labels, each (size, T), of batch `place` in an endless series of shuffles of the rows.

    Each row comes once in a shuffle. Shorter rows are padded on the right, where the mask is 0 and the label -100.
    """
    taken = [rows[_row_at(position, len(rows), seed)] for position in range(place * size, (place + 1) * size)]
    ids, labels = ([torch.tensor(row[name]) for row in taken] for name in COLUMNS)
    masks = [torch.ones_like(one) for one in ids]
    padded, mask = (pad_sequence(part, batch_first=True) for part in (ids, masks))
    return padded, mask, pad_sequence(labels, batch_first=True, padding_value=-100)


def _row_at(position: int, count: int, seed: int) -> int:
    shuffle, place = divmod(position, count)
    return int(_order(count, seed + shuffle)[place])


@lru_cache(maxsize=2)
def _order(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(count)


def language_model_nats(model: Callable, ids: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
    """(2,): the sum of the negative log-likelihoods, in nats, of a batch's labelled tokens, and their number.

    Each input is (B, T); the first token of a row is not learnt, as nothing comes before it.
    """
    logits, targets = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1], labels[:, 1:]
    nats = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=-100, reduction="sum")
    return torch.stack([nats, (targets != -100).sum().to(nats)])


class PtxBatches:
    """The batches of `ptx_batch`, and how many labelled tokens are in some of them.

    Args:
        rows: with `input_ids` and `labels`. seed: of the shuffles. size: rows of a batch.
    """

    def __init__(self, rows: Dataset, seed: int, size: int):
        self.rows, self.seed, self.size = rows, seed, size

    def at(self, place: int) -> tuple[Tensor, Tensor, Tensor]:
        """Batch number `place`."""
        return ptx_batch(self.rows, self.seed, place, self.size)

    def tokens(self, first: int, batches: int) -> int:
        """Labelled tokens of so many batches from number `first` on; at least 1."""
        positions = range(first * self.size, (first + batches) * self.size)
        taken = self.rows[[_row_at(position, len(self.rows), self.seed) for position in positions]]
        return max(sum(label != -100 for labels in taken["labels"] for label in labels[1:]), 1)
