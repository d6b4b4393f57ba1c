"""The loop of ``train_text_to_image.py`` with the schedulers of the installed diffusers."""

from argparse import Namespace

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler

from immiscible_diffusion import KNN
from immiscible_diffusion.integrations import pull


def loop(page, args, noise_scheduler, unet, batch, coupling):
    """One pass of the loop; returns target, timesteps and the mixture."""
    latents = batch["latents"]
    noise = page("diffusers").run("after", latents=latents, coupling=coupling).noise
    if args.noise_offset:
        noise += args.noise_offset * torch.randn(*latents.shape[:2], 1, 1)
    mixed_in = noise
    if args.input_perturbation:
        mixed_in = noise + args.input_perturbation * torch.randn_like(noise)
    timesteps = torch.randint(0, noise_scheduler.config.num_train_timesteps, (len(latents),))
    noisy_latents = noise_scheduler.add_noise(latents, mixed_in, timesteps)
    if noise_scheduler.config.prediction_type == "epsilon":
        target = noise
    else:
        target = noise_scheduler.get_velocity(latents, noise, timesteps)
    unet(noisy_latents, timesteps, batch["input_ids"])
    return target, timesteps, noisy_latents


@pytest.fixture
def batch(latents):
    return {"latents": latents, "input_ids": torch.arange(len(latents))}


@pytest.fixture
def args():
    return Namespace(noise_offset=0, input_perturbation=0)


def test_epsilon(page, args, batch, recorder):
    scheduler = DDPMScheduler()
    before = {name: value.clone() for name, value in batch.items()}
    target, timesteps, noisy = loop(page, args, scheduler, recorder, batch, KNN(k=8))
    assert pull(batch["latents"], target).mean() > 0.8
    assert torch.equal(noisy, scheduler.add_noise(batch["latents"], target, timesteps))
    assert all(torch.equal(batch[name], value) for name, value in before.items())
    assert torch.equal(recorder.seen[0].conditions[0], before["input_ids"])


def test_velocity(page, args, batch, recorder):
    scheduler = DDPMScheduler(prediction_type="v_prediction")
    velocity, timesteps, noisy = loop(page, args, scheduler, recorder, batch, KNN(k=8))
    share = scheduler.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    noise = (1 - share).sqrt() * noisy + share.sqrt() * velocity
    assert pull(batch["latents"], noise).mean() > 0.8
    again = scheduler.add_noise(batch["latents"], noise, timesteps)
    torch.testing.assert_close(again, noisy, atol=1e-5, rtol=1e-4)


def test_offset_in_place_and_perturbation_come_after(page, args, batch, recorder):
    args.noise_offset = args.input_perturbation = 0.1
    target, _, _ = loop(page, args, DDPMScheduler(), recorder, batch, KNN(k=8))
    assert pull(batch["latents"], target).mean() > 0.8
    assert target.mean(dim=(2, 3)).std() > 0.1 / 1.1


def test_flow_matching_scripts(page, latents):
    scheduler = FlowMatchEulerDiscreteScheduler()
    noise = page("diffusers").run("after", latents=latents, coupling=KNN(k=8)).noise
    steps = scheduler.timesteps[torch.randint(len(scheduler.timesteps), (len(latents),))]
    noisy = scheduler.scale_noise(latents, steps, noise)
    sigma = (steps / scheduler.config.num_train_timesteps).view(-1, 1, 1, 1)
    target = noise - latents
    torch.testing.assert_close(noisy - sigma * target, latents, atol=1e-5, rtol=1e-4)


def test_dreambooth_offset_line(page, latents):
    noise = page("diffusers").run("offset", model_input=latents, coupling=KNN(k=8)).noise
    assert noise.shape == latents.shape
    assert pull(latents, noise).mean() > 0.8


def test_prior_preservation_pairs_each_image_alone(page, latents):
    """The noise of your images does not depend on which class images share the batch."""
    mine, noises = latents[:4], []
    for others in (latents[4:8], 5 * latents[8:12]):
        torch.manual_seed(0)
        batch = torch.cat([mine, others])
        noises.append(page("diffusers").run("after", latents=batch, coupling=KNN(k=8)).noise[:4])
    torch.testing.assert_close(noises[0], noises[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_k_1_is_the_line_that_was_there(page, latents, dtype):
    noises = []
    for block in ("before", "after"):
        torch.manual_seed(0)
        found = page("diffusers").run(block, latents=latents.to(dtype), coupling=KNN(k=1))
        noises.append(found.noise)
    assert torch.equal(*noises)


def test_log_line_and_record(page, many):
    logs = page("diffusers").run("check", latents=many, noise=KNN(k=4)(many), logs={}).logs
    assert abs(logs["pull"] - 0.84) < 4 * 0.02
    args = page("diffusers").run("metadata", args=Namespace()).args
    assert vars(args) == {"immiscible_coupling": "knn:k=4"}
