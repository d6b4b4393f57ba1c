import math

import pytest
import torch

from immiscible_diffusion import EDMPath
from immiscible_diffusion.diffusion.samplers import sample_heun

GRID = torch.linspace(0, 1, 1001, dtype=torch.float64)


def test_sigma_rises_from_end_to_end_and_is_undone():
    path = EDMPath()
    sigma = path.sigma(GRID)
    assert float(sigma[0]) == pytest.approx(0.002)
    assert float(sigma[-1]) == pytest.approx(80)
    assert bool((sigma.diff() > 0).all())
    assert torch.allclose(path.time_of(sigma), GRID, atol=1e-12)
    assert path.time_of(torch.tensor([1e-9, 1e9])).tolist() == [0, 1]


def test_the_steps_are_those_of_karras():
    """2206.00364, eq. 5, counted from the other end."""
    path, count = EDMPath(), 18
    i = torch.arange(count, dtype=torch.float64)
    ends = 80 ** (1 / 7), 0.002 ** (1 / 7)
    theirs = (ends[0] + i / (count - 1) * (ends[1] - ends[0])) ** 7
    times = torch.linspace(1, 0, count, dtype=torch.float64)
    assert torch.allclose(path.sigma(times), theirs)


def test_training_times_are_lognormal_in_sigma():
    from scipy import stats

    path = EDMPath()
    t = path.sample_time(20_000, generator=torch.Generator().manual_seed(0))
    log = path.sigma(t.double()).log()
    assert stats.kstest(log, stats.norm(-1.2, 1.2).cdf).pvalue > 0.01


def test_discrete_times_have_the_shares_of_ict():
    path = EDMPath(time="discrete", levels=11, mean=-1.1, std=2.0)
    t = path.sample_time(50_000, generator=torch.Generator().manual_seed(0))
    sigma = path.sigma(torch.linspace(0, 1, 11, dtype=torch.float64))
    edges = torch.special.erf((sigma.log() + 1.1) / (2.0 * math.sqrt(2)))
    share = edges.diff() / (edges[-1] - edges[0])
    counts = (t * 10).round().long().bincount(minlength=11)
    assert counts[0] == 0  # the student is the upper end of a step, its teacher the lower
    expected = 50_000 * share
    assert float(((counts[1:] - expected) ** 2 / expected.clamp_min(1)).sum()) < 30


def test_the_weight_cancels_the_preconditioning():
    """2206.00364, table 1: lambda c_out^2 = 1."""
    path = EDMPath()
    sigma = path.sigma(GRID)
    out = sigma * 0.5 / (sigma**2 + 0.25).sqrt()
    assert torch.allclose(path.weight(GRID) * out**2, torch.ones_like(GRID))


def test_the_exact_flow_of_a_gaussian_is_followed():
    path, mean, std = EDMPath(), 0.3, 0.5

    def model(x, time, cond):
        sigma = (4 * time).exp()[:, None]
        return (std**2 * x + sigma**2 * mean) / (std**2 + sigma**2)

    start = 80 * torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    x = sample_heun(path.velocity(model), start, steps=400).data
    ends = [math.sqrt(std**2 + sigma**2) for sigma in (80, 0.002)]
    assert torch.allclose((x - mean) / ends[1], (start - mean) / ends[0], atol=5e-3)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"time": "uniform"}, "lognormal, discrete"),
        ({"sigma_min": 0.0}, "sigma_min must be > 0"),
        ({"rho": 0.0}, "rho must be > 0"),
        ({"levels": 1}, "levels must be >= 2"),
    ],
)
def test_bad_settings_are_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        EDMPath(**wrong)
