"""What a coupling does to the noise: its law over the data set, and what it tells of the sample."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from immiscible_diffusion.analysis.estimates import Mean, mean_of
from immiscible_diffusion.analysis.nce_density import density_for
from immiscible_diffusion.analysis.noise_density import PairDensity, log_density, take
from immiscible_diffusion.analysis.noisy_points import BLOCK_PAIRS, images_of
from immiscible_diffusion.analysis.sample_pairs import BATCH_SIZE, choose_rows, draw_noise
from immiscible_diffusion.couplings import Coupling
from immiscible_diffusion.couplings.moments import Moments
from immiscible_diffusion.utils.batch import Batch, Cond

LARGEST_FIT = 8192  # dimensions up to which a whole covariance is made


@dataclass(frozen=True, eq=False)
class NoiseMeasures:
    """The noise of a coupling over a data set, or over the data of one label.

    Attributes:
        coupling: how it prints.
        estimate: how its density was estimated; empty for a closed form.
        images: data that the mixture is over.
        pairs: pairs drawn.
        shift_square: squared length of the mean noise, free of sampling bias (so it may come out
            below 0); 0 for N(0, I).
        square: ``|n|^2 / D``; 1 for N(0, I).
        alignment: of the noise with the sample less the mean of the data, in standard deviations.
        direction_shift: ``[r]``, mean of the noise along the data's leading directions.
        spectrum: ``[r]``, variance of the noise along them; 1 for N(0, I).
        spectrum_error: ``[r]``, its standard error.
        kl: KL of the noise over the data set from N(0, I), nats: what sampling gets wrong; exactly
            0 of a coupling that says it ``preserves_marginal``, whatever an estimate of its density says.
        information: mutual information of noise and sample, nats: what pairing tells the network.
        per_label: the same for the data of every label.
    """

    coupling: str
    estimate: str
    images: int
    pairs: int
    shift_square: Mean
    square: Mean
    alignment: Mean
    direction_shift: Tensor
    spectrum: Tensor
    spectrum_error: Tensor
    kl: Mean
    information: Mean
    per_label: dict[int, "NoiseMeasures"]

    def to_json(self) -> dict[str, Any]:
        """Plain numbers and names."""
        plain: dict[str, Any] = {}
        for name, value in vars(self).items():
            value = value._asdict() if isinstance(value, Mean) else value
            plain[name] = value.tolist() if isinstance(value, Tensor) else value
        plain["per_label"] = {str(k): v.to_json() for k, v in self.per_label.items()}
        return plain


@torch.no_grad()
def measure_noise(
    data: Tensor,
    coupling: Coupling,
    *,
    moments: Moments | None = None,
    cond: Cond | None = None,
    labels: Tensor | None = None,
    label_key: str = "label",
    mask: Tensor | None = None,
    pairs: int = 2000,
    density: PairDensity | None = None,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
) -> NoiseMeasures:
    """Measure the noise that ``coupling`` gives ``data`` ``[N, *shape]``.

    With ``p(n)`` the mean over all data of ``p(n | x_i)``, ``KL = E log p(n) / phi(n)`` and the
    information is ``E log p(n | x) / p(n)``, by Monte Carlo over pairs; for KNN the two add up to
    ``log k - 1 + 1/k``.

    Args:
        data: with their mirror images if training mirrors.
        coupling: is called on batches of ``batch_size``.
        moments: with the leading directions to report along; fitted here where not given.
        cond: conditions for the coupling; the labels where not given.
        labels: ``[N]``: also the measures of every label by itself.
        label_key: the condition that the labels are, by which a coupling says what it keeps.
        mask: boolean, broadcasts to data.
        pairs: how many, overall and of every label.
        density: as ``miscibility`` takes it.
        batch_size: that the coupling is called on.
        seed: of pairs and noise.
    """
    images = images_of(data, cond, mask, labels)
    density = density or density_for(coupling, images, batch_size=batch_size, seed=seed)
    if moments is None:
        whole = take(images, slice(None)).data
        moments = Moments.fit(whole, directions=min(16, data[0].numel()))
    work = _Pairs(coupling, density, moments, images, pairs, batch_size, seed)
    groups = {} if labels is None else {int(name): labels.cpu() == name for name in labels.unique()}
    keeps = coupling.preserves_marginal
    within = keeps and coupling.preserves_conditional(label_key)
    found = {name: work.measure(mine.nonzero()[:, 0], {}, within) for name, mine in groups.items()}
    return work.measure(torch.arange(len(data)), found, keeps)


@dataclass(frozen=True)
class _Pairs:
    coupling: Coupling
    density: PairDensity
    moments: Moments
    images: Batch
    pairs: int
    batch_size: int
    seed: int

    def draw(self, members: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of the data out of ``members``, and their noise."""
        rows = members[choose_rows(len(members), self.pairs, self.seed)]
        # Only where the rest of the batch may matter: it takes more batches.
        share = len(members) / len(self.images) if self.density.estimate else 1.0
        size = self.batch_size
        noise = draw_noise(
            self.coupling, self.images, rows, seed=self.seed, batch_size=size, share=share
        )
        return rows, noise

    def measure(
        self, members: Tensor, found: dict[int, NoiseMeasures], keeps: bool
    ) -> NoiseMeasures:
        """Over the data ``members``, whose noise is N(0, I) if the coupling ``keeps`` it so."""
        rows, noise = self.draw(members)
        images, truth = take(self.images, members), take(self.images, rows)
        flat = noise.flatten(1).double()
        given, marginal = self._log_ratios(noise, images, torch.searchsorted(members, rows))
        axes = self.moments.directions
        assert axes is not None
        along = flat @ axes.to(flat).T
        spectrum = along.var(dim=0)
        center = images.data.double().flatten(1).mean(dim=0)
        offset = truth.data.double().flatten(1) - center
        length = torch.linalg.vector_norm(offset, dim=1).clamp_min(1e-30)
        fourth = (along - along.mean(dim=0)).pow(4).mean(dim=0) - spectrum.square()
        return NoiseMeasures(
            coupling=str(self.coupling),
            estimate=self.density.estimate,
            images=len(members),
            pairs=len(rows),
            shift_square=mean_square(flat),
            square=mean_of(flat.square().mean(dim=1)),
            alignment=mean_of((flat * offset).sum(dim=1) / length),
            direction_shift=along.mean(dim=0).float().cpu(),
            spectrum=spectrum.float().cpu(),
            spectrum_error=(fourth.clamp_min(0) / len(flat)).sqrt().float().cpu(),
            kl=Mean(0.0, 0.0) if keeps else mean_of(marginal),
            information=mean_of(given if keeps else given - marginal),
            per_label=found,
        )

    def _log_ratios(self, noise: Tensor, images: Batch, own: Tensor) -> tuple[Tensor, Tensor]:
        """``log p(n | x) / phi(n)`` and ``log p(n) / phi(n)``, each ``[P]``."""
        given, marginal = [], []
        for at in torch.arange(len(noise)).split(max(1, BLOCK_PAIRS // len(images))):
            matrix = log_density(self.density, noise[at], images)
            matrix += noise[at].double().flatten(1).square().sum(dim=1, keepdim=True) / 2
            given.append(matrix.gather(1, own[at].to(matrix.device)[:, None])[:, 0])
            marginal.append(matrix.logsumexp(dim=1) - math.log(len(images)))
        return torch.cat(given), torch.cat(marginal)


def mean_square(rows: Tensor) -> Mean:
    """Squared length of the mean of the law of ``rows`` ``[n, D]``, without sampling bias."""
    n, dim = rows.shape
    total, mean = rows.sum(dim=0), rows.mean(dim=0)
    each = rows.square().sum()
    value = (total.square().sum() - each) / (n * (n - 1))
    spread = (rows - mean) @ mean
    scatter = float(each / n - mean.square().sum()) ** 2 / dim
    return Mean(float(value), math.sqrt(4 * float(spread.var()) / n + 2 * scatter / n**2))


@dataclass(frozen=True)
class GaussianFit:
    """KL of the Gaussian fitted to noises from N(0, I), as the papers measured it.

    Attributes:
        raw: as it comes out.
        bias: what ``count`` true N(0, I) noises would give on average.
        corrected: ``raw - bias``.
        count: noises.
    """

    raw: float
    bias: float
    corrected: float
    count: int


@torch.no_grad()
def gaussian_fit(
    data: Tensor,
    coupling: Coupling,
    *,
    count: int = 50_000,
    cond: Cond | None = None,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
) -> GaussianFit:
    """The papers' measure (2505.18521, 4.3) with its finite-sample bias removed.

    Takes a whole covariance ``[D, D]``: ``count D^2`` operations.

    Raises:
        ValueError: D above 8,192, or not more noises than dimensions.
    """
    dim = data[0].numel()
    if dim > LARGEST_FIT or count <= dim + 1:
        raise ValueError(
            f"a Gaussian fit needs at most {LARGEST_FIT} dimensions and more noises than "
            f"dimensions, got {dim} dimensions and {count} noises; use measure_noise"
        )
    images = Batch(data, cond)
    total, product = torch.zeros(dim).double(), torch.zeros(dim, dim).double()
    for number, rows in enumerate(choose_rows(len(data), count, seed).split(batch_size)):
        chunk = draw_noise(coupling, images, rows, seed=seed + number, batch_size=batch_size)
        flat = chunk.flatten(1).double().cpu()
        total += flat.sum(dim=0)
        product.addmm_(flat.T, flat)
    mean = total / count
    covariance = (product - count * torch.outer(mean, mean)) / (count - 1)
    volume = float(torch.linalg.slogdet(covariance)[1])
    raw = (float(covariance.trace() + mean.square().sum()) - dim - volume) / 2
    bias = gaussian_fit_bias(count, dim)
    return GaussianFit(raw, bias, raw - bias, count)


def gaussian_fit_bias(count: int, dim: int) -> float:
    """What the fit gives on average for ``count`` noises of N(0, I); 48.23 at 50,000 and 3,072.

    The log determinant of a Wishart matrix is a sum of logarithms of chi-squares.
    """
    degrees = torch.arange(count - dim, count, dtype=torch.float64) / 2
    volume = float((torch.digamma(degrees) + math.log(2 / (count - 1))).sum())
    return (dim / count - volume) / 2
