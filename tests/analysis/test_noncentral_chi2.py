"""(k - 1) log survival against its definition, summed in logarithms, and mpmath far out."""

import math

import mpmath
import numpy as np
import pytest
import torch
from scipy import special, stats

from immiscible_diffusion.analysis.noncentral_chi2 import log_survival

DIMS = [1, 2, 3, 5, 8, 15, 16, 17, 32, 64, 1000, 3072, 300_000]
SHARES = [0, 0.01, 0.1, 1, 3, 10]  # non-centrality over dimension
SCORES = np.concatenate([np.linspace(-8, 12, 41), np.linspace(-0.06, 0.06, 13), [16, 20, 25, 30]])


def defined(square, dim, shift):
    """The Poisson mixture of central laws, by definition; every term is positive."""
    mean = shift / 2
    reach = 40 * math.sqrt(mean) + 400
    j = np.arange(max(0, math.floor(mean - reach)), mean + reach) if mean else np.zeros(1)
    log_weight = special.xlogy(j, mean) - mean - special.gammaln(j + 1)
    left = square < dim + shift
    central = special.gammainc if left else special.gammaincc
    with np.errstate(divide="ignore"):
        total = special.logsumexp(log_weight + np.log(central(dim / 2 + j, square / 2)))
    return math.log1p(-math.exp(total)) if left else total


def grid(dim, shift, scores=SCORES):
    square = dim + shift + scores * math.sqrt(2 * dim + 4 * shift)
    return square[square >= 0]


def within_bar(found, true):
    """max(1e-3, 1e-3 |value|) on (k - 1) x log survival, for k up to 65,536."""
    for k in (2, 4, 64, 1024, 65_536):
        error = (k - 1) * np.abs(found - true)
        assert (error <= np.maximum(1e-3, 1e-3 * (k - 1) * np.abs(true))).all()


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("share", SHARES)
def test_against_the_definition(dim, share):
    square = grid(dim, share * dim, SCORES if dim < 3000 else SCORES[::3])
    true = np.array([defined(q, dim, share * dim) for q in square])
    found = log_survival(torch.tensor(square), dim, share * dim).numpy()
    assert np.isfinite(found).all()
    known = np.isfinite(true)  # beyond 30 deviations the reference itself may underflow
    assert known.mean() > 0.9
    within_bar(found[known], true[known])


@pytest.mark.parametrize("shift", [50, 99, 101, 300, 1e4])
@pytest.mark.parametrize("dim", [1, 2, 7])
def test_few_dimensions_and_long_data(dim, shift):
    square = grid(dim, shift)
    true = np.array([defined(q, dim, shift) for q in square])
    found = log_survival(torch.tensor(square), dim, shift).numpy()
    within_bar(found[np.isfinite(true)], true[np.isfinite(true)])


@pytest.mark.parametrize("dim", [1, 4, 16, 3072])
def test_scipys_own(dim):
    square = grid(dim, 0.3 * dim, np.linspace(-4, 6, 41))
    true = stats.ncx2.logsf(square, dim, 0.3 * dim)
    found = log_survival(torch.tensor(square), dim, 0.3 * dim).numpy()
    within_bar(found, true)


@pytest.mark.parametrize(("square", "dim"), [(2e3, 1), (5e3, 7), (1e4, 64), (2e4, 3072), (4e5, 3e5)])
def test_deeper_than_float64(square, dim):
    with mpmath.workdps(40):
        true = float(mpmath.log(mpmath.gammainc(dim / 2, square / 2, regularized=True)))
    assert true < -745
    within_bar(np.array([float(log_survival(torch.tensor(square), dim, 0.0))]), np.array([true]))


@pytest.mark.parametrize("shift", [0, 0.5, 30, 1e3])
def test_one_dimension_is_two_normal_tails(shift):
    root, length = np.linspace(0, 40, 200), math.sqrt(shift)
    true = np.logaddexp(special.log_ndtr(length - root), special.log_ndtr(-length - root))
    within_bar(log_survival(torch.tensor(root**2), 1, shift).numpy(), true)


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("share", SHARES)
def test_falls_and_is_never_nan(dim, share):
    square = torch.tensor(grid(dim, share * dim, np.linspace(-9, 40, 5001)))
    found = log_survival(square, dim, share * dim)
    assert (found <= 0).all()
    assert (found.diff() <= 1e-12 * found[1:].abs() + 1e-15).all()


def test_extremes():
    square = torch.tensor([-1e-9, 0, 1e-300, 1e-20, 1e10, 1e50, 1e300, math.inf], dtype=torch.float64)
    for dim, shift in [(1, 0), (1, 10), (1, 1e4), (16, 0), (3072, 0), (3072, 700), (3e5, 3e6)]:
        found = log_survival(square, dim, shift)
        assert found.isfinite().all()
        assert (found[:4] > -1e-9).all()
        assert (found[4:] < -1e9).all()


def test_broadcasts_and_mixes_dimensions():
    square = torch.rand(7, 300) * 100
    dim = torch.tensor([1.0, 3.0, 15.0, 16.0, 40.0, 64.0, 3072.0])[:, None]
    shift = torch.rand(300) * 60
    found = log_survival(square, dim, shift)
    assert found.shape == (7, 300)
    for i, j in [(0, 0), (2, 17), (3, 100), (6, 299)]:
        alone = log_survival(square[i, j], float(dim[i, 0]), shift[j])
        torch.testing.assert_close(found[i, j], alone)
    big = torch.rand(3, 40_000) * 100
    rows = torch.stack([log_survival(row, 20, 5.0) for row in big])
    assert torch.equal(log_survival(big, 20, 5.0), rows)
    assert log_survival(torch.empty(0, 4), 3, 1.0).shape == (0, 4)
