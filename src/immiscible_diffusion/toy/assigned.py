"""The law of linear assignment in the plane, from weighted Voronoi diagrams.

Take B data and all noises of a batch but one. Which sample the last noise ``n`` gets, as a function
of where it lies, is a diagram: ``argmin_i c_i - <n, x_i>``, where ``c_i`` is what the other noises
cost without sample i. The last noise is N(0, I) and independent of all else, so the chance that its
sample is ``x_i`` is the share of diagrams, over batches, in which ``n`` lies in a cell of ``x_i``.
Nothing is smoothed and no form is assumed; the error is that of so many batches.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from immiscible_diffusion.analysis.sample_pairs import choose_rows
from immiscible_diffusion.utils.batch import Batch
from immiscible_diffusion.utils.optional_deps import require_extra
from immiscible_diffusion.utils.random import key, keyed_generator

EXTENT, CELLS = 4.8, 96  # noise beyond 4.8 is taken for noise at the edge
PRIOR = 0.001  # of a batch: so that no chance is exactly 0


@dataclass(frozen=True, eq=False)
class Assigned:
    """``p(n | x_i) = N phi(n) P(i | n)`` for ``N`` points, with P in a table over the plane.

    Attributes:
        table: ``[(CELLS + 1)^2, N]`` float32, P(i | n) on a grid of noises.
        batches: that it was measured on.
        batch_size: data and noises assigned to one another.
    """

    table: Tensor
    batches: int
    batch_size: int

    @property
    def estimate(self) -> str:
        """How it was made."""
        return (
            f"measured on {self.batches:,} batches of {self.batch_size}: the share in which a "
            f"noise lies in the sample's cell of the assignment's diagram"
        )

    @classmethod
    def measure(
        cls,
        points: Tensor,
        *,
        batch_size: int = 256,
        batches: int = 800,
        seed: int = 0,
    ) -> "Assigned":
        """Of batches of ``points`` ``[N, 2]`` and N(0, I) noise.

        In a batch all points are as often, as far as can be: as in training, pass by pass.

        Args:
            points: the data.
            batch_size: data and noises assigned to one another, at least 2.
            batches: more make the error smaller, as their root.
            seed: of the batches and their noise.
        """
        if points.ndim != 2 or points.shape[1] != 2:
            raise ValueError(f"points must be [N, 2], got {tuple(points.shape)}")
        if batch_size < 2 or batches < 1:
            raise ValueError(f"expected batches >= 1 of >= 2, got {batches} of {batch_size}")
        axis = torch.linspace(-EXTENT, EXTENT, CELLS + 1)
        grid = torch.cartesian_prod(axis, axis)
        count = torch.full((len(grid), len(points)), PRIOR)
        every = torch.arange(len(grid))
        for number in range(batches):
            generator = keyed_generator(seed, number, "diagram")
            rows = choose_rows(len(points), batch_size, key(seed, number))
            others = torch.randn(batch_size - 1, 2, generator=generator)
            data = points[rows]
            cost = diagram(data.double(), others.double()).float()
            winner = torch.addmm(cost, grid, data.float().T, alpha=-1).argmin(dim=1)
            count[every, rows[winner]] += 1
        return cls(count / count.sum(dim=1, keepdim=True), batches, batch_size)

    def pairs(self, points: Tensor, shifts: Tensor, images: Batch) -> Tensor:
        """``-|n|^2 / 2 + log(N P(i | n))``, P read off between the points of the grid."""
        count = self.table.shape[1]
        if len(images) != count:
            raise ValueError(f"the law was measured on {count} points, got {len(images)}")
        noise = points[:, None] - shifts
        place = ((noise / EXTENT + 1) * (CELLS / 2)).clamp(0, CELLS - 1e-6)
        low = place.floor()
        share = place - low
        corner = (low[..., 0] * (CELLS + 1) + low[..., 1]).long() * count + torch.arange(count)
        flat, chance = self.table.flatten(), torch.zeros_like(share[..., 0])
        for across in (0, 1):
            for up in (0, 1):
                weight = _side(share[..., 0], across) * _side(share[..., 1], up)
                chance += weight * flat[corner + (across * (CELLS + 1) + up) * count]
        return chance.mul_(count).log_().sub_(noise.square().sum(dim=2) / 2)


def diagram(data: Tensor, noise: Tensor) -> Tensor:
    """Weights ``c`` ``[B]`` of the diagram: one more noise n gets ``argmin_i c_i - <n, data_i>``.

    ``c_i`` is the least cost of giving ``noise`` ``[B - 1, 2]`` to the data ``[B, 2]`` other than
    i, up to a constant: the shortest chain in which noises move on, from sample i to the free one.
    """
    with require_extra("train", "linear assignment"):
        from scipy.optimize import linear_sum_assignment
    cost = -(noise @ data.T)
    owner, taken = (torch.from_numpy(found) for found in linear_sum_assignment(cost.numpy()))
    free = torch.ones(len(data), dtype=torch.bool)
    free[taken] = False
    step = torch.full((len(data), len(data)), torch.inf, dtype=cost.dtype)
    step[taken] = cost[owner] - cost[owner, taken][:, None]
    length = torch.where(free, 0.0, step[:, free].squeeze(1))
    for _ in range(len(data)):
        shorter = torch.minimum(length, (step + length).amin(dim=1))
        if bool((length - shorter).max() < 1e-12):
            break
        length = shorter
    return length


def _side(share: Tensor, upper: int) -> Tensor:
    return share if upper else 1 - share
