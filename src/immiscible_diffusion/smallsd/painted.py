"""How well what was hidden is painted in, beside the plainest fill."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from immiscible_diffusion.smallsd.latents import psnr

Paint = Callable[[Tensor, Tensor, int], Tensor]
"""Pictures ``[B, C, H, W]``, hole ``[B, 1, H, W]`` and the number of the draw to painted ones."""


@dataclass(frozen=True)
class PaintFigures:
    """PSNR in dB inside the hole.

    Attributes:
        mean_of_draws: of the mean of the draws, which estimates what the model expects there.
        one_draw: of a single draw, mean error over draws; a sharp one loses by half its variance.
        known_color: of a fill with the mean color of the picture's visible part.
        set_color: of a fill with the mean color of all pictures.
        draws: how many.
    """

    mean_of_draws: float
    one_draw: float
    known_color: float
    set_color: float
    draws: int


def center_hole(count: int, side: int, step: int) -> Tensor:
    """A square hole of half the side in the middle, on the grid of latents: ``[B, 1, H, W]``.

    Args:
        count: pictures.
        side: of a picture.
        step: pixels of a latent.
    """
    width = max(step, side // 2 // step * step)
    start = (side - width) // 2 // step * step
    hole = torch.zeros(count, 1, side, side)
    hole[:, :, start : start + width, start : start + width] = 1
    return hole


def painted(paint: Paint, pictures: Tensor, hole: Tensor, draws: int = 16) -> PaintFigures:
    """The figures of ``paint`` on ``pictures`` ``[B, C, H, W]`` in [-1, 1].

    Args:
        paint: makes pictures whose hole is painted.
        pictures: whole, held out from training.
        hole: ``[B, 1, H, W]``, 1 where hidden.
        draws: independent ones.
    """
    if hole.shape != (len(pictures), 1, *pictures.shape[2:]):
        raise ValueError(
            f"the hole must be [{len(pictures)}, 1, {pictures.shape[2]}, {pictures.shape[3]}], got "
            f"{tuple(hole.shape)}"
        )
    made = [paint(pictures * (1 - hole), hole, draw).clamp(-1, 1) for draw in range(draws)]
    seen = 1 - hole
    color = (pictures * seen).sum((2, 3), keepdim=True) / seen.sum((2, 3), keepdim=True)
    overall = pictures.mean((0, 2, 3), keepdim=True)
    each = [_error(one, pictures, hole) for one in made]
    return PaintFigures(
        psnr(_error(torch.stack(made).mean(0), pictures, hole)),
        psnr(sum(each) / len(each)),
        psnr(_error(color.expand_as(pictures), pictures, hole)),
        psnr(_error(overall.expand_as(pictures), pictures, hole)),
        draws,
    )


def _error(made: Tensor, real: Tensor, hole: Tensor) -> float:
    """Mean squared error inside the hole."""
    inside = (made - real).pow(2).double() * hole
    return float(inside.sum() / (hole.sum() * real.shape[1]))
