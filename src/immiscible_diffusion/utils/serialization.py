"""Frozen dataclasses as JSON values and back: the one codec of the project."""

import dataclasses
import types
import typing
from typing import Any


def to_dict(value: Any) -> Any:
    """Turn ``value`` into JSON values; a dataclass says its ``kind``, the name of its class."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: to_dict(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"kind": type(value).__name__} | fields
    if isinstance(value, (tuple, list)):
        return [to_dict(item) for item in value]
    return value


def from_dict(annotation: Any, value: Any, where: str) -> Any:
    """Read ``value`` as an instance of ``annotation``: what ``to_dict`` wrote.

    Args:
        annotation: a dataclass, a base class of dataclasses, a union of them, or a plain type.
        value: JSON values.
        where: the name that errors use.

    Raises:
        ValueError: an unknown kind, or unknown or missing fields; it says where.
    """
    kinds = kinds_of(annotation)
    if not kinds:
        return tuple(value) if isinstance(value, list) else value
    if value is None and _is_union(annotation):
        return None
    if not isinstance(value, dict) or value.get("kind") not in kinds:
        raise ValueError(f"{where} must be one of {', '.join(kinds)}, got {value!r}")
    kind = kinds[value["kind"]]
    hints, fields = typing.get_type_hints(kind), dataclasses.fields(kind)
    given = value.keys() - {"kind"}
    needed = {f.name for f in fields if f.default is f.default_factory is dataclasses.MISSING}
    if wrong := (given - {f.name for f in fields}) | (needed - given):
        raise ValueError(f"{where}: unknown or missing fields: {', '.join(sorted(wrong))}")
    return kind(
        **{name: from_dict(hints[name], value[name], f"{where}.{name}") for name in given}
    )


def kinds_of(annotation: Any) -> dict[str, type]:
    """List the dataclasses that ``annotation`` allows by name: its subclasses, its members."""
    options = typing.get_args(annotation) if _is_union(annotation) else (annotation,)
    kinds: dict[str, type] = {}
    for option in options:
        if dataclasses.is_dataclass(option):
            kinds[option.__name__] = option  # type: ignore[union-attr]
        elif isinstance(option, type) and option.__module__.startswith("immiscible_diffusion"):
            for subclass in option.__subclasses__():
                kinds |= kinds_of(subclass)
    return kinds


def _is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested dictionaries to one, names joined by dots."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        nested = isinstance(value, dict)
        result |= flatten(value, f"{prefix}{key}.") if nested else {prefix + key: value}
    return result
