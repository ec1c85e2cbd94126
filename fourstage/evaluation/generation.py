"""What a model writes, greedily or sampled, and how likely it finds a text; with plain sampling settings alone."""

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from peft import PeftModel
from torch.nn import functional as F
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from fourstage.models.encoding import conversation_ids
from fourstage.models.facts import context_of, stop_ids

BASE_PROMPTS = ("Once upon a time", "The old man looked at the sea and", "What is an LLM?", "In the morning")
CHAT_PROMPTS = (
    "What is an LLM?",
    "What is the capital of France?",
    "What is the plural of mouse?",
    "Write a sentence about the sea.",
)


@torch.no_grad()
def text_nats(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, window: int) -> float:
    """Cost of a text in nats: the sum of -log p over its tokens.

    A begin token (the end token for tokenizers without one) and the text's tokens are read in consecutive windows of
    `window` tokens: a window's inputs x[i:i+window] predict x[i+1:i+window+1], so each token is scored exactly once.
    """
    model.eval()
    begin = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    ids = torch.tensor(
        [begin, *tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]],
        device=model.device,
    )
    total = 0.0
    starts = range(0, len(ids) - 1, window)
    for first in range(0, len(starts), 16):  # batches of 16 windows; the last window may be shorter
        chunk = [ids[i : i + window + 1] for i in starts[first : first + 16]]
        rows = torch.nn.utils.rnn.pad_sequence(chunk, batch_first=True)
        scored = torch.arange(window, device=ids.device)[None] < torch.tensor([[len(c) - 1] for c in chunk]).to(ids)
        scored = scored[:, : rows.shape[1] - 1]
        logits = model(input_ids=rows[:, :-1], use_cache=False).logits.float()
        nats = F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), reduction="none").view_as(scored)
        total += nats[scored].double().sum().item()
    return total


def bits_per_byte_of(nats: float, size: float) -> float:
    """Bits per byte of a text that costs `nats` and has `size` UTF-8 bytes: nats / ln 2 / size.

    Example: 13.863 nats, 10 bytes -> 2.0.
    """
    return nats / math.log(2) / size


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    temperature: float = 0.0,
    batch_size: int = 32,
) -> list[list[int]]:
    """Completions of prompts, both as token ids, in the order of the prompts.

    A completion that the model ends by itself includes the end token. Temperature 0 is greedy. The sampling fields of
    the model's own generation_config are not used. Nothing goes past the model's context; a prompt that fills it gets
    an empty completion.
    """
    model.eval()
    stops = stop_ids(model.generation_config)
    pad = tokenizer.pad_token_id or 0  # masked, so any id serves
    options = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
    config = GenerationConfig(eos_token_id=stops or None, pad_token_id=pad, **options)
    context = context_of(model) or math.inf
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # little padding within a batch
    completions: list[list[int]] = [[] for _ in prompts]
    with _generating_by(config, model) as run:
        for first in range(0, len(order), batch_size):
            chosen = order[first : first + batch_size]
            longest = len(prompts[chosen[-1]])
            limit = min(max_new_tokens, context - longest)  # learned positions end at the context
            if limit <= 0:
                continue
            config.max_new_tokens = int(limit)
            ids = torch.tensor([[pad] * (longest - len(prompts[i])) + prompts[i] for i in chosen])
            mask = torch.tensor([[0] * (longest - len(prompts[i])) + [1] * len(prompts[i]) for i in chosen])
            output = run(input_ids=ids.to(model.device), attention_mask=mask.to(model.device))
            for i, row in zip(chosen, output[:, longest:].tolist(), strict=True):
                end = next((at + 1 for at, token in enumerate(row) if token in stops), len(row))
                completions[i] = row[:end]
    return completions


@torch.no_grad()
def sequence_log_probs(
    model: PreTrainedModel, prompts: Sequence[list[int]], completions: Sequence[list[int]], batch_size: int = 64
) -> list[float]:
    """Log-probability in nats of each completion after its prompt (both token ids), at temperature 1.

    The end token counts if the completion has it. For completions sampled from model A, the mean of A's value minus
    B's is an unbiased estimate of KL(A || B) in nats per completion.
    """
    model.eval()
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]) + len(completions[i]))
    sums = [0.0] * len(prompts)
    for first in range(0, len(order), batch_size):
        chosen = order[first : first + batch_size]
        rows = [torch.tensor(prompts[i] + completions[i], device=model.device) for i in chosen]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)  # on the right, where no token attends to it
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
        logps = -F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view(len(chosen), -1)
        for i, row in zip(chosen, logps, strict=True):
            start = len(prompts[i]) - 1
            sums[i] = row[start : start + len(completions[i])].sum().item()
    return sums


@contextmanager
def _generating_by(config: GenerationConfig, model: PreTrainedModel) -> Generator[Callable[..., torch.Tensor]]:
    """The model's `generate`, following `config` alone: the model's own settings would fill fields that are None."""
    if isinstance(model, PeftModel):  # an adapter is part of the base model's own layers
        model = cast(PreTrainedModel, model.get_base_model())  # PEFT calls it a Module
    with plain_sampling(model):
        own: Callable[..., torch.Tensor] = cast(Any, model).generate  # of a mixin that PreTrainedModel does not name
        yield partial(own, generation_config=config)


def continue_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str] = BASE_PROMPTS,
    max_new_tokens: int = 48,
) -> list[dict]:
    """How a base model continues fixed openings, greedily: rows for samples.jsonl."""
    ids = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    completions = generate(model, tokenizer, ids, max_new_tokens)
    texts = tokenizer.batch_decode(completions, skip_special_tokens=True)
    return [{"prompt": prompt, "completion": text} for prompt, text in zip(prompts, texts, strict=True)]


def answer_questions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str | list[dict]] = CHAT_PROMPTS,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    begin: str = "",
    batch_size: int = 32,
) -> list[dict]:
    """Answers through the chat template; temperature 0 is greedy.

    Args:
        prompts: questions, or lists of turns that end with the user's.
        begin: text that every answer must begin with: the model continues it, and it is part of the completion.
    Returns:
        For each prompt `prompt`, `completion`, `tokens` (how many were generated) and `stopped` (whether the model
        ended the answer by itself).
    """
    turns = [[{"role": "user", "content": p}] if isinstance(p, str) else p for p in prompts]
    ids = [conversation_ids(tokenizer, conversation, add_generation_prompt=True) for conversation in turns]
    opening = tokenizer(begin, add_special_tokens=False)["input_ids"] if begin else []
    completions = generate(model, tokenizer, [row + opening for row in ids], max_new_tokens, temperature, batch_size)
    texts = tokenizer.batch_decode(completions, skip_special_tokens=True)
    stops = stop_ids(model.generation_config)
    return [
        {"prompt": p, "completion": begin + text, "tokens": len(row), "stopped": bool(row) and row[-1] in stops}
        for p, text, row in zip(prompts, texts, completions, strict=True)
    ]


_IDS = ("pad_token_id", "bos_token_id", "eos_token_id")
# Fields of a generation_config that do not change the probabilities that tokens are drawn from.
_HARMLESS = (*_IDS, "use_cache", "output_attentions", "output_hidden_states", "transformers_version", "max_length")


@contextmanager
def plain_sampling(model: PreTrainedModel) -> Generator[None]:
    """Hides the sampling settings of the model's generation_config from `generate`.

    They would fill every setting that the caller leaves open, and a policy would then be sampled from other
    probabilities than those it is trained on.
    """
    own = model.generation_config
    model.generation_config = GenerationConfig(**{name: getattr(own, name) for name in _IDS})
    try:
        yield
    finally:
        model.generation_config = own


def ignored_sampling_fields(model: PreTrainedModel) -> dict[str, Any]:
    """The sampling settings of the model's generation_config that rollouts ignore.

    Example: {"temperature": 0.6, "top_p": 0.9}.
    """
    fields = model.generation_config.to_diff_dict()
    return {name: value for name, value in fields.items() if name not in _HARMLESS and not name.startswith("_")}
