"""What KNN does to the noise of a sample, in expectation, from its size alone: no data needed.

KNN picks by distance only, so all that matters is the distribution of the distance from the sample to one Gaussian
noise. Of k noises the least distance has survival S(.)^k, and given the distance the noise is von Mises-Fisher around
the sample. So each figure is an integral over one number, exact up to rounding for any dimension, in some ten
milliseconds.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

CELLS = 4096
REACH = 14.0  # the distance has standard deviation <= 1 in any dimension, for any sample
RECURRENCES = 64
LONGEST = 1e4  # rms beyond which float64 loses the noise beside the sample


@dataclass(frozen=True)
class Expected:
    """What a coupling does to a noise, in expectation over noises."""

    pull: float  # E <n, x / |x|>, standard deviations of the noise along its sample
    second_moment: float  # E |n|^2 / D: the variance a dimension over data of mean zero
    variance: float  # (E |n|^2 - pull^2) / D: the same about the mean noise of the one sample
    distance_reduction: float  # 1 - E |n - x| / E |g - x| with g independent noise
    pull_error: float = 0.0  # standard error of a simulated pull; 0 where it is exact
    distance_error: float = 0.0  # the same of the distance reduction


def information_budget(k: int) -> float:
    """``KL(p_k(. | x), N(0, I)) = log k - 1 + 1/k`` nats, for any sample and any dimension.

    The survival of the winner's distance is the largest of k uniform numbers, and the log density ratio is
    ``log k + (k - 1) log survival``. No noise tells more about its sample on average; to tell apart N data takes
    log N.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    return math.log(k) - 1 + 1 / k


def assignment_budget(batch: int) -> float:
    """``log(B!) / B`` nats a sample: what a batch assigned one to one tells at most.

    The density of the assigned noises, all together, is B! times that of independent ones, where no exchange lowers
    the cost, and 0 elsewhere.
    """
    if batch < 1:
        raise ValueError(f"batch must be at least 1, got {batch}")
    return math.lgamma(batch + 1) / batch


def knn_expectation(k: int, dim: int, rms: float) -> Expected:
    """Expected pull, moments and distance reduction of ``KNN(k)`` for samples of ``dim`` D >= 1 numbers.

    ``rms`` is ``|x| / sqrt(D)``, less the center where there is one. At 0 a sample has no direction: its pull is 0.
    """
    return Distances(dim, rms).nearest(k)


@dataclass(frozen=True)
class Distances:
    """The distribution of the distance from a sample of ``dim`` numbers to N(0, I) noise, on a grid.

    Its density f, the non-central chi, obeys ``(log f)' = (D - 1)/d - d + L A(L d)`` with L the length of the sample
    and ``A = I_{D/2} / I_{D/2 - 1}``, the ratio of Bessel functions that is also the mean cosine of a von Mises-Fisher
    direction. No underflow, whatever D.
    """

    dim: int
    rms: float

    def __post_init__(self) -> None:
        if self.dim < 1:
            raise ValueError(f"dim must be at least 1, got {self.dim}")
        if not 0 <= self.rms <= LONGEST:
            raise ValueError(f"rms must be from 0 to {LONGEST:g}, got {self.rms}")

    @property
    def length(self) -> float:
        """Length of the sample."""
        return self.rms * math.sqrt(self.dim)

    @cached_property
    def grid(self) -> tuple[Tensor, Tensor]:
        """``[2 CELLS + 1]`` distances (ends and middles of cells) and how fast they change.

        Finer towards the low end: in few dimensions the nearest of many is very near.
        """
        middle = math.sqrt(self.dim + self.length**2)
        low, high = max(0.0, middle - REACH), middle + REACH
        t = torch.linspace(0, 1, 2 * CELLS + 1, dtype=torch.float64)
        return low + (high - low) * t**3, 3 * (high - low) * t**2

    @cached_property
    def _cosine(self) -> Tensor:
        return bessel_ratio(self.dim, self.length * self.grid[0])

    @cached_property
    def cdf(self) -> Tensor:
        """``[CELLS + 1]``: the distribution function at the ends of the cells."""
        distance, rate = self.grid
        slope = self.length * self._cosine * rate
        # Simpson's rule within a cell; its middle by the third-order rule for half a cell.
        ends, middles = slope[:-1:2], slope[1::2]
        half = (5 * ends + 8 * middles - slope[2::2]) / (24 * CELLS)
        whole = (ends + 4 * middles + slope[2::2]) / (6 * CELLS)
        log = torch.zeros_like(distance)
        log[2::2] = whole.cumsum(0)
        log[1::2] = log[:-1:2] + half
        log -= distance**2 / 2
        log += (self.dim - 1) * distance.log() if self.dim > 1 else 0.0
        density = (log - log.max()).exp() * rate
        cells = density[:-1:2] + 4 * density[1::2] + density[2::2]
        total = torch.cat([cells.new_zeros(1), cells.cumsum(0)])
        return total / total[-1]

    def nearest(self, k: int) -> Expected:
        """Expectations over the nearest of ``k`` noises."""
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        distance = self.grid[0][::2]
        back = distance * self._cosine[::2]  # from the noise to the sample, along the sample
        along = self.length - back
        square = (distance - self.length) ** 2 + 2 * self.length * (distance - back)
        pull, moment = self._mean(along, k), self._mean(square, k)
        near, any_one = self._mean(distance, k), self._mean(distance, 1)
        variance = (moment - pull**2) / self.dim
        return Expected(pull, moment / self.dim, variance, 1 - near / any_one)

    @cached_property
    def log_survival(self) -> Tensor:
        """``[CELLS + 1]``: ``log P(a noise is farther)`` at the ends of the cells."""
        return torch.log1p(-self.cdf)

    def _mean(self, values: Tensor, k: int) -> float:
        """The mean of ``values`` over the nearest of k, whose survival is that of one to the k."""
        winner = -torch.expm1(k * self.log_survival)
        return float(torch.trapezoid(values, winner))


def bessel_ratio(dim: int, concentration: Tensor) -> Tensor:
    """``I_{D/2}(c) / I_{D/2 - 1}(c)``, in [0, 1], for ``dim`` D >= 1 and c >= 0.

    Backward recurrence, all terms positive, from 64 orders up: there by a mean of Amos' two bounds (Math. Comp. 28,
    1974) that has the first three terms for large c right.
    """
    order = dim / 2 + RECURRENCES
    root = ((order - 0.5) * (order + 0.5) + concentration**2).sqrt()
    ratio = concentration / (order - 0.5 + root)
    for _ in range(RECURRENCES):
        order -= 1
        ratio = concentration / (2 * order + concentration * ratio)
    return ratio
