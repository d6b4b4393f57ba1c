"""sd-scripts: ``get_noise_noisy_latents_and_timesteps`` and its callers, as stand-ins."""

from argparse import Namespace
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDPMScheduler
from safetensors import safe_open
from safetensors.torch import save_file

from immiscible_diffusion import KNN
from immiscible_diffusion.integrations import pull


class Trainer:
    """The path of a batch through ``NetworkTrainer``; the lines of the page run in their places."""

    def __init__(self, page, coupling):
        self.page, self.coupling = page("kohya"), coupling
        self.seen = SimpleNamespace()

    def get_noise_noisy_latents_and_timesteps(self, args, noise_scheduler, latents, coupling=None, block="after"):
        noise = self.page.run(block, latents=latents, coupling=coupling).noise
        if args.noise_offset:
            noise = noise + args.noise_offset * torch.randn(*latents.shape[:2], 1, 1)
        timesteps = torch.randint(0, noise_scheduler.config.num_train_timesteps, (len(latents),))
        mixed_in = noise
        if args.ip_noise_gamma:
            mixed_in = noise + args.ip_noise_gamma * torch.randn_like(latents)
        return noise, noise_scheduler.add_noise(latents, mixed_in, timesteps), timesteps

    def get_noise_pred_and_target(self, args, accelerator, noise_scheduler, latents, batch, unet, is_train=True):
        found = self.page.run(
            "call",
            train_util=self,
            args=args,
            noise_scheduler=noise_scheduler,
            latents=latents,
            coupling=self.coupling,
            is_train=is_train,
        )
        noise, timesteps = found.noise, found.timesteps
        pred = unet(found.noisy_latents, timesteps, batch["captions"])
        target = noise
        if args.v_parameterization:
            target = noise_scheduler.get_velocity(latents, noise, timesteps)
        self.seen = SimpleNamespace(noise=noise, noisy=found.noisy_latents, timesteps=timesteps)
        return pred, target, timesteps, None


@pytest.fixture
def args():
    return Namespace(noise_offset=0, ip_noise_gamma=0, v_parameterization=False)


@pytest.fixture
def scheduler():
    return DDPMScheduler(num_train_timesteps=1000, beta_schedule="scaled_linear")


@pytest.fixture
def trainer(page):
    return Trainer(page, KNN(k=8))


def step(trainer, args, scheduler, latents, unet, is_train=True):
    before = latents.clone()
    captions = [f"a photo of {i}" for i in range(len(latents))]
    batch = {"captions": list(captions)}
    _, target, timesteps, _ = trainer.get_noise_pred_and_target(args, None, scheduler, latents, batch, unet, is_train)
    assert torch.equal(latents, before)
    assert unet.seen[-1].conditions[0] == captions
    return target, timesteps


def test_training_is_paired_and_the_target_is_the_mixed_noise(trainer, args, scheduler, latents, recorder):
    target, timesteps = step(trainer, args, scheduler, latents, recorder)
    assert pull(latents, target).mean() > 0.8
    assert torch.equal(recorder.seen[0].x_t, scheduler.add_noise(latents, target, timesteps))


def test_velocity_is_made_of_the_mixed_noise(trainer, args, scheduler, latents, recorder):
    args.v_parameterization = True
    target, timesteps = step(trainer, args, scheduler, latents, recorder)
    share = scheduler.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    noisy = recorder.seen[0].x_t
    data = share.sqrt() * noisy - (1 - share).sqrt() * target
    torch.testing.assert_close(data, latents, atol=1e-5, rtol=1e-4)


def test_validation_is_left_alone(trainer, args, scheduler, latents, recorder):
    torch.manual_seed(3)
    target, _ = step(trainer, args, scheduler, latents, recorder, is_train=False)
    torch.manual_seed(3)
    assert torch.equal(target, torch.randn_like(latents))


def test_offset_and_perturbation_come_after(trainer, args, scheduler, latents, recorder):
    args.noise_offset, args.ip_noise_gamma = 0.1, 0.1
    target, timesteps = step(trainer, args, scheduler, latents, recorder)
    assert pull(latents, target).mean() > 0.8
    assert target.mean(dim=(2, 3)).std() > 0.1 / 1.1  # the offset is in it
    assert not torch.equal(recorder.seen[0].x_t, scheduler.add_noise(latents, target, timesteps))


def test_k_1_is_the_line_that_was_there(trainer, page, args, scheduler, latents):
    outcomes = []
    for coupling, block in [(KNN(k=1), "after"), (None, "after"), (None, "before")]:
        torch.manual_seed(0)
        outcomes.append(trainer.get_noise_noisy_latents_and_timesteps(args, scheduler, latents, coupling, block))
    for now in outcomes[1:]:
        assert all(torch.equal(one, other) for one, other in zip(outcomes[0], now, strict=True))


@pytest.mark.parametrize("is_train", [True, False])
def test_flux_line(page, latents, is_train):
    noise = page("kohya").run("flux", latents=latents, coupling=KNN(k=4), is_train=is_train).noise
    assert (pull(latents, noise).mean() > 0.5) == is_train


def test_batch_of_one_and_buckets(trainer, args, scheduler, recorder):
    for size in [(16, 24), (24, 16), (8, 8)]:
        one = torch.randn(1, 4, *size)
        target, _ = step(trainer, args, scheduler, one, recorder)
        assert target.shape == one.shape


def test_check_prints_the_pull(page, many, capsys):
    page("kohya").run("check", latents=many, noise=KNN(k=2)(many))
    printed = capsys.readouterr().out.split()
    assert printed[0] == "pull"
    assert abs(float(printed[1]) - 0.46) < 4 * 0.02


def test_the_file_names_the_coupling(page, tmp_path):
    metadata = page("kohya").run("metadata", metadata={"ss_noise_offset": None}).metadata
    metadata = {key: str(value) for key, value in metadata.items()}
    save_file({"lora_up.weight": torch.zeros(2)}, tmp_path / "lora.safetensors", metadata)
    with safe_open(tmp_path / "lora.safetensors", "pt") as file:
        assert file.metadata()["ss_immiscible_coupling"] == "knn:k=2"
