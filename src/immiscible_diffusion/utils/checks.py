"""Checks of the fields of a configuration, a dataclass."""

import operator
import typing
from functools import lru_cache
from typing import Any

_COMPARE = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}


@lru_cache(maxsize=256)
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def check_choices(record: Any, prefix: str = "") -> None:
    """Raise ValueError for a field annotated ``Literal[...]`` that holds another value."""
    for name, hint in _hints(record.__class__).items():
        known, value = typing.get_args(hint), getattr(record, name)
        if typing.get_origin(hint) is typing.Literal and value not in known:
            raise ValueError(f"{prefix}{name} must be one of {', '.join(known)}, got {value!r}")


def check_bounds(record: Any, prefix: str = "", **bounds: str) -> None:
    """Raise ValueError for a number out of its bounds: ``check_bounds(self, eta=">= 0 and <= 1")``.

    A tuple is checked item by item; None passes. ``prefix`` comes before names, such as ``optim.``.
    """
    for name, text in bounds.items():
        value: Any = getattr(record, name)
        items = value if isinstance(value, tuple | list) else () if value is None else (value,)
        for compare, limit in map(str.split, text.split(" and ")):
            if not all(_COMPARE[compare](item, float(limit)) for item in items):
                raise ValueError(f"{prefix}{name} must be {text}, got {value}")
