"""Reads a recipe's YAML file: each value as the field of its name takes it, whatever YAML makes of the words."""

import re
import types
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from fourstage.errors import one_line
from fourstage.ranges import shown

_BOOLS = ("true", "false", "yes", "no", "t", "f", "y", "n", "1", "0")  # as the parser of transformers reads them
_ALSO_BOOL = ("fsdp", "scale_rewards")  # the libraries take true and false, though their hints say text
_MOST_VALUES = 100_000
_NAMES = {str: "text", bool: "true or false", int: "a whole number", float: "a number", dict: "a mapping"}


class _Loader(yaml.SafeLoader):
    """YAML 1.1, but 1e-6 is a number, as in YAML 1.2 and JSON, and a date is a text."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        """As YAML has it: a key is in a mapping once. PyYAML lets the last one win."""
        lines: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if key.tag != "tag:yaml.org,2002:merge" and isinstance(key, yaml.ScalarNode):
                if key.value in lines:
                    raise ValueError(f"{key.value} is there twice, in lines {lines[key.value]} and {line}; keep one")
                lines[key.value] = line
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\.\d+|\d+(\.\d*)?)[eE][-+]?\d+$"), list("-+.0123456789")
)


def read_yaml(path: Path) -> tuple[dict, dict]:
    """(the values of a YAML file by name, the same with every scalar as it is written: `no`, `007`, `1e-6`).

    Raises:
        ValueError: for a file that cannot be read or is not YAML, has a key twice, or holds anything but `key: value`
            lines.
    """
    try:
        source = path.read_text(encoding="utf-8")
        values, texts = yaml.load(source, _Loader), yaml.load(source, yaml.BaseLoader)
        _check_size(values)
    except RecursionError:
        raise ValueError(f"{path}: nested too deep, or within itself") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{path}: not valid YAML: {one_line(error)}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: must hold `key: value` lines, got {type(values).__name__}")
    return values, texts


def _check_size(values: Any) -> None:
    """Refuses the few lines of aliases (`b: [*a, *a]`) that stand for more values than any memory holds."""
    sizes: dict[int, int] = {}

    def size(value: Any) -> int:
        if not isinstance(value, dict | list):
            return 1
        if id(value) not in sizes:
            sizes[id(value)] = sum(map(size, value.values() if isinstance(value, dict) else value)) + 1
        return sizes[id(value)]

    if size(values) > _MOST_VALUES:
        raise ValueError(f"its aliases stand for more than {_MOST_VALUES:,} values")


def typed_settings(values: Mapping, texts: Mapping, kinds: Sequence[type], where: str) -> dict[str, Any]:
    """What `read_yaml` gives, each value typed as the fields of its name are in the dataclasses `kinds`.

    A field for text takes the words as written, a field for a list one item too, one for a whole number 1e3. Entries of
    a list of mappings are typed by the fields that their keys name, with or without `dataset_` before them.

    Example: {"eval_strategy": False} with {"eval_strategy": "no"} -> {"eval_strategy": "no"}; "reward_funcs: number" ->
        {"reward_funcs": ["number"]}.
    Raises:
        ValueError: for a value that its field does not take; `where` begins the message.
    """
    hints: dict[str, set] = {}
    for base in (base for kind in kinds for base in kind.__mro__ if "__dataclass_fields__" in vars(base)):
        for name, hint in get_type_hints(base).items():  # of bases too: ours say `str` where transformers has an enum
            hints.setdefault(name, {bool} if name in _ALSO_BOOL else set()).update(_members(hint))
    return _by_name(values, texts, hints, where)


def _members(hint: Any) -> set:
    """The types of a union; those of `str | list[int] | None` are str, list[int] and NoneType."""
    if get_origin(hint) in (Union, types.UnionType):
        return {member for part in get_args(hint) for member in _members(part)}
    return {hint}


def _by_name(values: Mapping, texts: Any, hints: dict[str, set], where: str) -> dict[str, Any]:
    texts = texts if isinstance(texts, Mapping) else {}
    typed = {}
    for name, value in values.items():
        accepted = hints.get(name) or hints.get(f"dataset_{name}")
        typed[name] = _typed(value, texts.get(name), accepted, hints, f"{where}{name}") if accepted else value
    return typed


def _typed(value: Any, text: Any, accepted: set, hints: dict[str, set], where: str) -> Any:
    """`value` as one of the types that are accepted."""
    items = {one for kind in accepted if get_origin(kind) is list for one in _members(get_args(kind)[0])}
    if isinstance(value, list) and items:
        texts = text if isinstance(text, list) else [None] * len(value)
        return [_typed(one, of, items, hints, where) for one, of in zip(value, texts, strict=True)]
    if isinstance(value, dict) and dict in items:
        return [_typed(value, text, items, hints, where)]
    if isinstance(value, dict) and accepted == {dict}:
        return _by_name(value, text, hints, f"{where}: ")
    if isinstance(value, dict) and any(kind is dict or get_origin(kind) is dict for kind in accepted):
        return value
    for types_of in (accepted, items):
        fitting = _scalar(value, text if isinstance(text, str) else str(value), types_of)
        if fitting is not None or (value is None and types.NoneType in types_of):
            return fitting if types_of is accepted else [fitting]
    names = sorted(
        {_NAMES.get(get_origin(kind) or kind, "text") for kind in items or accepted if kind is not types.NoneType}
    )
    raise ValueError(f"{where}: takes {'a list of ' if items else ''}{' or '.join(names)}, got {shown(value)}")


def _scalar(value: Any, text: str, accepted: set) -> Any:
    """`value` as one of the types that are accepted, `text` where that is text; None where it fits none."""
    choices = [kind for kind in accepted if get_origin(kind) is Literal]
    enums = [kind for kind in accepted if isinstance(kind, type) and issubclass(kind, Enum)]
    if isinstance(value, bool):
        if bool in accepted or any(value is choice for kind in choices for choice in get_args(kind)):
            return value
        if not value and any(member.value == "no" for kind in enums for member in kind):
            return "no"
    elif isinstance(value, int | float):
        if float in accepted or (int in accepted and isinstance(value, int)):
            return value
        if int in accepted and float(value).is_integer():
            return int(value)
        if bool in accepted and value in (0, 1):
            return bool(value)
    elif isinstance(value, str) and str not in accepted:
        return _from_text(value, accepted)
    is_text = isinstance(value, str | int | float) and (str in accepted or choices or enums)
    return text if is_text else None


def _from_text(value: str, accepted: set) -> Any:
    """A quoted number as a number; "true" and JSON are left to the parser."""
    if bool in accepted and value.lower() in _BOOLS:
        return value
    if any((get_origin(kind) or kind) is dict for kind in accepted):
        return value
    for kind in (kind for kind in (int, float) if kind in accepted):
        try:
            return kind(value)
        except ValueError:
            continue
    return None
