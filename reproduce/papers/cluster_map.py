"""A map of the noise clusters of a few images in two directions (2505.18521, Fig. 10)."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from immiscible_diffusion.analysis.estimates import Mean, mean_of
from immiscible_diffusion.analysis.thumbnails import COLORS
from immiscible_diffusion.couplings import Coupling
from immiscible_diffusion.utils.atomic_files import atomic_path
from immiscible_diffusion.utils.batch import Cond
from immiscible_diffusion.utils.random import hash_seed
from reproduce.papers.clusters import draw_clusters

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


@torch.no_grad()
def cluster_map(
    data: Tensor,
    coupling: Coupling,
    *,
    images: int = 5,
    points: int = 200,
    fit_points: int = 2000,
    cond: Cond | None = None,
    seed: int = 0,
) -> tuple[Tensor, Mean]:
    """Project noises of ``images`` images on the two leading directions of their centroids.

    The directions come from ``fit_points`` noises of each image, the ``points`` shown are others.
    Otherwise a map shows clusters even without pairing: in thousands of dimensions the centroids
    are apart by chance, and the noises that they are made of lie on their side.

    Returns:
        ``[images, points, 2]``, and the share of these nearest to the centroid of their own image,
        ``1 / images`` by chance. ValueError where images or dimensions span no plane.
    """
    if images < 3 or data[0].numel() < 2:
        raise ValueError(f"a plane needs 3 images and 2 dimensions, got {images} and {data[0].numel()}")
    draw = partial(draw_clusters, data, coupling, images=images, cond=cond, seed=seed)
    mean = torch.zeros(())
    for noises in draw(points=fit_points, noise_seed=hash_seed(seed, "fit")):
        mean = mean + noises.double().sum(dim=0) / fit_points
    plane = torch.linalg.svd(mean - mean.mean(dim=0), full_matrices=False)[2][:2].T
    fresh = draw(points=points, noise_seed=hash_seed(seed, "shown"))
    shown = torch.cat([noises.double() @ plane for noises in fresh]).transpose(0, 1)
    nearest = torch.cdist(shown, (mean @ plane).expand(images, -1, -1)).argmin(dim=2).cpu()
    return shown.cpu(), mean_of((nearest == torch.arange(images)[:, None]).double())


def draw_maps(maps: Mapping[str, Tensor], file: Path) -> None:
    """Write every map ``[images, points, 2]`` with the means as a panel of one PNG image."""
    from matplotlib.figure import Figure

    columns = min(3, len(maps))
    rows = -(-len(maps) // columns)
    figure = Figure(figsize=(4.0 * columns, 4.2 * rows), dpi=110, layout="constrained")
    panels = [figure.add_subplot(rows, columns, number + 1) for number in range(len(maps))]
    for axes, (name, clouds) in zip(panels, maps.items(), strict=True):
        for cloud, color, marker in zip(clouds, COLORS, MARKERS, strict=False):
            x, y = cloud.T.tolist()
            axes.scatter(x, y, 9, color, marker=marker, alpha=0.35, linewidths=0)
            # Of the points themselves: the centers that the plane was chosen by lie too far out.
            x, y = cloud.mean(dim=0).tolist()
            axes.scatter(x, y, 90, color, marker=marker, edgecolors="white", linewidths=1.2, zorder=3)
        bound = 1.05 * float(clouds.abs().max())
        axes.set(xlim=(-bound, bound), ylim=(-bound, bound), aspect="equal", title=name)
        axes.set_xlabel("1st direction of the centroids (standard deviations)")
        axes.set_ylabel("2nd direction")
    with atomic_path(file) as temporary:
        figure.savefig(temporary, format="png")
