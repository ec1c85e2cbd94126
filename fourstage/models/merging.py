"""Adapters that stand where a model should: PEFT puts them on their base, and they are merged into its weights."""

import re
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import hf_hub_download
from peft import (
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    load_peft_weights,
    set_peft_model_state_dict,
)
from torch import nn
from transformers import PreTrainedModel

from fourstage.errors import one_line
from fourstage.models.opening import opening
from fourstage.parent import adapter_of, base_of

_HEAD = re.compile(r"(^|\.)(score|classifier)\.(.*\.)?weight$")


def adapter_weights(name: str, revision: str | None = None) -> dict[str, torch.Tensor]:
    """The tensors of an adapter's folder or Hub id; raises ValueError as `opening` does."""
    with opening(name):
        return load_peft_weights(_folder_of(name, revision), device="cpu")


def labels_of(name: str, revision: str | None = None) -> int | None:
    """How many scores the head gives that an adapter, or one below it, brings along; None without one."""
    settings = adapter_of(name, revision)
    if settings is None:
        return None
    heads = [value.shape[0] for key, value in adapter_weights(name, revision).items() if _HEAD.search(key)]
    base = base_of(name, settings)
    if heads or base[0] == name:
        return min(heads, default=None)
    return labels_of(*base)


def merged(model: PreTrainedModel, name: str, revision: str | None = None) -> PreTrainedModel:
    """The model with the adapter of `name` merged into its weights, all of them trainable.

    An embedding that the adapter was trained with more rows of is given them first.
    Raises:
        ValueError: of one line, if the adapter does not fit the model, or PEFT cannot merge its kind.
    """
    # PEFT looks for the config.json of an adapter's base, which an adapter that is the base has not.
    warnings.filterwarnings("ignore", "Unable to fetch remote file|Could not find a config file")
    weights = adapter_weights(name, revision)
    with opening(name):
        config = PeftConfig.from_pretrained(_folder_of(name, revision))
        config.base_model_name_or_path = model.name_or_path  # else a warning, where the adapter lies beside its base
        _grow(model, config, weights)
        untie(model, weights)
        adapted = get_peft_model(model, config)
        absent = get_peft_model_state_dict(adapted, save_embedding_layers=False).keys() - weights.keys()
    try:
        foreign = set_peft_model_state_dict(adapted, weights).unexpected_keys
    except RuntimeError as error:
        raise ValueError(f"{name}: the adapter does not fit its base: {one_line(error)}") from error
    twice = [key for key in foreign if key.replace(".modules_to_save", "") in weights]  # a table that was given rows
    _refuse_gaps(name, sorted(absent), sorted(set(foreign) - set(twice)))
    try:
        whole = cast(PreTrainedModel, cast(PeftModel, adapted).merge_and_unload())
    except (NotImplementedError, AttributeError, ValueError) as error:
        kind = str(config.peft_type).lower()
        raise ValueError(f"{name} is an adapter of the kind {kind}, which PEFT cannot merge here: {error}") from error
    return cast(PreTrainedModel, whole.requires_grad_(True).eval())


def _folder_of(name: str, revision: str | None) -> str:
    """The adapter's folder, or where its files are once they have been fetched; pickles are not."""
    if Path(name).is_dir():
        return name
    files = [
        hf_hub_download(name, f"adapter_{file}", revision=revision) for file in ("config.json", "model.safetensors")
    ]
    return str(Path(files[0]).parent)


def _grow(model: PreTrainedModel, config: PeftConfig, weights: dict[str, torch.Tensor]) -> None:
    """Gives the embedding the rows for tokens that the adapter was trained with and its base never had."""
    names = {module: name for name, module in model.named_modules()}
    tables = [names[table] for table in (model.get_input_embeddings(), model.get_output_embeddings()) if table]
    saved = [v.shape[0] for key, v in weights.items() if any(key.endswith(f"{table}.weight") for table in tables)]
    chosen = getattr(config, "trainable_token_indices", None) or []
    rows = [max(ids) + 1 for ids in (chosen.values() if isinstance(chosen, dict) else [chosen]) if ids]
    wanted = max(saved + rows, default=0)
    if wanted > cast(nn.Embedding, model.get_input_embeddings()).num_embeddings:
        model.resize_token_embeddings(wanted)


def untie(model: PreTrainedModel, adapter_keys: Iterable[str]) -> None:
    """Gives a head that is tied to the embedding weights of its own, if an adapter changes one of the two by itself.

    Merged into weights that both share, what is meant for one would change the other as well.
    """
    tables = [cast(Any, table) for table in (model.get_input_embeddings(), model.get_output_embeddings())]
    if tables[1] is None or tables[1].weight is not tables[0].weight:
        return
    names = [f".{name}." for name, module in model.named_modules() if module in tables]
    if any(name in key and ".lora_" in key for key in adapter_keys for name in names):
        head = getattr(tables[1], "base_layer", tables[1])  # where the adapter is in place already
        head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=head.weight.requires_grad)
        model.config.tie_word_embeddings = model.config.get_text_config().tie_word_embeddings = False


def _refuse_gaps(name: str, absent: list[str], foreign: list[str]) -> None:
    for keys, what in (
        (absent, "lacks weights that its settings ask for"),
        (foreign, "holds weights for which its base has no place"),
    ):
        if keys:
            raise ValueError(
                f"{name}: the adapter {what}, {', '.join(keys[:3])} ({len(keys)} in all); correct its "
                "base_model_name_or_path, or fetch it again"
            )
