"""Frozen dataclasses as JSON values and back."""

import dataclasses
import types
import typing
from typing import Any


def to_dict(value: Any) -> Any:
    """``value`` as JSON values; dataclasses say their kind."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: to_dict(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"kind": type(value).__name__} | fields
    if isinstance(value, (tuple, list)):
        return [to_dict(item) for item in value]
    return value


def from_dict(kind: Any, value: Any, where: str) -> Any:
    """``value`` as an instance of the annotation ``kind``, for the few kinds recipes use."""
    options: list[Any] = [
        option
        for option in (typing.get_args(kind) if _is_union(kind) else (kind,))
        if dataclasses.is_dataclass(option)
    ]
    if not options:
        return tuple(value) if isinstance(value, list) else value
    if value is None and _is_union(kind):
        return None
    names = {option.__name__: option for option in options}
    if not isinstance(value, dict) or value.get("kind") not in names:
        raise ValueError(f"{where} must be one of {', '.join(names)}, got {value!r}")
    chosen = names[value["kind"]]
    hints = typing.get_type_hints(chosen)
    known = dataclasses.fields(chosen)
    given = value.keys() - {"kind"}
    needed = {f.name for f in known if f.default is f.default_factory is dataclasses.MISSING}
    if wrong := (given - {f.name for f in known}) | (needed - given):
        raise ValueError(f"{where}: unknown or missing fields: {', '.join(sorted(wrong))}")
    return chosen(
        **{name: from_dict(hints[name], value[name], f"{where}.{name}") for name in given}
    )


def _is_union(kind: Any) -> bool:
    return typing.get_origin(kind) in (typing.Union, types.UnionType)


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, names joined by dots."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= (
            flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        )
    return found
