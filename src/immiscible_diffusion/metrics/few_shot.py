"""Figures for a model tuned on a few pictures, too few for a Frechet distance."""

from dataclasses import dataclass

import torch
from torch import Tensor

from immiscible_diffusion.metrics.features.base import FeatureExtractor, extract
from immiscible_diffusion.metrics.prdc import memorisation

AT_ONCE = 64


@dataclass(frozen=True)
class FewFigures:
    """Samples beside the pictures that the model was tuned on.

    Attributes:
        similarity: mean cosine of the features of a sample and of a training picture, over all
            pairs: higher is nearer to the subject (as DreamBooth's image scores, 2208.12242).
        diversity: 1 - mean cosine over pairs of samples: near 0, all samples are one picture.
        nearest_ratio: distance of a sample to its nearest training picture, in units of that of
            the training pictures to each other (medians): near 0, copies.
        mean_drift: root mean square over channels of mean(samples) - mean(training), of [-1, 1].
        contrast_drift: mean over channels of log(deviation of samples / of training): below 0,
            grayer than the training pictures.
    """

    similarity: float
    diversity: float
    nearest_ratio: float
    mean_drift: float
    contrast_drift: float


def few_figures(extractor: FeatureExtractor, samples: Tensor, real: Tensor) -> FewFigures:
    """The figures of ``samples`` and the training pictures ``real``, ``[B, C, H, W]`` in [-1, 1].

    Raises:
        ValueError: fewer than two samples or two training pictures, or other channels.
    """
    if min(len(samples), len(real)) < 2 or samples.shape[1] != real.shape[1]:
        raise ValueError(
            f"expected at least 2 samples and 2 training pictures of the same channels, got "
            f"{tuple(samples.shape)} and {tuple(real.shape)}"
        )
    made, given = (extract(extractor, data.split(AT_ONCE)).double() for data in (samples, real))
    unit_made, unit_given = (torch.nn.functional.normalize(f, dim=1) for f in (made, given))
    between = unit_made @ unit_made.T
    pairs = len(made) * (len(made) - 1)
    mean, spread = _by_channel(samples)
    real_mean, real_spread = _by_channel(real)
    return FewFigures(
        similarity=float((unit_made @ unit_given.T).mean()),
        diversity=float(1 - (between.sum() - between.trace()) / pairs),
        nearest_ratio=memorisation(made, given),
        mean_drift=float((mean - real_mean).square().mean().sqrt()),
        contrast_drift=float((spread / real_spread).log().mean()),
    )


def _by_channel(data: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel, over pictures and places."""
    values = data.double().transpose(0, 1).flatten(1)
    return values.mean(1), values.std(1)
