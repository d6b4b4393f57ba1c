"""Means over seeds with Student's t intervals: plain, paired, and of log-ratios; tests of many at once."""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from statistics import fmean, stdev
from typing import TypeVar

CONFIDENCE = 0.95
SMALLEST = 1e-12
"""Stands for smaller values where a logarithm is taken: a distance of exactly 0 has none."""
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Interval:
    """A mean with its confidence interval.

    Attributes:
        value: the mean; of log-ratios the geometric mean.
        low: lower end; -inf (0 for ratios) where one value gives no interval.
        high: upper end; inf where one value gives no interval.
        count: number of values.
        std: standard deviation of the values, for ratios of their logarithms; inf of one value.
    """

    value: float
    low: float
    high: float
    count: int
    std: float

    @property
    def is_known(self) -> bool:
        """Whether there is an interval: it takes two values at least."""
        return math.isfinite(self.high)

    def excludes(self, value: float) -> bool:
        """Whether ``value`` lies outside."""
        return not self.low <= value <= self.high

    @property
    def reciprocal(self) -> "Interval":
        """The interval of 1 / the ratio."""
        low, high = (1 / end if end else math.inf for end in (self.high, self.low))
        return replace(self, value=1 / self.value, low=low, high=high)


@lru_cache(maxsize=1024)
def t_quantile(freedom: int, confidence: float = CONFIDENCE) -> float:
    """Half the width of Student's interval in standard errors, with ``freedom`` degrees."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + confidence) / 2))


def mean_interval(values: Sequence[float], *, confidence: float = CONFIDENCE, minimum: float = -math.inf) -> Interval:
    """``mean +- t std / sqrt(n)`` of independent values; ``minimum`` cuts the lower end."""
    if not values:
        raise ValueError("got no values; expected at least one to take the mean of")
    mean, std, half = fmean(values), math.inf, math.inf
    if len(values) > 1:
        std = stdev(values)
        half = t_quantile(len(values) - 1, confidence) * std / math.sqrt(len(values))
    return Interval(mean, max(minimum, mean - half), mean + half, len(values), std)


def geometric_interval(values: Sequence[float], *, confidence: float = CONFIDENCE) -> Interval:
    """``exp`` of the mean and interval of the logarithms of ``values`` (ratios, mostly)."""
    logs = mean_interval([_log(value) for value in values], confidence=confidence)
    return Interval(_exp(logs.value), _exp(logs.low), _exp(logs.high), logs.count, logs.std)


def paired_interval(values: Mapping[Key, float], baseline: Mapping[Key, float]) -> Interval:
    """Mean of ``values - baseline`` over the keys (seeds) that both have."""
    return mean_interval([values[key] - baseline[key] for key in values if key in baseline])


def ratio_interval(
    values: Mapping[Key, float], baseline: Mapping[Key, float], *, confidence: float = CONFIDENCE
) -> Interval:
    """Geometric mean of ``values / baseline`` over the keys (seeds) that both have."""
    logs = [_log(values[key]) - _log(baseline[key]) for key in values if key in baseline]
    return geometric_interval([_exp(log) for log in logs], confidence=confidence)


def ratio_p_value(ratio: Interval) -> float | None:
    """Two-sided p-value of Student's t-test that a ``geometric_interval`` is of ratio 1; None of one value."""
    from scipy.special import stdtr

    if ratio.count < 2:
        return None
    mean, error = _log(ratio.value), ratio.std / math.sqrt(ratio.count)
    return float(2 * stdtr(ratio.count - 1, -abs(mean) / error)) if error else float(mean == 0)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values: those at most 0.05 are found together, with 5% error in the family."""
    adjusted, largest = [1.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = adjusted[i] = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
    return adjusted


def _log(value: float) -> float:
    return math.log(max(value, SMALLEST))


def _exp(value: float) -> float:
    return math.exp(value) if value < 709 else math.inf
