"""The density of the noise given the sample, for every point and image at once.

With ``n = point - shift`` every closed form here is made of squared distances between points and samples, so one
matrix product per part serves all pairs. All values leave out the normal constant: without pairing they are ``-|n|^2
/ 2``, and ``value + |n|^2 / 2`` is the log ratio to N(0, I). Arithmetic is float64.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor

from immiscible_diffusion.analysis.noncentral_chi2 import log_survival
from immiscible_diffusion.couplings import KNN, Coupling, Independent, Shuffled
from immiscible_diffusion.couplings._knn_kernels import offset_of
from immiscible_diffusion.couplings._validation import valid_positions
from immiscible_diffusion.couplings.base import FunctionCoupling
from immiscible_diffusion.couplings.gaussian_ot import GaussianOT
from immiscible_diffusion.couplings.moments import along, groups
from immiscible_diffusion.couplings.semidiscrete import Semidiscrete
from immiscible_diffusion.couplings.wrappers import Calibrated
from immiscible_diffusion.utils.batch import Batch

LEAST_VARIANCE = 1e-12
IMAGE_ELEMENTS = 1 << 23  # of images, worked at a time: 64 MiB in float64
LARGEST_PLAN = 8192  # samples, whose squared number is the work for each point


class PairDensity(Protocol):
    """``log p(n | x)`` for all pairs of a point and an image."""

    @property
    def estimate(self) -> str:
        """How the density was estimated, in words; empty for a closed form."""

    def pairs(self, points: Tensor, shifts: Tensor, images: Batch) -> Tensor:
        """``[P, N]``: log density of the noise ``points[p] - shifts[i]`` given ``images[i]``.

        ``points`` ``[P, D]`` and ``shifts`` ``[N, D]`` are float64; ``D / 2 log(2 pi)`` is added.
        """


@dataclass(frozen=True)
class IndependentDensity:
    """N(0, I) whatever the sample: no pairing."""

    estimate = ""

    def pairs(self, points: Tensor, shifts: Tensor, images: Batch) -> Tensor:
        """``-|n|^2 / 2``."""
        return squares(points, shifts).mul_(-0.5)


@dataclass(frozen=True)
class KNNDensity:
    """KNN noise selection: ``log k - |n|^2 / 2 + (k - 1) log(1 - F(|n - x|^2))``.

    F is the distribution function of the squared distance from the sample to Gaussian noise, the
    non-central chi-square: the nearest noise has k times the density of any noise, times the
    probability that the k - 1 others are farther. With a mask the distance is over valid positions.
    """

    coupling: KNN
    estimate = ""

    def pairs(self, points: Tensor, shifts: Tensor, images: Batch) -> Tensor:
        """The formula above."""
        density = squares(points, shifts).mul_(-0.5)
        if self.coupling.k == 1:
            return density
        valid = valid_positions(images.mask, images.data)
        center = self.coupling.center_of(images.data, images.cond)(slice(None))
        offset = offset_of(images.data.double(), valid, center)
        flat = None if valid is None else valid.flatten(1).double()
        dim = torch.tensor(float(points.shape[1])) if flat is None else flat.sum(dim=1)
        distance = squares(points, shifts + offset, flat)
        survival = log_survival(distance, dim, offset.square().sum(dim=1))
        return density.add_(survival, alpha=self.coupling.k - 1).add_(math.log(self.coupling.k))


@dataclass(frozen=True)
class GaussianDensity:
    """Gaussian noise given the sample ``x``, with ``o = x - mean``.

    Along axis r it is ``N(drift_r + gain_r o_r, width_r^2)``, across all axes
    ``N(gain_across o, scale^2 I)``. Gaussian transport is of this kind.
    """

    mean: Tensor  # ``[D]`` of the data
    axes: Tensor  # ``[r, D]`` orthonormal
    gain: Tensor  # ``[r]``
    width: Tensor  # ``[r]`` standard deviations
    drift: Tensor | float = 0.0  # ``[r]``, or 0
    gain_across: float = 0.0  # gain across the axes
    scale: float = 1.0  # standard deviation across the axes
    estimate = ""

    @classmethod
    def of(cls, coupling: GaussianOT) -> "GaussianDensity":
        """That of Gaussian transport: width ``sqrt(1 - rho^2)``."""
        moments = coupling.moments
        assert moments.directions is not None  # the coupling refuses such moments
        width = (1 - coupling.correlation.double().square()).clamp_min(LEAST_VARIANCE).sqrt()
        axes = moments.directions[: coupling.rank]
        return cls(moments.mean.flatten(), axes, coupling.gain, width)

    def pairs(self, points: Tensor, shifts: Tensor, images: Batch) -> Tensor:
        """``-|n|^2 / 2`` plus the log ratio."""
        return squares(points, shifts).mul_(-0.5).add_(self.log_ratio(points, shifts, images))

    def log_ratio(self, points: Tensor, shifts: Tensor, images: Batch) -> Tensor:
        """``[P, N]``: log density of the noises ``points[p] - shifts[i]`` less that of N(0, I)."""
        axes, offset, center = self._centers(points, images)
        width, along, shift = self.width.to(points), points @ axes.T, shifts @ axes.T
        normal = squares(along, shift)
        ratio = normal - squares(along / width, (shift + center) / width)
        if self.gain_across or self.scale != 1:
            moved = shifts + self.gain_across * offset
            left = squares(points, moved) - squares(along, moved @ axes.T)
            ratio += squares(points, shifts) - normal - left / self.scale**2
        across = points.shape[1] - len(axes)
        return ratio / 2 - float(width.log().sum()) - across * math.log(self.scale)

    def sample(self, images: Batch, fresh: Tensor) -> Tensor:
        """Noise ``[B, D]`` for ``images`` from N(0, I) noise ``fresh`` ``[B, D]``."""
        axes, offset, center = self._centers(fresh, images)
        across = self.gain_across * offset + self.scale * fresh
        inside = center + self.width.to(fresh) * (fresh @ axes.T)
        return across + (inside - across @ axes.T) @ axes

    def _centers(self, like: Tensor, images: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """The axes, ``o`` ``[N, D]`` and the mean of the noise along the axes ``[N, r]``."""
        axes, gain, drift = (torch.as_tensor(x).to(like) for x in (self.axes, self.gain, self.drift))
        offset = images.data.flatten(1).to(like) - self.mean.to(like)
        return axes, offset, drift + gain * (offset @ axes.T)


@dataclass(frozen=True)
class AffineDensity:
    """Calibrated noise ``n' = C^(-1/2) (n - m)``: the density of ``n`` times ``|C^(1/2)|``.

    Samples that a mask cuts are not paired.
    """

    coupling: Calibrated
    inner: PairDensity

    @property
    def estimate(self) -> str:
        """That of the coupling inside."""
        return self.inner.estimate

    def pairs(self, points: Tensor, shifts: Tensor, images: Batch) -> Tensor:
        """With points and shifts mapped; label by label where the distribution has labels."""
        out = squares(points, shifts).mul_(-0.5)
        valid = valid_positions(images.mask, images.data)
        paired = torch.ones(len(shifts), dtype=torch.bool, device=shifts.device)
        if valid is not None:
            paired = valid.flatten(1).all(dim=1)
        labels = self.coupling.labels_of(images.cond)
        for label in [None] if labels is None else labels.unique():
            rows = paired if labels is None else paired & (labels == label)
            if bool(rows.any()):
                part = take(images, rows.nonzero()[:, 0])
                alone = Batch(part.data, part.cond)
                out[:, rows] = self._mapped(points, shifts[rows], alone, label)
        return out

    def _mapped(self, points: Tensor, shifts: Tensor, images: Batch, label: Tensor | None) -> Tensor:
        distribution = self.coupling.distribution

        def color(rows: Tensor) -> Tensor:
            labels = None if label is None else label.expand(len(rows))
            return distribution.color(rows.view(-1, *distribution.shape), labels).flatten(1)

        basis = distribution.basis.to(points)
        zero = color(torch.zeros_like(basis[:1]))
        root = (color(basis) - zero) @ basis.T
        across = (basis.shape[1] - len(basis)) * math.log(distribution.scale)
        volume = torch.linalg.slogdet(root)[1] + across
        return self.inner.pairs(color(points), color(shifts) - zero, images).add_(volume)


@dataclass(frozen=True)
class ShareDensity:
    """Semidiscrete pairing: ``N phi(n)`` for the noise of a sample's own share, none elsewhere.

    N counts the samples (of a label, for a plan within labels) for each that is equal. Noises that a table hands on to
    other samples are a share ``moved`` of N(0, I): ``log(moved + (1 - moved) N [n is x's own])`` is the log ratio.
    """

    coupling: Semidiscrete
    moved: float

    @classmethod
    @lru_cache(maxsize=4)
    def of(cls, coupling: Semidiscrete) -> "ShareDensity":
        """With ``moved`` counted in the coupling's table, once; ValueError for a plan of too many samples."""
        plan, noises = coupling.plan, coupling.noises
        if len(plan.samples) > LARGEST_PLAN:
            raise ValueError(f"{coupling} has a density for plans of at most {LARGEST_PLAN:,} samples")
        table = plan.table(noises, coupling.seed, coupling.number, coupling.sweeps).flatten(0, 1)
        labels = None if plan.labels is None else plan.labels.repeat_interleave(noises)
        away = plan.owner_of(table.float(), labels) != plan.first.repeat_interleave(noises)
        return cls(coupling, float(away.double().mean()))

    @property
    def estimate(self) -> str:
        """Says what is not exact."""
        return f"in closed form, with the {self.moved:.0%} of noises that the table hands on as independent ones"

    def pairs(self, points: Tensor, shifts: Tensor, images: Batch) -> Tensor:
        """``-|n|^2 / 2`` plus the log ratio."""
        plan, device = self.coupling.plan, points.device
        rows = along(images.data, plan.mean, plan.directions).to(plan.samples.device)
        away = torch.cdist(rows, plan.samples)
        if plan.labels is not None and "label" in (images.cond or {}):
            away.masked_fill_(images.cond["label"].to(away.device)[:, None] != plan.labels, math.inf)  # type: ignore
        own = plan.first[away.argmin(dim=1)]
        axes, samples = plan.directions.to(points), plan.samples.to(points)
        there = (points @ axes.T @ samples.T + plan.bias.to(points)).float()
        back = (shifts @ axes.T @ samples.T).float()
        density = squares(points, shifts).mul_(-0.5)
        for _, members in groups(plan.labels, plan.samples):
            distinct, count = plan.first[members].unique(return_counts=True)
            columns = torch.isin(own, distinct).nonzero()[:, 0]
            mine = torch.searchsorted(distinct, own[columns])
            ratio = (self.moved + (1 - self.moved) * len(members) / count[mine].double()).log().to(device)
            elsewhere = math.log(self.moved) if self.moved else -math.inf
            mine, columns, distinct = mine.to(device), columns.to(device), distinct.to(device)
            known = back[columns][:, distinct]
            for point, score in zip(density, there[:, distinct], strict=True):
                all_scores = score - known
                owned = all_scores.gather(1, mine[:, None])[:, 0] >= all_scores.amax(dim=1)
                point[columns] += torch.where(owned, ratio, elsewhere)
        return density


@dataclass(frozen=True)
class EmpiricalDensity:
    """The density that a user's coupling states: ``coupling.log_density(noise, data, cond=)``.

    It takes ``noise`` and ``data`` ``[B, *shape]`` and returns ``[B]``, the natural logarithm of
    the density of each noise given its sample. Called once per point, with all images.
    """

    coupling: Any
    estimate = ""

    def pairs(self, points: Tensor, shifts: Tensor, images: Batch) -> Tensor:
        """The coupling's values, without the normal constant."""
        constant = points.shape[1] / 2 * math.log(2 * math.pi)
        rows = []
        for point in points:
            noise = (point - shifts).view(images.data.shape)
            row = self.coupling.log_density(noise, images.data.to(noise), cond=images.cond)
            if row.shape != noise.shape[:1]:
                wrong = f"must return [{len(noise)}], got {tuple(row.shape)}"
                raise ValueError(f"{self.coupling}.log_density {wrong}")
            rows.append(row.to(points) + constant)
        return torch.stack(rows)


def density_of(coupling: Coupling) -> PairDensity:
    """The closed form of ``log p(noise | sample)``.

    Raises:
        ValueError: ``coupling`` has no known closed form.
    """
    if isinstance(coupling, Independent):
        return IndependentDensity()
    if isinstance(coupling, KNN):
        return KNNDensity(coupling)
    if isinstance(coupling, GaussianOT):
        return GaussianDensity.of(coupling)
    if isinstance(coupling, Semidiscrete):
        return ShareDensity.of(coupling)
    if isinstance(coupling, Calibrated):
        return AffineDensity(coupling, density_of(coupling.coupling))
    own = coupling.function if isinstance(coupling, FunctionCoupling) else coupling
    if hasattr(own, "log_density"):
        return EmpiricalDensity(own)
    if isinstance(coupling, Shuffled) and coupling.preserves_marginal:
        return IndependentDensity()
    raise ValueError(
        f"{coupling} has no density in closed form; estimate it from pairs with density_estimation."
        f"fit_density, or give it a method log_density(noise, data, cond=) -> [B]"
    )


def has_closed_form(coupling: Coupling) -> bool:
    """Whether ``density_of(coupling)`` gives one."""
    try:
        density_of(coupling)
    except ValueError:
        return False
    return True


@torch.no_grad()
def log_density(density: PairDensity, points: Tensor, images: Batch, scale: float = 0.0) -> Tensor:
    """``log p(points[p] - scale images[i] | images[i])`` ``[P, N]``, float64.

    With ``points = x_t / sigma`` and ``scale = alpha / sigma`` these are, for all images, the log
    densities of the noises that lead to ``x_t``; with ``scale = 0`` those of one noise.

    Args:
        density: of the coupling.
        points: ``[P, *shape]``.
        images: ``N`` data, their conditions, and their mask: data outside count as 0.
        scale: >= 0.
    """
    flat = points.flatten(1).double()
    out = torch.empty(len(flat), len(images), dtype=torch.float64, device=flat.device)
    for rows, part in image_parts(images):
        shifts = part.data.flatten(1).double() * scale
        out[:, rows] = density.pairs(flat, shifts, part)
    return out


def image_parts(images: Batch) -> Iterator[tuple[slice, Batch]]:
    """``images`` in parts of some ``IMAGE_ELEMENTS``, with the rows that they are."""
    count = max(1, IMAGE_ELEMENTS // max(1, images.data[0].numel()))
    for start in range(0, len(images), count):
        rows = slice(start, min(start + count, len(images)))
        yield rows, take(images, rows)


def take(images: Batch, rows: slice | Tensor) -> Batch:
    """The rows ``rows`` of ``images``; data outside their mask are set to 0."""
    data, cond, mask = images.data[rows], images.cond, images.mask
    cond = cond and {name: value[rows] for name, value in cond.items()}
    valid = valid_positions(mask, images.data)
    if valid is None:
        return Batch(data, cond)
    return Batch(data.masked_fill(~valid[rows], 0), cond, valid[rows])


def squares(points: Tensor, others: Tensor, valid: Tensor | None = None) -> Tensor:
    """``[P, N]``: squared distances of rows ``[P, D]`` and ``[N, D]``; of others' valid columns.

    ``valid`` is ``[N, D]``, 1 where a column counts.
    """
    if valid is None:
        own = points.square().sum(dim=1, keepdim=True)
    else:
        others, own = others * valid, points.square() @ valid.T
    product = torch.addmm(others.square().sum(dim=1), points, others.T, alpha=-2)
    return product.add_(own).clamp_min_(0)
