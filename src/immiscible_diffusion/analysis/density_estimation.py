"""The density of a coupling's noise estimated from pairs, for couplings without a closed form.

Noise-contrastive estimation (Gutmann and Hyvaerinen 2012). A Gaussian given the sample is fitted
first; a logistic regression on splines of ``FEATURES`` then tells pairs (noise, sample) from pairs
(noise of that Gaussian, sample), and its logit is the log ratio of the two densities as far as the
features reach. Nothing is assumed about the noise over the data set.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from immiscible_diffusion.analysis import noise_density
from immiscible_diffusion.analysis.sample_pairs import BATCH_SIZE, draw_noise
from immiscible_diffusion.couplings import Coupling
from immiscible_diffusion.couplings.moments import Moments
from immiscible_diffusion.couplings.noise_distribution import basis_of
from immiscible_diffusion.utils.batch import Batch
from immiscible_diffusion.utils.optional_deps import require_extra
from immiscible_diffusion.utils.random import hash_seed, keyed_generator

if TYPE_CHECKING:
    from scipy.interpolate import BSpline

FEATURES = (
    "squared length of the noise",
    "alignment with the sample less the mean",
    "that alignment times the length of the sample",
    "log ratio of the Gaussian to N(0, I)",
    "squared distance to the sample less the mean",
    "squared distance to the sample",
    "length of the sample",
)
RATIO = 3  # of FEATURES
KNOTS = (0.0, 0.05, 0.3, 0.7, 0.95, 1.0)  # quantiles of a feature
STRENGTH = 10.0  # inverse of the ridge
FIT_PAIRS = 20_000
LEAST_WIDTH = 0.05  # standard deviation of the Gaussian


def fit_gaussian(pairs: Iterable[tuple[Batch, Tensor]], moments: Moments) -> noise_density.GaussianDensity:
    """The Gaussian given the sample that has the moments of ``pairs``.

    Args:
        pairs: batches of data and their noise ``[B, D]`` float64.
        moments: of the data; its directions and the mean are the axes.
    """
    axes, mean = basis_of(moments).double(), moments.mean.double().flatten()
    sums = torch.zeros(5, len(axes)).double()  # of o, n, o n, o^2, n^2 along the axes
    total, count = torch.zeros(3).double(), 0  # of o n, o^2, n^2 in all dimensions
    for truth, noise in pairs:
        offset = truth.data.flatten(1).double().cpu() - mean
        noise, count = noise.cpu(), count + len(noise)
        o, n = offset @ axes.T, noise @ axes.T
        sums += torch.stack([x.sum(dim=0) for x in (o, n, o * n, o * o, n * n)])
        total += torch.stack([(offset * noise).sum(), offset.square().sum(), noise.square().sum()])
    across = total - sums[2:].sum(dim=1)
    o, n, joint, square, own = sums / count
    gain = (joint - o * n) / (square - o * o).clamp_min(1e-12)
    width = (own - n * n - gain**2 * (square - o * o)).clamp_min(LEAST_WIDTH**2).sqrt()
    rest = mean.numel() - len(axes)
    flat = rest == 0 or float(across[1]) < 1e-9 * float(total[1])
    gain_across = 0.0 if flat else float(across[0] / across[1])
    left = float(across[2] - gain_across**2 * across[1]) / (count * rest) if rest else 1.0
    scale = math.sqrt(max(left, LEAST_WIDTH**2))
    return noise_density.GaussianDensity(mean, axes, gain, width, n - gain * o, gain_across, scale)


@dataclass(frozen=True)
class SplineLogit:
    """The logit of an additive logistic regression: a constant plus a cubic spline per feature.

    Beyond the values that it was fitted to a spline is constant.
    """

    constant: float  # the intercept
    splines: tuple["BSpline", ...]  # one ``scipy.interpolate.BSpline`` per feature

    @classmethod
    def fit(cls, ones: Tensor, zeros: Tensor) -> "SplineLogit":
        """The log ratio of the densities of rows ``[n, F]`` of ``ones`` and of ``zeros``."""
        with require_extra("train", "estimating a density"):
            from scipy.interpolate import BSpline
            from sklearn.linear_model import LogisticRegression
            from sklearn.preprocessing import SplineTransformer
        rows = torch.cat([ones, zeros]).double().numpy()
        knots = np.quantile(rows, KNOTS, axis=0)
        spread = 1e-6 * (np.ptp(knots, axis=0) + 1e-3 * (1 + np.abs(knots).max(axis=0)))
        knots += spread * np.arange(len(KNOTS))[:, None]  # distinct, also of equal values
        basis = SplineTransformer(knots=knots, extrapolation="constant").fit(rows)
        regression = LogisticRegression(C=STRENGTH, solver="newton-cholesky", max_iter=500)
        labels = np.repeat([1, 0], [len(ones), len(zeros)])
        regression.fit(basis.transform(rows), labels)
        coefficients = regression.coef_.reshape(rows.shape[1], -1)
        splines = zip(basis.bsplines_, coefficients, strict=True)
        curves = tuple(BSpline(one.t, c, one.k) for one, c in splines)
        return cls(float(regression.intercept_[0]), curves)

    def __call__(self, features: list[Tensor]) -> Tensor:
        """The logit at ``features``, which broadcast; float64."""
        total = torch.tensor(self.constant).double()
        for value, spline in zip(features, self.splines, strict=True):
            low, high = spline.t[spline.k], spline.t[-spline.k - 1]
            curve = spline(value.detach().cpu().clamp(low, high).numpy())
            total = total + torch.from_numpy(curve)
        return total.to(features[0].device)


@dataclass(frozen=True)
class EstimatedDensity:
    """The density of a Gaussian given the sample times smooth functions of ``FEATURES``."""

    gaussian: noise_density.GaussianDensity  # of the noise given the sample
    logit: SplineLogit | None  # log ratio to it; None before it is fitted
    lengths: tuple[float, float]  # mean and standard deviation of the length of the data less the mean
    pairs_used: int  # pairs that it was fitted to, half for the Gaussian, half for the logit
    batch_size: int  # that the coupling was called with

    @property
    def estimate(self) -> str:
        """How the density was estimated, in words."""
        return (
            f"estimated from {self.pairs_used:,} pairs in batches of {self.batch_size}: a Gaussian "
            f"given the sample, corrected by a logistic regression on {', '.join(FEATURES)}"
        )

    def pairs(self, points: Tensor, shifts: Tensor, images: Batch) -> Tensor:
        """``-|n|^2 / 2``, the log ratio of the Gaussian, and the logit."""
        assert self.logit is not None
        features = self.features(points, shifts, images)
        return noise_density.squares(points, shifts).mul_(-0.5).add_(features[RATIO]).add_(self.logit(features))

    def features(self, points: Tensor, shifts: Tensor, images: Batch) -> list[Tensor]:
        """``FEATURES`` of all pairs, each ``[P, N]`` or broadcasting to it, in natural units."""
        dim = points.shape[1]
        sample = images.data.flatten(1).to(points)
        offset = sample - self.gaussian.mean.to(points)
        length = torch.linalg.vector_norm(offset, dim=1).clamp_min(1e-12)
        size = noise_density.squares(points, shifts)
        dot = points @ offset.T - (shifts * offset).sum(dim=1)
        along = dot / length
        sample_square = sample.square().sum(dim=1)
        distance = noise_density.squares(points, shifts + sample) - dim - sample_square
        centered_distance = size - 2 * dot - dim
        mean, deviation = self.lengths
        longer = (length - mean) / max(deviation, 1e-12)
        return [
            (size - dim) / (2 * dim) ** 0.5,
            along,
            along * longer,
            self.gaussian.log_ratio(points, shifts, images),
            centered_distance / (2 * dim + 4 * length.square()).sqrt(),
            distance / (2 * dim + 4 * sample_square).sqrt(),
            longer,
        ]


def density_for(
    coupling: Coupling, images: Batch, *, batch_size: int = BATCH_SIZE, seed: int = 0
) -> noise_density.PairDensity:
    """The closed form of ``coupling``, or where it has none an estimate from pairs."""
    if noise_density.has_closed_form(coupling):
        return noise_density.density_of(coupling)
    return fit_density(coupling, images, batch_size=batch_size, seed=seed)


@torch.no_grad()
def fit_density(
    coupling: Coupling,
    images: Batch,
    *,
    moments: Moments | None = None,
    pairs: int = FIT_PAIRS,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
) -> EstimatedDensity:
    """Estimate ``log p(noise | sample)`` of any coupling from pairs that it makes.

    Half of the ``pairs`` serve the Gaussian, half the logit. How good it is shows in the posterior:
    its mean negative log-likelihood equals its mean entropy where the density is exact. On KNN and
    transport, whose densities are known, see ``tests/analysis/test_density_estimation.py``.

    Args:
        coupling: is called on batches of ``batch_size`` samples drawn from ``images``.
        images: data and conditions; ValueError for a mask.
        moments: of the data, with directions; fitted here where not given.
        pairs: how many.
        batch_size: that the coupling is called on.
        seed: of everything drawn.
    """
    if images.mask is not None:
        raise ValueError("an estimate from pairs takes no mask; analyze KNN, or drop the mask")
    if moments is None:
        moments = Moments.fit(images.data, directions=min(64, images.data[0].numel()))
    batches = max(2, round(pairs / batch_size / 2))
    first, second = (_draw_pairs(coupling, images, batches, batch_size, hash_seed(seed, name)) for name in ("a", "b"))
    gaussian = fit_gaussian(first, moments)
    offset = images.data.flatten(1).cpu().double() - gaussian.mean
    length = torch.linalg.vector_norm(offset, dim=1)
    lengths = (float(length.mean()), float(length.std(correction=0)))
    model = EstimatedDensity(gaussian, None, lengths, 2 * batches * batch_size, batch_size)
    ones, zeros = [], []
    generator = keyed_generator(seed, "apart")
    for truth, noise in second:
        fresh = torch.randn(noise.shape, generator=generator, dtype=noise.dtype).to(noise)
        ones.append(_own_features(model, noise, truth))
        zeros.append(_own_features(model, gaussian.sample(truth, fresh), truth))
    return replace(model, logit=SplineLogit.fit(torch.cat(ones), torch.cat(zeros)))


def _draw_pairs(
    coupling: Coupling, images: Batch, batches: int, batch_size: int, seed: int
) -> Iterator[tuple[Batch, Tensor]]:
    """Batches of data with their noise ``[B, D]`` float64."""
    for number in range(batches):
        generator, own = keyed_generator(seed, number, "rows"), hash_seed(seed, number)
        rows = torch.randint(len(images), (batch_size,), generator=generator)
        noise = draw_noise(coupling, images, rows, seed=own, batch_size=batch_size)
        yield noise_density.take(images, rows), noise.flatten(1).double()


def _own_features(model: EstimatedDensity, noise: Tensor, truth: Batch) -> Tensor:
    """Features ``[B, F]`` of noises and their own samples."""
    every = model.features(noise, torch.zeros_like(noise), truth)
    square = (len(noise), len(noise))
    return torch.stack([feature.expand(square).diagonal() for feature in every], dim=1).cpu()
