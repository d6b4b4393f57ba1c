"""The Frechet distance between two feature sets, each taken as a Gaussian (FID: 1706.08500)."""

from dataclasses import dataclass

import torch
from torch import Tensor

# Eigenvalues of a covariance this far below zero, relative to the largest, are rounding.
_ROUNDING = 1e-8


def check_features(features: Tensor, dim: int | None = None) -> Tensor:
    """Features [B, F] as float64 on the CPU.

    Raises:
        ValueError: if they are not a matrix, not ``dim`` wide, or not finite.
    """
    if features.ndim != 2 or (dim is not None and features.shape[1] != dim):
        raise ValueError(
            f"expected features [B, {'F' if dim is None else dim}], got {list(features.shape)}"
        )
    features = features.detach().to("cpu", torch.float64)
    if not features.isfinite().all():
        bad = int((~features.isfinite()).any(dim=1).sum())
        raise ValueError(
            f"{bad} of {len(features)} feature rows hold NaN or infinity; "
            "the samples have probably diverged"
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


def frechet_distance(
    a: FeatureStatistics, b: FeatureStatistics, *, allow_few: bool = False
) -> float:
    """Squared Frechet (2-Wasserstein) distance between the Gaussians fitted to two feature sets.

    ``|mu_a - mu_b|^2 + tr(C_a + C_b - 2 (C_a^{1/2} C_b C_a^{1/2})^{1/2})``: what is known as FID
    when the features are Inception's. It is biased upwards by about 1 / count, so compare only
    figures made with equal counts and equal features.

    With ``allow_few``, fewer than F + 1 features are accepted, whose covariance has not full rank.

    Raises:
        ValueError: on too few features, different dimensions, or a covariance that is indefinite.
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
    product = _square_root(covariance_a) @ _square_root(covariance_b)
    overlap = torch.linalg.svdvals(product).sum()
    spread = covariance_a.trace() + covariance_b.trace() - 2 * overlap
    return max(0.0, float((a.mean - b.mean).square().sum() + spread))


def _check_dims(a: FeatureStatistics, b: FeatureStatistics) -> None:
    if a.dim != b.dim:
        raise ValueError(f"the two feature sets have {a.dim} and {b.dim} dimensions; use one kind")


def _square_root(covariance: Tensor) -> Tensor:
    """Symmetric square root of a positive semi-definite matrix [F, F]."""
    values, vectors = torch.linalg.eigh((covariance + covariance.T) / 2)
    if values[0] < -_ROUNDING * values[-1].abs():
        raise ValueError(
            "a covariance must be positive semi-definite, got eigenvalues from "
            f"{float(values[0]):.3g} to {float(values[-1]):.3g}"
        )
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T
