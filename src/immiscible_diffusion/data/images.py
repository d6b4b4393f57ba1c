"""Images as data sets: held in memory as bytes, or decoded row by row."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from immiscible_diffusion.data.base import DataSet
from immiscible_diffusion.utils.batch import Batch


def to_batch(
    images: Tensor, labels: Tensor | None, levels: int, flips: Tensor | None = None, index: Tensor | None = None
) -> Batch:
    """Bytes ``[B, C, H, W]`` in 0 ... levels to a batch in [-1, 1]; rows in ``flips`` mirrored."""
    if flips is not None:
        images = torch.where(flips.view(-1, 1, 1, 1), images.flip(-1), images)
    data = images.float().mul_(2 / levels).sub_(1)  # in place: half the time
    return Batch(data, None if labels is None else {"label": labels}, index=index)


def draw_flips(count: int, flip: bool, generator: torch.Generator | None) -> Tensor | None:
    """Which of ``count`` rows to mirror, each with probability 1/2; None where none is."""
    if not flip or generator is None:
        return None
    return torch.rand(count, generator=generator) < 0.5


class MirroredSet(DataSet):
    """Samples that training mirrors if ``flip`` is set: sample ``N + i`` is the mirror image of sample i."""

    flip: bool

    @property
    def index_count(self) -> int:
        """Twice as many as there are, where training mirrors them."""
        return len(self) * (1 + self.flip)

    def mirrored(self, indices: Tensor, generator: torch.Generator | None) -> Tensor:
        """``indices`` ``[B]``, some of them those of mirror images if there is a generator."""
        flips = draw_flips(len(indices), self.flip, generator)
        return indices if flips is None else indices + len(self) * flips

    def batch(self, indices: Tensor, generator: torch.Generator | None = None) -> Batch:
        """The images at ``indices`` ``[B]`` in [-1, 1]; mirrored iff a generator is given."""
        return self.indexed(self.mirrored(indices, generator))


@dataclass(frozen=True, eq=False)
class ImageSet(MirroredSet):
    """Images in memory."""

    images: Tensor  # ``[N, C, H, W]`` uint8
    name: str  # for reports
    labels: Tensor | None = None  # ``[N]`` int64 from 0, or None
    levels: int = 255  # the byte that maps to +1; 0 maps to -1
    note: str = ""  # what every figure made of it must say
    class_names: tuple[str, ...] | None = None  # one per class, or None
    flip: bool = False  # mirror left and right at random when training

    def __post_init__(self) -> None:
        def require(condition: bool, message: str) -> None:
            if not condition:
                raise ValueError(f"{self.name}: {message}")

        images, labels = self.images, self.labels
        fine = images.dtype == torch.uint8 and images.ndim == 4 and images.numel() > 0
        kind = f"{images.dtype} {tuple(images.shape)}"
        require(fine, f"images must be uint8 [N, C, H, W] with N >= 1, got {kind}")
        require(int(images.max()) <= self.levels, f"a byte is above levels = {self.levels}")
        if labels is None:
            return
        fine = labels.dtype == torch.int64 and labels.shape == images.shape[:1]
        kind = f"{labels.dtype} {tuple(labels.shape)}"
        require(fine, f"labels must be int64 [{len(images)}], got {kind}")
        low, high, classes = int(labels.min()), int(labels.max()), self.num_classes or 0
        span = f"labels run from {low} to {high}; expected 0 to {classes - 1}"
        require(low >= 0 and high < classes, span)

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W)."""
        return tuple(self.images.shape[1:])

    @cached_property
    def digest(self) -> str:
        """Hash of the content."""
        content = hashlib.sha256(f"{self.shape}/{self.levels}".encode())
        content.update(self.images.contiguous().numpy().data)  # no copy: it may be gigabytes
        if self.labels is not None:
            content.update(self.labels.contiguous().numpy().data)
        return content.hexdigest()

    def __len__(self) -> int:
        return len(self.images)

    def indexed(self, index: Tensor) -> Batch:
        """The images, mirrored from N on."""
        rows, flips = index % len(self), index >= len(self) if self.flip else None
        labels = None if self.labels is None else self.labels[rows]
        return to_batch(self.images[rows], labels, self.levels, flips, index)


@dataclass(frozen=True, eq=False)
class LazyImageSet(MirroredSet):
    """Images too many to hold: decoded when a batch asks for them."""

    rows: Any  # an addressable ``datasets.Dataset``
    column: str  # of the images
    decode: Callable[[dict[str, Any]], Tensor] = field(repr=False)  # a cell of that column to ``[C, H, W]`` uint8
    shape: tuple[int, ...]  # (C, H, W)
    name: str  # for reports
    label: str | None = None  # column of the labels, or None
    note: str = ""  # what every figure made of it must say
    class_names: tuple[str, ...] | None = None  # one per class, or None
    flip: bool = False  # mirror left and right at random when training

    @cached_property
    def labels(self) -> Tensor | None:
        """``[N]`` int64, or None; no image is decoded."""
        return None if self.label is None else torch.as_tensor(self.rows[self.label][:])

    @property
    def digest(self) -> str:
        """Hash of where the rows come from and how they are decoded."""
        return hashlib.sha256(
            f"{self.rows._fingerprint}/{len(self.rows)}/{self.shape}/{self.label}".encode()
        ).hexdigest()

    def __len__(self) -> int:
        return len(self.rows)

    def row(self, number: int) -> dict[str, Any]:
        """The row of an image, which errors name by its file, or else by its number."""
        row = self.rows[number]
        path = row[self.column]["path"] or f"image {number} of {self.name}"
        return {**row, self.column: {**row[self.column], "path": path}}

    def indexed(self, index: Tensor) -> Batch:
        """The images, mirrored from N on."""
        flips = index >= len(self) if self.flip else None
        rows = [self.row(number) for number in (index % len(self)).tolist()]
        images = torch.stack([self.decode(row[self.column]) for row in rows])
        labels = None if self.label is None else torch.tensor([row[self.label] for row in rows])
        return to_batch(images, labels, 255, flips, index)
