"""How far apart the noises of different images are: the papers' measure of miscibility.

The noises that a coupling gives one image, time after time, are its cluster. The papers' protocol
is not published; here a cluster's place is its centroid (mean noise) over ``points`` noises. That
of M noises is off by chance: even without pairing centroids of M noises in D dimensions are
``sqrt(2 D / M)`` apart.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from immiscible_diffusion.analysis.estimates import Mean
from immiscible_diffusion.analysis.noise_density import take
from immiscible_diffusion.analysis.sample_pairs import BATCH_SIZE, choose_rows
from immiscible_diffusion.couplings import KNN, Calibrated, Coupling, GaussianTransport, draw
from immiscible_diffusion.couplings.base import Independent
from immiscible_diffusion.utils.batch import Batch, Cond
from immiscible_diffusion.utils.random import keyed_generator

Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class ClusterDistance:
    """Distances between the centroids of all pairs of images.

    Attributes:
        images: how many have a cluster.
        points: noises of every cluster.
        batch_size: that the coupling was called on.
        dim: numbers in a sample.
        squares: ``[images, images]``: squared distances less what chance adds to them on average
            (so they may come out below 0).
        variance: ``[images, images]``: of the noises of two images together; 2 D without pairing.
    """

    images: int
    points: int
    batch_size: int
    dim: int
    squares: Tensor
    variance: Tensor

    @property
    def distance(self) -> Mean:
        """Mean over pairs, with chance, as it comes out; its error from image to image."""
        return self.at(self.points)

    @property
    def spread(self) -> float:
        """Standard deviation over pairs of the same."""
        pairs = self._pairs(self._at(self.points))
        return float(pairs.std()) if len(pairs) > 1 else math.nan

    @property
    def by_chance(self) -> float:
        """What clusters with one centroid would be apart: ``sqrt(2 D / M)`` without pairing."""
        return math.sqrt(self._mean(self.variance).value / self.points)

    @property
    def square(self) -> Mean:
        """Mean square over pairs less what chance adds: 0 without pairing."""
        return self._mean(self.squares)

    @property
    def corrected(self) -> Mean:
        """Root mean square over pairs less what chance adds; 0 where that comes out below 0."""
        square = self.square
        value = math.sqrt(max(0.0, square.value))
        # The root of something near 0 has no usual error: that of the square bounds it.
        return Mean(value, square.error / (2 * value) if value else math.sqrt(square.error))

    def at(self, points: float) -> Mean:
        """The mean distance that clusters of so many points would have."""
        return self._mean(self._at(points))

    def _at(self, points: float) -> Tensor:
        return (self.squares + self.variance / points).clamp_min(0).sqrt()

    def _pairs(self, matrix: Tensor) -> Tensor:
        return matrix[torch.triu(torch.ones_like(matrix, dtype=torch.bool), 1)]

    def _mean(self, matrix: Tensor) -> Mean:
        """Over pairs; the error by leaving out one image at a time."""
        n, matrix = len(matrix), matrix.clone().fill_diagonal_(0)
        rows = matrix.sum(dim=1)
        value = float(rows.sum()) / (n * (n - 1))
        if n < 3:
            return Mean(value, math.nan)
        without = (rows.sum() - 2 * rows) / ((n - 1) * (n - 2))
        scatter = float((without - without.mean()).square().sum())
        return Mean(value, math.sqrt((n - 1) / n * scatter))


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
    progress: Progress | None = None,
) -> ClusterDistance:
    """Distances between the noise clusters of ``images`` images drawn from ``data``.

    Batches are as ``noises_of`` says. Memory grows with ``images``, not with ``points``.

    Args:
        data: ``[N, *shape]``.
        coupling: to measure.
        images: 2 at least.
        points: noises of every image, 2 at least.
        batch_size: of the coupling, ``images`` at least; the whole data if these are fewer.
        cond: conditions for the coupling, each ``[N, ...]``.
        seed: of images and noise.
        progress: called with the noises of a cluster done and all.

    Raises:
        ValueError: too few images or points, or more images than data or than a batch holds.
    """
    if points < 2:
        raise ValueError(f"points must be at least 2, got {points}")
    batch_size, every = min(batch_size, len(data)), Batch(data, cond)
    rows = choose_images(len(data), images, batch_size, seed)
    stream = noises_of(every, coupling, rows, points=points, batch_size=batch_size, seed=seed)
    mean, variance = _centroids(stream, points, progress)
    both = variance[:, None] + variance
    apart = torch.cdist(mean, mean).square() - both / points
    return ClusterDistance(images, points, batch_size, mean.shape[1], apart, both)


def _centroids(
    stream: Iterator[Tensor], points: int, progress: Progress | None
) -> tuple[Tensor, Tensor]:
    """Mean ``[images, D]`` and variance ``[images]``, summed over the dimensions."""
    total, square, done = torch.zeros(()), torch.zeros(()), 0
    for noises in stream:
        total = total + noises.double().sum(dim=0).cpu()
        square = square + noises.double().square().sum(dim=(0, 2)).cpu()
        done += len(noises)
        if progress is not None:
            progress(done, points)
    mean = total / points
    return mean, (square - points * mean.square().sum(dim=1)) / (points - 1)


def choose_images(count: int, images: int, batch_size: int, seed: int) -> Tensor:
    """Rows ``[images]`` of ``count`` data; ValueError where there are not so many."""
    if not 2 <= images <= min(count, batch_size):
        raise ValueError(
            f"images must be from 2 to {min(count, batch_size)}, what data and a batch hold, "
            f"got {images}"
        )
    return choose_rows(count, images, seed)


def noises_of(
    images: Batch, coupling: Coupling, rows: Tensor, *, points: int, batch_size: int, seed: int
) -> Iterator[Tensor]:
    """``points`` noises of each sample in ``rows``, a few at a time: ``[few, len(rows), D]``.

    Every call of the coupling is on a batch with all these data and, up to ``batch_size``, others
    drawn anew from the rest; it gives each one noise. (KNN and others that look at one sample at a
    time are given several copies and no others, which saves time and changes nothing.)
    """
    alone = looks_at_one(coupling)
    others = torch.ones(len(images), dtype=torch.bool).index_fill(0, rows, False).nonzero()[:, 0]
    most, done, number = max(1, batch_size // len(rows)) if alone else 1, 0, 0
    while done < points:
        few = min(most, points - done)
        members = rows.repeat(few)
        if not alone:
            order = torch.randperm(len(others), generator=_stream(seed, number, "others"))
            members = torch.cat([rows, others[order[: batch_size - len(rows)]]])
        batch = take(images, members)
        generator = _stream(seed, number, "cluster", batch.data.device)
        noise = draw(coupling, batch.data, cond=batch.cond, generator=generator)
        yield noise[: few * len(rows)].flatten(1).view(few, len(rows), -1)
        done, number = done + few, number + 1


def _stream(
    seed: int, number: int, name: str, device: torch.device | str = "cpu"
) -> torch.Generator:
    return keyed_generator(seed, number, name, device=device)


def looks_at_one(coupling: Coupling) -> bool:
    """Whether the noise of a sample is known not to depend on the rest of the batch."""
    if isinstance(coupling, Calibrated):
        return looks_at_one(coupling.coupling)
    return isinstance(coupling, (Independent, KNN, GaussianTransport))


def points_for(distance: float, dim: int) -> float:
    """How many points put clusters without pairing so far apart: ``2 D / distance^2``."""
    return 2 * dim / distance**2
