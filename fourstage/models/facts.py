"""Facts that a model's configurations hold: how much it reads, where its answers end, how many scores it gives."""

from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel


def context_of(model: PreTrainedModel | PreTrainedConfig) -> int | None:
    """The most tokens that a model, or one of this configuration, reads, prompt and answer together; None if it names
    no limit.

    Example: 1024 for GPT-2; None for Mamba, where callers choose: `context_of(model) or 1024`.
    """
    config = model if isinstance(model, PreTrainedConfig) else model.config
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    return limit if limit and limit > 0 else None  # XLNet's is -1


def stop_ids(config: GenerationConfig | None) -> list[int]:
    """The ids that end an answer, from a model's `generation_config`; empty if it names none.

    Example: eos_token_id 2 -> [2]; [2, 7] -> [2, 7]; None -> [].
    """
    end = config.eos_token_id if config is not None else None
    if end is None:
        return []
    return [end] if isinstance(end, int) else list(end)


def check_one_label(labels: int | None, who: str) -> None:
    """Raises ValueError unless a sequence classifier gives one score; `who` says which field or model it is about."""
    if labels != 1:
        raise ValueError(
            f"{who} has num_labels={labels}, but a score is one number: choose a model that was trained with "
            "num_labels=1 (recipes/reward.py makes one)"
        )


def score_heads(model: PreTrainedModel) -> list[str]:
    """Names of the modules outside the backbone that have weights: `score`, in some families `classifier`."""
    beside = {name: part for name, part in model.named_children() if name != model.base_model_prefix}
    return [name for name, part in beside.items() if next(part.parameters(), None) is not None]
