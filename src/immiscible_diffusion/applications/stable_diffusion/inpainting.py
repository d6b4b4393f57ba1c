"""Holes to paint: rectangles inside a picture, or what lies around a part that is kept."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

HIDDEN = ("inside", "outside")


@dataclass(frozen=True)
class Inpainting:
    """Which part of a picture the network has to paint.

    Holes lie on the grid of the latents, so that no latent is half hidden.

    Args:
        hidden: ``inside``: a rectangle (in-painting); ``outside``: all but a kept part, which is a
            rectangle or, for every other picture, one side of the picture (out-painting).
        smallest: shortest side of the rectangle as a share of the picture's.
        largest: longest side of it.
        pair_masked_region: choose noise by what is in the hole alone.
    """

    hidden: Literal["inside", "outside"] = "inside"
    smallest: float = 0.25
    largest: float = 0.75
    pair_masked_region: bool = False

    def __post_init__(self) -> None:
        if self.hidden not in HIDDEN:
            raise ValueError(
                f"painting.hidden must be one of {', '.join(HIDDEN)}, got {self.hidden!r}"
            )
        if not 0 < self.smallest <= self.largest < 1:
            raise ValueError(
                f"expected 0 < painting.smallest <= painting.largest < 1, got {self.smallest} and "
                f"{self.largest}"
            )

    def holes(
        self, count: int, size: tuple[int, int], generator: torch.Generator | None = None
    ) -> Tensor:
        """Random holes ``[count, 1, h, w]`` float32 on a grid of ``size``: 1 is to be painted.

        Every picture draws five numbers whatever they decide, so row i does not depend on the
        others. On the device of ``generator``.
        """
        device = generator.device if generator is not None else torch.device("cpu")
        draws = torch.rand(count, 5, device=device, generator=generator)
        rows = self._span(size[0], draws[:, 0], draws[:, 1])
        columns = self._span(size[1], draws[:, 2], draws[:, 3])
        box = rows[:, :, None] & columns[:, None, :]
        if self.hidden == "inside":
            return box[:, None].float()
        # A quarter of draws[:, 4] for each side, the upper half of the draws for rectangles.
        side = (draws[:, 4] * 8).long()
        tall, wide = self._edge(size[0], draws[:, 0]), self._edge(size[1], draws[:, 2])
        halves = [
            tall[:, :, None].expand(-1, -1, size[1]),
            tall.flip(1)[:, :, None].expand(-1, -1, size[1]),
            wide[:, None, :].expand(-1, size[0], -1),
            wide.flip(1)[:, None, :].expand(-1, size[0], -1),
        ]
        kept = box
        for number, half in enumerate(halves):
            kept = torch.where((side == number).view(-1, 1, 1), half, kept)
        return (~kept)[:, None].float()

    def _span(self, size: int, length: Tensor, place: Tensor) -> Tensor:
        """``[B, size]`` boolean, True on an interval of random length and place."""
        lengths = self._lengths(size, length)
        first = (place * (size - lengths + 1)).long()
        along = torch.arange(size, device=length.device)
        return (along >= first[:, None]) & (along < (first + lengths)[:, None])

    def _edge(self, size: int, length: Tensor) -> Tensor:
        """The same, from the edge on."""
        along = torch.arange(size, device=length.device)
        return along < self._lengths(size, length)[:, None]

    def _lengths(self, size: int, draw: Tensor) -> Tensor:
        least = max(1, round(self.smallest * size))
        most = min(size - 1, max(least, round(self.largest * size)))
        return least + (draw * (most - least + 1)).long()
