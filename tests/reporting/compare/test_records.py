"""Results are read strictly and come back as they were written."""

import copy
import json
from dataclasses import replace

import pytest

from immiscible_diffusion.reporting.compare.records import Comparison, SampleMetrics, Trial


def test_json_round_trip_gives_the_same_record(comparison, partial):
    for record in (comparison, partial, replace(comparison, floor=None, accuracy=None, trials=())):
        text = json.dumps(record.to_dict(), allow_nan=False)
        assert Comparison.from_dict(json.loads(text)) == record


def _set(record, keys, value):
    for key in keys[:-1]:
        record = record[key]
    record[keys[-1]] = value


@pytest.mark.parametrize(
    ("keys", "value", "words"),
    [
        (["schema_version"], 1, "has schema 1 and this release reads 2"),
        (["color"], "red", "results: unknown or missing fields: color"),
        (["samples"], "many", "results.samples is 'many'; expected a whole number"),
        (["samples"], True, "expected a whole number"),
        (["accuracy"], float("inf"), "results.accuracy is inf"),
        (["headline_steps"], 7, "headline_steps is 7; expected one of [2, 5, 20, 100]"),
        (["dataset"], "digits", "results.dataset must be one of Dataset, got 'digits'"),
        (["couplings", 1, "baseline"], True, "expected exactly one"),
        (["couplings", 2, "control_of"], "knn", "is a control of 'knn'"),
        (["couplings", 1, "name"], "independent", "more than once"),
        (["trials", 0, "coupling"], "nobody", "a trial has coupling 'nobody'"),
        (["trials", 0, "seed"], 1, "more than once"),
        (["trials", 0, "metrics", 0, "step"], 0, "expected both >= 1"),
        (["trials", 0, "metrics", 0, "frechet"], -1.0, "frechet is -1.0"),
        (["trials", 0, "metrics", 0, "sampling_steps"], 3, "has sampling_steps 3"),
        (["trials", 0, "metrics", 0, "kid"], "0.1", "results.trials[0].metrics[0].kid is '0.1'"),
        (["trials", 0, "grids", "250"], "/etc/passwd", "inside the folder"),
        (["trials", 0, "grids", "250"], "../other.png", "inside the folder"),
        (["trials", 0, "trajectory"], "/etc/passwd", "inside the folder"),
        (["trials", 0, "grids", "last"], "a.png", "expected a training step"),
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
    del record["trials"][0]["seed"]
    with pytest.raises(ValueError, match=r"trials\[0\]: unknown or missing fields: seed"):
        Comparison.from_dict(record)


def test_results_of_the_first_schema_say_what_to_do(comparison):
    with pytest.raises(ValueError) as error:
        Comparison.from_dict({"version": 1, "command": "immiscible compare digits-flow --seeds 0"})
    assert "immiscible compare digits-flow --seeds 0 --gather" in str(error.value)


def test_what_is_not_finite_is_given_as_none():
    with pytest.raises(ValueError, match="kid is nan"):
        SampleMetrics(1, 2, kid=float("nan"))
    assert Trial("a", 0, (SampleMetrics(1, 2),)).metrics[0].frechet is None
