import math

import pytest
import torch

from examples.tiny_stable_diffusion.build import load_splits
from examples.tiny_stable_diffusion.evaluate import (
    center_mask,
    inpainting_psnr,
    label_classifier,
    latent_statistics,
    psnr,
    reconstruction_psnr,
    reconstructions,
)
from examples.tiny_stable_diffusion.vae import make_vae, standardize_latents
from fixtures.tiny_stable_diffusion import tiny_config
from immiscible_diffusion.data import ImageSet


@pytest.fixture
def random_images():
    generator = torch.Generator().manual_seed(0)
    data = torch.randint(0, 256, (200, 3, 8, 8), generator=generator, dtype=torch.uint8)
    return ImageSet(data, "random")


@pytest.fixture
def vae(images):
    return make_vae(tiny_config(images).vae, (3, 8, 8), 0).eval().requires_grad_(False)


def test_psnr_is_of_a_peak_of_two():
    assert psnr(4.0) == 0
    assert psnr(0.04) == pytest.approx(20)
    assert psnr(0.004) == pytest.approx(30)
    assert psnr(0.0) == math.inf
    with pytest.raises(ValueError, match="not be negative"):
        psnr(-1.0)


def test_reconstruction_psnr_is_that_of_the_error_over_all_images(vae, random_images):
    rows = torch.arange(3, 150)
    data = random_images.batch(rows).data
    output = vae.decode(vae.encode(data).latent_dist.mode()).sample.clamp(-1, 1)
    expected = 10 * math.log10(4 / float((output - data).pow(2).mean()))
    assert reconstruction_psnr(vae, random_images, rows) == pytest.approx(expected, abs=1e-4)
    # Jensen: the mean of the images' own ratios is no less.
    own = 10 * (4 / (output - data).pow(2).flatten(1).mean(1)).log10()
    assert expected <= float(own.mean())


def test_statistics_of_latents_are_those_of_many_draws(vae, random_images):
    rows = torch.arange(200)
    statistics = latent_statistics(vae, random_images, rows)
    posterior = vae.encode(random_images.batch(rows).data).latent_dist
    generator = torch.Generator().manual_seed(1)
    draws = torch.cat([posterior.sample(generator) for _ in range(20)])
    assert torch.allclose(draws.mean((0, 2, 3)), torch.tensor(statistics["mean"]), atol=0.02)
    assert torch.allclose(draws.std((0, 2, 3)), torch.tensor(statistics["std"]), rtol=0.02)
    modes = posterior.mode()
    for channel in range(2):
        left, right = modes[:, channel, :, :-1].flatten(), modes[:, channel, :, 1:].flatten()
        up, down = modes[:, channel, :-1].flatten(), modes[:, channel, 1:].flatten()
        each = [torch.corrcoef(torch.stack(pair))[0, 1] for pair in ((left, right), (up, down))]
        assert statistics["neighbors"][channel] == pytest.approx(float(sum(each)) / 2, abs=0.05)


def test_standardized_latents_have_mean_0_and_deviation_1_and_decode_alike(vae, random_images):
    rows = torch.arange(100)
    before = torch.cat([output for _, output in reconstructions(vae, random_images, rows)])
    posterior = vae.encode(random_images.batch(rows).data).latent_dist
    statistics = latent_statistics(vae, random_images, rows)
    mean, std = torch.tensor(statistics["mean"]), torch.tensor(statistics["std"])
    standardize_latents(vae, mean, std)
    after = latent_statistics(vae, random_images, rows)
    assert after["mean"] == pytest.approx([0, 0], abs=1e-4)
    assert after["std"] == pytest.approx([1, 1], abs=1e-4)
    assert after["kurtosis"] == pytest.approx(statistics["kurtosis"], abs=1e-3)
    assert after["noise"] == pytest.approx(statistics["noise"], abs=1e-4)
    moved = vae.encode(random_images.batch(rows).data).latent_dist
    shape = (1, -1, 1, 1)
    assert torch.allclose(moved.std * std.view(shape), posterior.std, atol=1e-5)
    output = torch.cat([output for _, output in reconstructions(vae, random_images, rows)])
    assert torch.allclose(output, before, atol=1e-5)


def test_the_mask_is_centered_on_the_grid_of_latents():
    mask = center_mask(2, 32, 4)
    assert mask.shape == (2, 1, 32, 32)
    assert torch.equal(mask[:, :, 8:24, 8:24], torch.ones(2, 1, 16, 16))
    assert mask.sum() == 2 * 16 * 16
    odd = center_mask(1, 24, 8)  # half of three latents is one
    assert torch.equal(odd[0, 0].nonzero().aminmax(dim=0).min, torch.tensor([8, 8]))
    assert odd.sum() == 64


def test_inpainting_psnr_by_hand():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(6, 3, 8, 8, generator=generator) * 1.6 - 0.8
    mask = center_mask(6, 8, 2)
    sigma = 0.1

    def inpaint(visible, where, draw):
        assert torch.equal(visible, images * (1 - mask))  # nothing hidden is visible
        noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(draw))
        return images + sigma * noise

    scores = inpainting_psnr(inpaint, images, mask, draws=16)
    assert scores["one_draw"] == pytest.approx(10 * math.log10(4 / sigma**2), abs=0.2)
    assert scores["mean_of_draws"] == pytest.approx(scores["one_draw"] + 10 * math.log10(16), abs=0.4)
    inside = mask.bool().expand_as(images)
    mean = images.mean((0, 2, 3), keepdim=True).expand_as(images)
    error = (mean - images)[inside].pow(2).mean()
    assert scores["data_color"] == pytest.approx(float(10 * torch.log10(4 / error)), abs=1e-4)
    visible = images[0, 0][~inside[0, 0]].mean()
    flat = torch.where(mask.bool(), visible, images)[:1, :1]
    one = inpainting_psnr(lambda *_: flat, images[:1, :1], mask[:1], draws=1)
    assert one["image_color"] == pytest.approx(one["one_draw"], abs=1e-4)


def test_a_mask_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"mask must be \[2, 1, 8, 8\]"):
        inpainting_psnr(lambda *_: torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 8, 8), torch.ones(2, 1, 4, 4))


def test_the_classifier_knows_colors(images):
    data = load_splits(tiny_config(images)).data
    classifier = label_classifier(data.images)
    batch = data.batch(torch.arange(len(data)))
    labels = batch.cond["label"]
    assert classifier.correct(batch.data, labels).double().mean() > 0.9
    assert classifier.correct(batch.data, (labels + 1) % 3).double().mean() < 0.1
    assert len(classifier.accuracy_by_class(batch.data, labels)) == 3
    assert classifier.accuracy_by_class(batch.data[:1], labels[:1])[1:] == [None, None]
