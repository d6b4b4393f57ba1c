"""How far apart the noises of different images are: the papers' measure of miscibility.

The noises that a coupling gives one image, time after time, are its cluster. The papers' protocol
is not published; here a cluster's place is its centroid (mean noise) over ``points`` noises. That
of M noises is off by chance: even without pairing centroids of M noises in D dimensions are
``sqrt(2 D / M)`` apart.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from immiscible_diffusion.analysis.estimates import Mean
from immiscible_diffusion.analysis.noise_density import take
from immiscible_diffusion.analysis.sample_pairs import BATCH_SIZE, choose_rows
from immiscible_diffusion.couplings import KNN, Calibrated, Coupling, GaussianOT, Independent
from immiscible_diffusion.utils.batch import Batch, Cond
from immiscible_diffusion.utils.random import keyed_generator
from reproduce.papers.statistics import jackknife, root


@dataclass(frozen=True, eq=False)
class ClusterDistance:
    """Distances between the centroids of all pairs of images.

    Attributes:
        squares: ``[images, images]``: squared distances less what chance adds to them on average
            (so they may be below 0).
        variance: ``[images, images]``: of the noises of two images together; 2 D without pairing.
    """

    squares: Tensor
    variance: Tensor

    def at(self, points: float) -> Mean:
        """The mean distance that clusters of so many noises would have, chance included."""
        return self._mean(self._distances(points))

    def spread(self, points: float) -> float:
        """Standard deviation of the same over pairs of images."""
        apart = self._distances(points)
        return float(apart[torch.triu(torch.ones_like(apart, dtype=torch.bool), 1)].std())

    @property
    def square(self) -> Mean:
        """Mean square over pairs less what chance adds: 0 without pairing."""
        return self._mean(self.squares)

    @property
    def corrected(self) -> Mean:
        """Root mean square over pairs less what chance adds; 0 where that is below 0."""
        return root(self.square)

    def _distances(self, points: float) -> Tensor:
        return (self.squares + self.variance / points).clamp_min(0).sqrt()

    def _mean(self, matrix: Tensor) -> Mean:
        """Over pairs; the error from image to image."""
        n = len(matrix)
        rows = matrix.clone().fill_diagonal_(0).sum(dim=1)
        without = (rows.sum() - 2 * rows) / ((n - 1) * max(1, n - 2))
        return jackknife(float(rows.sum()) / (n * (n - 1)), without)


@torch.no_grad()
def cluster_distance(
    data: Tensor,
    coupling: Coupling,
    *,
    images: int = 32,
    points: int = 1000,
    batch_size: int = BATCH_SIZE,
    cond: Cond | None = None,
    seed: int = 0,
) -> ClusterDistance:
    """Distances between the clusters of ``images`` images drawn from ``data`` ``[N, *shape]``.

    Each has ``points`` noises, in batches as ``draw_clusters`` says; memory does not grow with
    them. ValueError for fewer than two images or points, or more images than data or batch hold.
    """
    if points < 2:
        raise ValueError(f"points must be at least 2, got {points}")
    total, square = torch.zeros(()), torch.zeros(())
    for noises in draw_clusters(
        data, coupling, images=images, points=points, batch_size=batch_size, cond=cond, seed=seed
    ):
        total = total + noises.double().sum(dim=0).cpu()
        square = square + noises.double().square().sum(dim=(0, 2)).cpu()
    mean = total / points
    variance = (square - points * mean.square().sum(dim=1)) / (points - 1)
    both = variance[:, None] + variance
    return ClusterDistance(torch.cdist(mean, mean).square() - both / points, both)


def draw_clusters(
    data: Tensor,
    coupling: Coupling,
    *,
    images: int,
    points: int,
    batch_size: int = BATCH_SIZE,
    cond: Cond | None = None,
    seed: int = 0,
    noise_seed: int | None = None,
) -> Iterator[Tensor]:
    """``points`` noises of each of ``images`` samples, a few at a time: ``[few, images, D]``.

    Every call of the coupling is on a batch with all these samples and, up to ``batch_size``,
    others drawn anew from the rest; it gives each one noise. (KNN and others that use one sample at
    a time get several copies and no others, which saves time and changes nothing.) ``seed`` chooses
    the images and, unless ``noise_seed`` does, the noise.
    """
    batch_size = min(batch_size, len(data))
    if not 2 <= images <= batch_size:
        raise ValueError(f"images must be from 2 to {batch_size} (data and batch), got {images}")
    every, rows = Batch(data, cond), choose_rows(len(data), images, seed)
    seed = seed if noise_seed is None else noise_seed
    others = torch.ones(len(data), dtype=torch.bool).index_fill(0, rows, False).nonzero()[:, 0]
    single, done, number = uses_one_sample(coupling), 0, 0
    while done < points:
        few = min(max(1, batch_size // images) if single else 1, points - done)
        members = rows.repeat(few)
        if not single:
            generator = keyed_generator(seed, number, "others")
            order = torch.randperm(len(others), generator=generator)
            members = torch.cat([rows, others[order[: batch_size - images]]])
        batch = take(every, members)
        generator = keyed_generator(seed, number, "cluster", device=data.device)
        noise = coupling(batch.data, cond=batch.cond, generator=generator)
        yield noise[: few * images].flatten(1).view(few, images, -1)
        done, number = done + few, number + 1


def uses_one_sample(coupling: Coupling) -> bool:
    """Whether the noise of a sample is known not to depend on the rest of the batch."""
    if isinstance(coupling, Calibrated):
        return uses_one_sample(coupling.coupling)
    return isinstance(coupling, (Independent, KNN, GaussianOT))


def points_for(distance: float, dim: int) -> float:
    """How many noises put clusters without pairing so far apart: ``2 D / distance^2``."""
    return 2 * dim / distance**2
