"""The kernel distance between two feature sets (KID: Binkowski et al. 2018, 1801.01401)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from immiscible_diffusion.metrics.fid import check_features
from immiscible_diffusion.utils.random import keyed_generator

_BLOCK = 2**20  # kernel values held at a time


@dataclass(frozen=True)
class KernelDistance:
    """Squared maximum mean discrepancy; about 0, also below it, for equal distributions."""

    mean: float  # the mean over subsets
    # of that mean over subsets. None where no subsets were drawn. Subsets come from the same
    # features, so it leaves out the choice of the features: the mean over new ones varies several times more
    standard_error: float | None


def kernel_distance(a: Tensor, b: Tensor, *, subset: int = 500, subsets: int = 50, seed: int = 0) -> KernelDistance:
    """Unbiased MMD^2 under the kernel ``k(x, y) = (x.y / F + 1)^3``, averaged over random subsets.

    Unlike the Frechet distance it has no bias at small counts. If either set has ``subset``
    features or fewer, both sets are used complete, once; else ``subsets`` times ``subset`` features are drawn, without
    replacement, from each of ``a`` [N, F] and ``b`` [M, F].

    Raises:
        ValueError: on unequal dimensions, fewer than 2 features, or ``subset``, ``subsets`` < 2.
    """
    a = check_features(a)
    b = check_features(b, a.shape[1])
    if min(len(a), len(b), subset, subsets) < 2:
        raise ValueError(
            "the kernel distance needs at least 2 features in each set, subset >= 2 and "
            f"subsets >= 2; got {len(a)} and {len(b)} features, {subset=}, {subsets=}"
        )
    if min(len(a), len(b)) <= subset:
        return KernelDistance(_unbiased(a, b), None)
    generator = keyed_generator(seed, "kernel distance")

    def draw(features: Tensor) -> Tensor:
        return features[torch.randperm(len(features), generator=generator)[:subset]]

    values = torch.tensor([_unbiased(draw(a), draw(b)) for _ in range(subsets)], dtype=torch.float64)
    return KernelDistance(float(values.mean()), float(values.std() / subsets**0.5))


def _unbiased(a: Tensor, b: Tensor) -> float:
    """Unbiased MMD^2 of features [N, F] and [M, F], both float64."""

    def within(x: Tensor) -> float:  # the mean over pairs of different rows
        diagonal = (x.square().sum(dim=1) / x.shape[1] + 1).pow(3).sum()
        return (_sum(x, x) - float(diagonal)) / (len(x) * (len(x) - 1))

    return within(a) + within(b) - 2 * _sum(a, b) / (len(a) * len(b))


def _sum(x: Tensor, y: Tensor) -> float:
    """Sum of the kernel over all pairs, in blocks of rows."""
    sums = [((block @ y.T) / x.shape[1] + 1).pow(3).sum() for block in x.split(max(1, _BLOCK // len(y)))]
    return float(torch.stack(sums).sum())
