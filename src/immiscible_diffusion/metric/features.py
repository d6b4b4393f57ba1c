"""What turns images into the features that metrics compare."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from immiscible_diffusion.data.batch import DataSet
from immiscible_diffusion.metric.classifier import FEATURES, Classifier, trained_classifier


class FeatureExtractor(Protocol):
    """Maps data [B, *shape] in [-1, 1] to features [B, dim], float32."""

    @property
    def name(self) -> str:
        """Name for reports, with the dimension, such as 'classifier (64-d)'."""

    @property
    def dim(self) -> int:
        """Number of feature dimensions."""

    def __call__(self, data: Tensor) -> Tensor:
        """Features of ``data``."""


@dataclass(frozen=True)
class PixelFeatures:
    """The values themselves, flattened; exact, and blind to what the picture shows.

    Args:
        shape: shape of one datum.
    """

    shape: tuple[int, ...]

    @property
    def dim(self) -> int:
        """Number of values of one datum."""
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
        shape: shape of one datum.
        accuracy: share of held-out images that it labels correctly.
    """

    network: Classifier
    shape: tuple[int, ...]
    accuracy: float

    dim = FEATURES
    name = f"classifier ({FEATURES}-d)"

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
        _check_labelled_images(dataset)
        network, accuracy = trained_classifier(dataset, seed=seed, device=device, cache=cache)
        return cls(network, tuple(dataset.shape), accuracy)

    @torch.no_grad()
    def __call__(self, data: Tensor) -> Tensor:
        """Features [B, 64] float32 of data [B, C, H, W], on the network's device."""
        _check_shape(data, self.shape)
        device = next(self.network.parameters()).device
        with torch.autocast(device.type, enabled=False):
            return self.network.features(data.to(device, torch.float32))


EXTRACTORS = ("classifier", "pixels")


def extractor_from_name(
    name: str,
    dataset: DataSet,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    cache: Path | None = None,
) -> FeatureExtractor:
    """The extractor ``classifier`` (:class:`ClassifierFeatures`) or ``pixels`` for a data set.

    Raises:
        ValueError: on another name, or where the data set does not suit the extractor.
    """
    if name == "classifier":
        return ClassifierFeatures.of(dataset, seed=seed, device=device, cache=cache)
    if name == "pixels":
        return PixelFeatures(tuple(dataset.shape))
    raise ValueError(f"unknown features {name!r}; options: {', '.join(EXTRACTORS)}")


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


def _check_labelled_images(dataset: DataSet) -> None:
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
