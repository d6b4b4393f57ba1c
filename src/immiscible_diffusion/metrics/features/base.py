"""What turns images into the features that metrics compare."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from immiscible_diffusion.data.base import DataSet
from immiscible_diffusion.metrics.features.classifier import (
    FEATURES,
    Classifier,
    trained_classifier,
)
from immiscible_diffusion.metrics.features.preprocess import in_full_precision, weights_digest
from immiscible_diffusion.metrics.features.pretrained import PRETRAINED


class FeatureExtractor(Protocol):
    """Maps data [B, *shape] in [-1, 1] to features [B, dim], float32."""

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
        """What is done to data before the network sees them, in words."""

    @property
    def identity(self) -> str | None:
        """Equal for equal features: name, preprocessing, weights. None: keep no statistics."""

    def __call__(self, data: Tensor) -> Tensor:
        """Features of ``data``."""


@dataclass(frozen=True)
class PixelFeatures:
    """The values themselves, flattened; exact, and blind to what the picture shows.

    Args:
        shape: shape of one sample.
    """

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
        _check_shape(data, self.shape)
        return data.flatten(1).float()


@dataclass(frozen=True, eq=False)
class ClassifierFeatures:
    """The penultimate layer of a small network trained on the set's own labels.

    Over its training data every feature has mean 0 and variance about 1, so distances have the
    same scale for every set and seed. Figures are comparable only for one set and one seed: the
    features are not Inception's.

    Attributes:
        network: the classifier, in evaluation mode.
        shape: shape of one sample.
        accuracy: share of held-out images that it labels correctly.
    """

    network: Classifier
    shape: tuple[int, ...]
    accuracy: float

    dim = FEATURES
    name = f"classifier ({FEATURES}-d)"
    distance = "Frechet distance in features of the set's own classifier (not FID)"
    preprocessing = "none"

    @cached_property
    def identity(self) -> str:
        """Name and a hash of the weights, which follow data and seed."""
        return f"{self.name} / weights {weights_digest(self.network)}"

    @classmethod
    def of(
        cls,
        dataset: DataSet,
        *,
        seed: int = 0,
        device: torch.device | str = "cpu",
        cache: Path | None = None,
    ) -> "ClassifierFeatures":
        """Train the classifier of ``dataset``, or read it from the cache.

        The cache is used if the data set has a ``digest``. On the CPU the weights are a function
        of data and seed. The caller's random state and thread count stay as they were.

        Args:
            dataset: images [C, H, W] of at least 8 x 8 with labels; 1 in 5, at most 5,000, is
                held out of training for the accuracy.
            seed: initial weights, order and split.
            device: where to train and to run.
            cache: folder of trained classifiers; by default $IMMISCIBLE_CACHE or
                ~/.cache/immiscible-diffusion.

        Raises:
            ValueError: on a set without labels, or data that are not such images.
        """
        _check_labeled_images(dataset)
        network, accuracy = trained_classifier(dataset, seed=seed, device=device, cache=cache)
        return cls(network, tuple(dataset.shape), accuracy)

    @torch.no_grad()
    def __call__(self, data: Tensor) -> Tensor:
        """Features [B, 64] float32 of data [B, C, H, W], on the network's device."""
        _check_shape(data, self.shape)
        device = next(self.network.parameters()).device
        with in_full_precision(device):
            return self.network.features(data.to(device, torch.float32))


EXTRACTORS = ("classifier", "pixels", "efficientnet", "inception", "dinov2")


def extractor_from_name(
    name: str,
    dataset: DataSet,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    cache: Path | None = None,
) -> FeatureExtractor:
    """The extractor of a name of :data:`EXTRACTORS` for a data set.

    ``classifier`` (:class:`ClassifierFeatures`), ``pixels`` (:class:`PixelFeatures`), or a
    pretrained network: ``efficientnet``, ``inception`` (FID) or ``dinov2`` (FD-DINOv2).

    Raises:
        ValueError: on another name, where the data set does not suit the extractor, or where the
            weights of a pretrained network are not there.
        MissingDependencyError: the packages of a pretrained network are not installed.
    """
    if name == "classifier":
        return ClassifierFeatures.of(dataset, seed=seed, device=device, cache=cache)
    if name == "pixels":
        return PixelFeatures(tuple(dataset.shape))
    if name not in PRETRAINED:
        raise ValueError(f"unknown features {name!r}; options: {', '.join(EXTRACTORS)}")
    _check_pictures(name, dataset)
    return PRETRAINED[name](device)


def extract(extractor: FeatureExtractor, batches: Iterable[Tensor]) -> Tensor:
    """Features [N, dim], float32 on the CPU, of batches [B, *shape] in [-1, 1], in order."""
    features = [extractor(data).float().cpu() for data in batches]
    return torch.cat(features) if features else torch.empty(0, extractor.dim)


def data_batches(dataset: DataSet, indices: Tensor, size: int = 512) -> Iterator[Tensor]:
    """The data at ``indices`` [N] in batches, never augmented."""
    for part in indices.split(size):
        yield dataset.batch(part).data


def _check_shape(data: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(data.shape[1:]) != shape:
        raise ValueError(f"expected data [B, {', '.join(map(str, shape))}], got {list(data.shape)}")


def _check_labeled_images(dataset: DataSet) -> None:
    shape = tuple(dataset.shape)
    if len(shape) != 3 or min(shape[1:]) < 8:
        raise ValueError(
            f"classifier features need images [C, H, W] of at least 8 x 8, got {list(shape)}; "
            "use the features 'pixels'"
        )
    if dataset.num_classes is None:
        raise ValueError(
            f"classifier features need labels, and the data set {dataset.name!r} has none; "
            "use the features 'pixels'"
        )
    if dataset.num_classes < 2 or len(dataset) < 10:
        raise ValueError(
            "classifier features need at least 2 classes and 10 images, got "
            f"{dataset.num_classes} and {len(dataset)}; use the features 'pixels'"
        )


def _check_pictures(name: str, dataset: DataSet) -> None:
    shape = tuple(dataset.shape)
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise ValueError(
            f"{name} features need images [1 or 3, H, W], got {list(shape)}; "
            "use the features 'pixels'"
        )
