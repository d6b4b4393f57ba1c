"""Figures of other counts are not compared: equal counts, a floor scaled to what is measured."""

import pytest
import torch

from immiscible_diffusion.metrics import Floor, Reference, frechet_distance, measure
from immiscible_diffusion.metrics.features.preprocess import in_full_precision
from immiscible_diffusion.metrics.fid import FeatureStatistics


def gaussian(count, seed, dim=8):
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


def test_the_scaled_floor_is_what_samples_of_the_same_distribution_score():
    """The mean over fresh sets lies at the floor scaled to their counts, not at that of halves."""
    reference = Reference.of(gaussian(1800, 0), "made")
    found = [
        frechet_distance(FeatureStatistics.of(gaussian(500, seed)), reference.statistics) for seed in range(1, 41)
    ]
    mean = sum(found) / len(found)
    floor = reference.floor
    scaled = floor.at(500, 1800)
    assert scaled.mean == pytest.approx(mean, rel=0.2)
    assert scaled.mean == pytest.approx(floor.mean * (1 / 500 + 1 / 1800) / (2 / 900))
    assert scaled.low < mean < scaled.high
    assert "500 samples" in scaled.note
    with pytest.raises(ValueError, match="scaled to"):
        scaled.at(10, 10)
    assert Floor(1.0, 0.5, 2.0, 10).counts is None


def test_neighbors_are_counted_among_as_many_samples_as_real():
    """A perfect generator covers alike whatever the numbers: 1 - 2^-5 of the balls, about."""
    reference = Reference.of(gaussian(3000, 0), "made")
    names = ("precision", "recall", "density", "coverage")
    few, many = (measure(gaussian(count, 9), reference, metrics=names) for count in (400, 3000))
    assert few.coverage == pytest.approx(1 - 2**-5, abs=0.03)
    assert many.coverage == pytest.approx(1 - 2**-5, abs=0.03)
    assert few.density == pytest.approx(1, abs=0.15)
    assert abs(few.precision - few.recall) < 0.06  # neither side is favored


def test_features_are_made_with_cudnn_in_float32():
    with in_full_precision(torch.device("cpu")):
        assert torch.backends.cudnn.enabled
        assert not torch.backends.cudnn.allow_tf32
        assert not torch.backends.cuda.matmul.allow_tf32
