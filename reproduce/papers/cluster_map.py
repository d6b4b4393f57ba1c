"""A map of the noise clusters of a few images in two directions (2505.18521, Fig. 10)."""

import os
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from immiscible_diffusion.analysis.estimates import Mean, mean_of
from immiscible_diffusion.analysis.sample_pairs import BATCH_SIZE
from immiscible_diffusion.couplings import Coupling
from immiscible_diffusion.utils.atomic_files import atomic_path
from immiscible_diffusion.utils.batch import Batch, Cond
from immiscible_diffusion.utils.optional_deps import require_extra
from immiscible_diffusion.utils.random import key
from reproduce.papers.clusters import choose_images, noises_of

# Okabe and Ito's palette, told apart with every common color blindness.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#222222", "#999999")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


@dataclass(frozen=True, eq=False)
class ClusterMap:
    """Noises of a few images on a plane.

    Attributes:
        rows: ``[images]``, the images' rows in the data.
        points: ``[images, points, 2]``, noises that had no part in choosing the plane.
        centers: ``[images, 2]``, the centroids of the noises that the plane was chosen by.
    """

    rows: Tensor
    points: Tensor
    centers: Tensor

    @property
    def own(self) -> Mean:
        """Share of ``points`` that are nearest to the centroid of their own image."""
        nearest = torch.cdist(self.points, self.centers.expand(len(self.points), -1, -1))
        return mean_of((nearest.argmin(dim=2) == torch.arange(len(self.points))[:, None]).double())

    @property
    def chance(self) -> float:
        """That share without pairing."""
        return 1 / len(self.points)


@torch.no_grad()
def cluster_map(
    data: Tensor,
    coupling: Coupling,
    *,
    images: int = 5,
    points: int = 200,
    fit_points: int = 2000,
    batch_size: int = BATCH_SIZE,
    cond: Cond | None = None,
    seed: int = 0,
) -> ClusterMap:
    """Project noises of ``images`` images on the two leading directions of their centroids.

    The directions come from ``fit_points`` noises of each image, the points shown are others.
    Otherwise a map shows clusters even without pairing: in thousands of dimensions the centroids
    are apart by chance, and the noises that they are made of lie on their side.

    Args:
        data: ``[N, *shape]``, two numbers a sample at least.
        coupling: to look at.
        images: 3 at least, for a plane.
        points: noises shown of each.
        fit_points: noises of each that the plane is chosen by.
        batch_size: of the coupling.
        cond: conditions for the coupling, each ``[N, ...]``.
        seed: of images and noise.

    Raises:
        ValueError: fewer than 3 images, more than there are, or data of one number.
    """
    dim, batch_size = data[0].numel(), min(batch_size, len(data))
    if images < 3 or dim < 2:
        raise ValueError(f"a plane needs 3 images and 2 dimensions, got {images} and {dim}")
    rows = choose_images(len(data), images, batch_size, seed)
    stream = partial(noises_of, Batch(data, cond), coupling, rows, batch_size=batch_size)
    mean = torch.zeros(())
    for noises in stream(points=fit_points, seed=key(seed, "fit")):
        mean = mean + noises.double().sum(dim=0) / fit_points
    plane = torch.linalg.svd(mean - mean.mean(dim=0), full_matrices=False)[2][:2].T
    fresh = stream(points=points, seed=key(seed, "shown"))
    shown = torch.cat([noises.double() @ plane for noises in fresh]).transpose(0, 1).cpu()
    return ClusterMap(rows, shown, (mean @ plane).cpu())


def draw_map(found: ClusterMap, title: str, path: str | os.PathLike[str]) -> None:
    """Write points and their means as a picture; its type follows ``path`` (.png or .svg)."""
    with require_extra("train", "the map of noise clusters"):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    figure = Figure(figsize=(4.4, 4.2), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for number, cloud in enumerate(found.points):
        look: dict[str, Any] = {
            "color": COLOURS[number % len(COLOURS)],
            "marker": MARKERS[number % len(MARKERS)],
        }
        x, y = cloud.T.tolist()
        axes.scatter(x, y, s=9, alpha=0.35, linewidths=0, **look)
        # Of the points themselves: the centers that the plane was chosen by lie too far out.
        x, y = cloud.mean(dim=0, keepdim=True).T.tolist()
        axes.scatter(x, y, s=90, edgecolors="white", linewidths=1.2, zorder=3, **look)
    bound = 1.05 * float(found.points.abs().max())
    axes.set(
        xlim=(-bound, bound),
        ylim=(-bound, bound),
        aspect="equal",
        xlabel="1st direction of the centroids (standard deviations)",
        ylabel="2nd direction of the centroids",
    )
    axes.set_title(title, fontsize=11)
    kind = str(path).rpartition(".")[2]
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format=kind)
