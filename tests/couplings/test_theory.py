"""Closed forms of KNN against the published algorithm: draw k noises, keep the nearest."""

import itertools
import math

import mpmath
import numpy as np
import pytest
import torch
from scipy import stats

from immiscible_diffusion import KNN
from immiscible_diffusion.couplings.theory import (
    Distances,
    assignment_budget,
    bessel_ratio,
    information_budget,
    knn_expectation,
)

DRAWS = {2: 100_000, 64: 20_000, 3072: 600}


@pytest.fixture(scope="module", params=[2, 64, 3072], ids="D={}".format)
def dim(request):
    return request.param


@pytest.fixture(scope="module", params=[2, 4, 64], ids="k={}".format)
def brute(request, dim):
    """``k``, and ``[n, 4]``: distance of the nearest and of any noise, pull, mean square."""
    k, generator, kept = request.param, torch.Generator().manual_seed(1), []
    data = 0.7 * torch.ones(dim, dtype=torch.float64)
    for _ in range(DRAWS[dim] // 100):
        noise = torch.randn(100, k, dim, generator=generator).double()
        distance = (noise - data).norm(dim=2)
        near = noise[torch.arange(100), distance.argmin(dim=1)]
        along = near @ data / data.norm()
        rows = [distance.min(dim=1)[0], distance[:, 0], along, near.square().sum(dim=1) / dim]
        kept.append(torch.stack(rows, dim=1))
    return k, torch.cat(kept)


def log_survival_at(distances, points):
    """Between the points of the grid by interpolation."""
    return np.interp(points, distances.grid[0][::2], distances.log_survival)


def assert_mean(values, expected, errors=3):
    standard = float(values.std()) / math.sqrt(len(values))
    assert abs(float(values.mean()) - expected) < errors * standard


def test_pull_variance_and_distance_of_brute_force(dim, brute):
    k, (near, any_one, along, square) = brute[0], brute[1].T
    found = knn_expectation(k, dim, 0.7)
    assert_mean(along, found.pull)
    assert_mean(square, found.second_moment)
    assert_mean(square - found.pull**2 / dim, found.variance)
    assert_mean(near - (1 - found.distance_reduction) * any_one, 0)


def test_budget_is_the_divergence_of_brute_force(dim, brute):
    k, near = brute[0], brute[1][:, 0].numpy()
    if dim < 100:
        log_survival = stats.ncx2.logsf(near**2, dim, 0.49 * dim)
    else:
        log_survival = log_survival_at(Distances(dim, 0.7), near)
    assert_mean(math.log(k) + (k - 1) * log_survival, information_budget(k))


def test_survival_is_that_of_the_noncentral_chi_square():
    for dim, rms in [(1, 0.5), (2, 3.0), (64, 1.0), (1000, 0.3)]:
        square = stats.ncx2.ppf([1e-4, 0.01, 0.3, 0.7, 0.99], dim, rms**2 * dim)
        found = log_survival_at(Distances(dim, rms), np.sqrt(square))
        expected = stats.ncx2.logsf(square, dim, rms**2 * dim)
        assert np.allclose(found, expected, rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("dim", [1, 2, 3, 64, 3072])
def test_bessel_ratio_is_that_of_mpmath(dim):
    for c in (1e-3, 0.5, 3, 50, 1e3, 1e5):
        expected = mpmath.besseli(dim / 2, c) / mpmath.besseli(dim / 2 - 1, c)
        assert math.isclose(bessel_ratio(dim, torch.tensor(c, dtype=torch.float64)), expected, rel_tol=1e-7)


@pytest.mark.parametrize("dim", [1, 2, 7, 64, 3072, 16 * 21 * 60 * 104])
@pytest.mark.parametrize("rms", [0, 0.5, 1, 100])
def test_one_candidate_changes_nothing_and_more_change_more(dim, rms):
    found = [knn_expectation(k, dim, rms) for k in (1, 2, 64, 65_536)]
    assert abs(found[0].pull) < 1e-4
    assert abs(found[0].second_moment - 1) < 1e-4
    assert found[0].distance_reduction == 0
    for less, more in itertools.pairwise(found):
        assert more.pull > less.pull or rms == 0
        assert less.distance_reduction < more.distance_reduction < 1


def test_far_data_pull_as_the_largest_of_k_normal_numbers():
    # Of data far away only the noise along them matters.
    expected = stats.norm.expect(lambda x: 4 * x * stats.norm.cdf(x) ** 3)
    assert math.isclose(knn_expectation(4, 3072, 1000).pull, expected, abs_tol=1e-4)
    # Among many dimensions the distance is normal, and its part along the data 1 / sqrt(1.5).
    assert math.isclose(knn_expectation(4, 2_000_000, 1).pull, expected / 1.5**0.5, abs_tol=1e-3)


def test_many_candidates_agree_with_the_coupling():
    data = torch.ones(2_000, 32, dtype=torch.float64)
    noise = KNN(4096)(data, generator=torch.Generator().manual_seed(2))
    found = knn_expectation(4096, 32, 1)
    assert_mean(noise.sum(dim=1) / math.sqrt(32), found.pull)
    assert_mean(noise.square().mean(dim=1), found.second_moment)


def test_distance_misleads_where_pull_does_not():
    action, image, video = (
        knn_expectation(4, dim, rms) for dim, rms in [(16 * 2, 0.5), (3072, 0.5), (16 * 21 * 60 * 104, 1)]
    )
    assert all(0.57 < one.pull < 0.85 for one in (action, image, video))
    reductions = [one.distance_reduction for one in (action, image, video)]
    assert np.allclose(reductions, [0.13, 0.013, 0.0004], rtol=0.1)
    assert math.isclose(image.second_moment, 0.979, abs_tol=5e-4)


def test_budgets():
    assert [round(information_budget(k), 2) for k in (1, 2, 4, 64)] == [0, 0.19, 0.64, 3.17]
    assert math.isclose(assignment_budget(4), math.log(24) / 4)
    assert assignment_budget(1) == 0


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: knn_expectation(0, 8, 1), "k must be at least 1, got 0"),
        (lambda: knn_expectation(2, 0, 1), "dim must be at least 1"),
        (lambda: knn_expectation(2, 8, -1), "rms must be from 0"),
        (lambda: knn_expectation(2, 8, math.nan), "rms must be from 0"),
        (lambda: information_budget(0), "k must be at least 1"),
        (lambda: assignment_budget(0), "batch must be at least 1"),
    ],
)
def test_bad_arguments_are_named(call, said):
    with pytest.raises(ValueError, match=said):
        call()
