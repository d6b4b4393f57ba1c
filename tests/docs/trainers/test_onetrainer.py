"""OneTrainer: ``_create_noise`` and the ways in which ``predict`` calls it, as stand-ins."""

from types import SimpleNamespace

import pytest
import torch

from immiscible_diffusion import KNN
from immiscible_diffusion.integrations import pull


class Setup:
    """A flow model's setup: seed, noise, timestep, mixture, target, in OneTrainer's order."""

    def __init__(self, page, coupling, edited=True):
        self.page, self.coupling, self.edited = page("onetrainer"), coupling, edited

    def _create_noise(self, source_tensor, config, generator, timestep=None, betas=None):
        local = {"source_tensor": source_tensor, "config": config, "generator": generator}
        noise = self.page.run("before", **local).noise
        if self.edited:
            noise = self.page.run("after", noise=noise, coupling=self.coupling, **local).noise
        if config.offset_noise_weight > 0:
            shape = (*source_tensor.shape[:2], *[1] * (source_tensor.ndim - 2))
            noise = noise + config.offset_noise_weight * torch.randn(shape, generator=generator)
        return noise

    def predict(self, batch, config, global_step, deterministic=False):
        generator = torch.Generator().manual_seed(0 if deterministic else global_step)
        latent_image = batch["latent_image"]
        noise = self._create_noise(latent_image, config, generator)
        sigma = torch.rand(len(latent_image), generator=generator).view(-1, 1, 1, 1)
        noisy = noise * sigma + latent_image * (1 - sigma)
        return SimpleNamespace(noise=noise, noisy=noisy, sigma=sigma, target=noise - latent_image)


@pytest.fixture
def config():
    return SimpleNamespace(train_device="cpu", offset_noise_weight=0)


@pytest.fixture
def batch(latents):
    return {"latent_image": latents, "prompt": [str(i) for i in range(len(latents))]}


def test_training_is_paired_and_the_target_is_the_mixed_noise(page, config, batch):
    before = batch["latent_image"].clone()
    found = Setup(page, KNN(k=8)).predict(batch, config, global_step=5)
    assert pull(before, found.noise).mean() > 0.8
    clean = found.noisy - found.sigma * found.target
    torch.testing.assert_close(clean, before, atol=1e-5, rtol=1e-4)
    assert torch.equal(batch["latent_image"], before)


def test_validation_is_left_alone(page, config, batch):
    now = Setup(page, KNN(k=8)).predict(batch, config, global_step=5, deterministic=True)
    then = Setup(page, None, edited=False).predict(batch, config, 5, deterministic=True)
    assert torch.equal(now.noisy, then.noisy)
    assert torch.equal(now.target, then.target)


def test_prior_prediction_sees_the_noise_of_training(page, config, batch):
    """``predict`` runs twice in a step, first without gradients."""
    setup = Setup(page, KNN(k=8))
    with torch.no_grad():
        prior = setup.predict(batch, config, global_step=5)
    trained = setup.predict(batch, config, global_step=5)
    assert torch.equal(prior.noisy, trained.noisy)
    assert not torch.equal(trained.noisy, setup.predict(batch, config, global_step=6).noisy)


def test_no_randomness_but_the_generator_s(page, config, batch):
    state = torch.get_rng_state()
    Setup(page, KNN(k=8)).predict(batch, config, global_step=5)
    assert torch.equal(torch.get_rng_state(), state)


def test_k_1_changes_nothing(page, config, batch):
    now = Setup(page, KNN(k=1)).predict(batch, config, global_step=5)
    then = Setup(page, None, edited=False).predict(batch, config, global_step=5)
    assert torch.equal(now.noisy, then.noisy)


def test_offset_noise_comes_after(page, config, batch):
    config.offset_noise_weight = 0.1
    noise = Setup(page, KNN(k=8)).predict(batch, config, global_step=5).noise
    assert pull(batch["latent_image"], noise).mean() > 0.8
    assert noise.mean(dim=(2, 3)).std() > 0.1 / 1.1


@pytest.mark.parametrize("shape", [(1, 4, 16, 16), (2, 16, 3, 8, 8)])
def test_one_picture_and_video(page, config, shape):
    source = torch.randn(shape).bfloat16()
    generator = torch.Generator().manual_seed(1)
    noise = Setup(page, KNN(k=2))._create_noise(source, config, generator)
    assert noise.shape == shape
    assert noise.dtype == torch.bfloat16


def test_header_and_check(page, many, capsys):
    header = page("onetrainer").run("metadata", one_trainer_header={}).one_trainer_header
    assert header == {"ot_immiscible_coupling": "knn:k=2"}
    page("onetrainer").run("check", source_tensor=many, noise=KNN(k=2)(many))
    assert abs(float(capsys.readouterr().out.split()[1]) - 0.46) < 4 * 0.02
