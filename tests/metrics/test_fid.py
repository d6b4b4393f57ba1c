import numpy as np
import pytest
import scipy.linalg
import torch

from immiscible_diffusion.metrics import FeatureStatistics, frechet_distance

DIM = 6


def gaussian(mean, covariance, count=1000):
    """Statistics that hold exactly this mean and covariance."""
    return FeatureStatistics(count, mean, covariance * (count - 1))


def random_spd(generator):
    root = torch.randn(DIM, DIM, dtype=torch.float64, generator=generator)
    return root @ root.T + 0.1 * torch.eye(DIM, dtype=torch.float64)


def random_gaussian(generator):
    return gaussian(torch.randn(DIM, dtype=torch.float64, generator=generator), random_spd(generator))


def test_commuting_covariances_have_a_closed_form(generator):
    basis = torch.linalg.qr(torch.randn(DIM, DIM, dtype=torch.float64, generator=generator))[0]
    deviation_a, deviation_b = torch.rand(2, DIM, dtype=torch.float64, generator=generator)
    means = torch.randn(2, DIM, dtype=torch.float64, generator=generator)
    a = gaussian(means[0], (basis * deviation_a**2) @ basis.T)
    b = gaussian(means[1], (basis * deviation_b**2) @ basis.T)
    expected = (means[0] - means[1]).square().sum() + (deviation_a - deviation_b).square().sum()
    assert frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-10)


def test_equals_scipy_on_random_covariances(generator):
    for _ in range(5):
        a, b = random_gaussian(generator), random_gaussian(generator)
        root = scipy.linalg.sqrtm((a.covariance @ b.covariance).numpy())
        expected = (a.mean - b.mean).square().sum() + torch.trace(a.covariance + b.covariance)
        assert frechet_distance(a, b) == pytest.approx(float(expected) - 2 * np.trace(root).real, rel=1e-9)


@pytest.mark.parametrize("count", [200, 40])
def test_distance_is_fid_as_the_literature_computes_it(generator, count):
    # numpy.cov of float features and scipy's root of the product, as pytorch-fid and clean-fid do;
    # 40 features of 48 dimensions: both covariances have no full rank, and so has the product.
    a, b = (torch.randn(count, 48, generator=generator).relu() * scale for scale in (0.4, 0.5))
    mean_a, mean_b = (np.mean(s.double().numpy(), axis=0) for s in (a, b))
    cov_a, cov_b = (np.cov(s.double().numpy(), rowvar=False) for s in (a, b))
    root = scipy.linalg.sqrtm(cov_a @ cov_b)
    expected = ((mean_a - mean_b) ** 2).sum() + np.trace(cov_a + cov_b - 2 * root.real)
    mine = frechet_distance(FeatureStatistics.of(a), FeatureStatistics.of(b), allow_few=True)
    assert mine == pytest.approx(expected, rel=1e-8 if count > 48 else 1e-4)


def test_rotation_and_order_do_not_matter(generator):
    a, b = random_gaussian(generator), random_gaussian(generator)
    turn = torch.linalg.qr(torch.randn(DIM, DIM, dtype=torch.float64, generator=generator))[0]
    turned = [gaussian(turn @ s.mean, turn @ s.covariance @ turn.T) for s in (a, b)]
    assert frechet_distance(*turned) == pytest.approx(frechet_distance(a, b), rel=1e-10)
    assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b), rel=1e-10)


def test_equal_sets_are_at_distance_zero_even_where_rank_is_missing(generator):
    flat = torch.randn(50, 3, generator=generator) @ torch.randn(3, 20, generator=generator)
    statistics = FeatureStatistics.of(flat)
    assert frechet_distance(statistics, statistics) == pytest.approx(0, abs=1e-10)


def test_shift_of_the_mean_adds_its_square(generator):
    features = torch.randn(100, DIM, dtype=torch.float64, generator=generator)
    a, b = FeatureStatistics.of(features), FeatureStatistics.of(features + 2)
    assert frechet_distance(a, b) == pytest.approx(4 * DIM, rel=1e-9)


def test_covariance_is_that_of_numpy(generator):
    features = torch.randn(40, DIM, generator=generator) + 1e3
    statistics = FeatureStatistics.of(features)
    expected = np.cov(features.double().numpy(), rowvar=False)
    np.testing.assert_allclose(statistics.covariance, expected, rtol=1e-9, atol=1e-12)


def test_stream_and_merge_equal_one_batch(generator):
    features = torch.randn(103, DIM, dtype=torch.float64, generator=generator) + 100
    whole = FeatureStatistics.of(features)
    stream = FeatureStatistics.empty(DIM)
    for part in features.split(10):
        stream = stream.update(part)
    merged = FeatureStatistics.of(features[:31]).merge(FeatureStatistics.of(features[31:]))
    for other in (stream, merged, whole.update(features[:0])):
        assert other.count == 103
        torch.testing.assert_close(other.mean, whole.mean, rtol=1e-12, atol=0)
        torch.testing.assert_close(other.covariance, whole.covariance, rtol=1e-10, atol=1e-12)


def test_too_few_features_are_an_error_unless_allowed(generator):
    few = FeatureStatistics.of(torch.randn(DIM, DIM, generator=generator))
    enough = FeatureStatistics.of(torch.randn(DIM + 1, DIM, generator=generator))
    with pytest.raises(ValueError, match=r"6-dimensional.*at least 7.*got 6"):
        frechet_distance(few, enough)
    with pytest.raises(ValueError, match="got 6"):
        frechet_distance(enough, few)
    assert frechet_distance(few, enough, allow_few=True) > 0


def test_indefinite_covariance_is_an_error():
    identity = torch.eye(DIM, dtype=torch.float64)
    broken = identity.clone()
    broken[0, 0] = -0.1
    zero = torch.zeros(DIM, dtype=torch.float64)
    with pytest.raises(ValueError, match="semi-definite"):
        frechet_distance(gaussian(zero, broken), gaussian(zero, identity))


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (torch.zeros(4), r"expected features \[B, 6\]"),
        (torch.zeros(4, 5), r"expected features \[B, 6\]"),
        (torch.full((4, 6), torch.nan), "4 of 4 feature rows"),
    ],
)
def test_bad_features_are_named(features, message):
    with pytest.raises(ValueError, match=message):
        FeatureStatistics.empty(6).update(features)


def test_different_dimensions_are_an_error():
    with pytest.raises(ValueError, match="5 and 6"):
        frechet_distance(FeatureStatistics.empty(5), FeatureStatistics.empty(6))
