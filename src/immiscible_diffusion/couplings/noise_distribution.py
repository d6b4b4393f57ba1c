"""The law of the paired noise: its mean and covariance over a data set.

Training sees the noise that a coupling makes, sampling starts from N(0, I). Where the two differ
either the noise is brought back (``Calibrated``) or sampling starts from the law (``color``).
"""

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from immiscible_diffusion.couplings._sums import LEAST_VARIANCE, NoiseSums
from immiscible_diffusion.couplings._validation import can_sync, working_dtype
from immiscible_diffusion.couplings.base import Coupling, check_noise, draw, may_shift_labels
from immiscible_diffusion.couplings.moments import Moments, check_labels
from immiscible_diffusion.utils.atomic_files import atomic_path
from immiscible_diffusion.utils.optional_deps import require_extra


@dataclass(frozen=True, eq=False)
class NoiseDistribution:
    """Mean and covariance of the noise that a coupling makes over a data set.

    The covariance is free in the span of a basis, the leading directions of the data, and
    ``scale^2`` times the identity outside; the mean lies in the span (outside, an estimate would be
    sampling noise, 1 / sqrt(count) in each of D dimensions). Immutable, compared by content.

    Attributes:
        shape: of a sample.
        basis: ``[r, D]`` orthonormal.
        mean: ``[r]`` along the basis.
        covariance: ``[r, r]`` along the basis.
        scale: standard deviation outside the span.
        kurtosis: ``[r]`` excess kurtosis along the basis: 0 for a Gaussian.
        count: noises it was measured from.
        label_mean: ``[L, r]`` of every label (of one never seen, that of all), or None.
        label_covariance: ``[L, r, r]``, or None. The covariance within all labels counts as r more
            noises of every label: few noises draw towards it, a label never seen has just it.
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
    _made: ClassVar[dict[Any, Any]]

    @classmethod
    def standard(cls, moments: Moments, count: int = 0) -> "NoiseDistribution":
        """N(0, I), as it is without pairing and with a square assignment."""
        basis = basis_of(moments)
        one = torch.eye(len(basis))
        return cls(tuple(moments.mean.shape), basis, one[0] * 0, one, 1.0, one[0] * 0, count)

    @classmethod
    def measure(
        cls,
        coupling: Coupling,
        batches: Iterable[Tensor | tuple[Tensor, Tensor]],
        moments: Moments,
        *,
        by_label: bool = True,
        label_key: str = "label",
        generator: torch.Generator | None = None,
    ) -> "NoiseDistribution":
        """Draw the noise of every batch and take its moments; nothing is kept.

        Args:
            coupling: that the model will be trained with.
            batches: of the size of training, ``[B, *shape]`` or ``(data, labels)``; several passes
                over the data make several noises for each.
            moments: of the data; their directions are the basis.
            by_label: also one law a label, where there are labels.
            label_key: the labels are given to the coupling as ``cond={label_key: labels}``.
            generator: on the device of the data.

        Raises:
            ValueError: too few noises to tell a covariance, noise that is not finite, data of
                another shape than the moments', bad labels, or only some batches with labels.
        """
        if isinstance(batches, Tensor):
            raise ValueError("give batches as in training, such as data.split(256), not one tensor")
        keeps = bool(getattr(coupling, "preserves_marginal", False))
        if keeps and not (by_label and may_shift_labels(coupling, label_key)):
            return cls.standard(moments)
        sums = NoiseSums(basis_of(moments).double(), tuple(moments.mean.shape))
        for data, labels in _checked(batches, sums.shape, by_label):
            cond = None if labels is None else {label_key: labels}
            noise = draw(coupling, data, cond=cond, generator=generator).cpu()
            check_noise(data, noise)
            if not bool(noise.isfinite().all()):
                raise ValueError(f"{coupling} made noise that is not finite; it has no law")
            sums.add(noise, labels.long() if labels is not None and by_label else None)
            if keeps and not sums.labeled:
                break
        if keeps and not sums.labeled:
            return cls.standard(moments)
        found = cls(sums.shape, sums.basis.float(), **sums.fields())
        return found if not keeps else cls.standard(moments, found.count)._with_labels_of(found)

    def _with_labels_of(self, other: "NoiseDistribution") -> "NoiseDistribution":
        return replace(self, label_mean=other.label_mean, label_covariance=other.label_covariance)

    def whiten(self, noise: Tensor, labels: Tensor | None = None) -> Tensor:
        """``C^(-1/2) (noise - m)``: noise of this law ``[B, *shape]`` to mean 0, covariance I.

        With ``labels`` ``[B]`` by the law of every label, if it was measured; else by that of all.
        """
        return self._map(noise, labels, white=True)

    def color(self, white: Tensor, labels: Tensor | None = None) -> Tensor:
        """``m + C^(1/2) white``: the inverse of ``whiten``; N(0, I) gets this law's two moments."""
        return self._map(white, labels, white=False)

    def _map(self, noise: Tensor, labels: Tensor | None, white: bool) -> Tensor:
        if tuple(noise.shape[1:]) != self.shape:
            raise ValueError(
                f"the law was measured on data of shape {self.shape}, got {tuple(noise.shape[1:])}"
            )
        dtype = working_dtype(noise.dtype)
        rows, scale = noise.flatten(1).to(dtype), 1 / self.scale if white else self.scale
        labeled = self.label_mean is not None and labels is not None
        basis, mean, root = self._tables(noise.device, dtype, labeled, white)
        if labeled:
            index = _index(labels, len(rows), len(mean), rows.device)
            mean, root = mean[index[0]].masked_fill(index[1][:, None], torch.nan), root[index[0]]
        inside = _product(rows, basis.T)
        moved = inside - mean if white else inside
        moved = _product_by_row(moved, root) if labeled else _product(moved, root)
        moved = moved if white else moved + mean
        mapped = (rows * scale).addmm_(moved - scale * inside, basis)
        return mapped.view(noise.shape).to(noise.dtype)

    def _tables(
        self, device: torch.device, dtype: torch.dtype, labeled: bool, white: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Basis, mean and root of the covariance (or its inverse), made once for every device."""
        key = (device, dtype, labeled, white)
        if key not in self._made:
            mean, covariance = self.mean, self.covariance
            if labeled:
                assert self.label_mean is not None
                assert self.label_covariance is not None
                mean, covariance = self.label_mean, self.label_covariance
            root = _root(covariance, -0.5 if white else 0.5)
            basis = _orthonormal(self.basis) if dtype == torch.float64 else self.basis
            self._made[key] = tuple(x.to(dtype).to(device) for x in (basis, mean, root))
        return self._made[key]

    def __post_init__(self) -> None:
        # Not a cached_property, whose lock torch.compile cannot trace.
        object.__setattr__(self, "_made", {})

    def to(self, device: torch.device | str) -> "NoiseDistribution":
        """The law on ``device``; the first step moves what it needs, and no other pays for it."""
        moved: dict[str, Any] = {name: value.to(device) for name, value in self._tensors.items()}
        return replace(self, **moved)

    @property
    def _tensors(self) -> dict[str, Tensor]:
        every = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in every.items() if isinstance(value, Tensor)}

    @property
    def digest(self) -> str:
        """Short hash of the content: 16 hex digits."""
        content = hashlib.sha256(f"{self.shape}/{self.scale!r}/{self.count}".encode())
        for name, value in self._tensors.items():
            content.update(f"{name}/{tuple(value.shape)}".encode())
            content.update(value.cpu().contiguous().numpy().tobytes())
        return content.hexdigest()[:16]

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, NoiseDistribution) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"NoiseDistribution(shape={self.shape}, count={self.count}, digest={self.digest})"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to ``path`` (safetensors), whole or not at all."""
        with require_extra("train", "saving a law of noise"):
            from safetensors.torch import save_file
        shape = ",".join(map(str, self.shape))
        metadata = {"scale": repr(self.scale), "count": str(self.count), "shape": shape}
        tensors = {name: value.cpu().contiguous() for name, value in self._tensors.items()}
        with atomic_path(path) as temporary:
            save_file(tensors, str(temporary), metadata)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "NoiseDistribution":
        """Read what ``save`` wrote; ValueError names a file that is not such a file."""
        with require_extra("train", "loading a law of noise"):
            from safetensors import SafetensorError, safe_open
        if not Path(path).is_file():
            raise ValueError(
                f"{path} does not exist; expected a law saved by NoiseDistribution.save"
            )
        try:
            with safe_open(str(path), framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            shape = tuple(int(size) for size in metadata["shape"].split(","))
            scale, count = float(metadata["scale"]), int(metadata["count"])
            return cls(shape=shape, scale=scale, count=count, **tensors)
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} does not hold a law of noise ({error})") from error


def basis_of(moments: Moments) -> Tensor:
    """``[r, D]``: the directions of the moments, and what the means add to their span.

    Noise that is not centerd drifts to the mean of the data, which need not lie in the span. Means
    of more labels than there are directions are not added: the directions hold most of them.
    """
    if moments.directions is None:
        raise ValueError("the law of noise needs moments with directions; see Moments.fit")
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


def _product(rows: Tensor, matrix: Tensor) -> Tensor:
    """A matrix product that autocast leaves in its precision."""
    return torch.mm(rows, matrix, out=rows.new_empty(len(rows), matrix.shape[1]))


def _product_by_row(rows: Tensor, matrices: Tensor) -> Tensor:
    """``matrices[i] @ rows[i]``, left in their precision by autocast."""
    return torch.bmm(matrices, rows[..., None], out=torch.empty_like(rows[..., None]))[..., 0]


def _root(covariance: Tensor, power: float) -> Tensor:
    """A power of symmetric positive matrices ``[..., r, r]``, float64 on the CPU."""
    values, vectors = torch.linalg.eigh(covariance.cpu().double())
    powers = values.clamp_min(LEAST_VARIANCE) ** power
    return (vectors * powers[..., None, :]) @ vectors.mT


def _orthonormal(basis: Tensor) -> Tensor:
    """The rows, orthonormal in float32, made so in float64."""
    q, r = torch.linalg.qr(basis.cpu().double().T)
    return (q * r.diagonal().sign()).T


def _index(labels: Any, count: int, known: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Labels ``[count]`` on ``device``, and which the law does not know.

    Those are a ValueError on the CPU, where looking is free; elsewhere they get NaN.
    """
    if not isinstance(labels, Tensor) or can_sync(labels):
        check_labels(labels, count)
        if count and int(labels.max()) >= known:
            raise ValueError(f"the law knows labels 0 to {known - 1}, got {int(labels.max())}")
    labels = labels.to(device).long()
    return labels.clamp(0, known - 1), (labels < 0) | (labels >= known)


def _checked(
    batches: Iterable[Tensor | tuple[Tensor, Tensor]], shape: tuple[int, ...], by_label: bool
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Data and labels of every batch."""
    kinds = set()
    for batch in batches:
        data, labels = batch if isinstance(batch, (tuple, list)) else (batch, None)
        if tuple(data.shape[1:]) != shape:
            raise ValueError(
                f"the moments were fitted on data of shape {shape}, got {tuple(data.shape[1:])}"
            )
        if labels is not None:
            check_labels(labels, len(data))
        kinds.add(labels is None)
        if by_label and len(kinds) > 1:
            raise ValueError("some batches came with labels and some without; give all labels")
        yield data, labels
