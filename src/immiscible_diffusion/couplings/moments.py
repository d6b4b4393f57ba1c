"""Mean and spread of a data set, fitted once before step 0 and saved with the run."""

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from immiscible_diffusion.couplings.incremental_pca import IncrementalPCA
from immiscible_diffusion.utils.atomic_files import atomic_path
from immiscible_diffusion.utils.optional_deps import require_extra

AT_A_TIME = 512  # rows; the directions cost (rank + rows)^2 D each time
Data = Tensor | Iterable[Tensor | tuple[Tensor, Tensor]]
T = TypeVar("T", bound="TensorFields")


class TensorFields:
    """An immutable record some of whose fields are tensors, compared by content."""

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The fields that are tensors."""
        names = [field.name for field in fields(self)]  # type: ignore[arg-type]
        every = {name: getattr(self, name) for name in names}
        return {name: value for name, value in every.items() if isinstance(value, Tensor)}

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

    def _write(self, path: str | os.PathLike[str], **metadata: str) -> None:
        """Write the tensors and ``metadata`` to ``path`` (safetensors), complete or not at all."""
        with require_extra("train", f"saving {type(self).__name__}"):
            from safetensors.torch import save_file
        tensors = {name: value.cpu().contiguous() for name, value in self.tensors.items()}
        with atomic_path(path) as temporary:
            save_file(tensors, str(temporary), metadata)

    @classmethod
    @contextmanager
    def _read(
        cls, path: str | os.PathLike[str], what: str
    ) -> Iterator[tuple[dict[str, Tensor], dict[str, str]]]:
        """Tensors and metadata of ``path``; within, errors of both are a ValueError."""
        with require_extra("train", f"loading {cls.__name__}"):
            from safetensors import SafetensorError, safe_open
        if not Path(path).is_file():
            raise ValueError(f"{path} does not exist; expected {what} saved by {cls.__name__}.save")
        try:
            with safe_open(str(path), framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                yield tensors, file.metadata() or {}
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} does not hold {what} ({error})") from error


@dataclass(frozen=True, eq=False)
class Moments(TensorFields):
    """Means and leading directions of a data set, as the model sees it (encoded, augmented).

    Immutable, compared by content. Ten thousand data are plenty for a mean.

    Attributes:
        mean: ``[*shape]`` float32; ``[C]`` where fitted by ``fit_channels``.
        variance: mean over the dimensions of the variance, > 0 unless all data are equal.
        count: number of data seen.
        label_mean: ``[L, *shape]``, the mean of every label (of one never seen, that of all), or
            None without labels.
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

    @classmethod
    def fit(cls, data: Data, *, directions: int = 64) -> "Moments":
        """Fit to ``data``: a tensor ``[N, *shape]``, or an iterable of batches ``[B, *shape]``.

        A batch may come as ``(data, labels)`` with labels ``[B]``, whole numbers from 0. Sums run
        in float64 on the CPU; nothing is quadratic in D. Directions are exact up to rounding where
        D or N is at most ``2 directions + 64``; beyond, what follows in the spectrum is dropped as
        batches come, and the last directions lean a little.

        Args:
            data: the data, encoded and augmented.
            directions: how many leading directions to keep; 0 = none.

        Raises:
            ValueError: no data, data not finite, batches of different shapes, bad labels, or some
                batches with labels and some without.
        """
        if directions < 0:
            raise ValueError(f"directions must be 0 (none) or more, got {directions}")
        sums = _Sums(2 * directions + 64 if directions else 0)
        for batch, labels in _batches(data):
            sums.add(batch, labels)
        found = sums.moments(directions)
        return found._with_spectrum_of(data) if isinstance(data, Tensor) else found

    def _with_spectrum_of(self, data: Tensor) -> "Moments":
        """Variances along the directions measured anew: what batches dropped made them smaller."""
        if self.directions is None:
            return self
        parts = (part.flatten(1).cpu().float() for part in data.split(1024))
        mean, axes = self.mean.flatten(), self.directions.T
        along = torch.cat([(part - mean) @ axes for part in parts]).double()
        spectrum, order = along.square().mean(dim=0).sort(descending=True)
        return replace(self, directions=self.directions[order], spectrum=spectrum.float())

    @classmethod
    def fit_channels(cls, data: Data) -> "Moments":
        """Fit a mean a channel to batches ``[B, C, ...]`` of any size, for ``center="channel"``."""
        count, positions, total, square = 0, 0, torch.zeros(()), torch.zeros(())
        for batch, _ in _batches(data):
            if count and batch.shape[1:2] != total.shape:
                raise ValueError(
                    f"batches differ in channels: {len(total)} and {tuple(batch.shape[1:2])}"
                )
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
        tensors = self.tensors
        content = hashlib.sha256(_bytes(tensors.pop("mean")))
        content.update(f"{tuple(self.mean.shape)}/{self.variance!r}/{self.count}".encode())
        for name, value in tensors.items():
            content.update(f"{name}/{tuple(value.shape)}".encode() + _bytes(value))
        return content.hexdigest()[:16]

    def __repr__(self) -> str:
        return f"Moments(shape={tuple(self.mean.shape)}, count={self.count}, digest={self.digest})"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to ``path`` (safetensors), complete or not at all."""
        self._write(path, variance=repr(self.variance), count=str(self.count))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Moments":
        """Read what ``save`` wrote; ValueError names a file that is not such a file."""
        with cls._read(path, "moments") as (tensors, metadata):
            mean = tensors.pop("mean")
            return cls(mean, float(metadata["variance"]), int(metadata["count"]), **tensors)


def _bytes(tensor: Tensor) -> bytes:
    return tensor.cpu().contiguous().numpy().tobytes()


def _batches(data: Data) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Batches as float64 on the CPU, and their labels."""
    for batch in [data] if isinstance(data, Tensor) else data:
        values, labels = batch if isinstance(batch, (tuple, list)) else (batch, None)
        if not isinstance(values, Tensor) or values.ndim < 2:
            raise ValueError(
                f"batches must be tensors [B, *shape], or pairs of one and labels [B], got "
                f"{type(values).__name__}"
            )
        if not bool(values.isfinite().all()):
            raise ValueError("data are not finite; mend them before fitting moments")
        if labels is not None:
            check_labels(labels, len(values))
        if len(values):
            yield values.detach().to("cpu", torch.float64), labels


def check_labels(labels: Any, count: int) -> None:
    """Raise ValueError unless ``labels`` are whole numbers ``[count]`` from 0."""
    if not isinstance(labels, Tensor):
        raise ValueError(f"labels must be a tensor [{count}], got {type(labels).__name__}")
    if labels.is_floating_point() or labels.shape != (count,):
        raise ValueError(
            f"labels must be whole numbers [{count}], got {labels.dtype} {tuple(labels.shape)}"
        )
    if count and int(labels.min()) < 0:
        raise ValueError(f"labels must be 0 or more, got {int(labels.min())}")


class _Sums:
    """Sums over the batches of a data set."""

    def __init__(self, rank: int) -> None:
        self.count, self.shape = 0, torch.Size()
        self.total = self.square = self.of_label = torch.zeros(())
        self.label_count = torch.zeros(0, dtype=torch.int64)
        self.labeled = 0
        self.pca = IncrementalPCA(rank) if rank else None

    def add(self, batch: Tensor, labels: Tensor | None) -> None:
        if self.count == 0:
            self.shape = batch.shape[1:]
            self.of_label = torch.zeros(0, *self.shape, dtype=torch.float64)
        if batch.shape[1:] != self.shape:
            raise ValueError(
                f"batches differ in shape: {tuple(self.shape)} and {tuple(batch.shape[1:])}; "
                f"moments are of data of one shape (for many sizes: Moments.fit_channels)"
            )
        self.count += len(batch)
        self.total = self.total + batch.sum(dim=0)
        self.square = self.square + batch.square().sum(dim=0)
        if self.pca is not None:
            for part in batch.flatten(1).split(AT_A_TIME):
                self.pca.update(part)
        if labels is not None:
            self._add_labels(batch, labels.long().cpu())

    def _add_labels(self, batch: Tensor, labels: Tensor) -> None:
        self.labeled += len(labels)
        if (more := int(labels.max()) + 1 - len(self.label_count)) > 0:
            self.label_count = torch.cat([self.label_count, torch.zeros(more, dtype=torch.int64)])
            self.of_label = torch.cat([self.of_label, self.of_label.new_zeros(more, *self.shape)])
        self.of_label.index_add_(0, labels, batch)
        self.label_count += torch.bincount(labels, minlength=len(self.label_count))

    def moments(self, directions: int) -> Moments:
        if self.count == 0:
            raise ValueError("moments need at least one sample, got none")
        mean = self.total / self.count
        variance = (self.square / self.count - mean.square()).clamp_min(0).mean()
        found = Moments(mean.float(), float(variance), self.count)
        if self.pca is not None:
            rows, spectrum = self.pca.leading(directions)
            found = replace(found, directions=rows.float(), spectrum=spectrum.float())
        return found if not self.labeled else replace(found, **self._labels(mean))

    def _labels(self, mean: Tensor) -> dict[str, Any]:
        if self.labeled != self.count:
            raise ValueError(f"{self.labeled} of {self.count} data came with labels; give all")
        seen = (self.label_count > 0).view(-1, *(1 for _ in self.shape))
        counts = self.label_count.clamp_min(1).view(seen.shape)
        means = torch.where(seen, self.of_label / counts, mean)
        return {"label_mean": means.float(), "label_count": self.label_count}
