"""Rollouts side by side, as a GIF of the simulator's own images."""

import os
from collections.abc import Mapping, Sequence

import numpy as np

from immiscible_diffusion.applications.pusht.environment import PushT
from immiscible_diffusion.applications.pusht.rollout import Rollouts
from immiscible_diffusion.applications.pusht.states import SUCCESS_COVERAGE
from immiscible_diffusion.utils.atomic_files import atomic_path
from immiscible_diffusion.utils.optional_deps import require_extra

TITLE, GAP, LAST_MS, COLORS = 28, 2, 2000, 64


def save_video(
    path: str | os.PathLike[str],
    policies: Mapping[str, Rollouts],
    *,
    episodes: Sequence[int] | None = None,
    size: int = 96,
    every: int = 3,
) -> None:
    """Write a GIF: a row for each policy, a column for each episode, with the score so far.

    Of the first four ``episodes`` by default. An environment's image has ``size`` by ``size`` pixels. There are
    ``every`` steps between frames; a step is 0.1 s and is shown as long. ValueError if there are no such episodes.
    """
    with require_extra("train", "videos of rollouts"):
        from PIL import Image, ImageDraw
    count = min((len(run.coverage) for run in policies.values()), default=0)
    episodes = range(min(4, count)) if episodes is None else episodes
    if not episodes or every < 1 or not all(0 <= episode < count for episode in episodes):
        raise ValueError(
            f"expected episodes below {count} of at least one policy and every >= 1, got {list(episodes)} and {every}"
        )
    last = max(int(run.steps[list(episodes)].max()) for run in policies.values())
    steps = sorted({*range(0, last, every), last})
    width, height = len(episodes) * (size + GAP), len(policies) * (TITLE + size + GAP)
    env = PushT()
    frames = [Image.new("RGB", (width, height), "white") for _ in steps]
    for row, (name, run) in enumerate(policies.items()):
        top = row * (TITLE + size + GAP)
        best = np.fmax.accumulate(np.nan_to_num(run.coverage), axis=1)
        for column, episode in enumerate(episodes):
            for frame, step in zip(frames, steps, strict=True):
                image = env.render(run.states[episode, step], size)
                frame.paste(Image.fromarray(image), (column * (size + GAP), top + TITLE))
                score = min(1.0, best[episode, step - 1] / SUCCESS_COVERAGE) if step else 0.0
                draw = ImageDraw.Draw(frame)
                draw.text((3 + column * (size + GAP), top + TITLE // 2), f"{score:.2f}", "black")
                if not column:
                    draw.text((3, top + 1), f"{name}   step {step}", "black")
    # One palette for all frames, or colors would flicker.
    palette = frames[-1].quantize(COLORS)
    first, *rest = (f.quantize(palette=palette, dither=Image.Dither.NONE) for f in frames)
    durations = [100 * every] * len(rest) + [LAST_MS]
    with atomic_path(path) as temporary:
        first.save(temporary, "GIF", save_all=True, append_images=rest, duration=durations, loop=0)
