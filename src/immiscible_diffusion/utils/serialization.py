"""Frozen dataclasses and named tuples as JSON values and back, strict about names and types."""

import dataclasses
import inspect
import math
import sys
import types
import typing
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

_PLAIN = {str: "text", bool: "true or false", int: "a whole number", float: "a finite number"}


def to_dict(value: Any, *, kinds: bool = True) -> Any:
    """Write ``value``, a dataclass or named tuple however deep, as JSON values; NaN becomes None.

    ``kinds`` writes the class of every dataclass under ``kind``, for annotations of several.
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
    """Read ``value`` as an instance of the annotation ``kind``; None for a float is NaN.

    ValueError names the first field below ``where`` that is unknown, missing or of a wrong type.
    """
    if value is None and type(None) in _options(kind):
        return None
    if records := kinds_of(kind):
        return _record(records, value, where)
    options = [option for option in _options(kind) if option is not type(None)]
    if len(options) > 1:
        fitting = [option for option in options if isinstance(value, typing.get_origin(option) or option)]
        _check(len(fitting) > 0, where, " or ".join(map(str, options)), value)
        return from_dict(fitting[0], value, where)
    [kind] = options
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        _check(isinstance(value, list | tuple), where, "a list", value)
        if arguments[-1] is Ellipsis:
            arguments = arguments[:1] * len(value)
        _check(len(value) == len(arguments), where, f"{len(arguments)} values", value)
        parts = enumerate(zip(arguments, value, strict=True))
        return tuple(from_dict(part, item, f"{where}[{i}]") for i, (part, item) in parts)
    if origin in (dict, Mapping):
        _check(isinstance(value, Mapping), where, "an object", value)
        return {key: from_dict(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if origin is typing.Literal:
        _check(
            any(value == one and type(value) is type(one) for one in arguments), where, f"one of {arguments}", value
        )
        return value
    if kind in (str, bool):
        _check(isinstance(value, kind), where, _PLAIN[kind], value)
        return value
    if kind is float and value is None:
        return math.nan
    if kind in (int, float):
        number = isinstance(value, kind | int) and not isinstance(value, bool)
        _check(number and abs(value) <= sys.float_info.max, where, _PLAIN[kind], value)
        return kind(value)
    return value


def kinds_of(annotation: Any) -> dict[str, Any]:
    """Return the records that ``annotation`` allows, by name, subclasses among them."""
    kinds: dict[str, Any] = {}
    for option in _options(annotation):
        is_class = isinstance(option, type) and typing.get_origin(option) is None  # Python 3.10
        if not is_class or option is tuple or option in _PLAIN:
            continue
        named_tuple = issubclass(option, tuple) and hasattr(option, "_fields")
        if (dataclasses.is_dataclass(option) or named_tuple) and not inspect.isabstract(option):
            kinds[option.__name__] = option
        subclasses: list[type] = option.__subclasses__()
        for subclass in subclasses:
            kinds |= kinds_of(subclass)
    return kinds


def _options(annotation: Any) -> tuple[Any, ...]:
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return typing.get_args(annotation) if is_union else (annotation,)


def _record(kinds: dict[str, Any], value: Any, where: str) -> Any:
    """Read one of the classes ``kinds``: the one that ``kind`` names, or the only one."""
    default = next(iter(kinds)) if len(kinds) == 1 else None
    name = value.get("kind", default) if isinstance(value, Mapping) else None
    if not isinstance(name, str) or name not in kinds:
        raise ValueError(f"{where} must be one of {', '.join(kinds)}, got {value!r}")
    hints, required = _fields(kinds[name])
    known = value.keys() - {"kind"}
    if wrong := (known - hints.keys()) | (required - known):
        raise ValueError(f"{where}: unknown or missing fields: {', '.join(sorted(wrong))}")
    return kinds[name](**{f: from_dict(hints[f], value[f], f"{where}.{f}") for f in known})


@lru_cache(maxsize=256)
def _fields(kind: Any) -> tuple[dict[str, Any], frozenset[str]]:
    """Return the fields of a class with their annotations, and which of them have no default."""
    hints = typing.get_type_hints(kind)
    if not dataclasses.is_dataclass(kind):
        return hints, frozenset(hints.keys() - kind._field_defaults.keys())
    known = [f for f in dataclasses.fields(kind) if f.init]
    required = (f.name for f in known if f.default is f.default_factory is dataclasses.MISSING)
    return {f.name: hints[f.name] for f in known}, frozenset(required)


def _check(holds: bool, where: str, expected: str, value: Any) -> None:
    if not holds:
        raise ValueError(f"{where} is {value!r}; expected {expected}")


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, names joined by dots."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        nested = isinstance(value, dict)
        result |= flatten(value, f"{prefix}{key}.") if nested else {prefix + key: value}
    return result
