"""Figures of a few pictures, where they are known."""

import math

import pytest
import torch

from immiscible_diffusion.metrics.features.base import PixelFeatures
from immiscible_diffusion.metrics.few_shot import few_figures

PIXELS = PixelFeatures((3, 4, 4))


def pictures(count, seed, deviation=0.5):
    generator = torch.Generator().manual_seed(seed)
    return deviation * torch.randn(count, 3, 4, 4, generator=generator)


def test_copies_are_known_for_copies():
    real = pictures(20, 0)
    found = few_figures(PIXELS, real.clone(), real)
    assert found.nearest_ratio == pytest.approx(0, abs=1e-6)
    assert found.mean_drift == pytest.approx(0, abs=1e-7)
    assert found.contrast_drift == pytest.approx(0, abs=1e-7)


def test_one_picture_many_times_is_no_diversity():
    found = few_figures(PIXELS, pictures(1, 1).expand(8, -1, -1, -1), pictures(20, 0))
    assert found.diversity == pytest.approx(0, abs=1e-6)


def test_cosines_by_hand():
    """All pairs, without a picture and itself."""
    samples, real = pictures(5, 1), pictures(4, 2)

    def cosine(a, b):
        return float((a * b).sum() / (a.norm() * b.norm()))

    across = [cosine(a, b) for a in samples for b in real]
    among = [cosine(a, b) for i, a in enumerate(samples) for j, b in enumerate(samples) if i != j]
    found = few_figures(PIXELS, samples, real)
    assert found.similarity == pytest.approx(sum(across) / len(across), abs=1e-5)
    assert found.diversity == pytest.approx(1 - sum(among) / len(among), abs=1e-5)


def test_drifts_of_a_shift_and_a_lost_contrast():
    real = pictures(20, 0)
    shift = torch.tensor([0.3, -0.3, 0.0])[:, None, None]
    found = few_figures(PIXELS, real / 2 + shift, real)
    mean = real.mean((0, 2, 3))
    expected = (shift[:, 0, 0] - mean / 2).square().mean().sqrt()
    assert found.mean_drift == pytest.approx(float(expected), abs=1e-5)
    assert found.contrast_drift == pytest.approx(-math.log(2), abs=1e-5)


def test_too_few_are_refused():
    with pytest.raises(ValueError, match="at least 2 samples and 2 training pictures"):
        few_figures(PIXELS, pictures(1, 0), pictures(5, 0))
