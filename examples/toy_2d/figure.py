"""The figure: a column for each coupling, and what it does to pairs, noise, paths and mixing."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from PIL import Image
from torch import Tensor

from examples.toy_2d.data import ToyData
from examples.toy_2d.result import RADIUS, ToyResult
from immiscible_diffusion.utils.atomic_files import atomic_path

# Okabe and Ito's eight, black softened; neighbors on a ring are far apart.
COLORS = np.array(["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#555555", "#F0E442", "#56B4E9", "#D55E00"])
INK, SOFT, FAINT = "#1b1f24", "#59636e", "#c8ced6"
EDGE = 3.9  # of the panels
STYLE = {
    "font.size": 8.6,
    "text.color": INK,
    "axes.labelcolor": SOFT,
    "axes.edgecolor": "#8a939c",
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "text.parse_math": False,
    "svg.hashsalt": "toy",
}


def colors(group: Tensor) -> Any:
    """The color of every one of ``group`` ``[n]``."""
    return COLORS[group.numpy() % len(COLORS)]


def write_figure(data: ToyData, results: Sequence[ToyResult], *files: Path) -> None:
    """Draw the figure once and write it to ``files``, each an .svg or a .png."""
    wide = min(9, 0.5 + 2.125 * len(results))
    size = (wide, 1.2 + 3.55 * (wide - 0.5) / len(results))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        heights = {"height_ratios": [1, 1, 1, 0.62]}
        axes = figure.subplots(4, len(results), squeeze=False, gridspec_kw=heights)
        for result, (pairs, noise, paths, mixing) in zip(results, axes.T, strict=True):
            pairs.set_title(result.name, fontsize=11.5, fontweight="bold", pad=19)
            pairs.text(0.5, 1.03, result.meaning, transform=pairs.transAxes, ha="center", color=SOFT)
            _draw_pairs(pairs, data, result)
            _draw_destinations(noise, data, result)
            _draw_paths(paths, data, result)
            _draw_mixing(mixing, results, result)
        names = ("training pairs", "what noise tells\nof its sample", "exact sampling paths")
        for name, first in zip((*names, "points mixed"), axes[:, 0], strict=True):
            first.set_ylabel(name, fontweight="bold", color=INK, labelpad=6)
        for mixing in axes[3, 1:]:
            mixing.set_yticklabels([])
        for file in files:
            with atomic_path(file) as temporary:
                options = {"metadata": {"Date": None}} if file.suffix == ".svg" else {"dpi": 170}
                figure.savefig(temporary, format=file.suffix[1:], **options)
                if file.suffix == ".png":  # in 256 colors it has a third of the size
                    with Image.open(temporary) as image:
                        small = image.convert("RGB").quantize(256, dither=Image.Dither.NONE)
                    small.save(temporary, format="PNG", optimize=True)


def plane(axes: Any, data: ToyData, text: str = "", **style: Any) -> None:
    """Axes of the plane with the data and ``text`` below."""
    axes.set(xlim=(-EDGE, EDGE), ylim=(-EDGE, EDGE), xticks=[], yticks=[], aspect="equal")
    axes.spines[:].set(color="#dfe3e8", linewidth=0.8)
    axes.set_xlabel(text, labelpad=3, color=INK)
    style = {"s": 7, "linewidths": 0.3, "edgecolors": "white", "zorder": 4} | style
    axes.scatter(*data.points.T.numpy(), c=colors(data.group), **style)


def _draw_pairs(axes: Any, data: ToyData, result: ToyResult) -> None:
    """Lines from every noise to its sample."""
    color, ends = colors(data.group[result.rows]), data.points[result.rows]
    lines = np.stack([result.noise.numpy(), ends.numpy()], axis=1)
    axes.add_collection(LineCollection(list(lines), colors=color, linewidths=0.6, alpha=0.65))
    axes.scatter(*result.noise.T.numpy(), 5, color, linewidths=0, zorder=3)
    loss, distance = result.metrics.irreducible_loss.value, result.metrics.mean_distance
    plane(axes, data, f"irreducible loss {loss:.2g}\nmean distance {distance:.2f}")


def _draw_destinations(axes: Any, data: ToyData, result: ToyResult) -> None:
    """Noise colored by its most probable group, the stronger the surer."""
    chance, group = result.destinations.max(dim=2)
    palette = np.array([to_rgb(COLORS[i % len(COLORS)]) for i in range(data.groups)])
    sure = ((chance - 1 / data.groups) / (1 - 1 / data.groups)).clamp(0, 1).numpy()
    image = np.concatenate([palette[group.numpy()], sure[..., None]], axis=2)
    circle = Circle((0, 0), RADIUS, facecolor="none", edgecolor=FAINT, linewidth=0.9, zorder=3)
    axes.add_patch(circle)
    extent = (-RADIUS, RADIUS, -RADIUS, RADIUS)
    axes.imshow(image, extent=extent, origin="lower", interpolation="bilinear").set_clip_path(circle)
    effective = result.metrics.effective_points.value
    plane(axes, data, f"{_short(effective)} of {len(data)} points possible")
    if effective > 0.999 * len(data):
        text = axes.text(0, 0, "nothing:\nevery point is\nas likely", ha="center", va="center")
        text.set(color=SOFT, bbox={"color": "white", "alpha": 0.85, "linewidth": 0}, zorder=5)


def _draw_paths(axes: Any, data: ToyData, result: ToyResult) -> None:
    """From the same N(0, I) noises, colored by where they end."""
    color, lines = colors(data.nearest_group(result.paths[-1])), result.paths.transpose(0, 1)
    axes.add_collection(LineCollection(list(lines.numpy()), colors=color, lw=0.8, alpha=0.8))
    axes.scatter(*result.start.T.numpy(), 5, color, linewidths=0, zorder=3)
    longer, error = result.metrics.straightness - 1, result.metrics.euler_error[2]
    plane(axes, data, f"{longer:.1%} longer than straight\n2 Euler steps miss by {error:.2f}")


def _draw_mixing(axes: Any, results: Sequence[ToyResult], result: ToyResult) -> None:
    """Effective number of points by noise level; the other couplings in gray."""
    for other in results:
        t = [0.0, *(level.t for level in other.mixing.levels)]
        number = [1.0, *(level.effective.value for level in other.mixing.levels)]
        own = other is result
        axes.plot(t, number, color=INK if own else FAINT, lw=1.8 if own else 1.0, zorder=2 + own)
    last, top = result.metrics.effective_points.value, result.mixing.samples
    axes.plot([1], [last], "o", color=INK, markersize=3.5, zorder=4, clip_on=False)
    axes.annotate(_short(last), (1, last), (-6, 5), textcoords="offset points", ha="right")
    axes.set(xlim=(0, 1), ylim=(0.9, 2.4 * top), yscale="log", xlabel="t  (0 data, 1 noise)")
    ticks = [tick for tick in (1, 10, 100, 1000) if tick <= top]
    axes.set_yticks(ticks, [str(tick) for tick in ticks])
    axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    axes.minorticks_off()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e6e9ed", linewidth=0.6)
    axes.set_axisbelow(True)


def _short(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"
