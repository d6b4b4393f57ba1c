import math

import pytest
import torch
from torch import nn

from immiscible_diffusion.data.scaling import DataScaling
from immiscible_diffusion.diffusion.paths import FlowMatchingPath, VPPath
from immiscible_diffusion.diffusion.pipeline import SamplingPipeline
from immiscible_diffusion.diffusion.samplers import SamplerConfig, start_noise


class Zero(nn.Module):
    """A velocity of zero: sampling returns the noise it starts from."""

    def forward(self, x_t, t, cond=None):
        return torch.zeros_like(x_t)


@pytest.mark.parametrize("factor", [0.25, 1, 2.0, 4])
def test_undo_undoes_exactly_for_powers_of_two(factor):
    data, scaling = torch.randn(4, 3, 2), DataScaling(factor)
    assert torch.equal(scaling.apply(data), factor * data)
    assert torch.equal(scaling.undo(scaling.apply(data)), data)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("factor", [0.3, 1.7, 1000.0])
def test_undo_undoes_to_rounding(factor, dtype):
    data, scaling = torch.randn(50, 3).to(dtype), DataScaling(factor)
    assert scaling.apply(data).dtype == dtype
    torch.testing.assert_close(scaling.undo(scaling.apply(data)), data)


def test_a_factor_of_one_costs_nothing():
    data = torch.randn(2, 3)
    assert DataScaling().apply(data) is DataScaling().undo(data) is data


@pytest.mark.parametrize("factor", [0, -1.0, math.inf, math.nan])
def test_bad_factors_are_refused(factor):
    with pytest.raises(ValueError, match="factor must be"):
        DataScaling(factor)


def pipeline(factor, sampler):
    return SamplingPipeline(
        VPPath() if sampler.method == "ddim" else FlowMatchingPath(),
        sampler.scaled(DataScaling(factor).bound),
        (1, 4, 4),
        batch_size=3,
        decode=DataScaling(factor).undo,
    )


def test_samples_are_unscaled_and_nothing_else():
    samples = {
        factor: torch.cat([data for data, _ in pipeline(factor, SamplerConfig("euler", 2))(Zero(), 7, seed=1)])
        for factor in (1.0, 2.0, 4.0)
    }
    assert torch.equal(samples[1.0], start_noise(1, range(7), (1, 4, 4), "cpu"))
    assert torch.equal(samples[2.0], samples[1.0] / 2)
    assert torch.equal(samples[4.0], samples[1.0] / 4)


def test_the_bound_on_predicted_data_is_scaled_as_they_are():
    assert SamplerConfig("ddim", clip=1.0).scaled(DataScaling(4.0).bound).clip == 4.0
    assert SamplerConfig("ddim").scaled(DataScaling(4.0).bound) == SamplerConfig("ddim")
    [(images, _)] = pipeline(4.0, SamplerConfig("ddim", 2, clip=1.0))(Zero(), 2, seed=1)
    assert float(images.abs().max()) == pytest.approx(1.0)  # nothing predicted exceeds the bound


# -- standardization by channel -------------------------------------------------------------------


def test_standardized_channels_have_mean_0_and_the_factor_as_deviation():
    generator = torch.Generator().manual_seed(0)
    mean, std = (-0.2, 0.1, 0.3), (0.5, 0.4, 0.6)
    noise = torch.randn(4000, 3, 2, 2, generator=generator, dtype=torch.float64)
    data = noise * torch.tensor(std).view(3, 1, 1) + torch.tensor(mean).view(3, 1, 1)
    scaling = DataScaling(2.0, mean, std)
    scaled = scaling.apply(data)
    torch.testing.assert_close(scaled, 2 * noise, rtol=0, atol=1e-6)
    torch.testing.assert_close(scaling.undo(scaled), data)
    assert scaling.sigma_data(0.5) == 2.0
    assert DataScaling(3.0).sigma_data(0.5) == 1.5


def test_no_image_exceeds_the_bound_of_standardized_data():
    scaling = DataScaling(2.0, (-0.2, 0.1, 0.3), (0.5, 0.4, 0.6))
    corners = torch.tensor([-1.0, 1.0]).view(2, 1).expand(2, 3)
    assert float(scaling.apply(corners).abs().max()) == pytest.approx(scaling.bound(1.0))


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [((0.1,), (), "as many std"), ((0.1, 0.2), (1.0,), "as many std"), ((), (0.0,), "std must be > 0")],
)
def test_bad_standardization_is_refused(mean, std, message):
    with pytest.raises(ValueError, match=message):
        DataScaling(1.0, mean, std)
    with pytest.raises(ValueError, match="std has 2 channels, the data have 3"):
        DataScaling(1.0, (), (1.0, 2.0)).apply(torch.zeros(1, 3, 2, 2))
