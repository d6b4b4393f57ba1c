"""Metrics of a model that was fine-tuned on a few images, too few for a Frechet distance."""

from dataclasses import dataclass

import torch
from torch import Tensor

from immiscible_diffusion.metrics.features.base import FeatureExtractor, extract
from immiscible_diffusion.metrics.prdc import memorization


@dataclass(frozen=True)
class FewShotMetrics:
    """Samples beside the images that the model was tuned on."""

    # mean cosine of the features of a sample and of a training image, over all pairs: higher is
    # nearer to the subject (as DreamBooth's image scores, 2208.12242)
    similarity: float
    diversity: float  # 1 - mean cosine over pairs of samples: near 0, all samples are one image
    # distance of a sample to its nearest training image, in units of that of the training images to
    # each other (medians): near 0, copies
    nearest_ratio: float
    mean_drift: float  # root mean square over channels of mean(samples) - mean(training), of [-1, 1]
    # mean over channels of log(deviation of samples / of training): below 0, grayer than the training images
    contrast_drift: float


def few_shot_metrics(extractor: FeatureExtractor, samples: Tensor, real: Tensor) -> FewShotMetrics:
    """Compare ``samples`` with the training images ``real``, ``[B, C, H, W]`` in [-1, 1], at least two of each."""
    if min(len(samples), len(real)) < 2 or samples.shape[1] != real.shape[1]:
        raise ValueError(
            f"expected at least 2 samples and 2 training images of the same channels, got "
            f"{tuple(samples.shape)} and {tuple(real.shape)}"
        )
    f, g = (extract(extractor, data.split(64)).double() for data in (samples, real))
    unit_f, unit_g = (torch.nn.functional.normalize(features, dim=1) for features in (f, g))
    cosines, pairs = unit_f @ unit_f.T, len(f) * (len(f) - 1)
    (mean, std), (real_mean, real_std) = map(_channel_statistics, (samples, real))
    return FewShotMetrics(
        similarity=float((unit_f @ unit_g.T).mean()),
        diversity=float(1 - (cosines.sum() - cosines.trace()) / pairs),
        nearest_ratio=memorization(f, g),
        mean_drift=float((mean - real_mean).square().mean().sqrt()),
        contrast_drift=float((std / real_std).log().mean()),
    )


def _channel_statistics(data: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel, over images and positions."""
    values = data.cpu().double().transpose(0, 1).flatten(1)
    return values.mean(1), values.std(1)
