import math

import pytest
import torch
from torch import nn

from immiscible_diffusion.data import DataConfig, load_images
from immiscible_diffusion.data.scaling import DataScaling
from immiscible_diffusion.diffusion.paths import VPPath
from immiscible_diffusion.diffusion.pipeline import Generator
from immiscible_diffusion.diffusion.samplers import SamplerConfig, start_noise
from immiscible_diffusion.training.recipe import Recipe


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
    with pytest.raises(ValueError, match="positive and finite"):
        DataScaling(factor)


def test_samples_are_unscaled_and_nothing_else():
    dataset = load_images(DataConfig(name="digits", max_samples=8))
    made = {
        factor: torch.cat(
            [
                images
                for images, _ in Generator(
                    Recipe("r", scaling=DataScaling(factor)), dataset, batch_size=3
                )(Zero(), 7, seed=1, sampler=SamplerConfig("euler", 2))
            ]
        )
        for factor in (1.0, 2.0, 4.0)
    }
    assert torch.equal(made[1.0], start_noise(1, range(7), dataset.shape, "cpu"))
    assert torch.equal(made[2.0], made[1.0] / 2)
    assert torch.equal(made[4.0], made[1.0] / 4)


def test_the_bound_on_predicted_data_is_scaled_as_they_are():
    dataset = load_images(DataConfig(name="digits", max_samples=8))
    recipe = Recipe("r", scaling=DataScaling(4.0), path=VPPath(), sampler=SamplerConfig("ddim"))
    generator = Generator(recipe, dataset)
    assert generator.of_scaled_data(SamplerConfig("ddim", clip=1.0)).clip == 4.0
    assert generator.of_scaled_data(SamplerConfig("ddim")) == SamplerConfig("ddim")
    [(images, _)] = generator(Zero(), 2, seed=1, sampler=SamplerConfig("ddim", 2, clip=1.0))
    assert float(images.abs().max()) == pytest.approx(1.0)  # nothing predicted exceeds the bound
