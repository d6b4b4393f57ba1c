"""The fields of a configuration say what they may hold, and one function checks them all."""

import difflib
import math
import numbers
import operator
import types
import typing
from collections.abc import Iterable
from functools import lru_cache
from typing import Annotated, Any

_COMPARE = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}
LARGEST = 2**32  # below which every whole number is

# A number with its range: the text says all, and is what an error shows.
PositiveInt = Annotated[int, ">= 1"]
NonNegativeInt = Annotated[int, ">= 0"]
Size = Annotated[int, ">= 1 and <= 65536"]
ImageSize = Annotated[int, ">= 1 and <= 16384"]
PositiveFloat = Annotated[float, "> 0"]
FiniteFloat = Annotated[float, ""]
NonNegativeFloat = Annotated[float, ">= 0"]
Fraction = Annotated[float, ">= 0 and <= 1"]
Probability = Annotated[float, ">= 0 and < 1"]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the end of an error about an unknown ``name``: which of ``known`` is most like it; "" if none is."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


@lru_cache(maxsize=256)
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind, include_extras=True)


def check_fields(record: Any, prefix: str = "") -> None:
    """Raise ValueError for a number out of its range, or a word that is none of its ``Literal``.

    A range is the text of an annotation, ``Annotated[float, ">= 0 and <= 1"]``. Numbers are finite, and whole where
    annotated so. ``prefix`` comes before names, such as ``optim.``.
    """
    for name, hint in _hints(record.__class__).items():
        _check(f"{prefix}{name}", hint, getattr(record, name))


def _check(name: str, hint: Any, value: Any, text: str = "") -> None:
    number: Any = value
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        text = next((item for item in arguments[1:] if isinstance(item, str)), text)
        _check(name, arguments[0], value, text)
    elif origin in (typing.Union, types.UnionType):
        options = [option for option in arguments if option is not type(None)]
        if len(options) == 1 and value is not None:
            _check(name, options[0], value, text)
    elif origin is tuple and isinstance(value, tuple | list):
        every = arguments[:1] * len(value) if arguments[1:] == (Ellipsis,) else arguments
        for item, kind in zip(value, every, strict=False):
            _check(name, kind, item, text)
    elif origin is typing.Literal and value not in arguments:
        raise ValueError(f"{name} must be one of {', '.join(map(str, arguments))}, got {value!r}")
    elif hint in (int, float):
        whole, kind = hint is int, numbers.Integral if hint is int else numbers.Real
        if isinstance(value, bool) or not isinstance(value, kind) or not abs(number) < math.inf:
            raise ValueError(f"{name} must be a {'whole' if whole else 'finite'} number, got {value!r}")
        if whole and not -LARGEST < number < LARGEST:
            raise ValueError(f"{name} must be below {LARGEST}, got {value}")
        for compare, limit in map(str.split, filter(None, text.split(" and "))):
            if not _COMPARE[compare](number, float(limit)):
                raise ValueError(f"{name} must be {text}, got {value}")
