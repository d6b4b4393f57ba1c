"""The distribution of the paired noise: its mean and covariance over a data set.

Training sees the noise that a coupling makes, sampling starts from N(0, I). Where the two differ either the noise is
brought back (``Calibrated``) or sampling starts from its distribution (``color``).
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from immiscible_diffusion.couplings._validation import (
    check_fitted,
    check_labels,
    product,
    rows_of_labels,
    working_dtype,
)
from immiscible_diffusion.couplings.base import Coupling, as_coupling
from immiscible_diffusion.couplings.moments import DataBatch, Moments, TensorFields, grown, split_labels

LEAST_VARIANCE = 1e-6


@dataclass(frozen=True, eq=False)
class NoiseDistribution(TensorFields):
    """Mean and covariance of the noise that a coupling makes over a data set.

    The covariance is free in the span of a basis, the leading directions of the data, and ``scale^2`` times the
    identity outside; the mean lies in the span (outside, an estimate would be sampling noise, 1 / sqrt(count) in each
    of D dimensions). Immutable, compared by content.

    Attributes:
        shape: shape of a sample.
        basis: ``[r, D]`` orthonormal.
        mean: ``[r]`` along the basis.
        covariance: ``[r, r]`` along the basis.
        scale: standard deviation outside the span.
        kurtosis: ``[r]`` excess kurtosis along the basis: 0 for a Gaussian.
        count: noises it was measured from.
        label_mean: ``[L, r]`` mean of every label (of one without noises, that of all), or None.
        label_covariance: ``[L, r, r]``, or None. The covariance within all labels counts as r more noises of every
            label: few noises draw towards it, a label without noises has just it.
    """

    shape: tuple[int, ...]
    basis: Tensor
    mean: Tensor
    covariance: Tensor
    scale: float
    kurtosis: Tensor
    count: int
    label_mean: Tensor | None = None
    label_covariance: Tensor | None = None
    _roots: ClassVar[dict[Any, Any]]

    description = "a noise distribution"
    parsers: ClassVar = {
        "shape": lambda text: tuple(int(size) for size in text.split(",")),
        "scale": float,
        "count": int,
    }

    def __post_init__(self) -> None:
        # Not a cached_property, whose lock torch.compile cannot trace.
        object.__setattr__(self, "_roots", {})

    @classmethod
    def standard(cls, moments: Moments, count: int = 0) -> "NoiseDistribution":
        """N(0, I), the noise distribution without pairing and with a square assignment."""
        basis = basis_of(moments)
        one = torch.eye(len(basis))
        return cls(tuple(moments.mean.shape), basis, one[0] * 0, one, 1.0, one[0] * 0, count)

    @classmethod
    def measure(
        cls,
        coupling: Coupling,
        batches: Iterable[DataBatch],
        moments: Moments,
        *,
        by_label: bool = True,
        label_key: str = "label",
        generator: torch.Generator | None = None,
    ) -> "NoiseDistribution":
        """Draw the noise of every batch and take its moments; nothing is kept.

        Args:
            coupling: the model will be trained with it.
            batches: of the size of training, ``[B, *shape]``, ``(data, labels)`` or ``(data, cond)`` with what the
                coupling needs, ``{"index": ...}`` say; several passes over the data make several noises for each.
            moments: of the data; their directions are the basis.
            by_label: also measure the distribution of each label, where there are labels.
            label_key: the condition that the labels are.
            generator: on the device of the data.

        Raises:
            ValueError: noises too few or not finite, data of another shape, bad labels.
        """
        if isinstance(batches, Tensor):
            raise ValueError("give batches as in training, such as data.split(256), not one tensor")
        coupling = as_coupling(coupling)
        exact, labeled = coupling.preserves_marginal, False
        if exact and (not by_label or coupling.preserves_conditional(label_key)):
            return cls.standard(moments)
        shape, sums = tuple(moments.mean.shape), _NoiseSums(basis_of(moments).double())
        for batch in batches:
            data, labels = split_labels(batch, label_key)
            check_fitted("the moments were", shape, data.shape[1:], "fit them on these data")
            if by_label and sums.count and labeled != (labels is not None):
                raise ValueError("some batches came with labels, some without; give all labels")
            labeled = by_label and labels is not None
            if exact and not labeled:
                return cls.standard(moments)
            given = batch[1] if isinstance(batch, (tuple, list)) else None
            cond = {label_key: given} if isinstance(given, Tensor) else given
            noise = coupling(data, cond=cond, generator=generator).cpu()
            if not bool(noise.isfinite().all()):
                raise ValueError(f"{coupling} made noise that is not finite; it has no moments")
            sums.add(noise, labels if labeled else None)
        if exact and not labeled:
            return cls.standard(moments)
        result = cls(shape, sums.basis.float(), **sums.moments(), **sums.by_label(labeled))
        if not exact:
            return result
        mean, covariance = result.label_mean, result.label_covariance
        standard = cls.standard(moments, result.count)
        return replace(standard, label_mean=mean, label_covariance=covariance)

    def whiten(self, noise: Tensor, labels: Tensor | None = None) -> Tensor:
        """``C^(-1/2) (noise - m)``: such noise ``[B, *shape]`` gets mean 0 and covariance I.

        With ``labels`` ``[B]`` by the moments of every label, if measured; else by those of all.
        """
        return self._map(noise, labels, white=True)

    def color(self, white: Tensor, labels: Tensor | None = None) -> Tensor:
        """``m + C^(1/2) white``: the inverse of ``whiten``; N(0, I) gets these moments."""
        return self._map(white, labels, white=False)

    def _map(self, noise: Tensor, labels: Tensor | None, white: bool) -> Tensor:
        advice = "measure it on noise of this shape"
        check_fitted("the noise distribution was", self.shape, noise.shape[1:], advice)
        dtype = working_dtype(noise.dtype)
        rows, scale = noise.flatten(1).to(dtype), 1 / self.scale if white else self.scale
        by_label = labels is not None and self.label_mean is not None
        basis, mean, root = self._basis_mean_root(noise.device, dtype, by_label, white)
        inside = product(rows, basis.T)
        if labels is not None and by_label:
            check_labels(labels, rows.shape[0], len(mean))
            labels = labels.long().to(rows.device)
            mean, root = rows_of_labels(mean, labels), rows_of_labels(root, labels)
        moved = inside - mean if white else inside
        if by_label:  # with out=, so that autocast leaves the precision
            column = moved[..., None]
            moved = torch.bmm(root, column, out=torch.empty_like(column))[..., 0]
        else:
            moved = product(moved, root)
        moved = moved if white else moved + mean
        mapped = (rows * scale).addmm_(moved - scale * inside, basis)
        return mapped.view(noise.shape).to(noise.dtype)

    def _basis_mean_root(
        self, device: torch.device, dtype: torch.dtype, by_label: bool, white: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Basis, mean and root of the covariance (or its inverse), made once for every device."""
        key = (device, dtype, by_label, white)
        if key not in self._roots:
            mean, covariance, basis = self.mean, self.covariance, self.basis
            if by_label and self.label_mean is not None and self.label_covariance is not None:
                mean, covariance = self.label_mean, self.label_covariance
            if dtype == torch.float64:  # orthonormal in float32, made so in float64
                q, r = torch.linalg.qr(basis.cpu().double().T)
                basis = (q * r.diagonal().sign()).T
            values, vectors = torch.linalg.eigh(covariance.cpu().double())
            powers = values.clamp_min(LEAST_VARIANCE) ** (-0.5 if white else 0.5)
            root = (vectors * powers[..., None, :]) @ vectors.mT
            self._roots[key] = tuple(x.to(dtype).to(device) for x in (basis, mean, root))
        return self._roots[key]

    @property
    def digest(self) -> str:
        """Short hash of the content: 16 hex digits."""
        numbers = f"{self.shape}/{self.scale!r}/{self.count}"
        return self.hash_content(numbers.encode(), self.tensors)

    def __repr__(self) -> str:
        return f"NoiseDistribution(shape={self.shape}, count={self.count}, digest={self.digest})"


def basis_of(moments: Moments) -> Tensor:
    """``[r, D]``: the directions of the moments, and what the means add to their span.

    Noise that is not centered drifts to the mean of the data, which need not lie in the span. Means of more labels
    than there are directions are not added: the directions hold most of them.
    """
    if moments.directions is None:
        raise ValueError("a noise distribution needs moments with directions; see Moments.fit")
    rows = [moments.directions, moments.mean.flatten()[None]]
    if moments.label_mean is not None and len(moments.label_mean) <= len(moments.directions):
        rows.append((moments.label_mean - moments.mean).flatten(1))
    every = torch.cat(rows).cpu().double()
    every = every / torch.linalg.vector_norm(every, dim=1, keepdim=True).clamp_min(1e-30)
    basis = every[: len(moments.directions)]
    for row in every[len(basis) :]:
        rest = row - (row @ basis.T) @ basis
        rest = rest - (rest @ basis.T) @ basis  # twice is enough
        if len(basis) < basis.shape[1] and float(rest.norm()) > 1e-3:
            basis = torch.cat([basis, rest[None] / rest.norm()])
    return basis.float()


class _NoiseSums:
    """Power sums of the noise along the basis, over all and label by label."""

    def __init__(self, basis: Tensor) -> None:
        self.basis, r = basis, len(basis)
        self.count, self.square = 0, 0.0
        self.powers = torch.zeros(4, r, dtype=torch.float64)
        self.products = torch.zeros(1, r, r, dtype=torch.float64)
        self.totals, self.counts = torch.zeros(1, r, dtype=torch.float64), torch.zeros(1)

    def add(self, noise: Tensor, labels: Tensor | None) -> None:
        """Add noise ``[B, *shape]`` of labels ``[B]``."""
        rows = noise.flatten(1)
        inside = (rows.to(torch.float32) @ self.basis.T.float()).double()
        self.square += float(rows.double().square().sum() - inside.square().sum())
        self.count += len(rows)
        self.powers += torch.stack([(inside**power).sum(dim=0) for power in (1, 2, 3, 4)])
        labels = torch.zeros(len(rows)) if labels is None else labels
        labels = labels.cpu().long()
        classes = int(labels.max()) + 1
        self.products, self.totals = grown(self.products, classes), grown(self.totals, classes)
        self.counts = grown(self.counts, classes)
        for label in labels.unique():
            own = inside[labels == label]
            self.products[label] += own.T @ own
            self.totals[label] += own.sum(dim=0)
            self.counts[label] += len(own)

    def moments(self) -> dict[str, Any]:
        """Moments over all; ValueError if the noises are too few."""
        r, dim = self.basis.shape
        if self.count < 2 * r:
            raise ValueError(f"{self.count} noises are too few for {r} directions; give {2 * r}")
        mean, two, three, four = self.powers / self.count
        covariance = self.products.sum(dim=0) / self.count - torch.outer(mean, mean)
        outside = self.square / (self.count * (dim - r)) if dim > r else 1.0
        variance = (two - mean**2).clamp_min(LEAST_VARIANCE)
        central = four - 4 * mean * three + 6 * mean**2 * two - 3 * mean**4
        return {
            "mean": mean.float(),
            "covariance": covariance.float(),
            "scale": max(outside, LEAST_VARIANCE) ** 0.5,
            "kurtosis": (central / variance**2 - 3).float(),
            "count": self.count,
        }

    def by_label(self, labeled: bool) -> dict[str, Any]:
        """Moments of every label, if ``labeled``.

        To the covariance r more noises of the pooled one within labels are mixed. Means are drawn to that of all by as
        much as few noises scatter them (empirical Bayes): with few of each label they would else be more sampling
        noise than shift.
        """
        if not labeled:
            return {}
        mean, r, counts = (self.powers[0] / self.count, len(self.basis), self.counts.double()[:, None])
        means = torch.where(counts > 0, self.totals / counts.clamp_min(1), mean)
        outer = means[:, :, None] * means[:, None, :]
        scatter = self.products - counts[:, :, None] * outer
        within = scatter.sum(dim=0) / self.count
        covariance = (scatter + r * within) / (counts[:, :, None] + r)
        seen = counts[:, 0] > 0
        free = max(1, self.count - int(seen.sum()))  # degrees of freedom within labels
        # Variance of a label's mean, [L, r].
        error = within.diagonal() * (self.count / free) / counts.clamp_min(1)
        between = ((means - mean).square() - error)[seen].mean(dim=0).clamp_min(0)
        share = between / (between + error).clamp_min(1e-30)
        means = mean + share * (means - mean)
        return {"label_mean": means.float(), "label_covariance": covariance.float()}
