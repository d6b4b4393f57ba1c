"""Means over seeds with 95% t-intervals."""

import math
from dataclasses import dataclass
from statistics import fmean, stdev

CONFIDENCE = 0.95
SMALLEST = 1e-12  # a distance of exactly 0 has no logarithm


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its 95% t-interval.

    ``low`` and ``high`` are None with one seed or where a seed gives only a bound. ``bound`` says
    how the truth lies to ``value``: '' (an estimate), '>' or '<' (a bound), '~' (seeds bound it
    from both sides: no statement).
    """

    value: float
    low: float | None
    high: float | None
    seeds: int
    bound: str = ""

    @property
    def excludes_one(self) -> bool:
        """Whether an interval exists and 1 lies outside."""
        return self.low is not None and self.high is not None and not self.low <= 1 <= self.high


def t_interval(values: list[float]) -> tuple[float, float | None, float | None]:
    """Mean and 95% t-interval of independent ``values``; no interval for fewer than two."""
    mean = fmean(values)
    if len(values) < 2:
        return mean, None, None
    from scipy.stats import t

    half = float(t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * stdev(values)
    half /= math.sqrt(len(values))
    return mean, mean - half, mean + half


def arithmetic(values: list[float]) -> Estimate:
    """Mean with t-interval, cut at 0 where no value is below it."""
    mean, low, high = t_interval(values)
    if low is not None and min(values) >= 0:
        low = max(0.0, low)
    return Estimate(mean, low, high, seeds=len(values))


def geometric(values: list[float], bounds: list[str] | None = None) -> Estimate:
    """Geometric mean with a t-interval on the logs; a bound if any value is one."""
    mean, low, high = t_interval([math.log(max(value, SMALLEST)) for value in values])
    kinds = {bound for bound in bounds or [] if bound}
    if kinds:
        bound = kinds.pop() if len(kinds) == 1 else "~"
        return Estimate(math.exp(mean), None, None, len(values), bound)
    if low is None or high is None:
        return Estimate(math.exp(mean), None, None, len(values))
    return Estimate(math.exp(mean), math.exp(low), math.exp(high), len(values))
