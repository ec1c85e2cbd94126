"""Random models of any architecture: from a name and a number of parameters to a configuration.

Every causal language model of transformers is described by a configuration. `sized_config` chooses width, depth,
heads and MLP size so that the whole model, embeddings included, has a given number of parameters;
`exact_config` takes an explicit shape. Parameters are counted on PyTorch's "meta" device, where building a model
allocates nothing.

    >>> config = sized_config("llama", 25_000_000, vocab_size=4096, max_position_embeddings=1024,
    ...                       special_token_ids={"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2})
    >>> count_parameters(config), config.hidden_size, config.num_hidden_layers
    (24838464, 448, 9)
"""

import bisect
import difflib
import functools
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from fourstage.errors import one_line
from fourstage.models.families import NAMES, Shape, field_defaults, field_values, switches

# (width, depth), between published shapes: GPT-2 small (12 x 768), OLMo 1B and Pythia 1.4B (16 and 24 x 2048), Llama 7B
# (32 x 4096) and 70B (80 x 8192). Below a hundred million parameters it is our choice. Linear in between.
DEPTH_LAW: tuple[tuple[int, int], ...] = (
    *((32, 2), (64, 3), (128, 4), (192, 6), (352, 8), (512, 10)),
    *((768, 12), (1024, 16), (2048, 20), (4096, 32), (8192, 80)),
)
MIN_LAYERS, MAX_LAYERS = 2, 256  # two, because hybrids need one layer of each kind
GROUPED_QUERY_FROM = 100_000_000  # parameters; below it the key-value cache is too small to be worth sharing
SIZE_TOLERANCE = 0.03  # dense families land within this share of the requested number of parameters
SMALLEST_MLP = 32
_SPECIAL = ("pad", "bos", "eos")
_THOUSANDS = {"": 1, "k": 1000, "m": 1000**2, "b": 1000**3, "t": 1000**4}


def causal_lm_types() -> list[str]:
    """Names that `--model_type` takes, sorted.

    Source: transformers' MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, the table behind AutoModelForCausalLM.

        >>> "llama" in causal_lm_types()
        True
    """
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def parse_count(text: str | int) -> int:
    """A count written as people write it: "25M", "1.5B", "300k", "3_000_000" or a plain integer.

    k, M, B and T are powers of a thousand, in either case. Raises ValueError for anything else, for zero and for what
    is not a whole number.

        >>> parse_count("1.5B")
        1500000000
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kmbt]?)", str(text).strip().replace("_", "").lower())
    count = float(match[1]) * _THOUSANDS[match[2]] if match else 0.0
    if isinstance(text, bool) or count < 1 or abs(count - round(count)) > 1e-6 * count:
        raise ValueError(f"count={text!r} is not a positive whole number; write it like 25M, 1.5B, 300k or 3000000")
    return round(count)


def count_parameters(config: PreTrainedConfig) -> int:
    """Number of parameters of the causal model that `config` describes, embeddings included, tied weights once.

    Nothing is allocated: the model is built on the meta device, in milliseconds. Raises ValueError when the family
    cannot build a model from the configuration.

        >>> count_parameters(exact_config("gpt2", {"n_layer": 1, "n_embd": 64, "n_head": 2}, {"vocab_size": 512}))
        148416
    """
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except Exception as error:  # each family raises its own kinds
        raise ValueError(
            f"{config.model_type} cannot be built from this configuration: {one_line(error, with_type=True)}"
        ) from error
    return model.num_parameters()


def exact_config(
    model_type: str, overrides: Mapping[str, Any], tokenizer_fields: Mapping[str, Any]
) -> PreTrainedConfig:
    """Configuration of `model_type` with the fields of `overrides`; what is not given keeps the family's default.

    `tokenizer_fields` (vocab_size, max_position_embeddings, pad_token_id, bos_token_id, eos_token_id) are taken where
    the family has them: a recurrent model has no max_position_embeddings. Raises ValueError for a type that is not a
    causal model and for an override that is not a field of the family.

        >>> exact_config("gpt2", {"hidden_size": 64, "n_layer": 2, "n_head": 2}, {"vocab_size": 512}).n_embd
        64
    """
    config_class = _config_class(model_type)
    pins = _canonical(config_class, overrides)
    known = field_defaults(config_class)
    fields = {name: value for name, value in switches(config_class).items() if name in known}
    aliases = config_class.attribute_map
    fields |= {aliases.get(k, k): v for k, v in tokenizer_fields.items() if aliases.get(k, k) in known}
    return _instantiate(config_class, fields | pins)


def check_overrides(model_type: str, overrides: Mapping[str, Any]) -> None:
    """Raises ValueError for a type that is not a causal model, and for overrides that are not fields of it, or that
    the tokenizer decides."""
    config_class = _config_class(model_type)
    given = _canonical(config_class, overrides)
    for name in ("vocab_size", *(f"{token}_token_id" for token in _SPECIAL)):
        own_name = config_class.attribute_map.get(name, name)
        if own_name in given:
            raise ValueError(
                f"config_overrides: {own_name}={given[own_name]!r} comes from the tokenizer (--vocab_size, or "
                "--tokenizer_name); leave it out"
            )


def sized_config(
    model_type: str,
    num_parameters: int,
    *,
    vocab_size: int,
    max_position_embeddings: int,
    special_token_ids: Mapping[str, int | None],
    overrides: Mapping[str, Any] | None = None,
) -> PreTrainedConfig:
    """Configuration of a random `model_type` with about `num_parameters` parameters, embeddings included.

    Dense families land within 3 %; mixtures, state-space and composite models as near as their fields allow, so print
    `count_parameters(config)`. `special_token_ids` holds pad_token_id, bos_token_id and
    eos_token_id. `overrides` are exact fields (hidden_size=512) that the search keeps. Embeddings are tied if the
    family ties them by default. Raises ValueError for an unknown type, for an unknown override and for a size that
    cannot be reached, naming the nearest one that can.

    The search tries widths around the one that gives the size at its usual depth, each with the depths that fit, and
    lets the MLP take up the rest. Of the shapes that are close enough it keeps the one with the most usual ratios (see
    `_cost`).

        >>> ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
        >>> sized_config("gpt2", 3_000_000, vocab_size=1024, max_position_embeddings=512,
        ...              special_token_ids=ids).n_embd
        192
    """
    config_class = _config_class(model_type)
    pins = _canonical(config_class, overrides or {})
    tokenizer = (vocab_size, max_position_embeddings) + tuple(special_token_ids.get(f"{t}_token_id") for t in _SPECIAL)

    def build(hidden: int, layers: int, mlp: int) -> PreTrainedConfig:
        heads = _head_layout(hidden, num_parameters, pins)
        return _instantiate(
            config_class, field_values(config_class, Shape(hidden, layers, *heads, mlp, *tokenizer), pins)
        )

    count = functools.cache(lambda hidden, layers, mlp: count_parameters(build(hidden, layers, mlp)))
    widths = _widths(pins)
    pinned_layers = _pinned(pins, "layers")
    smallest = count(widths[0], pinned_layers or MIN_LAYERS, SMALLEST_MLP)
    fixed = "".join(f", {name}={value!r}" for name, value in pins.items())
    request = f"num_parameters={num_parameters} for {model_type} with vocab_size={vocab_size}{fixed}"
    if num_parameters < smallest * (1 - SIZE_TOLERANCE):
        raise ValueError(f"{request} is too few: the smallest possible is {smallest}; ask for that or lower vocab_size")
    best = _search(count, widths, pinned_layers, num_parameters)
    nearest = count(*best)
    if not 0.5 < nearest / num_parameters < 2:
        raise ValueError(f"{request} cannot be reached: the nearest is {nearest}; ask for that or free the shape")
    return build(*best)


def _config_class(model_type: str) -> type[PreTrainedConfig]:
    """Configuration class of a type; for a multimodal type that of its text part, if that is a causal type itself."""
    if model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        close = difflib.get_close_matches(model_type, causal_lm_types(), 4)
        hint = f"did you mean {', '.join(close)}?" if close else "causal_lm_types() lists the names"
        raise ValueError(f"model_type={model_type!r} is not a causal language model of transformers; {hint}")
    config_class = CONFIG_MAPPING[model_type]
    text_class = config_class.sub_configs.get("text_config", config_class)
    text_type = getattr(text_class, "model_type", None)  # AutoConfig, "any text model", has none
    return text_class if text_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES else config_class


def _canonical(config_class: type[PreTrainedConfig], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The overrides under the family's own field names (hidden_size -> n_embd), checked to exist."""
    known = field_defaults(config_class)
    aliases = config_class.attribute_map
    for name in overrides:
        if aliases.get(name, name) not in known:
            close = difflib.get_close_matches(name, [*known, *aliases], 4)
            hint = f"the closest are {', '.join(close)}" if close else f"its fields are {', '.join(sorted(known))}"
            raise ValueError(f"{name}={overrides[name]!r} is not a field of {config_class.model_type} configs; {hint}")
    return {aliases.get(name, name): value for name, value in overrides.items()}


def _instantiate(config_class: type[PreTrainedConfig], fields: Mapping[str, Any]) -> PreTrainedConfig:
    try:
        return config_class(**fields)
    except Exception as error:  # each family raises its own kinds
        raise ValueError(
            f"{config_class.model_type} does not accept this configuration: {one_line(error, with_type=True)}"
        ) from error


def _pinned(pins: Mapping[str, Any], attribute: str) -> int | None:
    """The value an override gives to a Shape attribute, if one does."""
    primary = NAMES[attribute].split()
    return next((pins[name] for name in primary if name in pins and isinstance(pins[name], int)), None)


def _head_layout(hidden: int, num_parameters: int, pins: Mapping[str, Any]) -> tuple[int, int, int]:
    """(heads, key-value heads, head size) for a width: heads of 32, 64 or 128, shared keys for large models."""
    heads, head_dim = _pinned(pins, "heads"), _pinned(pins, "head_dim")
    if head_dim is None and heads:
        head_dim = hidden // heads
    elif head_dim is None:
        usual = _by_width(hidden, (256, 32), (2048, 64), otherwise=128)
        fitting = [size for size in range(32, 129, 2) if hidden % size == 0] or [hidden]
        head_dim = min(fitting, key=lambda size: abs(math.log(size / usual)))
    heads = heads or max(1, hidden // head_dim)
    divisors = [n for n in range(1, heads + 1) if heads % n == 0]
    grouped = heads // 4 if num_parameters >= GROUPED_QUERY_FROM else heads
    nearest = min(divisors, key=lambda n: abs(math.log(n / max(1, grouped))))
    kv_heads = _pinned(pins, "kv_heads") or nearest
    if kv_heads not in divisors:
        raise ValueError(
            f"num_key_value_heads={kv_heads} must divide the {heads} attention heads: choose one of {divisors}"
        )
    return heads, kv_heads, head_dim


def _widths(pins: Mapping[str, Any]) -> list[int]:
    """Hidden sizes to try: multiples of 32 when small, then of 64, 128 and 256, which suit matrix units."""
    if hidden := _pinned(pins, "hidden"):
        return [hidden]
    steps = (*range(32, 256, 32), *range(256, 768, 64), *range(768, 2048, 128), *range(2048, 16385, 256))
    heads = _pinned(pins, "heads") or 1
    fitting = [hidden for hidden in steps if hidden % heads == 0]
    if not fitting:
        raise ValueError(f"num_attention_heads={heads} divides none of the hidden sizes tried; give hidden_size too")
    return fitting


def _usual_depth(hidden: int) -> float:
    """Usual number of layers at a width (DEPTH_LAW), growing with its square root beyond the table's end."""
    index = bisect.bisect_left([width for width, _ in DEPTH_LAW], hidden)
    if index == 0:
        return DEPTH_LAW[0][1]
    if index == len(DEPTH_LAW):
        width, depth = DEPTH_LAW[-1]
        return max(MIN_LAYERS, depth * math.sqrt(hidden / width))
    (width, depth), (next_width, next_depth) = DEPTH_LAW[index - 1], DEPTH_LAW[index]
    return depth + (next_depth - depth) * (hidden - width) / (next_width - width)


def _by_width(hidden: int, *limits: tuple[int, int], otherwise: int) -> int:
    """The value of the first (limit, value) with a limit above the width. Example: 300, (256, 32), (2048, 64) -> 64."""
    return next((value for limit, value in limits if hidden < limit), otherwise)


def _rounded_mlp(size: float, hidden: int) -> int:
    step = _by_width(hidden, (512, 32), (2048, 64), otherwise=128)
    return max(SMALLEST_MLP, round(size / step) * step)


class Line(NamedTuple):
    """Parameters at one width, affine in depth and in MLP size: fixed + layers * (layer + slope * (mlp - usual))."""

    fixed: float
    layer: float
    slope: float
    usual_mlp: int


def _line(count: Callable[[int, int, int], int], hidden: int, layers: int) -> Line:
    """The line through four small builds. Its slope tells the kind of MLP: 2 matrices, 3 if gated, times experts."""
    slope = (count(hidden, layers, 128) - count(hidden, layers, 64)) / 64 / layers
    # 8 * hidden^2 parameters for the MLP of a layer: 4 * hidden wide if plain, 8/3 * hidden if gated (Shazeer 2020).
    mlp = _rounded_mlp(8 * hidden**2 / slope if slope > 0 else 8 * hidden / 3, hidden)
    base = count(hidden, layers, mlp)
    layer = (count(hidden, layers + 4, mlp) - base) / 4
    return Line(base - layers * layer, layer, slope, mlp)


def _search(count: Callable, widths: list[int], pinned_layers: int | None, target: int) -> tuple[int, int, int]:
    """(hidden, layers, mlp) of the best shape for `target` parameters."""
    line = functools.cache(lambda hidden: _line(count, hidden, pinned_layers or 4))

    def usual_count(hidden: int) -> float:
        depth = pinned_layers or _usual_depth(hidden)
        return line(hidden).fixed + line(hidden).layer * depth

    middle = bisect.bisect_left(widths, target, key=usual_count)
    shapes = [
        shape
        for hidden in widths[max(0, middle - 3) : middle + 3]
        for shape in _shapes(line(hidden), hidden, pinned_layers, target)
    ]
    promising = sorted(shapes, key=lambda shape: _cost(shape[:3], line(shape[0]), shape[3], target))[:6]
    exact = [_landed(count, line(hidden), (hidden, layers, mlp), target) for hidden, layers, mlp, _ in promising]
    return min(exact, key=lambda shape: _cost(shape, line(shape[0]), count(*shape), target))


def _shapes(line: Line, hidden: int, pinned_layers: int | None, target: int) -> Iterable[tuple[int, int, int, float]]:
    """(hidden, layers, mlp, expected parameters) near `target` at one width."""
    depths = [pinned_layers] if pinned_layers else []
    if not depths and line.layer > 0:
        middle = round((target - line.fixed) / line.layer)
        depths = sorted({min(MAX_LAYERS, max(MIN_LAYERS, middle + step)) for step in (-2, -1, 0, 1, 2)})
    for layers in depths or [MIN_LAYERS]:
        rest = target - line.fixed - layers * line.layer
        mlp = line.usual_mlp
        if line.slope > 0:
            mlp = _rounded_mlp(mlp + rest / layers / line.slope, hidden)
        yield hidden, layers, mlp, target - rest + layers * line.slope * (mlp - line.usual_mlp)


def _landed(count: Callable, line: Line, shape: tuple[int, int, int], target: int) -> tuple[int, int, int]:
    """The shape with its MLP corrected by a real count: hybrids are affine in depth only on average."""
    hidden, layers, mlp = shape
    if line.slope <= 0:
        return shape
    error = target - count(*shape)
    corrected = (hidden, layers, _rounded_mlp(mlp + error / layers / line.slope, hidden))
    return min(shape, corrected, key=lambda s: abs(count(*s) - target))


def _cost(shape: tuple[int, int, int], line: Line, parameters: float, target: int) -> float:
    """How unusual a shape is: unusual depth and MLP ratios, odd widths, and above all a missed target.

    By these weights, missing the target by 1 % is as bad as a depth 10 % off the law or an MLP 20 % off its ratio, and
    leaving the tolerance is worse than any ratio.
    """
    hidden, layers, mlp = shape
    miss = abs(parameters - target) / target
    ratios = abs(math.log(layers / _usual_depth(hidden))) + 0.5 * abs(math.log(mlp / line.usual_mlp))
    odd_width = 0.05 if hidden % (64 if hidden < 256 else 128) else 0
    return ratios + 10 * miss + (100 * miss + 10 if miss > SIZE_TOLERANCE else 0) + odd_width
