"""Directions in which a data set has no data, for sampling that does not start there."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from immiscible_diffusion.couplings._validation import check_fitted
from immiscible_diffusion.couplings.moments import DataBatch, TensorFields, split_labels

MAX_DIM = 4096  # all D principal axes of D values are needed
LARGEST_COSINE = 0.01


@dataclass(frozen=True, eq=False)
class EmptyAxes(TensorFields):
    """The principal axes, of either sign, along which no sample of a data set points (2512.18184).

    Attributes:
        shape: shape of a sample.
        axes: ``[m, D]`` of length 1.
    """

    shape: tuple[int, ...]
    axes: Tensor

    description = "empty axes"
    parsers: ClassVar = {"shape": lambda text: tuple(int(size) for size in text.split(","))}

    @classmethod
    def fit(cls, batches: Callable[[], Iterable[DataBatch]]) -> "EmptyAxes":
        """Find the axes whose cosine with every sample of ``batches()``, which is read twice, is at most 0.01.

        They are principal axes of the data divided by their lengths. ValueError for no data, or more than 4096 values
        a sample.
        """
        shape, count = torch.Size(), 0
        total = scatter = torch.zeros(0, dtype=torch.float64)
        for data, _ in map(split_labels, batches()):
            if count == 0:
                shape, dim = data.shape[1:], data[0].numel()
                if dim > MAX_DIM:
                    raise ValueError(
                        f"sampler.prune needs all principal axes, of at most {MAX_DIM} values a sample, got {dim}; "
                        f"leave it out"
                    )
                total, scatter = total.new_zeros(dim), total.new_zeros(dim, dim)
            rows = _directions(data)
            count, total, scatter = count + len(rows), total + rows.sum(dim=0), scatter + rows.T @ rows
        if count == 0:
            raise ValueError("empty axes need at least one sample, got none")
        axes = torch.linalg.eigh(scatter - torch.outer(total, total) / count)[1].T
        axes = torch.cat([axes, -axes])
        largest = torch.full((len(axes),), -1.0, dtype=torch.float64)
        for data, _ in map(split_labels, batches()):
            largest = torch.maximum(largest, (_directions(data) @ axes.T).amax(dim=0))
        return cls(tuple(shape), axes[largest <= LARGEST_COSINE].float())

    def accepts(self, noise: Tensor, threshold: float) -> Tensor:
        """Return ``[B]``: is the cosine of ``noise`` ``[B, *shape]`` with every axis <= ``threshold / sqrt(D)``?"""
        check_fitted("the empty axes were", self.shape, noise.shape[1:], "fit them on data of this shape")
        rows = noise.flatten(1).float()
        limit = threshold / rows.shape[1] ** 0.5 * torch.linalg.vector_norm(rows, dim=1, keepdim=True)
        return (rows @ self.axes.T <= limit).all(dim=1)

    @property
    def digest(self) -> str:
        """Short hash of the content: 16 hex digits."""
        return self.hash_content(str(self.shape).encode(), self.tensors)

    def __repr__(self) -> str:
        return f"EmptyAxes(shape={self.shape}, count={len(self.axes)}, digest={self.digest})"


def _directions(data: Tensor) -> Tensor:
    """``[B, D]``: data divided by their lengths."""
    return normalize(data.flatten(1).cpu().double(), dim=1)
