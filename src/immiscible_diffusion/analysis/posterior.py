"""The posterior over all samples given a noisy point, and the optimal denoiser."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from immiscible_diffusion.analysis import noise_density
from immiscible_diffusion.couplings import Coupling
from immiscible_diffusion.diffusion.paths import Path
from immiscible_diffusion.utils.batch import Batch

# weights(rows [P]) -> [P, N]: log weight of every image given the condition of the sample ``row``
LogWeights = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Mixing:
    """A path at one time: ``x_t = alpha data + sigma noise``, ``target = slope data + own x_t``."""

    alpha: float
    sigma: float
    slope: float
    own: float


def mixing(path: Path, t: float) -> Mixing:
    """How ``path`` mixes at ``t``; the target is read off ``path.sample`` itself.

    Raises:
        ValueError: no noise at ``t``, or a target that is not linear in sample and noise.
    """
    times = torch.full((4,), t, dtype=torch.float64)
    alpha, sigma = float(path.alpha(times)[0]), float(path.sigma(times)[0])
    if not sigma > 0:
        raise ValueError(f"there is no noise at t = {t}; give levels above 0 (1 is noise alone)")
    data, x_t = torch.tensor([[[1.0], [0], [2], [0]], [[0], [1], [3], [0]]], dtype=torch.float64)
    target = path.sample(data, (x_t - alpha * data) / sigma, times).target.flatten()
    slope, own, both, none = target.tolist()
    size = 1e-6 * (abs(slope) + abs(own) + 1)
    if abs(both - 2 * slope - 3 * own) > size or abs(none) > size:
        raise ValueError(
            f"the target of {path} is not linear in sample and noise: its variance is not known "
            f"from that of the sample"
        )
    return Mixing(alpha, sigma, slope, own)


@dataclass(frozen=True)
class Posterior:
    """Over ``N`` images, given ``P`` noisy points; float64."""

    log_probability: Tensor  # ``[P, N]``, rows sum to 1 in probability
    mean: Tensor  # ``[P, *shape]``, the optimal denoiser's prediction
    variance: Tensor  # ``[P]``, of the sample, mean over its (valid) dimensions

    @property
    def entropy(self) -> Tensor:
        """``[P]`` in nats."""
        return entropy(self.log_probability)


@torch.no_grad()
def posterior(
    density: noise_density.PairDensity,
    images: Batch,
    x_t: Tensor,
    alpha: float,
    sigma: float,
    log_weights: Tensor | None = None,
    valid: Tensor | None = None,
) -> Posterior:
    """``p(x_i | x_t)`` proportional to ``p(n_i | x_i)``, ``n_i = (x_t - alpha x_i) / sigma``.

    Args:
        density: of the coupling.
        images: ``N`` data, equally likely but for ``log_weights`` ``[P, N]``.
        x_t: ``[P, *shape]``.
        alpha: share of the data, >= 0.
        sigma: share of the noise, > 0.
        log_weights: given the condition.
        valid: ``[P, *shape]`` boolean: dimensions that the variance is of; None = all.
    """
    logits = noise_density.log_density(density, x_t.double() / sigma, images, alpha / sigma)
    if log_weights is not None:
        logits += log_weights
    probability = torch.log_softmax(logits, dim=1)
    share = probability.exp()
    # About one of the images, so that data far from 0 keep their digits.
    origin = noise_density.take(images, slice(0, 1)).data.flatten().double()
    inside = None if valid is None else valid.flatten(1).double()
    mean = torch.zeros(len(x_t), len(origin), dtype=torch.float64, device=x_t.device)
    square = torch.zeros(len(x_t), dtype=torch.float64, device=x_t.device)
    for rows, part in noise_density.image_parts(images):
        flat = part.data.flatten(1).double() - origin
        mean.addmm_(share[:, rows], flat)
        every = flat.square_()
        size = every.sum(dim=1)[None] if inside is None else inside @ every.T
        square += (share[:, rows] * size).sum(dim=1)
    own = mean.square() if inside is None else mean.square() * inside
    count = len(origin) if inside is None else inside.sum(dim=1)
    variance = ((square - own.sum(dim=1)) / count).clamp_min(0)
    return Posterior(probability, (mean + origin).view(x_t.shape), variance)


def entropy(log_probability: Tensor) -> Tensor:
    """Entropy ``[P]`` of rows ``[P, N]``, in nats."""
    return torch.special.entr(log_probability.exp()).sum(dim=1)


@dataclass(frozen=True)
class GaussianKernel:
    """Images count by how near their condition is: ``exp(-|c - c_i|^2 / (2 bandwidth^2))``."""

    features: Tensor  # ``[N, ...]``, the condition of every sample
    bandwidth: float  # in units of the features; vary it, as results depend on it

    def __post_init__(self) -> None:
        if not self.bandwidth > 0:
            raise ValueError(f"bandwidth must be above 0, got {self.bandwidth}")

    def __call__(self, rows: Tensor) -> Tensor:
        """``[P, N]`` for the conditions of data ``rows``."""
        flat = self.features.flatten(1).double() / self.bandwidth
        return noise_density.squares(flat[rows], flat).mul_(-0.5)

    def __str__(self) -> str:
        return f"a Gaussian kernel on the condition, bandwidth {self.bandwidth:g}"


@dataclass(frozen=True)
class OptimalDenoiser:
    """The best possible network for ``data``, ``coupling`` and ``path``: no training."""

    images: Batch  # the data, conditions and mask
    density: noise_density.PairDensity  # of the coupling (``density_of``)
    path: Path  # how data and noise are mixed

    @classmethod
    def of(cls, data: Tensor, coupling: Coupling, path: Path) -> "OptimalDenoiser":
        """For ``data`` ``[N, *shape]``; ValueError for a coupling without closed form."""
        return cls(Batch(data), noise_density.density_of(coupling), path)

    def __call__(self, x_t: Tensor, t: float) -> Tensor:
        """``E[data | x_t]`` for ``x_t`` ``[P, *shape]`` at time ``t``; float64."""
        mix = mixing(self.path, t)
        return posterior(self.density, self.images, x_t, mix.alpha, mix.sigma).mean

    def target(self, x_t: Tensor, t: float) -> Tensor:
        """``E[target | x_t]``: what the best network predicts on this path."""
        mix = mixing(self.path, t)
        return mix.slope * self(x_t, t) + mix.own * x_t.double()
