"""How firmly images are tied to their noise: the perturbation test of 2505.18521 (Fig. 3).

The paper looked at images of a model trained without pairing; here the test has a number.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from immiscible_diffusion.analysis.estimates import Mean, mean_of
from immiscible_diffusion.utils.random import keyed_generator
from reproduce.papers.statistics import jackknife

WEIGHTS = (0.1, 0.2, 0.3)


@dataclass(frozen=True, eq=False)
class Perturbed:
    """The images at one weight of the perturbation.

    Attributes:
        weight: W in ``N + W P``.
        change: mean squared distance of a perturbed image to its original, in units of that between
            images of different noises; 1 for images that have nothing left of their original.
        linear: the change of images linear in the noise: ``W^2 / 2`` if not renormalized.
        own: share of perturbed images nearest to their own original among all originals.
        images: ``[noises, perturbations, ...]``.
    """

    weight: float
    change: Mean
    linear: float
    own: Mean
    images: Tensor


@torch.no_grad()
def perturbation_test(
    sample: Callable[[Tensor], Tensor],
    shape: tuple[int, ...],
    *,
    weights: Sequence[float] = WEIGHTS,
    noises: int = 32,
    perturbations: int = 10,
    renormalize: bool = False,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, list[Perturbed]]:
    """Sample images of ``N + W P`` for N and P from N(0, I), and compare them to those of N.

    The paper has W of 10, 20 and 30 %, ten perturbations, and does not say whether ``N + W P`` is
    renormalized (divided by ``sqrt(1 + W^2)``).

    Args:
        sample: images of ``noises`` noises ``[noises, *shape]``, row i always of noise i, so that
            it may hold a condition for every row. Must be deterministic.
        shape: of one noise.
        weights: W, above 0.
        noises: original ones, 2 at least.
        perturbations: of each noise, the same at every weight.
        renormalize: divide ``N + W P`` by ``sqrt(1 + W^2)``.
        seed: of noises and perturbations.
        device: of the noise.

    Returns:
        The images of the original noises, and the test at each weight.

    Raises:
        ValueError: bad numbers, or ``sample`` is not deterministic.
    """
    if noises < 2 or perturbations < 1 or min(weights, default=0) <= 0:
        raise ValueError(
            f"expected noises >= 2, perturbations >= 1 and weights above 0, got {noises}, "
            f"{perturbations} and {weights}"
        )

    def normal(*name: int | str) -> Tensor:
        return torch.randn(noises, *shape, generator=keyed_generator(seed, *name)).to(device)

    original = normal("noise")
    images = sample(original).cpu()
    if not torch.equal(images, sample(original).cpu()):
        raise ValueError("sample gave other images for the same noise; use a deterministic sampler, eval mode")
    far = _squares(images, images).sum(dim=1) / (noises - 1)
    # Leaving out noise i takes its row and its column out of the pairs.
    far_without = (far.sum() - 2 * far) / max(1, noises - 2)
    results = []
    for weight in weights:
        size = math.sqrt(1 + weight**2) if renormalize else 1.0
        perturbed = [
            sample((original + weight * normal(number, "perturbation")) / size).cpu()
            for number in range(perturbations)
        ]
        squares = torch.stack([_squares(each, images) for each in perturbed])
        near = squares.diagonal(dim1=1, dim2=2).mean(dim=0)
        without = (near.sum() - near) / (noises - 1) / far_without
        change = jackknife(float(near.mean() / far.mean()), without)
        own = (squares.argmin(dim=2) == torch.arange(noises)).double().mean(dim=0)
        # |A ((N + W P) / s - N)|^2 for linear A, in units of |A (N - N')|^2.
        linear = ((1 / size - 1) ** 2 + weight**2 / size**2) / 2
        shown = torch.stack(perturbed, dim=1)
        results.append(Perturbed(weight, change, linear, mean_of(own), shown))
    return images, results


def _squares(some: Tensor, others: Tensor) -> Tensor:
    """``[n, m]``: mean squared differences, float64."""
    rows, columns = (x.flatten(1).double() for x in (some, others))
    exact = "donot_use_mm_for_euclid_dist"  # near images keep their digits
    return torch.cdist(rows, columns, compute_mode=exact).square() / rows.shape[1]
