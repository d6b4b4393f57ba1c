"""The animation: data go to their noise as in training, and come back on exact paths."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from examples.toy_2d.data import ToyData
from examples.toy_2d.figure import INK, SOFT, STYLE, colors, plane
from examples.toy_2d.result import ToyResult, path_times
from immiscible_diffusion.utils.atomic_files import atomic_path

PANELS, FRAMES = 3, 24
MOVING, STILL = 80, 1400  # milliseconds
OUT = "Training: every sample moves straight to its noise"
TURN = "The same noises, colored by where the best network takes them"
BACK = "Sampling: the exact paths of the best network"
Frame = tuple[float, bool, str, int]
"""Time of everything that moves, whether it is on the way back, text, milliseconds."""


def frames() -> list[Frame]:
    """Out, a rest, and back."""
    way = [0.5 - 0.5 * float(np.cos(np.pi * i / FRAMES)) for i in range(1, FRAMES)]
    out = [(0.0, False, OUT, STILL), *((t, False, OUT, MOVING) for t in way)]
    turn = [(1.0, False, OUT, STILL), (1.0, True, TURN, 2 * STILL)]
    back = [*((t, True, BACK, MOVING) for t in reversed(way)), (0.0, True, BACK, STILL)]
    return [*out, *turn, *back]


def write_animation(data: ToyData, results: Sequence[ToyResult], file: Path) -> None:
    """Write a .gif that goes round for ever: the first coupling and the last two."""
    if len(results) > PANELS:
        results = [results[0], *results[1 - PANELS :]]
    images = []
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 9 / max(2, len(results)) + 1.1), layout="constrained")
        canvas: Any = FigureCanvasAgg(figure)
        title = figure.suptitle(" ", fontsize=12.5, color=INK)
        panels = figure.subplots(1, len(results), squeeze=False)[0]
        moving = [Panel(axes, data, each) for axes, each in zip(panels, results, strict=True)]
        for t, back, text, _ in frames():
            title.set_text(text)
            for panel in moving:
                panel.show(t, back)
            canvas.draw()
            images.append(Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy()))
    # The same few colors throughout: what rests does not flicker, and is stored once.
    sheet = Image.fromarray(np.concatenate([np.asarray(each) for each in images[:: FRAMES // 4]]))
    palette = sheet.quantize(64, dither=Image.Dither.NONE)
    palette.putpalette([255 if value > 247 else value for value in palette.getpalette() or []])
    first, *others = (each.quantize(palette=palette, dither=Image.Dither.NONE) for each in images)
    durations = [each[-1] for each in frames()]
    with atomic_path(file) as temporary:
        first.save(temporary, "GIF", save_all=True, append_images=others, duration=durations, loop=0)


class Panel:
    """One coupling of the animation."""

    def __init__(self, axes: Any, data: ToyData, result: ToyResult) -> None:
        self.result, self.data = result, data.points[result.rows].double()
        ends = data.nearest_group(result.back[-1])
        self.colors = colors(data.group[result.rows]), colors(ends)
        axes.set_title(result.name, fontsize=12, fontweight="bold")
        plane(axes, data, s=12, alpha=0.25, linewidths=0, zorder=1)
        self.trails = axes.add_collection(LineCollection([], linewidths=0.8, alpha=0.45))
        self.dots = axes.scatter(*self.data.T.numpy(), 17, linewidths=0.4, edgecolors="white")
        self.dots.set_zorder(3)
        self.note = axes.set_xlabel(" ", color=SOFT, fontsize=10, labelpad=5)

    def show(self, t: float, back: bool) -> None:
        """Move everything to where it is at ``t``."""
        trail = path_until(self.result.back, t)
        place = trail[-1] if back else self.data + t * (self.result.noise - self.data)
        self.dots.set_offsets(place.numpy())
        self.dots.set_facecolors(self.colors[back])
        self.trails.set_segments(list(trail.transpose(0, 1).numpy()) if back else [])
        self.trails.set_colors(self.colors[1])
        metrics, points = self.result.metrics, self.result.mixing.samples
        text = f"a noise may belong to {metrics.effective_points.value:.3g} of {points} points"
        text = f"{metrics.own_group:.0%} return to their own group" if back else text
        self.note.set_text(text if back or t == 1 else " ")


def path_until(paths: Tensor, t: float) -> Tensor:
    """``paths`` ``[T, P, 2]`` from t = 1 down to ``t``: ``[n, P, 2]``, at ``t`` between two."""
    times = path_times(len(paths) - 1)
    passed = int((times > t).sum())
    if passed in (0, len(times)):
        return paths[: max(1, passed)]
    share = (times[passed - 1] - t) / (times[passed - 1] - times[passed])
    return torch.cat([paths[:passed], torch.lerp(paths[passed - 1], paths[passed], share)[None]])
