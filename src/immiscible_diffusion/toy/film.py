"""The animation: data go to their noise as in training, and come back on exact paths."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from immiscible_diffusion.data.toy import ToyPoints
from immiscible_diffusion.toy.paths import path_times
from immiscible_diffusion.toy.strip import COLOURS, EDGE, INK, SOFT, STYLE, colors
from immiscible_diffusion.toy.world import Scene, group_of
from immiscible_diffusion.utils.atomic_files import atomic_path
from immiscible_diffusion.utils.optional_deps import require_extra

PANELS = 3
MOVING, STILL = 80, 1400  # milliseconds
FRAMES = 24
COLOURS_KEPT = 64
OUT = "Training: every sample moves straight to its noise"
TURN = "The same noises, colored by where the best network takes them"
BACK = "Sampling: the exact paths of the best network"


@dataclass(frozen=True)
class Frame:
    """One picture of the film.

    Attributes:
        t: time on the path of everything that moves.
        back: on the way back.
        text: what is seen.
        last: milliseconds.
    """

    t: float
    back: bool
    text: str
    last: int


def frames() -> list[Frame]:
    """Out, a rest, and back."""
    way = [0.5 - 0.5 * np.cos(np.pi * i / FRAMES) for i in range(FRAMES + 1)]
    out = [Frame(float(t), False, OUT, MOVING) for t in way]
    back = [Frame(float(t), True, BACK, MOVING) for t in reversed(way)]
    rest = Frame(1.0, True, TURN, 2 * STILL)
    first, turn, end = (Frame(x.t, x.back, x.text, STILL) for x in (out[0], out[-1], back[-1]))
    return [first, *out[1:-1], turn, rest, *back[1:-1], end]


def filmed(scenes: Sequence[Scene]) -> list[Scene]:
    """The first coupling and the last ones: as many as fit side by side."""
    return list(scenes) if len(scenes) <= PANELS else [scenes[0], *scenes[1 - PANELS :]]


def write_film(
    world: ToyPoints,
    scenes: Sequence[Scene],
    path: Path,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Write the animation to ``path``, a .gif that goes round for ever.

    ``progress`` is called with how many of the ``frames()`` are drawn.
    """
    with require_extra("train", "animations"):
        import matplotlib
    shown, pictures = frames(), []
    with matplotlib.rc_context(STYLE):
        stage = Stage(world, filmed(scenes))
        for number, frame in enumerate(shown):
            pictures.append(stage.picture(frame))
            if progress is not None:
                progress(number + 1)
    reduced = _in_one_palette(pictures)
    with atomic_path(path) as temporary:
        reduced[0].save(
            temporary,
            format="GIF",
            save_all=True,
            append_images=reduced[1:],
            duration=[frame.last for frame in shown],
            loop=0,
            optimize=False,
        )


def _in_one_palette(pictures: Sequence[Any]) -> list[Any]:
    """``pictures`` in the same few colors: what rests does not flicker, and is stored once."""
    from PIL import Image

    few = [pictures[i] for i in (0, FRAMES // 2, FRAMES, FRAMES + 2, 3 * FRAMES // 2, -1)]
    sheet = Image.fromarray(np.concatenate([np.asarray(picture) for picture in few]))
    nothing = Image.Dither.NONE
    kept = sheet.quantize(COLOURS_KEPT, method=Image.Quantize.MEDIANCUT, dither=nothing)
    values = np.array((kept.getpalette() or [])[: 3 * COLOURS_KEPT]).reshape(-1, 3)
    values[values.min(axis=1) > 247] = 255  # white is white
    palette = Image.new("P", (1, 1))
    palette.putpalette(values.flatten().tolist())
    return [picture.quantize(palette=palette, dither=nothing) for picture in pictures]


class Stage:
    """The figure that all frames are drawn on.

    Args:
        world: the data.
        scenes: side by side.
    """

    def __init__(self, world: ToyPoints, scenes: Sequence[Scene]) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        wide = 9.0 / max(2, len(scenes))
        figure = Figure(figsize=(9, wide + 1.1), dpi=100)
        self.canvas: Any = FigureCanvasAgg(figure)
        self.title = figure.text(0.5, 1 - 0.2 / (wide + 1.1), "", ha="center", va="center")
        self.title.set(fontsize=12.5, color=INK)
        share, tall = 1 / len(scenes), wide / (wide + 1.1)
        self.panels = []
        for i, scene in enumerate(scenes):
            axes = figure.add_axes((i * share + 0.006, 0.3 / (wide + 1.1), share - 0.012, tall))
            self.panels.append(Panel(axes, world, scene))

    def picture(self, frame: Frame) -> Any:
        """The frame as an RGB picture."""
        from PIL import Image

        self.title.set_text(frame.text)
        for panel in self.panels:
            panel.show(frame)
        self.canvas.draw()
        return Image.fromarray(np.asarray(self.canvas.buffer_rgba())[..., :3].copy())


class Panel:
    """One coupling on the stage.

    Args:
        axes: of matplotlib.
        world: the data.
        scene: the coupling.
    """

    def __init__(self, axes: Any, world: ToyPoints, scene: Scene) -> None:
        from matplotlib.collections import LineCollection

        self.scene, self.data = scene, world.points[scene.rows].double()
        own, ends = world.group[scene.rows], group_of(world, scene.back[-1])
        self.colors = colors(own), colors(ends)
        axes.set(xlim=(-EDGE, EDGE), ylim=(-EDGE, EDGE), xticks=[], yticks=[])
        for spine in axes.spines.values():
            spine.set(color="#dfe3e8", linewidth=0.8)
        axes.set_title(scene.name, fontsize=12, fontweight="bold", pad=5, parse_math=False)
        x, y = world.points.T.numpy()
        pale = [COLOURS[int(g) % len(COLOURS)] for g in world.group]
        axes.scatter(x, y, 12, pale, alpha=0.25, linewidths=0)
        self.trails = LineCollection([], linewidths=0.8, alpha=0.45)
        axes.add_collection(self.trails)
        self.dots = axes.scatter(*self.data.T.numpy(), 17, linewidths=0.4, edgecolors="white")
        self.dots.set_zorder(3)
        self.note = axes.set_xlabel("", color=SOFT, fontsize=10, labelpad=5)

    def show(self, frame: Frame) -> None:
        """Move everything to where it is in ``frame``."""
        noise = self.scene.noise.double()
        trail = along(self.scene.back, frame.t) if frame.back else None
        place = self.data + frame.t * (noise - self.data) if trail is None else trail[-1]
        self.dots.set_offsets(place.numpy())
        self.dots.set_facecolors(self.colors[frame.back])
        segments = [] if trail is None else list(trail.transpose(0, 1).numpy())
        self.trails.set_segments(segments)
        self.trails.set_colors(self.colors[1])
        share, mixed = self.scene.figures["own_group"], self.scene.figures["effective_points"]
        back = f"{share:.0%} return to their own group"
        out = f"a noise may belong to {mixed['value']:.3g} of {self.scene.mixed.images} points"
        self.note.set_text(back if frame.back else out if frame.t == 1 else "")


def along(paths: Tensor, t: float) -> Tensor:
    """``paths`` ``[T, P, 2]`` from t = 1 down to ``t``: ``[n, P, 2]``, at ``t`` between two."""
    times = path_times(len(paths) - 1)
    passed = int((times > t).sum())
    if passed == 0:
        return paths[:1]
    if passed == len(times):
        return paths
    before, after = times[passed - 1], times[passed]
    share = (before - t) / (before - after)
    here = torch.lerp(paths[passed - 1], paths[passed], share)
    return torch.cat([paths[:passed], here[None]])
