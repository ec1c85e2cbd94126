"""Opens a model's weights as they are found: whole, quantised, as an adapter, as a GGUF file.

Every program of fourstage that reads a model reads it here: the recipes, measure, chat, compare, rewards and critics.
"""

import re
import tempfile
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging

from fourstage.models import quantised
from fourstage.models.finite import check_finite
from fourstage.models.opening import opening
from fourstage.parent import adapter_of, base_of, is_gguf, whole_model

Say = Callable[[str], object]

# Weights that a language model does without: buffers that are computed, heads of old trainers, layers that only speed
# up generation, and what is not made of text.
_HARMLESS = re.compile(r"(^|\.)(inv_freq|position_ids|(attn|attention)\.(bias|masked_bias)|v_head\..*|mtp[._].*)$")
_NOT_TEXT = re.compile(
    r"vision|visual|image|audio|speech|video|multi_modal|\bmm_|projector|connector|merger|aligner|talker|token2wav|"
    r"code2wav|perceiver|resampler|(^|\.)vq"
)


def open_config(name: str, **hub: Any) -> PreTrainedConfig:
    """The configuration of a model; of an adapter that of its base, with the labels that the adapter's head has.

    Args:
        hub: `revision` and `trust_remote_code`.
    Raises:
        ValueError: of one line, as `opening` says.
    """
    if is_gguf(name):
        with opening(name):
            return AutoConfig.from_pretrained(str(Path(name).parent), gguf_file=Path(name).name)
    whole, revision = whole_model(name, hub.get("revision"))
    with opening(whole):
        config = AutoConfig.from_pretrained(whole, **(hub | {"revision": revision or "main"}))
        if not isinstance(config.architectures, list | None):
            raise ValueError(f"architectures={config.architectures!r} in its config.json must be a list; correct it")
    labels = _labels_of_adapter(name, hub.get("revision"))
    if labels is not None:
        config.num_labels = labels
    return config


def is_classifier(name: str, **hub: Any) -> bool:
    """Whether a folder or Hub id holds a sequence classifier, such as a reward model, or an adapter of one."""
    if _labels_of_adapter(name, hub.get("revision")) is not None:
        return True
    return not is_gguf(name) and any(
        "ForSequenceClassification" in kind for kind in open_config(name, **hub).architectures or []
    )


def _labels_of_adapter(name: str, revision: str | None) -> int | None:
    if adapter_of(name, revision) is None:
        return None
    from fourstage.models import merging  # PEFT takes a second to import, and whole models do without

    return merging.labels_of(name, revision)


def check_openable(name: str, scores: bool, load_in: str | None = None, **hub: Any) -> PreTrainedConfig:
    """The configuration; raises ValueError, before weights are read, where `open_causal_lm` or `open_scorer` would.

    Args:
        scores: whether it is to score, and not to write. load_in: `load_in_4bit` or `load_in_8bit`, if asked for.
    """
    if load_in and adapter_of(name, hub.get("revision")) is not None:
        raise ValueError(
            f"{load_in}: {name} is an adapter, which is merged into whole weights; leave --{load_in} out, or name a "
            "folder that holds the merged model"
        )
    config = open_config(name, **hub)
    quantised.check_quantisation(name, config, load_in)
    if not scores and is_classifier(name, **hub):
        raise ValueError(f"{name} is a sequence classifier: it scores answers and writes none; name a language model")
    return config


def open_causal_lm(name: str, say: Say = print, **options: Any) -> PreTrainedModel:
    """The language model of a folder, Hub id or GGUF file. An adapter is merged, quantised weights are made whole.

    Args:
        say: is told, in one line, what was merged or dequantised.
        options: for `from_pretrained`: dtype, revision, trust_remote_code, attn_implementation, quantization_config.
    Raises:
        ValueError: of one line, as `opening` says; if the weights are not those of such a language model, or not
            finite; if they are quantised in a way that cannot be undone here.
    """
    config = check_openable(name, False, _load_in(options), **_hub(options))
    model, loaded = _open(AutoModelForCausalLM, name, say, options)
    _refuse_gaps(name, config, loaded["missing_keys"], loaded["unexpected_keys"])
    check_finite(name, model)
    return model


def open_classifier(
    name: str, say: Say = print, config: PreTrainedConfig | None = None, **options: Any
) -> PreTrainedModel:
    """The sequence classifier of a folder or Hub id, with its head. Otherwise as `open_causal_lm`."""
    model, missing = open_scorer(name, say, config, **options)
    if missing:
        raise ValueError(
            f"{name} has no score head ({missing[0]} is not among its weights), so it cannot score; name a reward "
            "model, such as recipes/reward.py makes"
        )
    return model


def open_scorer(
    name: str, say: Say = print, config: PreTrainedConfig | None = None, **options: Any
) -> tuple[PreTrainedModel, list[str]]:
    """A sequence classifier on the backbone of a name, whatever head that had, and the weights that it lacks.

    Those are drawn at random: the head of what was a language model. `config` replaces the model's own.
    """
    found = check_openable(name, True, _load_in(options), **_hub(options))
    config = config or found
    model, loaded = _open_scoring(name, say, {**options, "config": config})
    backbone = f"{model.base_model_prefix}."
    missing, foreign = ([x for x in loaded[k] if x.startswith(backbone)] for k in ("missing_keys", "unexpected_keys"))
    _refuse_gaps(name, found, [key for key in missing if "pooler" not in key], foreign)  # a pooler is part of the head
    check_finite(name, model)
    model.config.name_or_path = model.name_or_path = name
    return model, sorted(loaded["missing_keys"])


def _open_scoring(name: str, say: Say, options: dict) -> tuple[PreTrainedModel, dict]:
    """A classifier of the configuration in `options`; of an adapter of a language model after it has been merged."""
    if adapter_of(name, options.get("revision")) is None or is_classifier(name, **_hub(options)):
        return _open(AutoModelForSequenceClassification, name, say, options)
    causal = open_causal_lm(name, say, **{key: value for key, value in options.items() if key != "config"})
    kind = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(options["config"])]
    with _quietly():
        return quantised.from_state(kind, options["config"], causal, causal.dtype)


def open_backbone(name: str, say: Say = print, **options: Any) -> PreTrainedModel:
    """The model without a head, which gives hidden states, as PPO's critic saves it."""
    model, loaded = _open(AutoModel, name, say, options)
    _refuse_gaps(name, model.config, loaded["missing_keys"], loaded["unexpected_keys"])
    check_finite(name, model)
    return model


def _hub(options: dict) -> dict[str, Any]:
    return {key: options[key] for key in ("revision", "trust_remote_code") if key in options}


def _load_in(options: dict) -> str | None:
    """The flag that asks for quantising on reading, if `quantization_config` does."""
    return next(
        (x for x in ("load_in_4bit", "load_in_8bit") if getattr(options.get("quantization_config"), x, 0)), None
    )


def _open(kind: Any, name: str, say: Say, options: dict) -> tuple[PreTrainedModel, dict]:
    """The model and what transformers says about its weights; those of adapters are checked here."""
    revision = options.get("revision")
    if (settings := adapter_of(name, revision)) is not None:
        return _merged(kind, name, settings, say, options)
    if is_gguf(name):
        kept = {key: options[key] for key in ("dtype", "attn_implementation") if key in options}
        return _read(kind, name, str(Path(name).parent), {**kept, "gguf_file": Path(name).name})
    config = options.get("config") or open_config(name, **_hub(options))
    settings = quantised.quantisation_of(config)
    options = {**options, "use_safetensors": True}
    load_in, wanted = _load_in(options), options.pop("quantization_config", None)
    quantised.check_quantisation(name, config, load_in)
    if settings is None or load_in:  # quantised now, or to be kept as it is
        return _read(kind, name, name, options | ({"quantization_config": wanted} if wanted and not settings else {}))
    model, loaded = _read(kind, name, name, options | quantised.reading_options(settings))
    with _quietly():
        model = quantised.whole_weights(model, options.get("dtype"))
    model.config.name_or_path = model.name_or_path = name
    say(f"{name}: {quantised.describe_quantisation(settings)} weights dequantised to {_short(model.dtype)}")
    return model, loaded


def _read(kind: Any, name: str, source: str, options: dict) -> tuple[PreTrainedModel, dict]:
    with opening(name), _quietly():
        # Sizes that do not match are told by name; without the option transformers refers to a table.
        model, loaded = kind.from_pretrained(source, output_loading_info=True, ignore_mismatched_sizes=True, **options)
    if loaded["mismatched_keys"]:
        key, found, wanted = sorted(loaded["mismatched_keys"])[0]
        raise ValueError(
            f"{name}: {key} has the size {tuple(found)}, the model of its config.json wants {tuple(wanted)} "
            f"({len(loaded['mismatched_keys'])} in all); fetch it again, or start from another model"
        )
    return model, loaded


def _merged(kind: Any, name: str, settings: dict, say: Say, options: dict) -> tuple[PreTrainedModel, dict]:
    """An adapter's base with the adapter merged into it."""
    from fourstage.models import merging

    revision = options.get("revision")
    base, its_revision = base_of(name, settings)
    missing: list[str] = []
    with _beside_adapter(name) if base == name else nullcontext(base) as source:
        options = options | {"revision": its_revision or "main"}
        if kind is AutoModelForCausalLM:
            model = open_causal_lm(source, say, **options)
        else:
            model, loaded = _open_scoring(source, say, options)
            missing = loaded["missing_keys"]
        model = merging.merged(model, name, revision)
    brought = merging.adapter_weights(name, revision) if missing else {}
    missing = [key for key in missing if not any(own.endswith(key) for own in brought)]
    model.config.name_or_path = model.name_or_path = name
    beside = base != name and list(Path(name).glob("model*.safetensors"))  # what adapter_config.json names has the say
    say(
        f"{name}: an adapter of {'the model beside it' if base == name else base}, merged"
        + ("; the weights beside it are not read" if beside else "")
    )
    return model, {"missing_keys": missing, "unexpected_keys": []}


@contextmanager
def _beside_adapter(name: str) -> Generator[str]:
    """A folder with what lies beside an adapter: transformers would put the adapter on, and not merge it."""
    with tempfile.TemporaryDirectory() as folder:
        for file in Path(name).absolute().iterdir():
            if not file.name.startswith("adapter_"):
                (Path(folder) / file.name).symlink_to(file)
        yield folder


def _refuse_gaps(name: str, config: PreTrainedConfig, missing: Iterable[str], unexpected: Iterable[str]) -> None:
    """Raises ValueError if weights were drawn at random for want of them, or others were found without a place."""
    has_more = set(config.sub_configs) - {"text_config"}
    foreign = [key for key in sorted(unexpected) if not _HARMLESS.search(key)]
    foreign = [key for key in foreign if not (has_more and _NOT_TEXT.search(key))]
    kind = ", ".join(config.architectures or [config.model_type])
    for keys, what in ((sorted(missing), "lacks weights of"), (foreign, "holds weights unknown to")):
        if keys:
            raise ValueError(
                f"{name} {what} the model of its config.json ({kind}): {', '.join(keys[:3])} ({len(keys)} in all); "
                "fetch it again, or start from another model"
            )


@contextmanager
def _quietly() -> Generator[None]:
    """Without transformers' table of weights that were too many or too few: `_refuse_gaps` tells it in one line."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
