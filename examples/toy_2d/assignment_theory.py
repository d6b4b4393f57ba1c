"""The distribution of linear assignment in the plane, from weighted Voronoi diagrams.

Take B data and all noises of a batch but one. Which sample the last noise ``n`` gets, as a function
of where it lies, is a diagram: ``argmin_i c_i - <n, x_i>``, where ``c_i`` is what the other noises
cost without sample i. The last noise is N(0, I) and independent of all else, so the chance that its
sample is ``x_i`` is the share of diagrams, over batches, in which ``n`` lies in a cell of ``x_i``.
Nothing is smoothed and no form is assumed; the error is that of so many batches.
"""

from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from immiscible_diffusion.analysis.sample_pairs import choose_rows
from immiscible_diffusion.utils.batch import Batch
from immiscible_diffusion.utils.random import hash_seed, keyed_generator

EXTENT, CELLS = 4.8, 96  # noise beyond 4.8 is taken for noise at the edge
PRIOR = 0.001  # of a batch: so that no chance is exactly 0


@dataclass(frozen=True, eq=False)
class AssignmentDensity:
    """``p(n | x_i) = N phi(n) P(i | n)`` for ``N`` points, with P in a table over the plane.

    Attributes:
        table: ``[(CELLS + 1)^2, N]`` float32, P(i | n) on a grid of noises.
        estimate: how it was measured.
    """

    table: Tensor
    estimate: str

    @classmethod
    def measure(
        cls, points: Tensor, *, batch_size: int = 256, batches: int = 800, seed: int = 0
    ) -> "AssignmentDensity":
        """From ``batches`` batches of ``points`` ``[N, 2]`` and N(0, I) noise.

        In a batch all points are as often, as far as can be: as in training, pass by pass.
        """
        if points.ndim != 2 or points.shape[1] != 2:
            raise ValueError(f"points must be [N, 2], got {tuple(points.shape)}")
        if batch_size < 2 or batches < 1:
            raise ValueError(f"expected batches >= 1 of >= 2, got {batches} of {batch_size}")
        axis = torch.linspace(-EXTENT, EXTENT, CELLS + 1)
        grid = torch.cartesian_prod(axis, axis)
        count = torch.full((len(grid), len(points)), PRIOR)
        for number in range(batches):
            generator = keyed_generator(seed, number, "diagram")
            rows = choose_rows(len(points), batch_size, hash_seed(seed, number))
            others, data = torch.randn(batch_size - 1, 2, generator=generator), points[rows]
            cost = diagram(data.double(), others.double()).float()
            winner = torch.addmm(cost, grid, data.float().T, alpha=-1).argmin(dim=1)
            count[torch.arange(len(grid)), rows[winner]] += 1
        estimate = (
            f"measured on {batches:,} batches of {batch_size}: the share in which a noise lies in "
            f"the sample's cell of the assignment's diagram"
        )
        return cls(count / count.sum(dim=1, keepdim=True), estimate)

    def pairs(self, points: Tensor, shifts: Tensor, images: Batch) -> Tensor:
        """``-|n|^2 / 2 + log(N P(i | n))``, P read off between the points of the grid."""
        count = self.table.shape[1]
        if len(images) != count:
            raise ValueError(f"the density was measured on {count} points, got {len(images)}")
        noise = points[:, None] - shifts
        place = ((noise / EXTENT + 1) * (CELLS / 2)).clamp(0, CELLS - 1e-6)
        low = place.floor()
        (right, up), (x, y) = (place - low).unbind(-1), low.long().unbind(-1)
        corner = (x * (CELLS + 1) + y) * count + torch.arange(count)
        flat, chance = self.table.flatten(), torch.zeros_like(right)
        for step, x_share in ((0, 1 - right), (CELLS + 1, right)):
            for side, y_share in ((0, 1 - up), (1, up)):
                chance += x_share * y_share * flat[corner + (step + side) * count]
        return chance.mul_(count).log_().sub_(noise.square().sum(dim=2) / 2)


def diagram(data: Tensor, noise: Tensor) -> Tensor:
    """Weights ``c`` ``[B]`` of the diagram: one more noise n gets ``argmin_i c_i - <n, data_i>``.

    ``c_i`` is the least cost of giving ``noise`` ``[B - 1, 2]`` to the data ``[B, 2]`` other than
    i, up to a constant: the shortest chain in which noises move on, from sample i to the free one.
    """
    cost = -(noise @ data.T)
    owner, taken = map(torch.from_numpy, linear_sum_assignment(cost.numpy()))
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
