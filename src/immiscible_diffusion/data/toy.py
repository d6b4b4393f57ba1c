"""Sets of points in the plane, small enough that every question about them has an exact answer."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from immiscible_diffusion.utils.random import keyed_generator

COUNT = 160
RADIUS, SPREAD = 3.0, 0.2
_Maker = Callable[[int, torch.Generator], tuple[Tensor, Tensor]]


@dataclass(frozen=True, eq=False)
class ToyPoints:
    """Points in the plane; they are the data, not a sample of something smooth.

    Attributes:
        name: of the set.
        points: ``[N, 2]`` float32, centerd, about 2 in rms.
        group: ``[N]`` int64 from 0: which blob, moon, square or stretch a point belongs to.
    """

    name: str
    points: Tensor
    group: Tensor

    def __len__(self) -> int:
        return len(self.points)

    @property
    def groups(self) -> int:
        """How many groups there are."""
        return int(self.group.max()) + 1


def toy_points(name: str, count: int | None = None, *, seed: int = 0) -> ToyPoints:
    """The set ``name``: the same points for the same seed on any machine.

    Args:
        name: of ``TOYS``.
        count: of points, by default 160 (five_points are five); groups differ by at most one.
        seed: of the points.

    Raises:
        ValueError: an unknown name, or fewer points than groups.
    """
    if name not in TOYS:
        raise ValueError(f"unknown toy set '{name}'; known: {', '.join(TOYS)}")
    maker, groups = TOYS[name]
    if name == "five_points" and count not in (None, 5):
        raise ValueError(f"five_points are five, got {count}; leave the number out")
    count = (5 if name == "five_points" else COUNT) if count is None else count
    if count < groups:
        raise ValueError(f"{name} has {groups} groups; give at least {groups} points, got {count}")
    points, group = maker(count, keyed_generator(seed, "toy", name))
    return ToyPoints(name, (points - points.mean(dim=0)).float(), group)


def _eight_gaussians(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Eight blobs on a ring."""
    group = torch.arange(count) % 8
    angle = group * (math.tau / 8)
    center = RADIUS * torch.stack([angle.cos(), angle.sin()], dim=1)
    return center + SPREAD * torch.randn(count, 2, generator=generator), group


def _two_moons(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Two half circles, each round the other's end."""
    group = torch.arange(count) % 2
    angle = math.pi * (torch.arange(count) + torch.rand(count, generator=generator)) / count
    upper = torch.stack([angle.cos() - 0.5, angle.sin() - 0.25], dim=1)
    sign = (1 - 2 * group)[:, None]  # the lower moon is the upper one turned round
    return 2.2 * sign * upper + 0.1 * torch.randn(count, 2, generator=generator), group


def _checkerboard(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The eight dark squares of a board of four by four."""
    group = torch.arange(count) % 8
    row = group // 2
    corner = torch.stack([2 * (group % 2) + row % 2, row], dim=1) - 2
    return 1.6 * (corner + torch.rand(count, 2, generator=generator)), group


def _spiral(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """One arm of nearly two turns, in six stretches from the inside."""
    share = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    angle = 3.6 * math.pi * share.sqrt()
    arm = (3.3 * share.sqrt())[:, None] * torch.stack([angle.cos(), angle.sin()], dim=1)
    points = arm + 0.07 * torch.randn(count, 2, generator=generator)
    return points, torch.arange(count) * 6 // count


def _five_points(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Five points near the corners of a pentagon, no two at the same distance from the middle."""
    group = torch.arange(count)
    angle = math.pi / 2 + group * (math.tau / 5)
    length = torch.tensor([2.6, 2.1, 2.9, 2.4, 1.8])
    corner = length[:, None] * torch.stack([angle.cos(), angle.sin()], dim=1)
    return corner + 0.1 * torch.randn(count, 2, generator=generator), group


TOYS: dict[str, tuple[_Maker, int]] = {
    "eight_gaussians": (_eight_gaussians, 8),
    "two_moons": (_two_moons, 2),
    "checkerboard": (_checkerboard, 8),
    "spiral": (_spiral, 6),
    "five_points": (_five_points, 5),
}
"""Every set: how it is made, and its number of groups."""
