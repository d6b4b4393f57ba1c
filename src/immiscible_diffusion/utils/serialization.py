"""Frozen dataclasses and named tuples as JSON values and back, strict about names and types."""

import dataclasses
import inspect
import math
import types
import typing
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

_PLAIN = {str: "text", bool: "true or false", int: "a whole number", float: "a finite number"}


def to_dict(value: Any, *, kinds: bool = True) -> Any:
    """``value`` as JSON values; NaN becomes None.

    Args:
        value: a dataclass, named tuple, mapping, sequence or plain value, however deep.
        kinds: write the class of every dataclass under ``kind``; needed where an annotation allows
            several.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        return ({"kind": type(value).__name__} if kinds else {}) | to_dict(fields, kinds=kinds)
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return to_dict(value._asdict(), kinds=kinds)
    if isinstance(value, Mapping):
        return {str(key): to_dict(item, kinds=kinds) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [to_dict(item, kinds=kinds) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def from_dict(kind: Any, value: Any, where: str) -> Any:
    """``value`` as an instance of the annotation ``kind``; None for a float is NaN.

    Raises:
        ValueError: naming the first field below ``where`` that is unknown, missing or of the wrong
            type.
    """
    options = typing.get_args(kind) if _is_union(kind) else (kind,)
    if value is None and type(None) in options:
        return None
    options = tuple(option for option in options if option is not type(None))
    if records := kinds_of(kind):
        return _record(records, value, where)
    if len(options) > 1:
        return value
    [kind] = options
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        _check(isinstance(value, list | tuple), where, "a list", value)
        if arguments[-1] is Ellipsis:
            arguments = arguments[:1] * len(value)
        _check(len(value) == len(arguments), where, f"{len(arguments)} values", value)
        parts = zip(arguments, value, strict=True)
        return tuple(from_dict(part, item, f"{where}[{i}]") for i, (part, item) in enumerate(parts))
    if origin in (dict, Mapping):
        _check(isinstance(value, Mapping), where, "an object", value)
        return {key: from_dict(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if kind in _PLAIN:
        return _plain(kind, value, where)
    return tuple(value) if isinstance(value, list) else value


def kinds_of(annotation: Any) -> dict[str, Any]:
    """The records that ``annotation`` allows, by name: its subclasses if it is a base class."""
    kinds: dict[str, Any] = {}
    options: tuple[Any, ...] = (
        typing.get_args(annotation) if _is_union(annotation) else (annotation,)
    )
    for option in options:
        if _is_record(option) and not inspect.isabstract(option):
            kinds[option.__name__] = option
        if _is_class(option) and option not in _PLAIN and option is not tuple:
            subclasses: list[type] = option.__subclasses__()
            for subclass in subclasses:
                kinds |= kinds_of(subclass)
    return kinds


def _record(options: dict[str, Any], value: Any, where: str) -> Any:
    """One of the classes ``options``: the one that ``kind`` names, or the only one."""
    default = next(iter(options)) if len(options) == 1 else None
    name = value.get("kind", default) if isinstance(value, Mapping) else None
    if name not in options:
        raise ValueError(f"{where} must be one of {', '.join(options)}, got {value!r}")
    hints, required = _fields(options[name])
    known = value.keys() - {"kind"}
    if wrong := (known - hints.keys()) | (required - known):
        raise ValueError(f"{where}: unknown or missing fields: {', '.join(sorted(wrong))}")
    parts = {field: from_dict(hints[field], value[field], f"{where}.{field}") for field in known}
    return options[name](**parts)


@lru_cache(maxsize=256)
def _fields(kind: Any) -> tuple[dict[str, Any], frozenset[str]]:
    """The fields of a class with their annotations, and which of them have no default."""
    hints = typing.get_type_hints(kind)
    if not dataclasses.is_dataclass(kind):
        return hints, frozenset(hints.keys() - kind._field_defaults.keys())
    known = [f for f in dataclasses.fields(kind) if f.init]
    required = (f.name for f in known if f.default is f.default_factory is dataclasses.MISSING)
    return {f.name: hints[f.name] for f in known}, frozenset(required)


def _plain(kind: Any, value: Any, where: str) -> Any:
    if kind in (str, bool):
        _check(isinstance(value, kind), where, _PLAIN[kind], value)
        return value
    if kind is float and value is None:
        return math.nan
    number = isinstance(value, kind | int) and not isinstance(value, bool)
    _check(number and math.isfinite(value), where, _PLAIN[kind], value)
    return kind(value)


def _check(holds: bool, where: str, expected: str, value: Any) -> None:
    if not holds:
        raise ValueError(f"{where} is {value!r}; expected {expected}")


def _is_record(kind: Any) -> bool:
    named_tuple = _is_class(kind) and issubclass(kind, tuple) and hasattr(kind, "_fields")
    return dataclasses.is_dataclass(kind) or named_tuple


def _is_class(kind: Any) -> bool:
    """Whether ``kind`` is a class; Python 3.10 takes ``tuple[int]`` for one."""
    return isinstance(kind, type) and typing.get_origin(kind) is None


def _is_union(kind: Any) -> bool:
    return typing.get_origin(kind) in (typing.Union, types.UnionType)


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, names joined by dots."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        nested = isinstance(value, dict)
        result |= flatten(value, f"{prefix}{key}.") if nested else {prefix + key: value}
    return result
