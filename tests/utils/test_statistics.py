"""Intervals against scipy's t-tests."""

import math

import numpy as np
import pytest
from scipy import stats

from immiscible_diffusion.utils.statistics import (
    geometric_interval,
    holm,
    mean_interval,
    paired_interval,
    ratio_interval,
    ratio_p_value,
    t_quantile,
)


@pytest.fixture
def values():
    return np.random.default_rng(1).lognormal(0.3, 0.4, (2, 5))


def ends(interval):
    return interval.low, interval.high


@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_the_mean_has_the_interval_of_the_t_test(values, confidence):
    interval = mean_interval(list(values[0]), confidence=confidence)
    expected = stats.ttest_1samp(values[0], 0).confidence_interval(confidence)
    assert ends(interval) == pytest.approx(tuple(expected))
    assert (interval.value, interval.std) == pytest.approx((values[0].mean(), values[0].std(ddof=1)))
    assert interval.count == 5


def test_the_geometric_mean_has_the_interval_of_the_logs(values):
    interval = geometric_interval(list(values[0]))
    expected = stats.ttest_1samp(np.log(values[0]), 0).confidence_interval(0.95)
    assert interval.value == pytest.approx(stats.gmean(values[0]))
    assert ends(interval) == pytest.approx(tuple(np.exp(expected)))


def test_pairs_are_of_the_same_key(values):
    one, other = (dict(enumerate(row)) for row in values)
    other = dict(reversed(other.items())) | {99: 1.0}
    difference = paired_interval(one, other)
    assert ends(difference) == pytest.approx(tuple(stats.ttest_rel(*values).confidence_interval(0.95)))
    ratio = ratio_interval(one, other)
    logs = stats.ttest_rel(*np.log(values)).confidence_interval(0.95)
    assert ends(ratio) == pytest.approx(tuple(np.exp(logs)))
    inverse = ratio_interval(other, one)
    assert ratio.value * inverse.value == pytest.approx(1)


def test_one_value_gives_no_interval_and_excludes_nothing():
    assert ends(mean_interval([2.0])) == (-math.inf, math.inf)
    ratio = geometric_interval([2.0])
    assert (ratio.value, ratio.low, ratio.high) == (pytest.approx(2.0), 0.0, math.inf)
    assert not ratio.is_known
    assert not ratio.excludes(1)
    with pytest.raises(ValueError, match="no values"):
        mean_interval([])


def test_zero_has_a_ratio_and_a_minimum_cuts():
    assert ratio_interval({0: 0.0}, {0: 1.0}).value == pytest.approx(1e-12)
    assert mean_interval([0.0, 10.0], minimum=0).low == 0


def test_the_quantile_is_student_s():
    assert t_quantile(1) == pytest.approx(12.706, rel=1e-4)
    assert t_quantile(10_000) == pytest.approx(1.960, rel=1e-3)


def test_holm_by_hand():
    # In order: 5 x 0.005, 4 x 0.01, 3 x 0.02, 2 x 0.03, 1 x 0.04, none below the one before it.
    adjusted = holm([0.01, 0.04, 0.03, 0.005, 0.02])
    assert adjusted == pytest.approx([0.04, 0.06, 0.06, 0.025, 0.06])
    assert holm([0.9, 0.8]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


def test_the_p_value_of_a_ratio_is_scipys_and_agrees_with_the_interval():
    values = [1.3, 1.1, 1.7, 1.2]
    ratio = geometric_interval(values)
    assert ratio_p_value(ratio) == pytest.approx(stats.ttest_1samp(np.log(values), 0).pvalue)
    edge = geometric_interval(values, confidence=1 - ratio_p_value(ratio))
    assert edge.low == pytest.approx(1)
    assert ratio_p_value(geometric_interval([2.0])) is None
    assert ratio_p_value(geometric_interval([2.0, 2.0])) == 0
    assert ratio.reciprocal.value == pytest.approx(geometric_interval([1 / v for v in values]).value)
    assert ratio.reciprocal.high == pytest.approx(geometric_interval([1 / v for v in values]).high)
