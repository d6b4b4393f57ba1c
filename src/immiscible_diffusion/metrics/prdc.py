"""Metrics of nearest neighbors: fidelity, variety and memorization.

Precision and recall: Kynkaanniemi et al. 2019, 1904.06991. Density and coverage: Naeem et al. 2020,
2002.09797. Distances are computed in blocks, never as one [N, M] matrix.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from immiscible_diffusion.metrics.fid import check_features

_BLOCK = 2**21  # distances held at a time
# Distances below this fraction of the points' spread count as 0: they are the rounding of float32
# features, and a copy should be at distance 0 from its original.
_SAME = 1e-5


def _distances(queries: Tensor, points: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Blocks of rows of the distances [N, M] from queries [N, F] to points [M, F], both float64."""
    center = points.mean(dim=0)
    queries, points = queries - center, points - center
    same = _SAME * points.square().sum(dim=1).mean().sqrt()
    size = max(1, _BLOCK // len(points))
    for start in range(0, len(queries), size):
        rows = slice(start, min(start + size, len(queries)))
        distances = torch.cdist(queries[rows], points, compute_mode="use_mm_for_euclid_dist")
        yield rows, distances.where(distances > same, torch.zeros_like(distances))


def _check_some(features: Tensor, dim: int) -> Tensor:
    if len(features) == 0:
        raise ValueError("expected at least one feature, got none")
    return check_features(features, dim)


@dataclass(frozen=True, eq=False)
class Manifold:
    """The union of the balls around points that reach to each point's k-th nearest other point.

    Equal points are neighbors at distance 0, so k + 1 copies of a point have a ball of radius 0,
    which still holds a further copy (balls are closed).
    """

    points: Tensor  # [N, F] float64
    radii: Tensor  # [N] float64
    k: int  # the neighbor that sets the radius

    @classmethod
    def of(cls, features: Tensor, k: int) -> "Manifold":
        """The manifold of features [N, F]; ValueError unless 1 <= k < N."""
        points = check_features(features)
        if not 1 <= k < len(points):
            raise ValueError(f"need 1 <= k < number of features ({len(points)}), got {k=}")
        radii = torch.empty(len(points), dtype=torch.float64)
        for rows, distances in _distances(points, points):
            own = torch.arange(rows.start, rows.stop)
            distances[torch.arange(len(own)), own] = torch.inf
            radii[rows] = distances.topk(k, dim=1, largest=False).values[:, -1]
        return cls(points, radii, k)

    def hits(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Number of balls around each feature [M] of [M, F], and of features in each ball [N]."""
        features = _check_some(features, self.points.shape[1])
        balls, inside = [], torch.zeros(len(self.points), dtype=torch.int64)
        for _, distances in _distances(features, self.points):
            held = distances <= self.radii
            balls.append(held.sum(dim=1))
            inside += held.sum(dim=0)
        return torch.cat(balls), inside


def precision(samples: Tensor, real: Tensor | Manifold, *, k: int = 3) -> float:
    """Fraction of the samples [M, F] on the manifold of the real features [N, F]: fidelity.

    ``real`` may be a :class:`Manifold`, whose own ``k`` then counts.
    """
    return float((_hits(samples, real, k)[0] > 0).double().mean())


def recall(samples: Tensor | Manifold, real: Tensor, *, k: int = 3) -> float:
    """Fraction of the real features [N, F] on the manifold of the samples [M, F]: variety."""
    return precision(real, samples, k=k)


def density(samples: Tensor, real: Tensor | Manifold, *, k: int = 5) -> float:
    """Real balls around a sample, over ``k``: fidelity that one outlier cannot inflate.

    Expected to be 1 for equal distributions; above 1 where samples crowd around modes.
    """
    balls, _, k = _hits(samples, real, k)
    return float(balls.double().mean()) / k


def coverage(samples: Tensor, real: Tensor | Manifold, *, k: int = 5) -> float:
    """Fraction of the real features' balls that hold at least one sample: variety.

    Near ``1 - 2^-k`` for equal distributions and as many samples as real features.
    """
    return float((_hits(samples, real, k)[1] > 0).double().mean())


def spacing(real: Tensor) -> float:
    """Median distance of real features [N, F] to their nearest different one; ValueError if all are equal."""
    real = check_features(real)
    nearest = torch.full((len(real),), torch.inf, dtype=torch.float64)
    for rows, distances in _distances(real, real):
        nearest[rows] = distances.masked_fill(distances == 0, torch.inf).amin(dim=1)
    if not nearest.isfinite().all():
        raise ValueError(f"need at least 2 different real features, got {len(real)} that are equal")
    return float(nearest.quantile(0.5))


def memorization(samples: Tensor, real: Tensor, *, real_spacing: float | None = None) -> float:
    """How near the samples [M, F] are to the training features [N, F], as a ratio.

    ``median over samples of d(sample, nearest real) / median over real of d(real, nearest other)``: 1 = as far from
    the training data as these are from each other; near 0 = copies of them. Give the data that the model was
    *trained* on. Copies within the real features are skipped in the denominator, which ``real_spacing =
    spacing(real)`` gives if it is known already. As a median it does not see a fraction of copies below one half.
    """
    real = check_features(real)
    samples = _check_some(samples, real.shape[1])
    nearest = torch.cat([distances.amin(dim=1) for _, distances in _distances(samples, real)])
    median = float(nearest.quantile(0.5))
    return median / (spacing(real) if real_spacing is None else real_spacing)


def _hits(samples: Tensor, real: Tensor | Manifold, k: int) -> tuple[Tensor, Tensor, int]:
    """Of the manifold of ``real``: balls around each sample, samples in each ball, and its k."""
    manifold = real if isinstance(real, Manifold) else Manifold.of(real, k)
    return *manifold.hits(samples), manifold.k
