"""Pictures of three classes that differ, and the settings of a pipeline of a few weights."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from immiscible_diffusion.data import DataConfig
from immiscible_diffusion.smallsd import SmallSD, TextSettings, UNetSettings, VAESettings

Image = pytest.importorskip("PIL.Image", reason="pictures are read with Pillow")
for package in ("datasets", "diffusers", "transformers"):
    pytest.importorskip(package, reason="the pipeline is diffusers' with transformers' CLIP")

COLOURS = {"red thing": (200, 30, 30), "green thing": (30, 200, 30), "blue": (30, 30, 200)}


def write_pictures(folder: Path, count: int = 12, side: int = 8) -> Path:
    """Folders of pictures of one colour and a little noise."""
    rng = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            noise = rng.integers(-25, 26, (side, side, 3))
            picture = (np.array(colour) + noise).clip(0, 255).astype(np.uint8)
            Image.fromarray(picture).save(folder / name / f"{number}.png")
    return folder


def settings(folder: Path, **changes: Any) -> SmallSD:
    """Of a pipeline of a few weights from the pictures in ``folder``."""
    parts: dict[str, Any] = {
        "vae": VAESettings((8, 8), 2, 1, 4, steps=6, batch_size=8),
        "text": TextSettings(length=8, width=16, depth=1, heads=2, steps=3, batch_size=8),
        "unet": UNetSettings((8, 8), (False, True), 1, 2, 4),
        "judge": False,
        "checkpoint_every": 2,
    }
    return SmallSD(DataConfig("folder", path=str(folder), channels=3), **{**parts, **changes})
