"""The Frechet distance between feature sets, each taken as a Gaussian (1706.08500); its floor."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from immiscible_diffusion.utils.random import keyed_generator

SPLITS = 10  # of the real features in halves, for the floor
# Eigenvalues of a covariance this far below zero, relative to the largest, are rounding.
_ROUNDING = 1e-8


def check_features(features: Tensor, dim: int | None = None) -> Tensor:
    """Features [B, F] as float64 on the CPU; ValueError if they are no matrix, not ``dim`` wide, or not finite."""
    if features.ndim != 2 or (dim is not None and features.shape[1] != dim):
        raise ValueError(f"expected features [B, {'F' if dim is None else dim}], got {list(features.shape)}")
    features = features.detach().cpu().double()
    if not features.isfinite().all():
        bad = int((~features.isfinite()).any(dim=1).sum())
        raise ValueError(
            f"{bad} of {len(features)} feature rows hold NaN or infinity; the samples have probably diverged"
        )
    return features


@dataclass(frozen=True, eq=False)
class FeatureStatistics:
    """Count, mean and scatter of a stream of features; immutable, float64, on the CPU.

    The scatter is kept around the running mean (Chan, Golub and LeVeque 1983): a raw sum of outer
    products loses its digits when the mean is large.
    """

    count: int  # number of features seen
    mean: Tensor  # [F]
    scatter: Tensor  # [F, F], sum of the outer products of ``feature - mean``

    @classmethod
    def empty(cls, dim: int) -> "FeatureStatistics":
        """Statistics of no features of ``dim`` dimensions."""
        return cls(0, torch.zeros(dim).double(), torch.zeros(dim, dim).double())

    @classmethod
    def of(cls, features: Tensor) -> "FeatureStatistics":
        """Statistics of features [B, F]."""
        features = check_features(features)
        if len(features) == 0:
            return cls.empty(features.shape[1])
        mean = features.mean(dim=0)
        centered = features - mean
        return cls(len(features), mean, centered.T @ centered)

    @property
    def dim(self) -> int:
        """Number of feature dimensions, F."""
        return len(self.mean)

    @property
    def covariance(self) -> Tensor:
        """Unbiased covariance [F, F], as ``numpy.cov``; ValueError below two features."""
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 features, got {self.count}")
        return self.scatter / (self.count - 1)

    def update(self, features: Tensor) -> "FeatureStatistics":
        """These statistics with features [B, F] added."""
        return self.merge(FeatureStatistics.of(check_features(features, self.dim)))

    def merge(self, other: "FeatureStatistics") -> "FeatureStatistics":
        """The statistics of both feature sets together."""
        _check_dims(self, other)
        count = self.count + other.count
        if count == 0:
            return self
        shift = other.mean - self.mean
        mean = self.mean + shift * (other.count / count)
        between = torch.outer(shift, shift) * (self.count * other.count / count)
        return FeatureStatistics(count, mean, self.scatter + other.scatter + between)


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics, *, allow_few: bool = False) -> float:
    """Squared Frechet (2-Wasserstein) distance between the Gaussians fitted to two feature sets.

    ``|mu_a - mu_b|^2 + tr(C_a + C_b - 2 (C_a^{1/2} C_b C_a^{1/2})^{1/2})``: what is known as FID
    when the features are Inception's. It is biased upwards by about 1 / count, so compare only
    figures made with equal counts and equal features.

    Raises:
        ValueError: on different dimensions, an indefinite covariance, or, unless ``allow_few``, fewer than F + 1
            features, whose covariance has not full rank.
    """
    _check_dims(a, b)
    least, count = a.dim + 1, min(a.count, b.count)
    if count < least and not allow_few:
        raise ValueError(
            f"a covariance of {a.dim}-dimensional features needs at least {least} of them, got "
            f"{count}; use more samples, or allow_few=True for a rough figure"
        )
    covariance_a, covariance_b = a.covariance, b.covariance
    # The trace of (A^{1/2} B A^{1/2})^{1/2} is the sum of the singular values of A^{1/2} B^{1/2}:
    # this keeps the digits that the root of a rounded eigenvalue near zero would lose.
    product = square_root(covariance_a) @ square_root(covariance_b)
    overlap = torch.linalg.svdvals(product).sum()
    spread = covariance_a.trace() + covariance_b.trace() - 2 * overlap
    return max(0.0, float((a.mean - b.mean).square().sum() + spread))


def _check_dims(a: FeatureStatistics, b: FeatureStatistics) -> None:
    if a.dim != b.dim:
        raise ValueError(f"the two feature sets have {a.dim} and {b.dim} dimensions; use one kind")


def square_root(covariance: Tensor) -> Tensor:
    """Symmetric square root of a positive semi-definite matrix [F, F]."""
    values, vectors = torch.linalg.eigh((covariance + covariance.T) / 2)
    if values[0] < -_ROUNDING * values[-1].abs():
        raise ValueError(
            "a covariance must be positive semi-definite, got eigenvalues from "
            f"{float(values[0]):.3g} to {float(values[-1]):.3g}"
        )
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


@dataclass(frozen=True)
class Floor:
    """Frechet distance between random disjoint halves of the real set.

    The distance of M features to N of the same distribution is about proportional to ``1 / M + 1 / N``, so ``at``
    scales the floor to M samples against N real data. Differences smaller than its spread mean little.
    """

    mean: float  # over the random splits
    low: float  # the smallest
    high: float  # the largest
    size: int  # features in each half
    # the numbers of samples and of real data that it was scaled to; None = ``size`` each
    counts: tuple[int, int] | None = field(default=None, metadata={"optional": True})

    def at(self, samples: int, real: int) -> "Floor":
        """The score of ``samples`` from the data's own distribution against ``real`` data."""
        if self.counts is not None:
            raise ValueError(f"the floor was scaled to {self.counts} already")
        scale = (1 / samples + 1 / real) / (2 / self.size)
        return Floor(scale * self.mean, scale * self.low, scale * self.high, self.size, (samples, real))

    @property
    def note(self) -> str:
        """The floor in words, for reports."""
        if self.counts is not None:
            return (
                f"{self.counts[0]:,} samples of the data's own distribution would be about "
                f"{self.mean:.3g} from {self.counts[1]:,} real data ({self.low:.3g} to "
                f"{self.high:.3g} over {SPLITS} splits in halves of {self.size:,}, scaled to them)"
            )
        return (
            f"two random halves of the real set ({self.size} each) are {self.mean:.3g} apart "
            f"({self.low:.3g} to {self.high:.3g} over {SPLITS} splits)"
        )


def floor_of(real: Tensor, size: int, seed: int) -> Floor | None:
    """Distance between random disjoint sets of ``size`` of the features [N, F], over 10 splits.

    None if ``size`` is below F + 1. The splits share features, so low and high are the spread over
    splits of one set, a little less than that over new sets.
    """
    if size < real.shape[1] + 1:
        return None
    pairs = (map(FeatureStatistics.of, halves(real, size, seed, split)) for split in range(SPLITS))
    return _floor([frechet_distance(*pair) for pair in pairs], size)


def _floor(values: list[float], size: int) -> Floor:
    return Floor(sum(values) / len(values), min(values), max(values), size)


def statistics_and_floor(
    dim: int, parts: Iterable[Tensor], count: int, seed: int
) -> tuple[FeatureStatistics, Floor | None]:
    """Statistics, and ``floor_of`` halves, of ``count`` features [b, F] that come in ``parts``; none is kept."""
    size, start = count // 2, 0
    side = torch.zeros(SPLITS if size > dim else 0, count, dtype=torch.int8)  # 1 and 2 are the halves of a split
    for split, row in enumerate(side):
        for number, rows in enumerate(halves(torch.arange(count), size, seed, split), 1):
            row[rows] = number
    whole, sums = FeatureStatistics.empty(dim), [[FeatureStatistics.empty(dim)] * 3 for _ in side]
    for part in parts:
        whole, here = whole.update(part), side[:, start : start + len(part)]
        for split, of_split in enumerate(sums):
            for number in (1, 2):
                of_split[number] = of_split[number].update(part[here[split] == number])
        start += len(part)
    values = [frechet_distance(one, other) for _, one, other in sums]
    return whole, _floor(values, size) if values else None


def halves(real: Tensor, size: int, seed: int, split: int) -> tuple[Tensor, Tensor]:
    """Two random disjoint sets [size, F] of the features [N, F]."""
    order = torch.randperm(len(real), generator=keyed_generator(seed, "floor", split))
    return real[order[:size]], real[order[size : 2 * size]]
