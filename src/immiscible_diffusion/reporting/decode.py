"""Frozen dataclasses to plain JSON values and back, strict about names and types."""

import math
import types
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")
OPTIONAL = {"optional": True}
"""Metadata of a field that a record written by an older version may lack: it has a default."""


def plain(value: Any) -> Any:
    """Turn mappings and sequences, however deep, into dicts and lists."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def decode(kind: type[T], record: Any, where: str) -> T:
    """Build the dataclass ``kind`` from plain values.

    Raises:
        ValueError: naming the first field that is unknown, missing or of the wrong type.
    """
    if not isinstance(record, Mapping):
        raise ValueError(f"{where} is {type(record).__name__}; expected an object")
    hints = get_type_hints(kind)
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    needed = {f.name for f in fields(kind) if not f.metadata.get("optional")}  # type: ignore[arg-type]
    unknown = sorted(set(record) - known)
    if unknown:
        raise ValueError(f"{where} has unknown fields {unknown}; expected some of {sorted(known)}")
    missing = sorted(needed - set(record))
    if missing:
        raise ValueError(f"{where} lacks the fields {missing} (None where not measured)")
    return kind(
        **{name: _value(hints[name], item, f"{where}.{name}") for name, item in record.items()}
    )


def _value(hint: Any, item: Any, where: str) -> Any:
    """Check one value against its type and return it in the frozen form."""
    if get_origin(hint) in (Union, types.UnionType):
        if item is None:
            return None
        hint = next(option for option in get_args(hint) if option is not type(None))
    origin = get_origin(hint)
    if origin is tuple:
        _require(isinstance(item, list | tuple), where, "a list", item)
        return tuple(
            _value(get_args(hint)[0], part, f"{where}[{i}]") for i, part in enumerate(item)
        )
    if origin is not None:
        _require(isinstance(item, Mapping), where, "an object of texts", item)
        return {str(key): _value(str, part, f"{where}[{key!r}]") for key, part in item.items()}
    if hint in (str, bool):
        _require(isinstance(item, hint), where, {str: "text", bool: "true or false"}[hint], item)
        return item
    if hint in (int, float):
        number = isinstance(item, hint | int) and not isinstance(item, bool)
        expected = {int: "a whole number", float: "a finite number"}[hint]
        _require(number and math.isfinite(item), where, expected, item)
        return hint(item)
    return decode(hint, item, where)


def _require(holds: bool, where: str, expected: str, item: Any) -> None:
    if not holds:
        raise ValueError(f"{where} is {item!r}; expected {expected}")
