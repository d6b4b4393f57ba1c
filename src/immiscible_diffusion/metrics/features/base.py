"""What a feature extractor is, and the simplest one: pixels."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from immiscible_diffusion.data.base import DataSet


class FeatureExtractor:
    """Maps data [B, *shape] in [-1, 1] to features [B, dim], float32.

    A subclass gives ``name``, ``dim``, ``distance`` and ``__call__``, and whatever else differs
    from the defaults here: as a property, a field of a dataclass or a constant of the class.
    """

    if TYPE_CHECKING:  # dataclasses would take a property of a base class for a field's default

        @property
        def name(self) -> str:
            """Name for reports, with the dimension, such as 'classifier (64-d)'."""

        @property
        def dim(self) -> int:
            """Number of feature dimensions."""

        @property
        def distance(self) -> str:
            """What the Frechet distance of these features is called, such as 'FID'."""

        @property
        def preprocessing(self) -> str:
            """What is done to data before the network, in words."""

    @property
    def identity(self) -> str | None:
        """Name, preprocessing and weights: equal features have equal ones. None: do not cache."""
        return None

    @property
    def accuracy(self) -> float | None:
        """Fraction of held-out images that a classifier labels correctly, None of others."""
        return None

    def __call__(self, data: Tensor) -> Tensor:
        """Features [B, dim] of ``data`` [B, *shape]."""
        raise NotImplementedError


@dataclass(frozen=True)
class PixelFeatures(FeatureExtractor):
    """The values of samples of ``shape``, flattened; exact, and blind to what an image shows."""

    shape: tuple[int, ...]

    distance = "Frechet distance of pixels (not FID)"
    preprocessing = "none"

    @property
    def identity(self) -> str:
        """Pixels of this shape."""
        return f"pixels {self.shape}"

    @property
    def dim(self) -> int:
        """Number of values of one sample."""
        return math.prod(self.shape)

    @property
    def name(self) -> str:
        """Name for reports."""
        return f"pixels ({self.dim}-d)"

    def __call__(self, data: Tensor) -> Tensor:
        """Data [B, *shape] as [B, dim] float32."""
        check_shape(data, self.shape)
        return data.flatten(1).float()


def extract(extractor: FeatureExtractor, batches: Iterable[Tensor]) -> Tensor:
    """Features [N, dim], float32 on the CPU, of batches [B, *shape] in [-1, 1], in order."""
    features = [extractor(data).float().cpu() for data in batches]
    return torch.cat(features) if features else torch.empty(0, extractor.dim)


def data_batches(dataset: DataSet, indices: Tensor, size: int = 512) -> Iterator[Tensor]:
    """The data at ``indices`` [N] in batches, never augmented."""
    for part in indices.split(size):
        yield dataset.batch(part).data


def check_shape(data: Tensor, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless ``data`` is [B, *shape]."""
    if tuple(data.shape[1:]) != shape:
        raise ValueError(f"expected data [B, {', '.join(map(str, shape))}], got {list(data.shape)}")
