"""Metrics of a few images, where they are known."""

import math

import pytest
import torch

from immiscible_diffusion.metrics.features.base import PixelFeatures
from immiscible_diffusion.metrics.few_shot import few_shot_metrics

PIXELS = PixelFeatures((3, 4, 4))


def pictures(count, seed, deviation=0.5):
    generator = torch.Generator().manual_seed(seed)
    return deviation * torch.randn(count, 3, 4, 4, generator=generator)


def test_copies_have_no_distance_and_no_drift():
    real = pictures(20, 0)
    result = few_shot_metrics(PIXELS, real.clone(), real)
    assert result.nearest_ratio == pytest.approx(0, abs=1e-6)
    assert result.mean_drift == pytest.approx(0, abs=1e-7)
    assert result.contrast_drift == pytest.approx(0, abs=1e-7)


def test_one_image_many_times_is_no_diversity():
    result = few_shot_metrics(PIXELS, pictures(1, 1).expand(8, -1, -1, -1), pictures(20, 0))
    assert result.diversity == pytest.approx(0, abs=1e-6)


def test_cosines_by_hand():
    """All pairs, without a picture and itself."""
    samples, real = pictures(5, 1), pictures(4, 2)

    def cosine(a, b):
        return float((a * b).sum() / (a.norm() * b.norm()))

    across = [cosine(a, b) for a in samples for b in real]
    among = [cosine(a, b) for i, a in enumerate(samples) for j, b in enumerate(samples) if i != j]
    result = few_shot_metrics(PIXELS, samples, real)
    assert result.similarity == pytest.approx(sum(across) / len(across), abs=1e-5)
    assert result.diversity == pytest.approx(1 - sum(among) / len(among), abs=1e-5)


def test_drifts_of_a_shift_and_a_lost_contrast():
    real = pictures(20, 0)
    shift = torch.tensor([0.3, -0.3, 0.0])[:, None, None]
    result = few_shot_metrics(PIXELS, real / 2 + shift, real)
    mean = real.mean((0, 2, 3))
    expected = (shift[:, 0, 0] - mean / 2).square().mean().sqrt()
    assert result.mean_drift == pytest.approx(float(expected), abs=1e-5)
    assert result.contrast_drift == pytest.approx(-math.log(2), abs=1e-5)


def test_too_few_are_refused():
    with pytest.raises(ValueError, match="at least 2 samples and 2 training images"):
        few_shot_metrics(PIXELS, pictures(1, 0), pictures(5, 0))
