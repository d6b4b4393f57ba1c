"""The density of a coupling's noise estimated from pairs, where there is no closed form.

A Gaussian given the sample is fitted first (``Pilot``); a logistic regression then tells pairs
``(noise, sample)`` from ``(noise of the pilot, sample)``, and its logit is the log ratio of the two
densities as far as its features reach (noise-contrastive estimation, Gutmann and Hyvaerinen 2012).
No assumption is made on the law of the noise over the data set.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from immiscible_diffusion.analysis.conditional_gaussian import Pilot
from immiscible_diffusion.analysis.noise_density import (
    PairDensity,
    density_of,
    has_closed_form,
    squares,
    take,
)
from immiscible_diffusion.analysis.sample_pairs import BATCH_SIZE, draw_noise
from immiscible_diffusion.analysis.spline_logistic import Additive
from immiscible_diffusion.couplings import Coupling
from immiscible_diffusion.couplings.moments import Moments
from immiscible_diffusion.utils.batch import Batch
from immiscible_diffusion.utils.random import hash_seed, keyed_generator

FEATURES = (
    "squared length of the noise",
    "alignment with the sample less the mean",
    "that alignment times the length of the sample",
    "log ratio of the Gaussian to N(0, I)",
    "squared distance to the sample less the mean",
    "squared distance to the sample",
    "length of the sample",
)
RATIO = 3


@dataclass(frozen=True)
class Fitted:
    """An estimated density: that of the pilot times a product of smooth functions of ``FEATURES``.

    Attributes:
        pilot: Gaussian noise given the sample.
        curves: logarithms of the smooth functions.
        lengths: mean and standard deviation of the length of the data less the mean.
        pairs_used: pairs that it was fitted to, half for the pilot, half for the curves.
        batch_size: that the coupling was called with.
    """

    pilot: Pilot
    curves: Additive
    lengths: tuple[float, float]
    pairs_used: int
    batch_size: int

    @property
    def estimate(self) -> str:
        """How it was made."""
        return (
            f"estimated from {self.pairs_used:,} pairs in batches of {self.batch_size}: a Gaussian "
            f"given the sample, corrected by a logistic regression on {', '.join(FEATURES)}"
        )

    def pairs(self, points: Tensor, shifts: Tensor, images: Batch) -> Tensor:
        """``-|n|^2 / 2``, the pilot's log ratio, and the curves."""
        features = self.features(points, shifts, images)
        normal = squares(points, shifts).mul_(-0.5)
        return normal.add_(features[RATIO]).add_(self.curves(features))

    def features(self, points: Tensor, shifts: Tensor, images: Batch) -> list[Tensor]:
        """``FEATURES`` of all pairs, each ``[P, N]`` or broadcasting to it, in natural units."""
        dim = points.shape[1]
        sample = images.data.flatten(1).to(points)
        offset = sample - self.pilot.mean.to(points)
        length = torch.linalg.vector_norm(offset, dim=1).clamp_min(1e-12)
        size = squares(points, shifts)
        dot = points @ offset.T - (shifts * offset).sum(dim=1)
        along = dot / length
        whole = sample.square().sum(dim=1)
        raw = squares(points, shifts + sample) - dim - whole
        near = size - 2 * dot - dim
        mean, deviation = self.lengths
        longer = (length - mean) / max(deviation, 1e-12)
        return [
            (size - dim) / (2 * dim) ** 0.5,
            along,
            along * longer,
            self.pilot.ratio(points, shifts, images),
            near / (2 * dim + 4 * length.square()).sqrt(),
            raw / (2 * dim + 4 * whole).sqrt(),
            longer,
        ]


def density_for(
    coupling: Coupling, images: Batch, *, batch_size: int = BATCH_SIZE, seed: int = 0
) -> PairDensity:
    """The closed form of ``coupling``, or where it has none an estimate from pairs."""
    if has_closed_form(coupling):
        return density_of(coupling)
    return fit_density(coupling, images, batch_size=batch_size, seed=seed)


@torch.no_grad()
def fit_density(
    coupling: Coupling,
    images: Batch,
    *,
    moments: Moments | None = None,
    pairs: int = 20_000,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
) -> Fitted:
    """Estimate ``log p(noise | sample)`` of any coupling from pairs that it makes.

    How far to trust it: the posterior's mean surprise equals its mean entropy where the density is
    exact, and on KNN, whose truth is known, ``tests/analysis/test_fitted.py`` says how near it is.

    Args:
        coupling: is called on batches of ``batch_size`` data drawn from ``images``.
        images: data and conditions; no mask.
        moments: of the data, with directions; fitted here where not given.
        pairs: half for the pilot, half for the curves.
        batch_size: that the coupling is called on.
        seed: of everything drawn.

    Raises:
        ValueError: a mask.
    """
    if images.mask is not None:
        raise ValueError(
            "an estimate from pairs takes no mask, as its features are of whole data; analyze "
            "KNN, which has a closed form with a mask, or drop the mask"
        )
    if moments is None:
        moments = Moments.fit(images.data, directions=min(64, images.data[0].numel()))
    batches = max(2, round(pairs / batch_size / 2))
    first, second = (
        _pairs(coupling, images, batches, batch_size, hash_seed(seed, name)) for name in ("a", "b")
    )
    pilot = Pilot.fit(first, moments)
    length = torch.linalg.vector_norm(images.data.flatten(1).cpu().double() - pilot.mean, dim=1)
    lengths = (float(length.mean()), float(length.std(correction=0)))
    used = 2 * batches * batch_size
    model = Fitted(pilot, Additive.none(len(FEATURES)), lengths, used, batch_size)
    return replace(model, curves=_curves(model, second, seed))


def _curves(model: Fitted, pairs: Iterable[tuple[Batch, Tensor]], seed: int) -> Additive:
    """What tells ``pairs`` from those of the model's pilot."""
    paired, apart = [], []
    generator = keyed_generator(seed, "apart")
    for truth, noise in pairs:
        fresh = torch.randn(noise.shape, generator=generator, dtype=noise.dtype).to(noise)
        paired.append(_of_pairs(model, noise, truth))
        apart.append(_of_pairs(model, model.pilot.sample(truth, fresh), truth))
    return Additive.fit(torch.cat(paired), torch.cat(apart))


def _pairs(
    coupling: Coupling, images: Batch, batches: int, batch_size: int, seed: int
) -> Iterator[tuple[Batch, Tensor]]:
    """Batches of data with their noise ``[B, D]`` float64."""
    for number in range(batches):
        generator = keyed_generator(seed, number, "rows")
        rows = torch.randint(len(images), (batch_size,), generator=generator)
        own = hash_seed(seed, number)
        noise = draw_noise(coupling, images, rows, seed=own, batch_size=batch_size)
        yield take(images, rows), noise.flatten(1).double()


def _of_pairs(model: Fitted, noise: Tensor, truth: Batch) -> Tensor:
    """Features ``[B, F]`` of noises and their own data."""
    every = model.features(noise, torch.zeros_like(noise), truth)
    square = (len(noise), len(noise))
    return torch.stack([feature.expand(square).diagonal() for feature in every], dim=1).cpu()
