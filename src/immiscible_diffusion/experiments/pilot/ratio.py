"""Ratios of distances, paired by seed, with t-intervals; and the seeds that they would take."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from statistics import fmean, stdev

from immiscible_diffusion.utils.statistics import SMALLEST

RELEVANT = 1.25  # an effect below this factor is called none
FEWEST_SEEDS = 3
MOST_SEEDS = 200


@dataclass(frozen=True)
class Ratio:
    """A geometric mean over seeds with its interval; ``spread`` is the deviation of the logs."""

    value: float
    low: float
    high: float
    spread: float
    seeds: int

    @classmethod
    def of(cls, values: Mapping[int, float], base: Mapping[int, float], level: float) -> "Ratio":
        """``values / base``, paired by seed, with a t-interval at ``level``."""
        seeds = sorted(values.keys() & base.keys())
        logs = [math.log(max(values[s], SMALLEST) / max(base[s], SMALLEST)) for s in seeds]
        mean, spread = fmean(logs), stdev(logs) if len(logs) > 1 else math.inf
        half = math.inf
        if len(logs) > 1:
            half = _quantile(level, len(logs) - 1) * spread / math.sqrt(len(logs))
        return cls(math.exp(mean), math.exp(mean - half), _exp(mean + half), spread, len(logs))

    @property
    def below_one(self) -> bool:
        """Better, as distances go."""
        return self.high < 1

    @property
    def above_one(self) -> bool:
        """Worse."""
        return self.low > 1

    @property
    def is_narrow(self) -> bool:
        """Whether an effect of ``RELEVANT`` would have been seen."""
        return self.low > 1 / RELEVANT and self.high < RELEVANT


def seeds_for(spread: float, level: float) -> int:
    """Seeds after which an effect of ``RELEVANT`` is seen, if logs deviate by ``spread``."""
    for seeds in range(FEWEST_SEEDS, MOST_SEEDS):
        if _quantile(level, seeds - 1) * spread / math.sqrt(seeds) <= math.log(RELEVANT):
            return seeds
    return MOST_SEEDS


@lru_cache(maxsize=1024)
def _quantile(level: float, freedom: int) -> float:
    """Of Student's t: half the width of an interval at ``level``, in standard errors."""
    from scipy.stats import t

    return float(t.ppf((1 + level) / 2, freedom))


def _exp(value: float) -> float:
    return math.exp(min(value, 700.0))
