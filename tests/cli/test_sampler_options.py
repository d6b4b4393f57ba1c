"""Options that change the recipe's sampler."""

import pytest

from immiscible_diffusion.cli.sampler_options import SamplerChanges
from immiscible_diffusion.diffusion.samplers import SamplerConfig


def test_given_options_change_the_sampler_and_nothing_else():
    recipe = SamplerConfig("ddim", 20, clip=1.0)
    assert SamplerChanges().of(recipe) == recipe
    changed = SamplerChanges(spacing="quadratic", sampling_steps=10, guidance=2.0).of(recipe)
    assert changed == SamplerConfig("ddim", 10, clip=1.0, spacing="quadratic", guidance=2.0)
    assert SamplerChanges(eta=0.0, guidance=1.0).of(SamplerConfig("ddim", eta=0.5, guidance=3.0)) == (
        SamplerConfig("ddim")
    )
    with pytest.raises(ValueError, match="spacing means something in ddim and ddpm and dpm only"):
        SamplerChanges(spacing="quadratic").of(SamplerConfig("euler"))
    with pytest.raises(ValueError, match="clip means something"):
        SamplerChanges(clip=1.0, method="dpm").of(recipe)
    with pytest.raises(ValueError, match="eta must be >= 0 and <= 1"):
        SamplerChanges(eta=2.0).of(recipe)
