"""Sets of points in the plane, small enough that every question about them has an exact answer."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from immiscible_diffusion.utils.random import keyed_generator

COUNT = 160
GROUPS = {"eight_gaussians": 8, "two_moons": 2, "checkerboard": 8, "spiral": 6, "five_points": 5}


@dataclass(frozen=True, eq=False)
class ToyData:
    """Points in the plane; they are the data, not a sample of something smooth.

    Attributes:
        name: of the set.
        points: ``[N, 2]`` float32, centered, about 2 in rms.
        group: ``[N]`` int64 from 0: the blob, moon, square or stretch that a point belongs to.
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

    def nearest_group(self, ends: Tensor) -> Tensor:
        """``[P]``: the group of the point nearest to each of ``ends`` ``[P, 2]``."""
        return self.group[torch.cdist(ends.double(), self.points.double()).argmin(dim=1)]


def toy_data(name: str, count: int | None = None, *, seed: int = 0) -> ToyData:
    """The set ``name`` of ``count`` points, by default 160 (five_points are five).

    The same points for the same seed on any machine; groups differ by at most one in size.
    ValueError for an unknown name, or fewer points than groups.
    """
    if name not in GROUPS:
        raise ValueError(f"unknown toy set '{name}'; known: {', '.join(GROUPS)}")
    groups = GROUPS[name]
    if name == "five_points" and count not in (None, 5):
        raise ValueError(f"five_points are five, got {count}; leave the number out")
    count = (5 if name == "five_points" else COUNT) if count is None else count
    if count < groups:
        raise ValueError(f"{name} has {groups} groups; give at least {groups} points, got {count}")
    generator = keyed_generator(seed, "toy", name)
    group = torch.arange(count) % groups

    def circle(angle: Tensor) -> Tensor:
        return torch.stack([angle.cos(), angle.sin()], dim=1)

    if name == "eight_gaussians":  # blobs on a ring
        points = 3.0 * circle(group * (math.tau / 8))
        points = points + 0.2 * torch.randn(count, 2, generator=generator)
    elif name == "two_moons":  # half circles, each round the other's end
        angle = math.pi * (torch.arange(count) + torch.rand(count, generator=generator)) / count
        upper = torch.stack([angle.cos() - 0.5, angle.sin() - 0.25], dim=1)
        sign = (1 - 2 * group)[:, None]  # the lower moon is the upper one turned round
        points = 2.2 * sign * upper + 0.1 * torch.randn(count, 2, generator=generator)
    elif name == "checkerboard":  # the eight dark squares of a board of four by four
        row = group // 2
        corner = torch.stack([2 * (group % 2) + row % 2, row], dim=1) - 2
        points = 1.6 * (corner + torch.rand(count, 2, generator=generator))
    elif name == "spiral":  # one arm of nearly two turns, in six stretches from the inside
        share = (torch.arange(count) + torch.rand(count, generator=generator)) / count
        arm = (3.3 * share.sqrt())[:, None] * circle(3.6 * math.pi * share.sqrt())
        points = arm + 0.07 * torch.randn(count, 2, generator=generator)
        group = torch.arange(count) * 6 // count
    else:  # near the corners of a pentagon, no two at the same distance from the middle
        length = torch.tensor([2.6, 2.1, 2.9, 2.4, 1.8])
        points = length[:, None] * circle(math.pi / 2 + group * (math.tau / 5))
        points = points + 0.1 * torch.randn(count, 2, generator=generator)
    return ToyData(name, (points - points.mean(dim=0)).float(), group)
