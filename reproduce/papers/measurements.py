"""What the two papers measured on their pairings, measured here, beside what they published.

2406.12303 is *Immiscible Diffusion*, 2505.18521 *Improved Immiscible Diffusion*. Their protocols
are published in part; every section says what is inferred.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from immiscible_diffusion.analysis.cache import slug
from immiscible_diffusion.analysis.estimates import Mean
from immiscible_diffusion.analysis.noise_statistics import gaussian_fit
from immiscible_diffusion.analysis.sample_pairs import BATCH_SIZE
from immiscible_diffusion.couplings import KNN, Coupling, Independent
from immiscible_diffusion.utils.batch import Cond
from reproduce.papers.cluster_map import cluster_map, draw_map
from reproduce.papers.clusters import cluster_distance, looks_at_one, points_for
from reproduce.papers.distance_reduction import distance_reduction, expected_reduction
from reproduce.papers.published_figures import (
    ASSIGNED,
    CIFAR,
    CLUSTER_K,
    CLUSTERS,
    FIT_COUNT,
    FITS,
    LATENT,
    NEAREST,
    P1,
    P2,
    VANILLA,
    kind_of,
    knows_no_data,
    pairs_alike,
)
from reproduce.papers.table import Row, Section

WHICH = ("distance", "clusters", "map")
ALL = (*WHICH, "gaussian_fit")
MAPPED, SHOWN = 5, 200
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Extent:
    """How much is measured: errors fall as the root of it.

    Attributes:
        batch_sizes: for the distance reduction; larger than the data are left out.
        count: data for each of its figures, about.
        images: that have a cluster; fewer where data are fewer.
        points: noises of every cluster; the map's plane is chosen by as many, or twice as many.
    """

    batch_sizes: Sequence[int] = tuple(ASSIGNED)
    count: int = 4096
    images: int = 32
    points: int = 1000


@torch.no_grad()
def papers_measurements(
    data: Tensor,
    coupling: Coupling,
    *,
    cond: Cond | None = None,
    labels: Tensor | None = None,
    which: Iterable[str] = WHICH,
    name: str | None = None,
    extent: Extent | None = None,
    seed: int = 0,
    folder: Path | None = None,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """The papers' measurements of ``coupling`` on ``data``, as ``Section.to_json`` has them.

    Args:
        data: ``[N, *shape]``, as the model sees them.
        coupling: to measure.
        cond: conditions for the coupling, each ``[N, ...]``; the labels where not given.
        labels: ``[N]``.
        which: any of ``distance`` (reduction), ``clusters`` (their distances), ``map`` (a picture,
            with a ``folder``), and ``gaussian_fit``, which is slow: 50,000 D^2 operations.
        name: of the coupling, in titles and file names.
        extent: how much is measured.
        seed: of everything drawn.
        folder: pictures go to ``folder/pictures``, and the sections name them from ``folder``.
        progress: called with the parts done and all.

    Raises:
        ValueError: an unknown measurement, or what the single ones raise.
    """
    which = tuple(which)
    if unknown := sorted(set(which) - set(ALL)):
        raise ValueError(f"which must be of {', '.join(ALL)}, got {', '.join(unknown)}")
    cond = {"label": labels} if cond is None and labels is not None else cond
    called = name or kind_of(coupling) or str(coupling)
    job = _Job(data, coupling, called, cond, extent or Extent(), seed)
    sections, parts = [], list(job.parts(which, folder))
    for number, part in enumerate(parts, start=1):
        sections.append(part().to_json())
        if progress is not None:
            progress(number, len(parts))
    return sections


@dataclass(frozen=True)
class _Job:
    """One coupling on one data set."""

    data: Tensor
    coupling: Coupling
    name: str
    cond: Cond | None
    extent: Extent
    seed: int

    @property
    def dim(self) -> int:
        return self.data[0].numel()

    @property
    def images(self) -> int:
        return min(self.extent.images, len(self.data), BATCH_SIZE)

    @property
    def paired(self) -> bool:
        return not isinstance(self.coupling, Independent)

    def parts(self, which: Sequence[str], folder: Path | None) -> Iterator[Callable[[], Section]]:
        """What was asked for and can be measured."""
        if "distance" in which and self.paired:
            yield partial(_distance, self)
        if "clusters" in which and self.images > 2:
            yield partial(_clusters, self)
        if "map" in which and folder is not None and len(self.data) >= MAPPED and self.dim > 1:
            yield partial(_map, self, folder)
        if "gaussian_fit" in which:
            yield partial(_fit, self)

    def scales(self, *, matters: bool = True) -> Iterator[tuple[str, Tensor]]:
        """The data as they are and, where the coupling allows, brought to standard deviation 1.

        As they are alone where scale and mean do not matter.
        """
        deviation, mean = torch.std_mean(self.data)
        yield f"; standard deviation {float(deviation):.2f}, as given" if matters else "", self.data
        if matters and knows_no_data(self.coupling) and abs(float(deviation) - 1) > 0.02:
            yield "; brought to mean 0, standard deviation 1", (self.data - mean) / deviation

    def published(self, figures: dict[str, Any]) -> Any:
        """The figure for this coupling, if it was published for data of this size."""
        other = isinstance(self.coupling, KNN) and self.coupling.k != CLUSTER_K
        return None if other or self.dim != CIFAR else figures.get(kind_of(self.coupling))

    @property
    def other(self) -> str:
        """That published figures are not of data like these."""
        if self.dim in (CIFAR, LATENT):
            return ""
        return (
            f" Published figures are of {CIFAR:,} (CIFAR-10) or {LATENT:,} numbers a sample and are "
            f"not shown beside those of {self.dim:,}."
        )


def _distance(job: _Job) -> Section:
    rows = []
    sizes = [size for size in job.extent.batch_sizes if size <= len(job.data)] or [len(job.data)]
    alone = looks_at_one(job.coupling)
    for scale, data in job.scales():
        theory = expected_reduction(data, job.coupling)
        for size in sizes[:1] if alone else sizes:
            found = distance_reduction(
                data,
                job.coupling,
                batch_size=size,
                count=job.extent.count,
                cond=job.cond,
                seed=job.seed,
            )
            setting, published = _published_reduction(job, size)
            label = ("any batch" if alone else f"batch {size}") + setting + scale
            percent = Mean(100 * found.value, 100 * found.error)
            expected = None if theory is None else 100 * theory
            rows.append(Row(label, percent, "%", published, expected=expected))
    note = (
        "1 - mean distance of pairs / mean distance without pairing. Which standard deviation the "
        "papers' images had is not published: compare both."
    )
    note += " Expected: the closed form." if rows[0].expected is not None else ""
    stands_for = f"Table 7 of {P2}" if kind_of(job.coupling) == "knn" else f"Table 2 of {P1}"
    return Section(f"Distance reduction, {job.name}", stands_for, tuple(rows), note + job.other)


def _published_reduction(job: _Job, batch_size: int) -> tuple[str, float | None]:
    """Of which experiment, and the figure in percent, if there is one."""
    if kind_of(job.coupling) == "assignment" and job.dim == CIFAR:
        return "", ASSIGNED.get(batch_size)
    if kind_of(job.coupling) == "knn" and isinstance(job.coupling, KNN):
        setting, dim, figure = NEAREST.get(job.coupling.k, ("", 0, 0.0))
        return (f" (published: {setting})", figure) if dim == job.dim else ("", None)
    return "", None


def _clusters(job: _Job) -> Section:
    rows, points = [], job.extent.points
    inferred = points_for(VANILLA[0], CIFAR)
    figure, spread = job.published(CLUSTERS) or (None, None)
    for scale, data in job.scales(matters=not pairs_alike(job.coupling)):
        found = cluster_distance(
            data, job.coupling, images=job.images, points=points, cond=job.cond, seed=job.seed
        )
        textbook = math.sqrt(2 * job.dim / points)
        label = f"as {inferred:,.0f} noises an image would have it"
        rows.append(Row(label + scale, found.at(inferred), "", figure, spread))
        rows.append(Row(f"as {points:,} noises an image have it{scale}", found.distance))
        by_chance = Mean(found.by_chance, math.nan)
        rows.append(Row(f"of which by chance{scale}", by_chance, expected=textbook))
        rows.append(Row(f"without chance (root mean square){scale}", found.corrected))
    note = (
        f"Distance between the mean noises of {job.images} images, the coupling called on "
        f"{min(BATCH_SIZE, len(job.data))} data at a time; errors from image to image. The "
        f"protocol is not published. Inferred: centroids of M noises an image, which without "
        f"pairing are sqrt(2 D / M) apart by chance; the published {VANILLA[0]} at D = {CIFAR:,} "
        f"means M = {inferred:,.0f}. The papers' KNN is taken to be k = {CLUSTER_K}."
    )
    title = f"Distance between noise clusters, {job.name}"
    return Section(title, f"section 4.2 of {P2}", tuple(rows), note + job.other)


def _map(job: _Job, folder: Path) -> Section:
    fitted = job.extent.points * (2 if looks_at_one(job.coupling) else 1)
    found = cluster_map(
        job.data,
        job.coupling,
        images=MAPPED,
        points=SHOWN,
        fit_points=fitted,
        cond=job.cond,
        seed=job.seed,
    )
    file = Path("pictures") / f"clusters_{slug(job.name)}.png"
    draw_map(found, f"Noises of {MAPPED} images, {job.name}", folder / file)
    row = Row("nearest to the centroid of their own image", found.own, expected=found.chance)
    note = (
        f"The two leading directions of the centroids of {fitted:,} noises an image. The points "
        f"are other noises: those that the directions were fitted to would show clusters where "
        f"there are none. How the paper's map was made is not published. Expected: the share "
        f"without pairing."
    )
    caption = f"{SHOWN} noises of each of {MAPPED} images (colors), their means (large marks)"
    pictures = ((file.as_posix(), caption),)
    title = f"Map of noise clusters, {job.name}"
    return Section(title, f"Fig. 10 of {P2}", (row,), note, pictures)


def _fit(job: _Job) -> Section:
    rows, bias = [], 0.0
    for scale, data in job.scales(matters=not pairs_alike(job.coupling)):
        found = gaussian_fit(data, job.coupling, count=FIT_COUNT, cond=job.cond, seed=job.seed)
        bias = found.bias
        published = job.published(FITS)
        error = job.dim / (2 * FIT_COUNT)  # asymptotic, for noise near N(0, I)
        raw, corrected = (Mean(value, error) for value in (found.raw, found.corrected))
        rows.append(Row(f"as it comes out{scale}", raw, "nats", published))
        rows.append(Row(f"less what {FIT_COUNT:,} true noises give{scale}", corrected, "nats"))
    note = (
        f"KL of the Gaussian fitted to {FIT_COUNT:,} noises from N(0, I), its error by theory. "
        f"{bias:.2f} nats are the estimator's bias. That the papers' fit is of mean and whole "
        f"covariance is inferred: their figure for true Gaussian noise is this bias at D = "
        f"{CIFAR:,}."
    )
    title = f"Gaussian fit of the noise, {job.name}"
    return Section(title, f"section 4.3 of {P2}", tuple(rows), note + job.other)
