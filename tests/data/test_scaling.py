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
        sampler.scaled(factor),
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
    assert SamplerConfig("ddim", clip=1.0).scaled(4.0).clip == 4.0
    assert SamplerConfig("ddim").scaled(4.0) == SamplerConfig("ddim")
    [(images, _)] = pipeline(4.0, SamplerConfig("ddim", 2, clip=1.0))(Zero(), 2, seed=1)
    assert float(images.abs().max()) == pytest.approx(1.0)  # nothing predicted exceeds the bound
