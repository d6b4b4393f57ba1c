import json

import pytest
import torch

from immiscible_diffusion.metrics import (
    METRICS,
    FeatureStatistics,
    Reference,
    extract,
    frechet_distance,
    make_reference,
    measure,
)
from immiscible_diffusion.metrics.evaluate import _subsample
from immiscible_diffusion.metrics.features.base import PixelFeatures
from immiscible_diffusion.metrics.kid import kernel_distance
from immiscible_diffusion.metrics.prdc import memorization, precision, recall

PIXELS = PixelFeatures((1, 8, 8))


@pytest.fixture(scope="module")
def reference(digits, classifier) -> Reference:
    return make_reference(digits, classifier)


def gaussian_reference(generator, count=600, dim=4):
    real = torch.randn(count, dim, generator=generator)
    return Reference.of(real, "gaussian (4-d)")


def test_floor_lies_between_its_splits_and_follows_the_seed(digits, classifier, reference):
    floor = reference.floor
    assert 0 < floor.low < floor.mean < floor.high
    assert floor.size == 1797 // 2
    assert "898 each" in floor.note
    assert make_reference(digits, classifier).floor == floor
    assert make_reference(digits, classifier, seed=1).floor != floor


def test_floor_of_a_gaussian_equals_that_of_fresh_pairs(generator):
    # Halves of one set are independent draws of 300: so is a pair of fresh sets.
    floor = gaussian_reference(generator).floor
    pairs = torch.randn(50, 2, 300, 4, generator=generator)
    fresh = torch.tensor([frechet_distance(FeatureStatistics.of(a), FeatureStatistics.of(b)) for a, b in pairs])
    assert abs(floor.mean - fresh.mean()) < 4 * fresh.std() / 10**0.5


def test_no_floor_from_too_few_features(digits):
    assert make_reference(digits, PIXELS, limit=128).floor is None
    assert make_reference(digits, PIXELS, limit=130).floor is not None


def test_limit_takes_a_random_subset_by_seed(digits):
    some = make_reference(digits, PIXELS, limit=100)
    assert some.real.shape == (100, 64)
    assert torch.equal(some.real, make_reference(digits, PIXELS, limit=100).real)
    assert not torch.equal(some.real, make_reference(digits, PIXELS, limit=100, seed=1).real)
    whole = make_reference(digits, PIXELS, limit=10_000).real
    assert torch.equal(whole, digits.images.flatten(1))
    assert memorization(some.real, whole) == 0
    with pytest.raises(ValueError, match="limit=1"):
        make_reference(digits, PIXELS, limit=1)


def test_measure_puts_each_metric_in_its_field(generator):
    reference = gaussian_reference(generator)
    samples = torch.randn(700, 4, generator=generator) * 0.8 + 0.2
    quality = measure(samples, reference)
    statistics = FeatureStatistics.of(samples)
    assert quality.frechet == frechet_distance(statistics, reference.statistics)
    kid = kernel_distance(samples, reference.real)
    assert (quality.kid, quality.kid_error) == (kid.mean, kid.standard_error)
    some, real = _subsample(samples, 600, 0, "samples"), reference.subset(600)
    assert quality.precision == precision(some, real, k=3)
    assert quality.recall == recall(some, real, k=3)
    assert quality.memorization == memorization(samples, reference.real)
    assert quality.samples == 700
    assert quality.features == "gaussian (4-d)"
    assert json.loads(json.dumps(quality.as_dict(), allow_nan=False)) == quality.as_dict()


def test_only_what_was_asked_for_is_computed(generator):
    quality = measure(torch.ones(2, 4), gaussian_reference(generator), metrics=["memorization"])
    values = quality.as_dict()
    assert [name for name in METRICS if values[name] is not None] == ["memorization"]


def test_copies_are_perfect_and_memorized(reference):
    quality = measure(reference.real, reference)
    assert quality.frechet == pytest.approx(0, abs=1e-8)
    assert (quality.precision, quality.recall, quality.coverage) == (1, 1, 1)
    assert quality.memorization == 0


def test_worse_images_score_worse(digits, classifier, reference, generator):
    def quality(images):
        return measure(extract(classifier, images.split(512)), reference)

    noise = torch.randn(digits.images.shape, generator=generator)
    slightly, badly = (quality((digits.images + scale * noise).clamp(-1, 1)) for scale in (0.3, 1.0))
    one_class = quality(digits.images[digits.labels == 3])
    assert slightly.frechet < reference.floor.mean * 10 < badly.frechet
    assert slightly.kid < badly.kid
    assert badly.precision < slightly.precision
    assert one_class.precision > 0.7  # among as many real images of all classes
    assert one_class.recall < 0.2


def test_bad_requests_are_named(generator):
    reference = gaussian_reference(generator)
    with pytest.raises(ValueError, match=r"\['fid'\]; options: frechet, kid"):
        measure(reference.real, reference, metrics=["fid"])
    with pytest.raises(ValueError, match="got 3"):
        measure(reference.real[:3], reference, metrics=["frechet"])
    assert measure(reference.real[:3], reference, metrics=["frechet"], allow_few=True).frechet > 0
    with pytest.raises(ValueError, match="diverged"):
        measure(torch.full((9, 4), torch.inf), reference)
    with pytest.raises(ValueError, match="5 and 4"):
        measure(torch.zeros(9, 5), reference)
