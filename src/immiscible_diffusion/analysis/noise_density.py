"""The density of the noise given the sample, for every point and image at once.

With ``n = point - shift`` every closed form here is made of squared distances between points and
images, so one matrix product per part serves all pairs. All values leave out the normal law's
constant: without pairing they are ``-|n|^2 / 2``, and ``value + |n|^2 / 2`` is the log ratio to
N(0, I). Arithmetic is float64.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from immiscible_diffusion.analysis.noncentral_chi2 import log_survival
from immiscible_diffusion.couplings import KNN, Coupling, Independent, Shuffled
from immiscible_diffusion.couplings._knn_kernels import offset_of
from immiscible_diffusion.couplings._validation import valid_positions
from immiscible_diffusion.couplings.base import FunctionCoupling
from immiscible_diffusion.couplings.calibrated import Calibrated
from immiscible_diffusion.couplings.gaussian_ot import GaussianOT
from immiscible_diffusion.utils.batch import Batch

LEAST_VARIANCE = 1e-12
IMAGE_ELEMENTS = 1 << 23  # of images, worked at a time: 64 MiB in float64


class PairDensity(Protocol):
    """``log p(n | x)`` for all pairs of a point and an image."""

    @property
    def estimate(self) -> str:
        """How the density was estimated, for people to read; empty for a closed form."""

    def pairs(self, points: Tensor, shifts: Tensor, images: Batch) -> Tensor:
        """``[P, N]``: log density of the noise ``points[p] - shifts[i]`` given ``images[i]``.

        ``points`` ``[P, D]`` and ``shifts`` ``[N, D]`` are float64; ``D / 2 log(2 pi)`` is added.
        """


@dataclass(frozen=True)
class Normal:
    """N(0, I) whatever the sample: no pairing."""

    estimate = ""

    def pairs(self, points: Tensor, shifts: Tensor, images: Batch) -> Tensor:
        """``-|n|^2 / 2``."""
        return squares(points, shifts).mul_(-0.5)


@dataclass(frozen=True)
class Nearest:
    """KNN noise selection: ``log k - |n|^2 / 2 + (k - 1) log(1 - F(|n - x|^2))``.

    F is the law of the squared distance from the sample to Gaussian noise, the non-central
    chi-square: the winner's density is k times that of any noise times the chance that the k - 1
    others are farther. Where a mask is given the distance is over valid positions.
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
class Gauss:
    """Gaussian along directions of the data, N(0, I) across, as of Gaussian transport.

    Along direction r the mean is ``gain_r <x - mean, v_r>`` and the variance ``1 - rho_r^2``.

    Attributes:
        mean: ``[*shape]`` of the data.
        directions: ``[r, D]`` orthonormal.
        gain: ``[r]``.
        rho: ``[r]``, in [-1, 1].
    """

    mean: Tensor
    directions: Tensor
    gain: Tensor
    rho: Tensor
    estimate = ""

    @classmethod
    def of(cls, coupling: GaussianOT) -> "Gauss":
        """That of the coupling."""
        directions = coupling.moments.directions
        assert directions is not None  # the coupling refuses such moments
        directions = directions[: coupling.rank]
        return cls(coupling.moments.mean, directions, coupling.gain, coupling.correlation)

    def pairs(self, points: Tensor, shifts: Tensor, images: Batch) -> Tensor:
        """``-|n|^2 / 2`` with the part along the directions changed."""
        normal = squares(points, shifts).mul_(-0.5)
        return normal.add_(self.ratio(points, shifts, images))

    def ratio(self, points: Tensor, shifts: Tensor, images: Batch) -> Tensor:
        """``[P, N]``: log ratio to N(0, I)."""
        axes, gain, rho = (x.to(points) for x in (self.directions, self.gain, self.rho))
        sample = images.data.flatten(1).to(points) - self.mean.to(points).flatten()
        along, shift = points @ axes.T, shifts @ axes.T
        width = (1 - rho.square()).clamp_min(LEAST_VARIANCE).sqrt()
        changed = squares(along / width, (shift + sample @ axes.T * gain) / width)
        return (squares(along, shift) - changed).mul_(0.5).sub_(width.log().sum())


@dataclass(frozen=True)
class Mapped:
    """Calibrated noise ``n' = C^(-1/2) (n - m)``: the density of ``n`` times ``|C^(1/2)|``.

    Data that a mask cuts are not paired.
    """

    coupling: Calibrated
    inner: PairDensity

    @property
    def estimate(self) -> str:
        """As of the coupling inside."""
        return self.inner.estimate

    def pairs(self, points: Tensor, shifts: Tensor, images: Batch) -> Tensor:
        """With points and shifts mapped; label by label where the law has labels."""
        valid = valid_positions(images.mask, images.data)
        if valid is None:
            return self._whole(points, shifts, images)
        whole = valid.flatten(1).all(dim=1).nonzero()[:, 0]
        out = squares(points, shifts).mul_(-0.5)
        if len(whole):
            paired = take(images, whole)
            alone = Batch(paired.data, paired.cond)
            out[:, whole] = self._whole(points, shifts[whole], alone)
        return out

    def _whole(self, points: Tensor, shifts: Tensor, images: Batch) -> Tensor:
        labels = self.coupling.labels_of(images.cond)
        if labels is None:
            return self._mapped(points, shifts, images, None)
        out = points.new_empty(len(points), len(shifts))
        for label in labels.unique():
            mine = (labels == label).nonzero()[:, 0]
            out[:, mine] = self._mapped(points, shifts[mine], take(images, mine), label)
        return out

    def _mapped(
        self, points: Tensor, shifts: Tensor, images: Batch, label: Tensor | None
    ) -> Tensor:
        law = self.coupling.distribution

        def color(rows: Tensor) -> Tensor:
            labels = None if label is None else label.expand(len(rows))
            return law.color(rows.view(-1, *law.shape), labels).flatten(1)

        basis = law.basis.to(points)
        zero = color(torch.zeros_like(basis[:1]))
        root = (color(basis) - zero) @ basis.T
        volume = torch.linalg.slogdet(root)[1] + (basis.shape[1] - len(basis)) * math.log(law.scale)
        return self.inner.pairs(color(points), color(shifts) - zero, images).add_(volume)


@dataclass(frozen=True)
class Stated:
    """A user's coupling that knows its density: ``coupling.log_density(noise, data, cond=)``.

    It takes ``noise`` and ``data`` ``[B, *shape]`` and returns ``[B]``, the natural logarithm of
    the density of each noise given its sample. Called once per point, with all images.
    """

    coupling: Any
    estimate = ""

    def pairs(self, points: Tensor, shifts: Tensor, images: Batch) -> Tensor:
        """What the coupling says, with the normal law's constant left out."""
        constant = points.shape[1] / 2 * math.log(2 * math.pi)
        rows = []
        for point in points:
            noise = (point - shifts).view(images.data.shape)
            row = self.coupling.log_density(noise, images.data.to(noise), cond=images.cond)
            if row.shape != (len(noise),):
                raise ValueError(
                    f"{self.coupling}.log_density must return [{len(noise)}], a value for each "
                    f"row of noise, got {tuple(row.shape)}"
                )
            rows.append(row.to(points) + constant)
        return torch.stack(rows)


def density_of(coupling: Coupling) -> PairDensity:
    """The closed form of ``log p(noise | sample)``.

    Raises:
        ValueError: ``coupling`` has none known to us.
    """
    if isinstance(coupling, Independent):
        return Normal()
    if isinstance(coupling, KNN):
        return Nearest(coupling)
    if isinstance(coupling, GaussianOT):
        return Gauss.of(coupling)
    if isinstance(coupling, Calibrated):
        return Mapped(coupling, density_of(coupling.coupling))
    own = coupling.function if isinstance(coupling, FunctionCoupling) else coupling
    if hasattr(own, "log_density"):
        return Stated(own)
    if isinstance(coupling, Shuffled) and coupling.preserves_marginal:
        return Normal()
    raise ValueError(
        f"{coupling} has no density in closed form; estimate it from pairs with "
        f"analysis.fitted.fit_density, or give it a method log_density(noise, data, cond=) -> [B]"
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
