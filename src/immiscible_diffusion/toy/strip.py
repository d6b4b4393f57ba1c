"""The strip: a column for each coupling, and what it does to pairs, noise, paths and mixing."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from immiscible_diffusion.data.toy import ToyPoints
from immiscible_diffusion.toy.world import REACH, Scene
from immiscible_diffusion.utils.atomic_files import atomic_path
from immiscible_diffusion.utils.optional_deps import require_extra

# Okabe and Ito's eight, black softened; neighbors on a ring are far apart.
COLOURS = (
    *("#0072B2", "#E69F00", "#009E73", "#CC79A7"),
    *("#555555", "#F0E442", "#56B4E9", "#D55E00"),
)
INK, SOFT, FAINT = "#1b1f24", "#59636e", "#c8ced6"
EDGE = 3.9  # of the pictures of the plane
STYLE = {
    "font.family": "sans-serif",
    "font.size": 8.6,
    "text.color": INK,
    "axes.labelcolor": SOFT,
    "axes.edgecolor": "#8a939c",
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "svg.hashsalt": "toy",
    "path.simplify_threshold": 0.3,
}
ROWS = (
    "training pairs",
    "what noise tells\nof its sample",
    "exact sampling paths",
    "points mixed",
)


def write_strip(world: ToyPoints, scenes: Sequence[Scene], path: Path) -> None:
    """Draw the strip to ``path``, an .svg or a .png of twice its size for fine screens."""
    with _figure(len(scenes)) as figure:
        height = [1, 1, 1, 0.62]
        grid = figure.add_gridspec(4, len(scenes), height_ratios=height)
        drawn = [[figure.add_subplot(grid[row, i]) for row in range(4)] for i in range(len(scenes))]
        for scene, column in zip(scenes, drawn, strict=True):
            _head(column[0], scene)
            _pairs(column[0], world, scene)
            _destinations(column[1], world, scene)
            _paths(column[2], world, scene)
            _mixing(column[3], scenes, scene)
        for text, axes in zip(ROWS, drawn[0], strict=True):
            axes.set_ylabel(text, fontweight="bold", color=INK, labelpad=6)
        for column in drawn[1:]:
            column[3].set_yticklabels([])
        with atomic_path(path) as temporary:
            if path.suffix == ".svg":
                figure.savefig(temporary, format="svg", metadata={"Date": None}, dpi=110)
            else:
                figure.savefig(temporary, format="png", dpi=200)
                _fewer_colors(temporary)


@contextmanager
def _figure(columns: int) -> Iterator[Any]:
    with require_extra("train", "plots"):
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    layout = ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.05, wspace=0.01, hspace=0.02)
    with matplotlib.rc_context(STYLE):
        wide = min(9, 0.5 + 2.125 * columns)
        figure = Figure(figsize=(wide, 1.2 + 3.55 * (wide - 0.5) / columns), layout=layout)
        FigureCanvasAgg(figure)
        yield figure


def colors(group: Tensor) -> list[str]:
    """The color of every one of ``group`` ``[n]``."""
    return [COLOURS[int(one) % len(COLOURS)] for one in group]


def _head(axes: Any, scene: Scene) -> None:
    axes.set_title(scene.name, fontsize=11.5, fontweight="bold", pad=19, parse_math=False)
    axes.annotate(
        *(scene.meaning, (0.5, 1), (0, 6)),
        xycoords="axes fraction",
        textcoords="offset points",
        ha="center",
        color=SOFT,
        parse_math=False,
    )


def _plane(axes: Any, below: str) -> None:
    axes.set(xlim=(-EDGE, EDGE), ylim=(-EDGE, EDGE), xticks=[], yticks=[])
    axes.set_aspect("equal")
    for spine in axes.spines.values():
        spine.set(color="#dfe3e8", linewidth=0.8)
    axes.set_xlabel(below, labelpad=3, color=INK)


def _points(axes: Any, world: ToyPoints, size: float = 7) -> None:
    x, y = world.points.T.numpy()
    axes.scatter(x, y, size, colors(world.group), linewidths=0.3, edgecolors="white", zorder=4)


def _pairs(axes: Any, world: ToyPoints, scene: Scene) -> None:
    """Lines from every noise to its sample."""
    from matplotlib.collections import LineCollection

    chosen = world.group[scene.rows]
    ends: Any = np.stack([scene.noise.numpy(), world.points[scene.rows].numpy()], axis=1)
    axes.add_collection(LineCollection(ends, colors=colors(chosen), linewidths=0.6, alpha=0.65))
    x, y = scene.noise.T.numpy()
    axes.scatter(x, y, 5, colors(chosen), linewidths=0, zorder=3)
    _points(axes, world)
    length = float((scene.noise - world.points[scene.rows]).norm(dim=1).mean())
    loss = scene.figures["irreducible_loss"]["value"]
    _plane(axes, f"irreducible loss {loss:.2g}\nmean distance {length:.2f}")


def _destinations(axes: Any, world: ToyPoints, scene: Scene) -> None:
    """Noise colored by its most probable group, the stronger the surer."""
    from matplotlib.colors import to_rgb
    from matplotlib.patches import Circle

    chance, group = scene.destinations.max(dim=2)
    count = scene.destinations.shape[2]
    palette = np.array([to_rgb(COLOURS[i % len(COLOURS)]) for i in range(count)])
    sure = ((chance - 1 / count) / (1 - 1 / count)).clamp(0, 1).numpy()
    picture = np.concatenate([palette[group.numpy()], sure[..., None]], axis=2)
    lens = Circle((0, 0), REACH, facecolor="none", edgecolor=FAINT, linewidth=0.9, zorder=3)
    axes.add_patch(lens)
    extent = (-REACH, REACH, -REACH, REACH)
    shown = axes.imshow(picture, extent=extent, origin="lower", interpolation="bilinear")
    shown.set_clip_path(lens)
    _points(axes, world)
    effective = scene.figures["effective_points"]["value"]
    if effective > 0.999 * len(world):
        said = axes.text(0, 0, "nothing:\nevery point is\nas likely", ha="center", va="center")
        said.set(color=SOFT, bbox={"color": "white", "alpha": 0.85, "linewidth": 0}, zorder=5)
    _plane(axes, f"{_number(effective)} of {len(world)} points possible")


def _paths(axes: Any, world: ToyPoints, scene: Scene) -> None:
    """From the same N(0, I) noises, colored by where they end."""
    from matplotlib.collections import LineCollection

    ends = torch.cdist(scene.paths[-1], world.points.double()).argmin(dim=1)
    color = colors(world.group[ends])
    lines = [_thinned(line) for line in scene.paths.transpose(0, 1).numpy()]
    axes.add_collection(LineCollection(lines, colors=color, linewidths=0.8, alpha=0.8))
    x, y = scene.start.T.numpy()
    axes.scatter(x, y, 5, color, linewidths=0, zorder=3)
    _points(axes, world)
    longer, error = scene.figures["straightness"] - 1, scene.figures["euler_error"]["2"]
    _plane(axes, f"{longer:.1%} longer than straight\n2 Euler steps miss by {error:.2f}")


def _mixing(axes: Any, scenes: Sequence[Scene], scene: Scene) -> None:
    """Effective number of points by noise level; the other couplings in gray."""
    for other in scenes:
        t = [0.0, *(level.t for level in other.mixed.levels)]
        number = [1.0, *(level.effective.value for level in other.mixed.levels)]
        own = other is scene
        style = {"color": INK if own else FAINT, "linewidth": 1.8 if own else 1.0}
        axes.plot(t, number, zorder=3 if own else 2, **style)
    last = scene.mixed.levels[-1].effective.value
    axes.plot([1], [last], "o", color=INK, markersize=3.5, zorder=4, clip_on=False)
    axes.annotate(
        *(_number(last), (1, last)), (-6, 5), textcoords="offset points", ha="right", va="bottom"
    )
    top = scene.mixed.images
    ticks = [one for one in (1, 10, 100, 1000) if one <= top]
    axes.set(xlim=(0, 1), ylim=(0.9, 2.4 * top), yscale="log", xlabel="t  (0 data, 1 noise)")
    axes.set_yticks(ticks, [str(one) for one in ticks])
    axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    axes.minorticks_off()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e6e9ed", linewidth=0.6)
    axes.set_axisbelow(True)


def _number(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _thinned(line: Any, least: float = 0.06) -> Any:
    """Points of ``line`` ``[T, 2]`` at least so far apart, with both ends."""
    kept = [line[0]]
    for point in line[1:-1]:
        if np.hypot(*(point - kept[-1])) >= least:
            kept.append(point)
    return np.array([*kept, line[-1]])


def _fewer_colors(path: Path) -> None:
    """A PNG in 256 colors: a third of the size."""
    from PIL import Image

    with Image.open(path) as picture:
        small = picture.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    small.save(path, format="PNG", optimize=True)
