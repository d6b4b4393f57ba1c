"""Records come back from JSON as they were, and what is wrong is named by its place."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest

from immiscible_diffusion.utils.serialization import flatten, from_dict, to_dict


class Mean(NamedTuple):
    value: float
    error: float = math.nan


@dataclass(frozen=True)
class Disk:
    radius: float
    center: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class Square:
    side: int


@dataclass(frozen=True)
class Record:
    shape: Disk | Square
    means: tuple[Mean, ...] = ()
    by_name: Mapping[str, Mean] | None = None
    inner: Square | None = None
    flag: bool = False
    note: str | None = None
    anything: Any = None


RECORD = Record(Disk(1.0, (2.0, 3.0)), (Mean(1.0, 0.5),), {"a": Mean(2.0, 0.1)}, Square(2), True, "x", 4)


def test_a_round_trip_gives_the_same_record():
    text = json.dumps(to_dict(RECORD), allow_nan=False)
    assert from_dict(Record, json.loads(text), "record") == RECORD


def test_the_class_is_needed_only_where_there_are_several():
    values = to_dict(RECORD, kinds=False)
    assert values["inner"] == {"side": 2}
    with pytest.raises(ValueError, match=r"record\.shape must be one of Disk, Square"):
        from_dict(Record, values, "record")
    values["shape"] = to_dict(RECORD.shape)
    assert from_dict(Record, values, "record") == RECORD


def test_nan_is_written_as_null_and_null_for_a_float_is_nan():
    values = to_dict(Mean(1.0))
    assert values == {"value": 1.0, "error": None}
    assert math.isnan(from_dict(Mean, values, "mean").error)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"color": 1}, "record: unknown or missing fields: color"),
        ({"flag": 1}, "record.flag is 1; expected true or false"),
        ({"means": [{"value": "1"}]}, r"record.means\[0\].value is '1'; expected a finite number"),
        ({"means": [{}]}, r"record.means\[0\]: unknown or missing fields: value"),
        ({"by_name": [1]}, "record.by_name is .* expected an object"),
        ({"shape": {"kind": "Disk", "radius": 1, "center": [1]}}, "center is .* expected 2 values"),
        ({"shape": {"kind": "Square", "side": 1.5}}, "side is 1.5; expected a whole number"),
        ({"shape": {"kind": "Square", "side": True}}, "side is True; expected a whole number"),
        ({"note": 3}, "record.note is 3; expected text"),
        ({"inner": 3}, "record.inner must be one of Square, got 3"),
    ],
)
def test_the_first_wrong_field_is_named(changes, words):
    with pytest.raises(ValueError, match=words):
        from_dict(Record, to_dict(RECORD) | changes, "record")


def test_flat_joins_names_by_dots():
    assert flatten({"a": {"b": 1, "c": {"d": 2}}, "e": 3}) == {"a.b": 1, "a.c.d": 2, "e": 3}


@pytest.mark.parametrize(
    "value", [{"shape": {"kind": []}}, {"shape": {"kind": "Disk", "radius": 10**400}}, {"shape": {"kind": {}}}]
)
def test_json_of_any_other_form_is_a_value_error(value):
    with pytest.raises(ValueError, match=r"record\.shape"):
        from_dict(Record, value, "record")
