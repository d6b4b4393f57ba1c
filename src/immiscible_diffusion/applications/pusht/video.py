"""Rollouts side by side, as a GIF from the simulator's own pictures."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from immiscible_diffusion.applications.pusht.rollout import Rollouts
from immiscible_diffusion.applications.pusht.vector_env import pictures
from immiscible_diffusion.utils.atomic_files import atomic_path
from immiscible_diffusion.utils.optional_deps import require_extra

LINE, GAP, HOLD_MS = 14, 2, 2000
COLOURS = 64


def film(
    path: str | os.PathLike[str],
    policies: Mapping[str, Rollouts],
    *,
    episodes: Sequence[int] = (0, 1, 2, 3),
    size: int = 96,
    every: int = 3,
) -> None:
    """Write a GIF: a row for each policy, a column for each episode, with the score so far.

    Args:
        path: to write to.
        policies: by name.
        episodes: which of their episodes.
        size: pixels a side of a table.
        every: steps between pictures; a step is a tenth of a second and is shown as one.

    Raises:
        ValueError: no policies or episodes, or one that there is not.
    """
    with require_extra("train", "films of rollouts"):
        from PIL import Image
    known = min((len(run.coverage) for run in policies.values()), default=0)
    if not episodes or every < 1 or not all(0 <= episode < known for episode in episodes):
        raise ValueError(
            f"expected episodes below {known} of at least one policy and every >= 1, got "
            f"{list(episodes)} and {every}"
        )
    steps = max(int(run.steps[list(episodes)].max()) for run in policies.values())
    shown = sorted({*range(0, steps, every), steps})
    strips = [_strip(name, run, episodes, shown, size) for name, run in policies.items()]
    frames = [np.concatenate([strip[n] for strip in strips]) for n in range(len(shown))]
    palette = Image.fromarray(frames[-1]).quantize(COLOURS)
    images = [
        Image.fromarray(f).quantize(palette=palette, dither=Image.Dither.NONE) for f in frames
    ]
    times = [100 * every] * (len(images) - 1) + [HOLD_MS]
    with atomic_path(path) as temporary:
        images[0].save(
            temporary, "GIF", save_all=True, append_images=images[1:], duration=times, loop=0
        )


def _strip(
    name: str, run: Rollouts, episodes: Sequence[int], shown: Sequence[int], size: int
) -> NDArray[np.uint8]:
    """``[frames, height, width, 3]`` of one policy."""
    columns = []
    for episode in episodes:
        states = run.states[episode, list(shown)]
        drawn = pictures(states, size=size)
        columns.append(np.pad(drawn, ((0, 0), (0, GAP), (0, GAP), (0, 0)), constant_values=200))
    tables = np.concatenate(columns, axis=2)
    best = np.fmax.accumulate(np.nan_to_num(run.coverage[list(episodes)]), axis=1)
    titles = [_title(name, best, step, tables.shape[2], size + GAP) for step in shown]
    return np.concatenate([np.stack(titles), tables], axis=1)


def _title(name: str, best: Any, step: int, width: int, column: int) -> NDArray[np.uint8]:
    """``[2 LINE, width, 3]``: the policy's name, and below it the score of every episode so far."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (width, 2 * LINE), "white")
    pen = ImageDraw.Draw(image)
    pen.text((3, 1), f"{name}   step {step}", fill="black")
    for number, coverage in enumerate(best):
        reached = min(1.0, coverage[step - 1] / 0.95) if step else 0.0
        pen.text((3 + number * column, LINE), f"{reached:.2f}", fill="black")
    return np.asarray(image)
