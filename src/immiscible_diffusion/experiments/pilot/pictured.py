"""Pictures of samples, where data are images."""

from pathlib import Path

from torch import Tensor

from immiscible_diffusion.experiments.compare.plan import slug
from immiscible_diffusion.utils.atomic_files import atomic_path
from immiscible_diffusion.utils.images import image_grid

DATA = "data"
LARGEST = 16_384  # pixels of one image


def is_picture(shape: tuple[int, ...]) -> bool:
    """Whether data of ``shape`` can be shown as they are: gray or color images."""
    return len(shape) == 3 and shape[0] in (1, 3) and min(shape[1:]) >= 4


def keep_picture(folder: Path, arm: str, budget: int | None, images: Tensor) -> None:
    """Write images ``[n, C, H, W]`` in [-1, 1] as one picture; without ``budget`` real ones."""
    with atomic_path(folder / picture_path(arm, budget)) as temporary:
        image_grid(images, columns=8).save(temporary, format="PNG")


def picture_path(arm: str, budget: int | None) -> str:
    """Where the picture of an arm lies, relative to the probe's folder."""
    steps = "" if budget is None else f"_{budget}"
    return f"samples/{slug(arm)}{steps}.png"
