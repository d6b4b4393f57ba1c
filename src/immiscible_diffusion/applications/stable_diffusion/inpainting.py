"""Masks for in-painting: rectangles inside an image, or all but a part that is kept."""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from immiscible_diffusion.utils.checks import check_fields


@dataclass(frozen=True)
class Inpainting:
    """Which part of an image the network has to paint.

    Masks lie on the grid of the latents, so that no latent is half hidden.
    """

    # inside: a rectangle (in-painting); outside: all but a part that is kept, which is a rectangle
    # or, for every other image, one side of the image (out-painting)
    mask_region: Literal["inside", "outside"] = "inside"
    min_size: Annotated[float, "> 0 and < 1"] = 0.25  # shortest side of the rectangle as a fraction of the image's
    max_size: Annotated[float, "> 0 and < 1"] = 0.75  # longest side of it
    pair_masked_region: bool = False  # choose noise by what is in the mask alone

    def __post_init__(self) -> None:
        check_fields(self, "inpainting.")
        if not self.min_size <= self.max_size:
            raise ValueError(f"inpainting.min_size {self.min_size} is above inpainting.max_size {self.max_size}")

    def sample_masks(self, count: int, size: tuple[int, int], generator: torch.Generator | None = None) -> Tensor:
        """Draw masks ``[count, 1, h, w]`` float32 on a grid of ``size``: 1 is to be painted.

        Every image takes five random numbers, used or not, so row i does not depend on the others.
        On the device of ``generator``.
        """
        device = torch.device("cpu") if generator is None else generator.device
        draws = torch.rand(count, 5, device=device, generator=generator)
        (y, top, height), (x, left, width) = (
            self._intervals(side, draws[:, 2 * axis : 2 * axis + 2]) for axis, side in enumerate(size)
        )
        rows, columns = (y >= top) & (y < top + height), (x >= left) & (x < left + width)
        box = rows[:, :, None] & columns[:, None, :]
        if self.mask_region == "inside":
            return box[:, None].float()
        visible = box
        # An eighth of draws[:, 4] for each side, the upper half of the draws for rectangles.
        kept_side = (draws[:, 4] * 8).long()
        edges = (y < height, (y < height).flip(1), x < width, (x < width).flip(1))
        for number, edge in enumerate(edges):
            part = edge[:, :, None] if number < 2 else edge[:, None, :]
            visible = torch.where((kept_side == number).view(-1, 1, 1), part, visible)
        return (~visible)[:, None].float()

    def _intervals(self, size: int, draws: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Coordinates ``[size]``; the first ``[B, 1]`` of a rectangle and its length ``[B, 1]``."""
        least = max(1, round(self.min_size * size))
        most = min(size - 1, max(least, round(self.max_size * size)))
        lengths = least + (draws[:, 0] * (most - least + 1)).long()
        first = (draws[:, 1] * (size - lengths + 1)).long()
        return torch.arange(size, device=draws.device), first[:, None], lengths[:, None]
