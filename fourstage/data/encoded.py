"""Conversations and pairs as the ids that their trainer takes: each text is rendered and tokenized once."""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, Protocol

from datasets import Dataset, Features, List, Value
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from trl.data_utils import common_prefix_length

from fourstage.arguments import RewardModelConfig
from fourstage.data.lengths import BATCH, Columns, by_rows, drop_overlong, pair_ids, rows_of
from fourstage.data.sources import Rows
from fourstage.models.encoding import encode_chats
from fourstage.models.turns import template_settings


class ConversationSettings(Protocol):
    """What `InstructConfig` says of rows."""

    max_length: int | None
    overlong: str
    assistant_only_loss: bool
    completion_only_loss: bool | None


def encode_conversations(tokenizer: PreTrainedTokenizerBase, data: Rows, args: ConversationSettings, name: str) -> Rows:
    """Rows of `load_conversations` with `input_ids` and `labels`, as SFTTrainer (TRL 1.16) would make them of each.

    Left out are rows that are too long (see `drop_overlong`), and rows of whose completion nothing is learnt.

    Args:
        name: of the rows, for messages: "train" or "held-out".
    Raises:
        ValueError: for a row of which the template marks nothing as the assistant's, and as `drop_overlong`.
    """
    rows = _with_ids(data, partial(_conversations, tokenizer, args=args), ("input_ids", "labels"), name)
    rows = drop_overlong(rows, _longest("input_ids"), args.max_length or 0, args.overlong, name)
    return rows.filter(lambda labels: [{*row} != {-100} for row in labels], batched=True, input_columns="labels")


def encode_pairs(tokenizer: PreTrainedTokenizerBase, data: Rows, args: RewardModelConfig, name: str) -> Rows:
    """Rows of `load_preferences` with `chosen_ids` and `rejected_ids`, as RewardTrainer (TRL 1.16) would make them.

    Pairs with a side that is too long are left out, as in `drop_overlong`, whose arguments and errors these are.
    """
    rows = _with_ids(data, partial(pair_ids, tokenizer), ("chosen_ids", "rejected_ids"), name)
    return drop_overlong(rows, _longest("chosen_ids", "rejected_ids"), args.max_length or 0, args.overlong, name)


def _longest(*columns: str) -> Callable[[Columns], list[int]]:
    def count(batch: Columns) -> list[int]:
        return [max(map(len, ids)) for ids in zip(*(batch[column] for column in columns), strict=True)]

    return count


def _with_ids(data: Rows, encode: Callable[[Columns], list[dict]], columns: tuple[str, ...], name: str) -> Rows:
    def added(batch: Columns, indices: list[int]) -> dict[str, list]:
        rows = by_rows(encode, batch, indices, name)
        return {column: [row[column] for row in rows] for column in columns}

    features = Features({**(data.features or {}), **{column: List(Value("int32")) for column in columns}})
    options: Any = {"batched": True, "batch_size": BATCH, "with_indices": True, "features": features}
    # Not from the cache, which would not notice another version of this package.
    return data.map(added, **options, **({"load_from_cache_file": False} if isinstance(data, Dataset) else {}))


def _conversations(tokenizer: PreTrainedTokenizerBase, batch: Columns, args: ConversationSettings) -> list[dict]:
    rows = rows_of(batch)
    settings = [template_settings(row) for row in rows]
    asked = encode_chats(tokenizer, [row["prompt"] for row in rows], settings, add_generation_prompt=True)
    chats, marked = [row["prompt"] + row["completion"] for row in rows], bool(args.assistant_only_loss)
    whole = encode_chats(tokenizer, chats, settings, return_assistant_tokens_mask=marked)
    return [
        _labelled(tokenizer, prompt["input_ids"], args.completion_only_loss is not False, **row)
        for prompt, row in zip(asked, whole, strict=True)
    ]


def _labelled(
    tokenizer: PreTrainedTokenizerBase,
    prompt: list[int],
    completion_only: bool,
    input_ids: list[int],
    assistant_masks: list[int] | None = None,
) -> dict[str, list[int]]:
    if assistant_masks is not None and 1 not in assistant_masks:
        raise TemplateError("it marks nothing as the assistant's")
    first = len(prompt)
    if input_ids[:first] != prompt:
        first = common_prefix_length(prompt, input_ids)
        _tell_left_out(str(tokenizer.decode(prompt[first:])))
    first = first if completion_only else 0
    kept = assistant_masks or [1] * len(input_ids)
    trained = [i if mask else -100 for i, mask in zip(input_ids[first:], kept[first:], strict=True)]
    return {"input_ids": input_ids, "labels": [-100] * first + trained}


@lru_cache
def _tell_left_out(text: str) -> None:
    print(
        f"the chat template ends a prompt with {text!r} where it asks for an answer, and not where one follows: such "
        "answers are learnt without it",
        flush=True,
    )
