"""Mean, spread and leading directions of a data set, fitted once before step 0 and saved with the run."""

import ctypes
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from immiscible_diffusion.couplings._validation import check_labels, kind_of, product, working_dtype
from immiscible_diffusion.utils.tensor_files import load_tensors, save_tensors

AT_A_TIME = 512  # rows; the directions cost (rank + rows)^2 D each time
DataBatch = Tensor | tuple[Tensor, Tensor | dict[str, Tensor]]  # with labels, or conditions with them among these
Data = Tensor | Iterable[DataBatch]
T = TypeVar("T", bound="TensorFields")


class TensorFields:
    """An immutable record of tensors and a few numbers, compared and saved by content."""

    description: ClassVar[str]  # of a file, for errors
    parsers: ClassVar[dict[str, Callable[[str], Any]]]  # of the fields that are no tensors, from text

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The fields that are tensors."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    @property
    def digest(self) -> str:
        """Short hash of the content: 16 hex digits."""
        raise NotImplementedError

    def to(self: T, device: torch.device | str) -> T:
        """The record on ``device``; move it once, so that no step pays for it."""
        moved = {name: value.to(device) for name, value in self.tensors.items()}
        return replace(self, **moved)  # type: ignore[type-var]

    def __eq__(self, other: Any) -> bool:
        return type(other) is type(self) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to ``path`` (safetensors), complete or not at all."""
        # A tuple is written without its brackets.
        save_tensors(path, self.tensors, {name: repr(getattr(self, name)).strip("(,)") for name in self.parsers})

    @classmethod
    def load(cls: type[T], path: str | os.PathLike[str]) -> T:
        """Read what ``save`` wrote; ValueError names a file that is not such a file."""
        if not Path(path).is_file():
            raise ValueError(f"{path} does not exist; expected {cls.description} as saved")
        try:
            tensors, about = load_tensors(path)
            return cls(**tensors, **{name: of(about[name]) for name, of in cls.parsers.items()})
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} does not hold {cls.description} ({error})") from error

    @staticmethod
    def hash_content(head: bytes, tensors: dict[str, Tensor]) -> str:
        """16 hex digits of ``head`` and of names, shapes and bytes of ``tensors``."""
        content = hashlib.sha256(head)
        for name, value in tensors.items():
            content.update(f"{name}/{tuple(value.shape)}".encode() + _bytes(value))
        return content.hexdigest()[:16]


@dataclass(frozen=True, eq=False)
class Moments(TensorFields):
    """Means and leading directions of a data set, as the model sees it (encoded, augmented).

    Immutable, compared by content. Ten thousand data are plenty for a mean.

    Attributes:
        mean: ``[*shape]`` float32; ``[C]`` where fitted by ``fit_channels``.
        variance: mean over the dimensions of the variance, > 0 unless all data are equal.
        count: number of data seen.
        label_mean: ``[L, *shape]``, the mean of every label (of one never seen, that of all), or None without labels.
        label_count: ``[L]`` int64, data seen of every label, or None.
        directions: ``[r, D]`` orthonormal, the leading principal directions, or None.
        spectrum: ``[r]``, variances of the data along them, descending, or None.
    """

    mean: Tensor
    variance: float
    count: int
    label_mean: Tensor | None = None
    label_count: Tensor | None = None
    directions: Tensor | None = None
    spectrum: Tensor | None = None

    description = "moments"
    parsers: ClassVar = {"variance": float, "count": int}

    @classmethod
    def fit(cls, data: Data, *, directions: int = 64) -> "Moments":
        """Fit to ``data``: a tensor ``[N, *shape]``, or an iterable of batches ``[B, *shape]``.

        A batch may come as ``(data, labels)`` with labels ``[B]``, whole numbers from 0. Sums run in float64 on the
        CPU; nothing is quadratic in D. Directions are exact up to rounding where D or N is at most
        ``2 directions + 64``; beyond, what follows in the spectrum is dropped as batches come, and the last directions
        lean a little.

        Args:
            data: the data, encoded and augmented; ValueError for none, not finite ones, or labels of some alone.
            directions: how many leading directions to keep; 0 = none.
        """
        if directions < 0:
            raise ValueError(f"directions must be 0 (none) or more, got {directions}")
        pca = IncrementalPCA(2 * directions + 64)
        count, shape, labeled = 0, torch.Size(), 0
        total = square = label_total = torch.zeros(0, dtype=torch.float64)
        label_count = torch.zeros(0, dtype=torch.int64)
        for batch, labels in _batches(data):
            if count == 0:
                shape = batch.shape[1:]
                total = square = total.new_zeros(shape)
                label_total = total.new_zeros(0, *shape)
            if batch.shape[1:] != shape:
                both = f"{tuple(shape)} and {tuple(batch.shape[1:])}"
                raise ValueError(f"batches differ in shape: {both}; for many sizes use Moments.fit_channels")
            count += len(batch)
            total, square = total + batch.sum(dim=0), square + batch.square().sum(dim=0)
            for part in batch.flatten(1).split(AT_A_TIME) if directions else ():
                pca.update(part)
            if labels is not None:
                labels = labels.long().cpu()
                rows, labeled = int(labels.max()) + 1, labeled + len(labels)
                label_total, label_count = grown(label_total, rows), grown(label_count, rows)
                label_total.index_add_(0, labels, batch)
                label_count += torch.bincount(labels, minlength=len(label_count))
        if count == 0:
            raise ValueError("moments need at least one sample, got none")
        if labeled not in (0, count):
            raise ValueError(f"{labeled} of {count} data came with labels; give all")
        mean = total / count
        variance = (square / count - mean.square()).clamp_min(0).mean()
        result = cls(mean.float(), float(variance), count)
        if labeled:
            seen = (label_count > 0).view(-1, *(1 for _ in shape))
            means = torch.where(seen, label_total / label_count.clamp_min(1).view(seen.shape), mean)
            result = replace(result, label_mean=means.float(), label_count=label_count)
        if not directions:
            return result
        axes, spectrum = (x.float() for x in pca.leading(directions))
        if isinstance(data, Tensor):  # measured anew: what batches dropped made it smaller
            parts = torch.cat([along(part.cpu(), result.mean, axes) for part in data.detach().split(1024)]).double()
            spectrum, order = parts.square().mean(dim=0).sort(descending=True)
            axes, spectrum = axes[order], spectrum.float()
        return replace(result, directions=axes, spectrum=spectrum)

    @classmethod
    def fit_channels(cls, data: Data) -> "Moments":
        """Fit a mean a channel to batches ``[B, C, ...]`` of any size, for ``center="channel"``."""
        count, positions, total, square = 0, 0, torch.zeros(()), torch.zeros(())
        for batch, _ in _batches(data):
            if count and batch.shape[1:2] != total.shape:
                raise ValueError(f"batches differ in channels: {len(total)} and {tuple(batch.shape[1:2])}")
            flat = batch.flatten(2) if batch.ndim > 2 else batch[..., None]
            count, positions = count + len(batch), positions + len(batch) * flat.shape[2]
            total, square = total + flat.sum((0, 2)), square + flat.square().sum((0, 2))
        if count == 0:
            raise ValueError("moments need at least one sample, got none")
        mean = total / positions
        variance = (square / positions - mean.square()).clamp_min(0).mean()
        return cls(mean.float(), float(variance), count)

    @property
    def channel_mean(self) -> Tensor:
        """``[C]``: the mean over everything but the first dimension of a sample."""
        return self.mean if self.mean.ndim < 2 else self.mean.flatten(1).mean(dim=1)

    @property
    def digest(self) -> str:
        """Short hash of the content: 16 hex digits."""
        numbers = f"{tuple(self.mean.shape)}/{self.variance!r}/{self.count}"
        others = {name: value for name, value in self.tensors.items() if name != "mean"}
        return self.hash_content(_bytes(self.mean) + numbers.encode(), others)

    def __repr__(self) -> str:
        return f"Moments(shape={tuple(self.mean.shape)}, count={self.count}, digest={self.digest})"


def _bytes(tensor: Tensor) -> bytes:
    tensor = tensor.cpu().contiguous()
    return ctypes.string_at(tensor.data_ptr(), tensor.nbytes)  # numpy may be missing


def grown(sums: Tensor, rows: int) -> Tensor:
    """``sums`` ``[L, ...]`` with rows of zeros after its own, if it has fewer than ``rows``."""
    missing = rows - len(sums)
    return sums if missing <= 0 else torch.cat([sums, sums.new_zeros(missing, *sums.shape[1:])])


def split_labels(batch: Any, key: str = "label") -> tuple[Tensor, Tensor | None]:
    """Data ``[B, *shape]`` and labels ``[B]``, or the condition ``key``, of one batch; ValueError for bad ones."""
    data, labels = batch if isinstance(batch, (tuple, list)) else (batch, None)
    labels = labels.get(key) if isinstance(labels, dict) else labels
    if not isinstance(data, Tensor) or data.ndim < 2:
        raise ValueError(f"batches must be tensors [B, *shape], or (tensor, labels [B]), got {kind_of(data)}")
    if labels is not None:
        check_labels(labels.cpu() if isinstance(labels, Tensor) else labels, len(data))
    return data, labels


def groups(labels: Tensor | None, samples: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Every label with the indices of its ``samples``, on their device; without labels one group of all."""
    if labels is None:
        yield 0, torch.arange(len(samples), device=samples.device)
    else:
        yield from ((int(label), (labels == label).nonzero()[:, 0]) for label in labels.unique())


def along(data: Tensor, mean: Tensor, directions: Tensor) -> Tensor:
    """``[B, r]`` float32: ``data`` ``[B, *shape]`` less ``mean``, along the directions."""
    rows = (data.float() - mean.to(data.device)).flatten(1)
    return product(rows, directions.to(rows).T)


def with_parts(noise: Tensor, parts: Tensor, directions: Tensor) -> Tensor:
    """``noise`` ``[B, *shape]`` with ``parts`` ``[B, r]`` along ``directions`` ``[r, D]`` instead of its own."""
    dtype = working_dtype(noise.dtype)
    rows, axes = noise.flatten(1).to(dtype), directions.to(noise.device, dtype)
    moved = torch.addmm(rows, parts.to(rows) - product(rows, axes.T), axes, out=torch.empty_like(rows))
    return torch.empty_like(noise).copy_(moved.view(noise.shape))


def _batches(data: Data) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Batches as float64 on the CPU, and their labels."""
    for batch in [data] if isinstance(data, Tensor) else data:
        values, labels = split_labels(batch)
        if not bool(values.isfinite().all()):
            raise ValueError("data are not finite; mend them before fitting moments")
        if len(values):
            yield values.detach().cpu().double(), labels


class IncrementalPCA:
    """The scatter of the rows seen so far, kept to its ``rank`` leading directions.

    Each update joins the kept directions, the new rows and the shift of the mean (Ross et al. 2008) and keeps the
    leading ones: exact while ``rank`` reaches the dimension or the number of rows, else the smallest kept directions
    lose what was dropped; ask for more than you need.
    """

    def __init__(self, rank: int) -> None:
        self.rank, self.count = rank, 0
        self.mean = torch.zeros(0)
        self.rows = torch.zeros(0, 0)

    def update(self, batch: Tensor) -> None:
        """Take up rows ``[B, D]`` float64."""
        count, mean = len(batch), batch.mean(dim=0)
        parts = [batch - mean]
        if self.count:
            weight = (self.count * count / (self.count + count)) ** 0.5
            parts += [self.rows, weight * (mean - self.mean)[None]]
            mean = self.mean + (mean - self.mean) * (count / (self.count + count))
        self.rows = leading_rows(torch.cat(parts), self.rank)
        self.count, self.mean = self.count + count, mean

    def leading(self, count: int) -> tuple[Tensor, Tensor]:
        """Directions ``[r, D]``, orthonormal, and variances along them ``[r]``, descending."""
        length = torch.linalg.vector_norm(self.rows, dim=1)
        kept = length > 1e-7 * length.max().clamp_min(1e-30)
        rows, length = self.rows[kept][:count], length[kept][:count]
        # Once more made orthonormal: rows of very different lengths are so to rounding only.
        basis, _ = torch.linalg.qr((rows / length[:, None]).T)
        return basis.T, length.square() / self.count


def leading_rows(rows: Tensor, rank: int) -> Tensor:
    """``[min(rank, ...), D]``: rows with the leading part of the scatter ``rows.T @ rows``.

    By the smaller of the two Gram matrices; they are singular values times singular vectors.
    """
    if rows.shape[0] <= rows.shape[1]:
        values, vectors = torch.linalg.eigh(rows @ rows.T)
        return (vectors.T @ rows).flip(0)[:rank]
    values, vectors = torch.linalg.eigh(rows.T @ rows)
    return (vectors.T * values.clamp_min(0).sqrt()[:, None]).flip(0)[:rank]
