"""The estimate from pairs, applied where the truth is known."""

import pytest
import torch

from immiscible_diffusion import KNN, Independent, Moments
from immiscible_diffusion.analysis.density_estimation import SplineLogit, density_for, fit_density
from immiscible_diffusion.analysis.miscibility import miscibility
from immiscible_diffusion.analysis.noise_density import density_of, log_density
from immiscible_diffusion.analysis.sample_pairs import draw_noise
from immiscible_diffusion.couplings.gaussian_ot import GaussianOT
from immiscible_diffusion.utils.batch import Batch


@pytest.fixture(scope="module")
def images():
    datasets = pytest.importorskip("sklearn.datasets")
    return torch.tensor(datasets.load_digits().images, dtype=torch.float32)[:, None] / 8 - 1


def known(images):
    moments = Moments.fit(images)
    return [Independent(), KNN(4), KNN(64), KNN(16, center=moments), GaussianOT(moments, eps=4.0)]


@pytest.mark.parametrize("which", range(5))
def test_reproduces_closed_forms(images, which):
    """On digits: log densities of own pairs within 0.15, effective numbers within 4%."""
    coupling, batch = known(images)[which], Batch(images)
    fitted = fit_density(coupling, batch)
    rows = torch.arange(0, 1797, 3)
    noise = draw_noise(coupling, batch, rows, seed=9)
    every = torch.arange(len(rows))
    pair = (every, rows)
    truth = log_density(density_of(coupling), noise, batch)[pair]
    error = log_density(fitted, noise, batch)[pair] - truth
    assert error.mean().abs() < 0.02
    assert error.std() < 0.15
    options = {"levels": [0.5, 0.8, 0.98], "probes": 600}
    true = miscibility(images, coupling, **options)
    found = miscibility(images, coupling, density=fitted, **options)
    for one, other in zip(true.levels, found.levels, strict=True):
        assert other.effective.value == pytest.approx(one.effective.value, rel=0.04)
        assert other.irreducible.value == pytest.approx(one.irreducible.value, rel=0.02)
    assert not true.estimate
    assert "20,224 pairs" in found.estimate or "19,968 pairs" in found.estimate


def test_the_logit_is_the_log_ratio():
    """Two Gaussians: the log ratio is a parabola."""
    generator = torch.Generator().manual_seed(0)
    ones = 1 + 0.7 * torch.randn(40_000, 1, generator=generator)
    zeros = torch.randn(40_000, 1, generator=generator)
    logit = SplineLogit.fit(ones, zeros)
    x = torch.linspace(-0.8, 2.2, 50).double()
    true = -((x - 1) ** 2) / 0.98 + x**2 / 2 - torch.log(torch.tensor(0.7))
    assert (logit([x]) - true).abs().max() < 0.15


def test_features_that_never_vary_are_fine():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(500, 2, generator=generator)
    rows[:, 1] = 3.0
    logit = SplineLogit.fit(rows + torch.tensor([1.0, 0.0]), rows)
    values = logit([torch.tensor([-1.0, 0.5, 2.0]).double(), torch.full((1,), 3.0).double()])
    assert values.isfinite().all()
    assert values[0] < values[1] < values[2]


def test_closed_form_is_preferred_and_a_mask_refused(images):
    assert density_for(KNN(4), Batch(images)).estimate == ""
    with pytest.raises(ValueError, match="no mask"):
        fit_density(KNN(4), Batch(images, mask=torch.ones(1, 1, 1, 1).bool()))
