"""Gaussian transport is the entropic plan, and keeps two moments."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from immiscible_diffusion import Moments
from immiscible_diffusion.couplings import GaussianOT
from immiscible_diffusion.couplings.testing import check_coupling
from immiscible_diffusion.data import DataConfig, load_images


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def one_direction(s):
    """Moments of data on a line, of standard deviation ``s``."""
    return Moments(torch.zeros(1), s**2, 10, directions=torch.ones(1, 1), spectrum=torch.tensor([s**2]))


def sinkhorn_correlation(s, eps, points=161, width=5.5):
    """Correlation under the entropic plan between N(0, s^2) and N(0, 1), on a grid."""
    x, n = (np.linspace(-width, width, points) * scale for scale in (s, 1))
    a, b = np.exp(-((x / s) ** 2) / 2), np.exp(-(n**2) / 2)
    a, b = a / a.sum(), b / b.sum()
    kernel = np.exp(2 * x[:, None] * n[None] / eps)  # the squares go into the two factors
    v = np.ones(points)
    for _ in range(200):
        u = a / (kernel @ v)
        v = b / (kernel.T @ u)
    plan = u[:, None] * kernel * v[None]
    return float((plan * x[:, None] * n[None]).sum()) / s


@pytest.mark.parametrize(("s", "eps"), [(0.5, 1.0), (1.0, 4.0), (3.0, 4.0), (0.2, 0.5)])
def test_correlation_is_that_of_sinkhorn(s, eps):
    rho = float(GaussianOT(one_direction(s), eps=eps).correlation)
    assert rho == pytest.approx(sinkhorn_correlation(s, eps), abs=1e-4)
    c = (math.sqrt(eps**2 + 16 * s**2) - eps) / 4  # the covariance of the plan
    assert rho == pytest.approx(c / s, rel=1e-5)


def test_gain_is_stable_where_data_have_no_spread():
    for s in (0.0, 1e-8, 1e-3):
        transport = GaussianOT(one_direction(s), eps=4.0)
        assert float(transport.gain) == pytest.approx(4 / (math.sqrt(16 + 16 * s**2) + 4))
        assert bool(transport(torch.ones(3, 1)).isfinite().all())


@pytest.mark.parametrize("eps", [0.1, 1.0, 4.0, 100.0])
def test_gaussian_data_get_the_plan_itself(eps):
    spread = torch.tensor([2.0, 1.0, 0.3])
    data = torch.randn(100_000, 3, generator=seeded(1)) * spread + torch.tensor([1.0, -2.0, 3.0])
    moments = Moments.fit(data)
    transport = GaussianOT(moments, eps=eps)
    noise = transport(data, generator=seeded(2))
    for column in noise.T:
        assert stats.kstest(column.numpy(), "norm").pvalue > 1e-4
    along = (data - moments.mean) @ moments.directions.T / moments.spectrum.sqrt()
    correlation = (along * (noise @ moments.directions.T)).mean(dim=0)
    assert torch.allclose(correlation, transport.correlation, atol=4 / 100_000**0.5)


@pytest.mark.parametrize("name", ["digits", "cifar10"])
def test_mean_zero_and_covariance_one_on_images(name, request):
    path = None if name == "digits" else str(request.getfixturevalue("shared_data") / name)
    dataset = load_images(DataConfig(name, path=path, max_samples=6000))
    data = dataset.batch(torch.arange(len(dataset))).data
    moments = Moments.fit(data)
    transport = GaussianOT(moments, eps=1.0)
    noise = transport(data, generator=seeded(3)).flatten(1).double()
    along = noise @ moments.directions[:32].double().T
    error = 1 / len(data) ** 0.5
    # On the data it was fitted to, what comes from the data has its moments exactly: errors are
    # those of the fresh part, at most as large as of N(0, I) (kurtosis apart, which is small here).
    assert float(along.mean(dim=0).abs().max()) < 4.5 * error
    covariance = torch.cov(along.T) - torch.eye(32)
    assert float(covariance.diagonal().abs().max()) < 4.5 * math.sqrt(2) * error
    assert float((covariance - covariance.diagonal().diag()).abs().max()) < 4.8 * error
    rows = (data - moments.mean).flatten(1).double()
    leaning = (noise * rows).sum(dim=1) / rows.norm(dim=1)
    assert float(leaning.mean()) > 0.3


def test_kurtosis_is_that_of_the_noise_and_grows_as_eps_falls():
    data = torch.rand(50_000, 2, generator=seeded(4)) * torch.tensor([8.0, 1.0])  # flat: -1.2
    moments, found = Moments.fit(data), []
    for eps in (16.0, 1.0, 0.01):
        transport = GaussianOT(moments, eps=eps)
        noise = transport(data, generator=seeded(5)) @ moments.directions.T
        measured = stats.kurtosis(noise.numpy(), axis=0)
        assert np.allclose(transport.kurtosis(data).numpy(), measured, atol=0.1)
        found.append(float(transport.kurtosis(data)[0]))
    assert found[0] > found[1] > found[2]
    assert found[2] == pytest.approx(-1.2, abs=0.05)


def test_outside_the_rank_noise_is_left_alone():
    data = torch.randn(500, 6, generator=seeded(6)) * torch.tensor([3.0, 2, 1, 1, 1, 1])
    moments, noise = Moments.fit(data), torch.randn(500, 6, generator=seeded(7))
    paired = GaussianOT(moments, rank=2).pair(data, noise)
    across = moments.directions[2:]
    assert torch.allclose(paired @ across.T, noise @ across.T, atol=1e-5)
    assert not torch.allclose(paired, noise, atol=0.1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda m: GaussianOT(m, eps=0.0), "eps must be above 0"),
        (lambda m: GaussianOT(m, eps=float("nan")), "eps must be above 0"),
        (lambda m: GaussianOT(m, eps="4"), "eps must be a number above 0, got '4'"),
        (lambda m: GaussianOT(m, rank=7), "rank must be 1 to 6"),
        (lambda m: GaussianOT(m, rank=0), "rank must be 1 to 6"),
        (lambda m: GaussianOT(m, rank=2.0), "rank must be 1 to 6"),
        (lambda m: GaussianOT(Moments(torch.zeros(6), 1.0, 1)), "with directions"),
        (lambda m: GaussianOT(replace(m, spectrum=None)), "directions and spectrum"),
        (lambda m: GaussianOT(m)(torch.zeros(2, 7)), r"shape \(6,\), got \(7,\)"),
        (lambda m: GaussianOT(m).pair(torch.zeros(2, 6), torch.zeros(1, 6)), "like data"),
        (lambda m: GaussianOT(m)(torch.full((2, 6), torch.nan)), "row 0 is not finite"),
        (
            lambda m: GaussianOT(m)(torch.zeros(2, 6), mask=torch.ones(6).bool()),
            "mask, which gaussian_ot does not take",
        ),
    ],
)
def test_what_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make(Moments.fit(torch.randn(50, 6, generator=seeded(8))))


def test_data_all_alike_get_noise_as_it_came():
    transport = GaussianOT(Moments.fit(torch.ones(20, 6)))
    noise = torch.randn(3, 6, generator=seeded(10))
    assert torch.equal(transport.pair(torch.ones(3, 6), noise), noise)


def test_a_datum_is_paired_by_itself():
    data = torch.randn(300, 5, generator=seeded(11))
    transport, noise = GaussianOT(Moments.fit(data)), torch.randn(7, 5, generator=seeded(12))
    one_by_one = [transport.pair(data[i : i + 1], noise[i : i + 1]) for i in range(7)]
    assert torch.allclose(torch.cat(one_by_one), transport.pair(data[:7], noise), atol=1e-6)


def test_keeps_the_promises_of_a_coupling():
    moments = Moments.fit(torch.randn(200, 3, 4, 5, generator=seeded(9)))
    check_coupling(GaussianOT(moments), shape=(3, 4, 5))
