"""Feature spaces that images are compared in, by name."""

from pathlib import Path

import torch

from immiscible_diffusion.data.base import DataSet
from immiscible_diffusion.metrics.features.base import FeatureExtractor, PixelFeatures
from immiscible_diffusion.metrics.features.classifier import ClassifierFeatures
from immiscible_diffusion.metrics.features.pretrained import dinov2_features, efficientnet_features, inception_features

_PRETRAINED = {"efficientnet": efficientnet_features, "inception": inception_features, "dinov2": dinov2_features}
EXTRACTORS = ("classifier", "pixels", *_PRETRAINED)


def extractor_from_name(
    name: str, dataset: DataSet, *, seed: int = 0, device: torch.device | str = "cpu", cache: Path | None = None
) -> FeatureExtractor:
    """The extractor of a name of :data:`EXTRACTORS` for a data set.

    ``classifier`` (:class:`ClassifierFeatures`), ``pixels`` (:class:`PixelFeatures`), or a
    pretrained network: ``efficientnet``, ``inception`` (FID) or ``dinov2`` (FD-DINOv2).

    Raises:
        ValueError: on another name, where the data set does not suit the extractor, or where the
            weights of a pretrained network are not there.
        MissingDependencyError: the packages of a pretrained network are not installed.
    """
    shape = tuple(dataset.shape)
    if name == "classifier":
        return ClassifierFeatures.of(dataset, seed=seed, device=device, cache=cache)
    if name == "pixels":
        return PixelFeatures(shape)
    if name not in _PRETRAINED:
        raise ValueError(f"unknown features {name!r}; options: {', '.join(EXTRACTORS)}")
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise ValueError(f"{name} features need images [1 or 3, H, W], got {list(shape)}; use the features 'pixels'")
    return _PRETRAINED[name](device)
