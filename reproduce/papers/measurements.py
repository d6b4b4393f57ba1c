"""What the two papers measured on their pairings, measured on any data and couplings.

The protocols are published in part; the note of every section says what is inferred.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from immiscible_diffusion.analysis.estimates import Mean
from immiscible_diffusion.analysis.noise_statistics import LARGEST_FIT, gaussian_fit
from immiscible_diffusion.analysis.sample_pairs import BATCH_SIZE
from immiscible_diffusion.couplings import KNN, Coupling, Independent, LinearAssignment, Shuffled
from immiscible_diffusion.utils.batch import Cond
from reproduce.papers import distance_reduction as distances
from reproduce.papers import published_figures as published
from reproduce.papers.cluster_map import cluster_map, draw_maps
from reproduce.papers.clusters import cluster_distance, points_for, uses_one_sample
from reproduce.papers.published_figures import CIFAR10_DIM, P1, P2, published_name
from reproduce.papers.table import Row, Section

PARTS = ("distance", "deviation", "clusters", "map", "fit")
TABLES = f"Table 2 of {P1}, Table 7 of {P2}"
MAP_IMAGES, MAP_POINTS = 5, 200


@dataclass(frozen=True, eq=False)
class PaperMeasurements:
    """The papers' measurements of ``couplings`` on ``data``; errors fall as the root of the extent.

    Attributes:
        data: ``[N, *shape]``, as the model sees them.
        couplings: by name.
        cond: conditions for the couplings, each ``[N, ...]``.
        seed: of everything drawn.
        folder: the map goes to ``folder/images``; None draws none.
        batch_sizes: of couplings over a batch; those larger than the data are left out.
        count: samples for each distance reduction, about.
        images: that have a cluster; fewer where data are fewer.
        points: noises of every cluster; fewer for couplings over large batches.
        fit_count: noises of a Gaussian fit; what was published is of 50,000.
    """

    data: Tensor
    couplings: Mapping[str, Coupling]
    cond: Cond | None = None
    seed: int = 0
    folder: Path | None = None
    batch_sizes: Sequence[int] = tuple(published.ASSIGNMENT_REDUCTION)
    count: int = 8192
    images: int = 32
    points: int = 2000
    fit_count: int = published.FIT_COUNT

    def sections(self, parts: Sequence[str] = PARTS) -> Iterator[Section]:
        """Those of ``parts`` that can be measured on these data; ValueError for an unknown one."""
        if unknown := sorted(set(parts) - set(PARTS)):
            raise ValueError(f"parts must be of {', '.join(PARTS)}, got {', '.join(unknown)}")
        for part in (each for each in PARTS if each in parts):
            section: Section = getattr(self, part)()
            if section.rows:
                yield section

    @property
    def dim(self) -> int:
        """Numbers in a sample."""
        return self.data[0].numel()

    def distance(self) -> Section:
        """Distance reduction of every coupling, at the batch sizes that matter to it."""
        rows = []
        for label, coupling, data, size in self._cases():
            if isinstance(coupling, Independent):
                continue
            found = distances.distance_reduction(
                data, coupling, batch_size=size, count=self.count, cond=self.cond, seed=self.seed
            )
            expected = distances.expected_reduction(data, coupling)
            figure, setting = self._published_reduction(coupling, size)
            label += f" (published: {setting})" if setting else ""
            percent = Mean(100 * found.value, 100 * found.error)
            row = Row(label, percent, "%", figure, expected=expected and 100 * expected)
            rows.append(row)
        note = (
            "1 - mean distance of pairs / mean distance without pairing. Which standard deviation "
            "the papers' images had is not published: compare both. Expected: the closed form."
        )
        return Section("Distance reduction", TABLES, rows, note + self._other_data())

    def deviation(self) -> Section:
        """The standard deviation of images that would give exactly the published reduction."""
        title = "Standard deviation of the papers' images, inferred"
        if self.dim != CIFAR10_DIM:
            return Section(title, TABLES, (), "")
        data, rows, curves = (self.data - self.data.mean()) / self.data.std(), [], {}
        for k, (setting, dim, figure) in published.KNN_REDUCTION.items():
            sample = data[:500] if dim == self.dim else torch.ones(2, dim)  # latents are isotropic
            curves[f"knn:k={k} ({setting})"] = _closed_form(sample, KNN(k)), figure
        for size in self._batch_sizes(LinearAssignment()):
            figure = published.ASSIGNMENT_REDUCTION.get(size, 2.0)
            curve = distances.assignment_reduction_by_scale(data, size)
            curves[f"assignment, batch {size}"] = curve, figure
        for name, (curve, figure) in curves.items():
            scales, nearest = distances.scales_with_reduction(curve, figure / 100)
            rows += [Row(f"{name}: {figure} % at", Mean(scale, math.nan)) for scale in scales]
            if not scales:
                label = f"{name}: {figure} % never reached; {100 * curve(nearest):.2f} % at"
                rows.append(Row(label, Mean(nearest, math.nan)))
        note = (
            "Which standard deviation (mean 0) would give exactly the published reduction? From "
            "the closed form (KNN), and from pairs assigned once, which no scale changes "
            "(assignment). SD: isotropic data in place of Stable Diffusion's latents."
        )
        return Section(title, TABLES, rows, note)

    def clusters(self) -> Section:
        """Distance between the noise clusters of different images."""
        vanilla, rows = published.CLUSTER_DISTANCE["independent"][0], []
        inferred = points_for(vanilla, CIFAR10_DIM)
        images = min(self.images, len(self.data), BATCH_SIZE)
        for label, coupling, data, size in self._cases(pairs=True) if images > 2 else ():
            apart = cluster_distance(
                data,
                coupling,
                images=min(images, size),
                points=max(2, min(self.points, 256_000 // size)),
                batch_size=size,
                cond=self.cond,
                seed=self.seed,
            )
            figure, spread = self._published(coupling, published.CLUSTER_DISTANCE) or (None, None)
            for points in (inferred, published.CLUSTER_POINTS):
                chance = math.sqrt(2 * self.dim / points)
                expected = chance if isinstance(coupling, Independent) else None
                text = f"{label}: as {points:,.0f} noises (over pairs ± {apart.spread(points):.2f})"
                rows.append(Row(text, apart.at(points), "", figure, spread, expected))
            rows.append(Row(f"{label}: without chance", apart.corrected))
        note = (
            f"Distance between the mean noises (centroids) of {images} images, measured with up to "
            f"{self.points:,} noises each; errors from image to image. The protocol is not "
            f"published. Inferred: centroids of M noises an image, which without pairing are "
            f"sqrt(2 D / M) apart by chance; the published {vanilla} at D = {CIFAR10_DIM} means "
            f"M = {inferred:,.0f}, and the text speaks of {published.CLUSTER_POINTS:,}. The "
            f"papers' KNN is taken to be k = {published.CLUSTER_K}; the batch of their assignment "
            f"is not known."
        )
        title = "Distance between noise clusters"
        return Section(title, f"section 4.2 of {P2}", rows, note + self._other_data())

    def map(self) -> Section:
        """The map of the noise clusters of five images."""
        maps, rows, images = {}, [], []
        possible = self.folder is not None and len(self.data) >= MAP_IMAGES and self.dim > 1
        for name, coupling in self.couplings.items() if possible else ():
            *_, (_, data) = self._scales(coupling)
            maps[name], own = cluster_map(
                data,
                coupling,
                images=MAP_IMAGES,
                points=MAP_POINTS,
                fit_points=max(2, self.points // (1 if uses_one_sample(coupling) else 2)),
                cond=self.cond,
                seed=self.seed,
            )
            rows.append(Row(name, own, expected=1 / MAP_IMAGES))
        if self.folder is not None and maps:
            draw_maps(maps, self.folder / "images" / "clusters.png")
            caption = f"{MAP_POINTS} noises of each of {MAP_IMAGES} images (colors), and their means"
            images = [("images/clusters.png", caption)]
        note = (
            "Share of noises nearest to the centroid of their own image, in the two leading "
            "directions of the centroids. The noises are others than those that the directions "
            "were fitted to, which would show clusters where there are none. How the paper's map "
            "was made is not published. Expected: the share without pairing."
        )
        return Section("Map of noise clusters", f"Fig. 10 of {P2}", rows, note, images)

    def fit(self) -> Section:
        """The Gaussian fit of the noise of couplings that change its distribution, and of none."""
        rows, bias, count = [], 0.0, self.fit_count
        for label, coupling, data, _ in self._cases(pairs=True) if self.dim <= LARGEST_FIT else ():
            if getattr(coupling, "preserves_marginal", False) and label != "independent":
                continue
            fit = gaussian_fit(data, coupling, count=count, cond=self.cond, seed=self.seed)
            bias, error = fit.bias, self.dim / (2 * count)
            figures = published.GAUSSIAN_FIT if count == published.FIT_COUNT else {}
            figure = self._published(coupling, figures)
            rows.append(Row(label, Mean(fit.raw, error), "nats", figure))
            rows.append(Row(f"{label}, less the bias", Mean(fit.corrected, error), "nats"))
        note = (
            f"KL of the Gaussian fitted to {count:,} noises from N(0, I), its error by theory for "
            f"noise near N(0, I). {bias:.2f} nats are the estimator's bias: what as many true "
            f"noises give. That the papers' fit is of mean and whole covariance is inferred: their "
            f"figure for true Gaussian noise is this bias at D = {CIFAR10_DIM:,}."
        )
        title = "Gaussian fit of the noise"
        return Section(title, f"section 4.3 of {P2}", rows, note + self._other_data())

    def _cases(self, *, pairs: bool = False) -> Iterator[tuple[str, Coupling, Tensor, int]]:
        """Label, coupling, data at each scale that matters (to ``pairs`` alone), batch size."""
        for name, coupling in self.couplings.items():
            for scale, data in self._scales(coupling, pairs=pairs):
                for size in self._batch_sizes(coupling):
                    batch = "" if uses_one_sample(coupling) else f", batch {size}"
                    yield name + batch + scale, coupling, data, size

    def _scales(self, coupling: Coupling, *, pairs: bool = False) -> Iterator[tuple[str, Tensor]]:
        """The data as they are and, where coupling allows, brought to standard deviation 1."""
        # What a common shift adds to an inner-product cost is the same for every permutation.
        alike = isinstance(coupling, Independent) or (
            isinstance(coupling, LinearAssignment) and coupling.cost == "inner" and coupling.oversample == 1
        )
        deviation, mean = torch.std_mean(self.data)
        if pairs and alike:
            yield "", self.data
            return
        yield f"; standard deviation {float(deviation):.2f}, as given", self.data
        if not _is_fitted(coupling) and abs(float(deviation) - 1) > 0.02:
            yield "; brought to mean 0, standard deviation 1", (self.data - mean) / deviation

    def _batch_sizes(self, coupling: Coupling) -> list[int]:
        sizes = [size for size in self.batch_sizes if size <= len(self.data)]
        sizes = sizes or [min(BATCH_SIZE, len(self.data))]
        return sizes[:1] if uses_one_sample(coupling) else sizes

    def _published(self, coupling: Coupling, figures: Mapping[str, Any]) -> Any:
        """The figure for this coupling, if it was published for data of this size."""
        other = isinstance(coupling, KNN) and coupling.k != published.CLUSTER_K
        known = self.dim == CIFAR10_DIM and not other
        return figures.get(published_name(coupling)) if known else None

    def _published_reduction(self, coupling: Coupling, size: int) -> tuple[float | None, str]:
        """The figure in percent for data of this size, and the experiment in words."""
        kind = published_name(coupling)
        if kind == "assignment" and self.dim == CIFAR10_DIM:
            return published.ASSIGNMENT_REDUCTION.get(size), ""
        if isinstance(coupling, KNN) and kind and coupling.k in published.KNN_REDUCTION:
            setting, dim, figure = published.KNN_REDUCTION[coupling.k]
            return (figure, setting) if dim == self.dim else (None, "")
        return None, ""

    def _other_data(self) -> str:
        if self.dim in (CIFAR10_DIM, published.LATENT_DIM):
            return ""
        return f" Nothing was published for data of {self.dim:,} numbers a sample."


def _closed_form(data: Tensor, coupling: KNN) -> distances.Curve:
    return lambda scale: distances.expected_reduction(scale * data, coupling) or 0.0


def _is_fitted(coupling: Coupling) -> bool:
    """Whether the coupling may have been fitted to the data, so that scaled ones are not for it."""
    if isinstance(coupling, Shuffled):
        return _is_fitted(coupling.coupling)
    if isinstance(coupling, KNN):
        return coupling.center is not None
    return not isinstance(coupling, (Independent, LinearAssignment))
