import pytest
import torch
from scipy import stats

from fixtures import gaussian_mixture as mixture
from immiscible_diffusion import EDMPath
from immiscible_diffusion.diffusion.samplers import SamplerConfig, sample_consistency, sample_edm

PATH = EDMPath()
START = torch.linspace(-2.2, 2.2, 41, dtype=torch.float64)[:, None]


def consistency_of(count=400):
    """The exact consistency function of the mixture, by interpolating the exact flow."""
    import numpy as np

    grid = torch.linspace(-5, 5, count, dtype=torch.float64)[:, None]

    def model(x, time, cond):
        sigma = float((4 * time[0].double()).exp())
        places = grid * (1 + sigma)
        ends = mixture.exact(places, 1.0, sigma)
        found = np.interp(x[:, 0].numpy(), places[:, 0].numpy(), ends[:, 0].numpy())
        return torch.from_numpy(found)[:, None]

    return model


def test_edm_is_of_second_order():
    reference = mixture.exact(80 * START, 1.0, 80.0)
    slope, errors = mixture.order(
        lambda n: sample_edm(PATH, mixture.sigma_model, START, steps=n).data, reference, (40, 80, 160)
    )
    assert 1.7 < slope < 3, errors


def test_edm_counts_its_evaluations():
    sampled = sample_edm(PATH, mixture.sigma_model, START, steps=18)
    assert sampled.nfe == 35  # as published for CIFAR-10


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_a_perfect_consistency_model_recovers_the_mixture_in_any_number_of_steps(steps):
    def step_noise(number):
        generator = torch.Generator().manual_seed(number)
        return torch.randn(3000, 1, dtype=torch.float64, generator=generator)

    made = sample_consistency(PATH, consistency_of(), step_noise(99), steps=steps, step_noise=step_noise)
    assert made.nfe == steps
    assert stats.ks_2samp(made.data[:, 0], mixture.draw(3000)[:, 0]).pvalue > 0.01


def test_steps_between_need_noise():
    with pytest.raises(ValueError, match="give step_noise"):
        sample_consistency(PATH, mixture.sigma_model, START, steps=2)


def test_an_ode_method_starts_from_the_largest_sigma():
    made = SamplerConfig("heun", steps=400).sample(PATH, mixture.sigma_model, START).data
    assert torch.allclose(made, mixture.exact(80 * START, 1.0, 80.0), atol=1e-2)
