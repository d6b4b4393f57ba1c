"""How firmly images are tied to their noise: the perturbation test of 2505.18521 (Fig. 3).

The paper looked at pictures of a model trained without pairing; here the test has a number.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from immiscible_diffusion.analysis.estimates import Mean, mean_of
from immiscible_diffusion.utils.random import keyed_generator

WEIGHTS = (0.1, 0.2, 0.3)
Make = Callable[[Tensor], Tensor]
"""Noise ``[B, *shape]`` to images ``[B, ...]``, the same for the same noise."""
Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Perturbed:
    """What became of the images at one weight of the perturbation.

    Attributes:
        weight: W in ``N + W P``.
        change: mean squared distance of a perturbed image to its original, in units of that between
            images of different noises. ``W^2 / 2`` for images linear in the noise (as it is, not
            renormalized), 1 for images that have nothing left of their original.
        own: share of perturbed images nearest to their own original among all originals.
        images: ``[noises, shown, ...]``, the first perturbed images of every noise.
    """

    weight: float
    change: Mean
    own: Mean
    images: Tensor


@dataclass(frozen=True, eq=False)
class Stability:
    """The test at all weights.

    Attributes:
        renormalized: whether ``N + W P`` was divided by ``sqrt(1 + W^2)``, so that it is N(0, I).
        noises: how many original noises, so ``own`` is ``1 / noises`` by chance.
        perturbations: of each.
        originals: ``[noises, ...]``, the images of the original noises.
        weights: in the order asked for.
    """

    renormalized: bool
    noises: int
    perturbations: int
    originals: Tensor
    weights: tuple[Perturbed, ...]

    def grid(self, rows: int = 8) -> tuple[Tensor, int]:
        """Images to look at, and the columns of their grid: an original, then its perturbations."""
        lines = [self.originals[:rows, None], *(found.images[:rows] for found in self.weights)]
        every = torch.cat(lines, dim=1)
        return every.flatten(0, 1), every.shape[1]


@dataclass(frozen=True)
class PerturbationTest:
    """Make images of ``N + W P`` for N and P from N(0, I), and compare them to those of N.

    The paper has W of 10, 20 and 30 %, ten perturbations, and does not say whether ``N + W P`` is
    renormalized; where not, its standard deviation is ``sqrt(1 + W^2)``: 1.005, 1.020, 1.044.

    Attributes:
        weights: W, above 0.
        noises: original ones, 2 at least.
        perturbations: of each noise, the same at every weight.
        renormalize: divide by ``sqrt(1 + W^2)``.
        shown: so many perturbed images of each noise are kept to look at.
        seed: of noises and perturbations.
    """

    weights: Sequence[float] = WEIGHTS
    noises: int = 32
    perturbations: int = 10
    renormalize: bool = False
    shown: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        if self.noises < 2 or self.perturbations < 1 or min(self.weights, default=0) <= 0:
            raise ValueError(
                f"expected noises >= 2, perturbations >= 1 and weights above 0, got {self.noises}, "
                f"{self.perturbations} and {tuple(self.weights)}"
            )

    @torch.no_grad()
    def __call__(
        self,
        make: Make,
        shape: tuple[int, ...],
        *,
        device: torch.device | str = "cpu",
        progress: Progress | None = None,
    ) -> Stability:
        """Run the test.

        Args:
            make: is called on ``noises`` noises, row i always of noise i, so that it may hold a
                condition for every row. Must be deterministic.
            shape: of one noise.
            device: where noise is wanted.
            progress: called with the calls of ``make`` done and all.

        Raises:
            ValueError: ``make`` is not deterministic.
        """
        original = self._normal(shape, "noise").to(device)
        images = make(original)
        if not torch.equal(images, make(original)):
            raise ValueError(
                "make gave other images for the same noise; use a deterministic sampler, eval mode"
            )
        found = []
        for index, weight in enumerate(self.weights):
            made = []
            for number in range(self.perturbations):
                made.append(make(self._perturbed(original, weight, number)))
                if progress is not None:
                    done = index * self.perturbations + number + 1
                    progress(done, len(self.weights) * self.perturbations)
            found.append(self._compared(weight, made, images))
        sizes = (self.noises, self.perturbations)
        return Stability(self.renormalize, *sizes, images.cpu(), tuple(found))

    def _normal(self, shape: Sequence[int], *name: int | str) -> Tensor:
        return torch.randn(self.noises, *shape, generator=keyed_generator(self.seed, *name))

    def _perturbed(self, original: Tensor, weight: float, number: int) -> Tensor:
        change = self._normal(original.shape[1:], number, "perturbation").to(original)
        size = math.sqrt(1 + weight**2) if self.renormalize else 1.0
        return (original + weight * change) / size

    def _compared(self, weight: float, made: list[Tensor], images: Tensor) -> Perturbed:
        squares = torch.stack([_squares(some, images) for some in made])
        change = squares.diagonal(dim1=1, dim2=2).mean(dim=0)
        own = (squares.argmin(dim=2) == torch.arange(self.noises)).double()
        between = _squares(images, images).sum(dim=1) / (self.noises - 1)
        kept = [some.cpu() for some in made[: self.shown]] or [images.cpu()]
        shown = torch.stack(kept, dim=1)[:, : self.shown]
        return Perturbed(weight, _relative(change, between), mean_of(own.mean(dim=0)), shown)


def _squares(some: Tensor, others: Tensor) -> Tensor:
    """``[n, m]``: mean squared differences, float64."""
    rows, columns = (x.flatten(1).double().cpu() for x in (some, others))
    exact = "donot_use_mm_for_euclid_dist"  # near images keep their digits
    return torch.cdist(rows, columns, compute_mode=exact).square() / rows.shape[1]


def _relative(change: Tensor, far: Tensor) -> Mean:
    """Ratio of the means of ``change`` and ``far`` ``[n]``; error by leaving out noises in turn."""
    n = len(change)
    value = float(change.mean() / far.mean())
    # Leaving out noise i takes its row and its column out of the pairs.
    pairs = far.sum() * (n - 1) - 2 * far * (n - 1)
    if n < 3:
        return Mean(value, math.nan)
    without = (change.sum() - change) / (n - 1) / (pairs / ((n - 1) * (n - 2)))
    scatter = float((without - without.mean()).square().sum())
    return Mean(value, math.sqrt((n - 1) / n * scatter))
