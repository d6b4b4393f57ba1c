"""Results are read strictly and come back as they were written."""

import copy
import json
from dataclasses import replace

import pytest

from immiscible_diffusion.reporting.compare.results import (
    Comparison,
    LossPoint,
    SampleMetrics,
    Trial,
)


def test_json_round_trip_gives_the_same_record(comparison, partial):
    for record in (comparison, partial, replace(comparison, floor=None, accuracy=None, cells=())):
        text = json.dumps(record.to_dict(), allow_nan=False)
        assert Comparison.from_dict(json.loads(text)) == record


def _set(record, keys, value):
    for key in keys[:-1]:
        record = record[key]
    record[keys[-1]] = value


@pytest.mark.parametrize(
    ("keys", "value", "words"),
    [
        (["version"], 2, "version 2; expected 1"),
        (["color"], "red", "unknown fields ['color']"),
        (["samples"], "many", "results.samples is 'many'; expected a whole number"),
        (["samples"], True, "expected a whole number"),
        (["accuracy"], float("nan"), "results.accuracy is nan"),
        (["headline_steps"], 7, "headline_steps is 7; expected one of [2, 5, 20, 100]"),
        (["dataset"], "digits", "results.dataset is str; expected an object"),
        (["couplings", 1, "baseline"], True, "expected exactly one"),
        (["couplings", 2, "control_of"], "knn", "is a control of 'knn'"),
        (["couplings", 1, "name"], "independent", "more than once"),
        (["cells", 0, "coupling"], "nobody", "a cell has coupling 'nobody'"),
        (["cells", 0, "seed"], 1, "more than once"),
        (["cells", 0, "quality", 0, "step"], 0, "expected both >= 1"),
        (["cells", 0, "quality", 0, "frechet"], -1.0, "frechet is -1.0"),
        (["cells", 0, "quality", 0, "budget"], 3, "has sampling_steps [3]"),
        (["cells", 0, "quality", 0, "kid"], "0.1", "results.cells[0].quality[0].kid is '0.1'"),
        (["cells", 0, "pairing_share"], 40.0, "expected 0 to 1"),
        (["cells", 0, "grids", "250"], "/etc/passwd", "inside the folder"),
        (["cells", 0, "grids", "250"], "../other.png", "inside the folder"),
        (["cells", 0, "strip"], "/etc/passwd", "inside the folder"),
        (["cells", 0, "grids", "last"], "a.png", "expected a training step"),
    ],
)
def test_a_wrong_field_is_named(comparison, keys, value, words):
    record = copy.deepcopy(comparison.to_dict())
    _set(record, keys, value)
    with pytest.raises(ValueError) as error:
        Comparison.from_dict(record)
    assert words in str(error.value)


def test_a_missing_field_is_named(comparison):
    record = comparison.to_dict()
    del record["cells"][0]["pairing_ms"]
    with pytest.raises(ValueError, match=r"cells\[0\] lacks the fields \['pairing_ms'\]"):
        Comparison.from_dict(record)


def test_what_is_not_finite_is_given_as_none():
    with pytest.raises(ValueError, match="kid is nan"):
        SampleMetrics(1, 2, kid=float("nan"))
    with pytest.raises(ValueError, match="finite or None"):
        LossPoint(1, float("inf"))
    assert Trial("a", 0, (SampleMetrics(1, 2),)).quality[0].frechet is None
