"""Every number of a configuration has a range, which one function checks."""

import math
import typing
from dataclasses import dataclass, is_dataclass
from typing import Annotated, Literal

import pytest

from immiscible_diffusion.analysis.config import AnalysisConfig
from immiscible_diffusion.cli import compare, encode, evaluate, pilot, sample, train
from immiscible_diffusion.training.recipe import Recipe
from immiscible_diffusion.training.task import import_applications
from immiscible_diffusion.utils.checks import Fraction, PositiveInt, check_fields
from immiscible_diffusion.utils.serialization import kinds_of


@dataclass(frozen=True)
class Settings:
    """A dataclass with a number of every kind."""

    count: PositiveInt = 1
    most: PositiveInt | None = None
    shares: tuple[Fraction, ...] = (0.5, 1)
    pair: tuple[Fraction, Annotated[int, "> 1 and < 5"]] = (0, 2)
    word: Literal["a", "b"] = "a"

    def __post_init__(self) -> None:
        check_fields(self, "settings.")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"count": 0}, r"settings\.count must be >= 1, got 0"),
        ({"count": 1.5}, "count must be a whole number, got 1.5"),
        ({"count": True}, "count must be a whole number"),
        ({"count": "1"}, "count must be a whole number, got '1'"),
        ({"count": 10**400}, "count must be below"),
        ({"most": -1}, "most must be >= 1"),
        ({"shares": (0.5, math.nan)}, "shares must be a finite number"),
        ({"shares": (math.inf,)}, "shares must be a finite number"),
        ({"shares": (0.5, 1.5)}, "shares must be >= 0 and <= 1, got 1.5"),
        ({"pair": (0, 5)}, "pair must be > 1 and < 5"),
        ({"word": "c"}, "word must be one of a, b, got 'c'"),
    ],
)
def test_what_is_out_of_range_is_an_error(fields, message):
    Settings()
    with pytest.raises(ValueError, match=message):
        Settings(**fields)


def parts(hint, ranged=False):
    """The classes in ``hint``, each with whether there is a range around it."""
    if typing.get_origin(hint) is Annotated:
        yield from parts(hint.__origin__, ranged or any(isinstance(item, str) for item in hint.__metadata__))
    elif typing.get_origin(hint) is not Literal and typing.get_args(hint):
        for part in typing.get_args(hint):
            yield from parts(part, ranged)
    else:
        yield hint, ranged


def numbers_without_range(kind, seen):
    """The numbers of a configuration, however deep, that have no range."""
    if kind in seen or not kind.__module__.startswith("immiscible_diffusion."):
        return  # other tests import applications of their own
    seen.add(kind)
    for name, hint in typing.get_type_hints(kind, include_extras=True).items():
        for part, has_range in parts(hint):
            if part in (int, float) and not has_range:
                yield f"{kind.__name__}.{name}"
            if isinstance(part, type):
                for other in kinds_of(part).values():
                    yield from numbers_without_range(other, seen)


def test_every_number_has_a_range():
    import_applications()
    kinds = (Recipe, AnalysisConfig, *(module.Options for module in (compare, encode, evaluate, pilot, sample, train)))
    seen = set()
    missing = [name for kind in kinds for name in numbers_without_range(kind, seen)]
    assert len([kind for kind in seen if is_dataclass(kind)]) > 25
    assert missing == []
