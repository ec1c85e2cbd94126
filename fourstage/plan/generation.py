"""What is held while a rollout is generated: the cache of keys and values, and one step's logits."""

from typing import Any, cast

import torch
from torch import nn
from transformers import DynamicCache, DynamicLayer, GenerationConfig, PreTrainedConfig, Trainer

from fourstage.models.fused_head import base_model
from fourstage.plan.watching import Watch
from fourstage.plan.work import Work
from fourstage.rl.decoding import decodable, decode, next_tokens


def cache_bytes(config: PreTrainedConfig, rows: int, tokens: int, width: int) -> int:
    """Bytes of the keys and values of `rows` rows of `tokens` tokens in numbers of `width` bytes.

    Layers without such a cache, such as states (Mamba), are left out; a sliding window bounds a layer's tokens.

    Example: 2 layers of 4 heads of 16 numbers, 3 rows of 10 tokens in float32: 2 x 2 x 4 x 16 x 3 x 10 x 4 = 30,720.
    """
    heads, size = _heads(config)
    kept = 0
    for layer in DynamicCache(config=config).layers or [DynamicLayer()] * config.get_text_config().num_hidden_layers:
        window = getattr(layer, "sliding_window", None)
        kept += min(tokens, window) if window else tokens if isinstance(layer, DynamicLayer) else 0
    return 2 * heads * size * rows * kept * width


def generate(
    trainer: Trainer, models: dict[str, nn.Module], rows: int, prompt: int, answer: int
) -> tuple[dict[str, int], Work, Work]:
    """Bytes by part when a rollout needs most: while its prompts are read, or at the last token of every answer; the
    work of reading the prompts and choosing a first token; and that of the last token.

    To be called where tensors have no data. An architecture that `rl.decoding` leaves to transformers is taken for a
    decoder with `cache_bytes` and one step's logits.
    Args:
        models: by part, `weights` the policy. rows: completions that are generated at once.
    """
    policy, args = models["weights"], cast(Any, trainer.args)
    base, tokens = base_model(policy), prompt + answer
    heads, size = _heads(base.config)
    cached: dict[tuple[int, ...], str] = {(rows, heads, n, size): "KV cache" for n in (prompt, tokens - 1, tokens)}
    watch = Watch({base.config.get_text_config().vocab_size}, args.num_generations or 1, False, cached)  # no NaN
    for part, model in models.items():
        watch.hold(part, model)
    for optimizer in optimizers_of(trainer):
        watch.hold("optimizer", *states_of(optimizer))
    config = GenerationConfig(max_new_tokens=1, do_sample=True, top_k=0, temperature=args.temperature, pad_token_id=0)
    policy.eval()
    with watch, torch.no_grad():
        if decodable(policy):
            ids = torch.zeros(rows, prompt, dtype=torch.int64)
            decode(policy, ids, torch.ones_like(ids), config)
            cache = _filled_cache(policy, rows, tokens - 1)
            reading, watch.work = watch.work, Work()
            logits = _last_logits(policy, cache, rows, tokens)
        else:
            watch.hold("KV cache", torch.empty(cache_bytes(base.config, rows, tokens, 4), dtype=torch.uint8))
            reading, watch.work = watch.work, Work()
            one = torch.ones(rows, 1, dtype=torch.int64)
            logits = policy(input_ids=one, attention_mask=one, use_cache=False).logits[:, -1]
        next_tokens(logits, config, torch.rand(rows, dtype=torch.float64))
    return {part: size for part, size in watch.peak.items() if size}, reading, watch.work


def optimizers_of(trainer: Any) -> list[Any]:
    """The policy's optimizer and, with PPO, the critic's."""
    return [one for one in (trainer.optimizer, getattr(trainer, "value_optimizer", None)) if one is not None]


def states_of(optimizer: Any) -> list[torch.Tensor]:
    """The tensors that an optimizer keeps from step to step."""
    return [x for state in optimizer.state.values() for x in state.values() if torch.is_tensor(x)]


def _heads(config: PreTrainedConfig) -> tuple[int, int]:
    """(heads of keys and values, numbers in each)."""
    text = config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    return heads, getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads


def _filled_cache(policy: Any, rows: int, tokens: int) -> DynamicCache:
    """A cache of so many tokens, in the dtype in which a model fills it."""
    config = base_model(policy).config
    first, cache = DynamicCache(config=config), DynamicCache(config=config)
    policy(input_ids=torch.zeros(1, 1, dtype=torch.int64), past_key_values=first, use_cache=True)
    for index, layer in enumerate(cast(list[DynamicLayer], first.layers)):
        assert layer.keys is not None  # the call above has filled it
        shape = (rows, layer.keys.size(1), tokens, layer.keys.size(3))
        keys, values = (torch.empty(shape, dtype=layer.keys.dtype) for _ in range(2))
        cache.update(keys, values, index)
    return cache


def _last_logits(policy: Any, cache: DynamicCache, rows: int, tokens: int) -> torch.Tensor:
    """The logits after `tokens` tokens, of which all but the last are in the cache."""
    mask = torch.ones(rows, tokens, dtype=torch.int64)
    inputs = {"attention_mask": mask, "position_ids": mask[:, :1], "past_key_values": cache}
    return policy(input_ids=mask[:, :1], **inputs, use_cache=True).logits[:, -1]
