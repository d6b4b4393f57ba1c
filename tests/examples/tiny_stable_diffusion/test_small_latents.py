import math

import pytest
import torch

from fixtures.tiny_stable_diffusion import settings
from immiscible_diffusion.data import ImageSet
from immiscible_diffusion.smallsd.latents import (
    held_out_psnr,
    latent_figures,
    psnr,
    reconstructions,
    standardize,
)
from immiscible_diffusion.smallsd.vae import make_vae


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    data = torch.randint(0, 256, (200, 3, 8, 8), generator=generator, dtype=torch.uint8)
    return ImageSet(data, "made")


@pytest.fixture
def vae(pictures):
    return make_vae(settings(pictures).vae, (3, 8, 8), 0).eval().requires_grad_(False)


def test_psnr_is_of_a_peak_of_two():
    assert psnr(4.0) == 0
    assert psnr(0.04) == pytest.approx(20)
    assert psnr(0.004) == pytest.approx(30)
    assert psnr(0.0) == math.inf
    with pytest.raises(ValueError, match="not negative"):
        psnr(-1.0)


def test_held_out_psnr_is_that_of_the_error_over_all_pictures(vae, images):
    rows = torch.arange(3, 150)
    data = images.batch(rows).data
    made = vae.decode(vae.encode(data).latent_dist.mode()).sample.clamp(-1, 1)
    expected = 10 * math.log10(4 / float((made - data).pow(2).mean()))
    assert held_out_psnr(vae, images, rows) == pytest.approx(expected, abs=1e-4)
    # Jensen: the mean of the pictures' own ratios is no less.
    own = 10 * (4 / (made - data).pow(2).flatten(1).mean(1)).log10()
    assert expected <= float(own.mean())


def test_figures_of_latents_are_those_of_many_draws(vae, images):
    rows = torch.arange(200)
    found = latent_figures(vae, images, rows)
    posterior = vae.encode(images.batch(rows).data).latent_dist
    generator = torch.Generator().manual_seed(1)
    draws = torch.cat([posterior.sample(generator) for _ in range(20)])
    assert torch.allclose(draws.mean((0, 2, 3)), torch.tensor(found.mean), atol=0.02)
    assert torch.allclose(draws.std((0, 2, 3)), torch.tensor(found.std), rtol=0.02)
    modes = posterior.mode()
    for channel in range(2):
        left, right = modes[:, channel, :, :-1].flatten(), modes[:, channel, :, 1:].flatten()
        up, down = modes[:, channel, :-1].flatten(), modes[:, channel, 1:].flatten()
        each = [torch.corrcoef(torch.stack(pair))[0, 1] for pair in ((left, right), (up, down))]
        assert found.neighbors[channel] == pytest.approx(float(sum(each)) / 2, abs=0.05)


def test_standardized_latents_have_mean_0_and_deviation_1_and_decode_alike(vae, images):
    rows = torch.arange(100)
    before = torch.cat([made for _, made in reconstructions(vae, images, rows)])
    posterior = vae.encode(images.batch(rows).data).latent_dist
    found = latent_figures(vae, images, rows)
    mean, std = torch.tensor(found.mean), torch.tensor(found.std)
    standardize(vae, mean, std)
    after = latent_figures(vae, images, rows)
    assert after.mean == pytest.approx([0, 0], abs=1e-4)
    assert after.std == pytest.approx([1, 1], abs=1e-4)
    assert after.kurtosis == pytest.approx(found.kurtosis, abs=1e-3)
    assert after.noise == pytest.approx(found.noise, abs=1e-4)
    moved = vae.encode(images.batch(rows).data).latent_dist
    shape = (1, -1, 1, 1)
    assert torch.allclose(moved.std * std.view(shape), posterior.std, atol=1e-5)
    made = torch.cat([made for _, made in reconstructions(vae, images, rows)])
    assert torch.allclose(made, before, atol=1e-5)
