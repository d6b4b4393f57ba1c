"""The loss is the arithmetic of diffusers' ``train_text_to_image.py``, line for line.

What follows was written from reading the training step (at 58eb52c): noise, offset, perturbation,
mixing, target, mean squared error and the min-SNR weight, in its order and with its scheduler.
"""

import itertools

import pytest
import torch
import torch.nn.functional as F

from fixtures.stable_diffusion import make_unet
from immiscible_diffusion import KNN
from immiscible_diffusion.applications.stable_diffusion.load_pipeline import silence_hf_logging
from immiscible_diffusion.diffusion.losses import RegressionLoss
from immiscible_diffusion.diffusion.paths import VPPath

BETAS = {"beta_start": 0.00085, "beta_end": 0.012}
PREDICTIONS = {"epsilon": "epsilon", "v": "v_prediction"}


def stock_step(unet, latents, noise, text, timesteps, *, prediction, gamma, offset, perturbation):
    """The loss of the script for paired ``noise``."""
    with silence_hf_logging():
        from diffusers import DDPMScheduler
        from diffusers.training_utils import compute_snr

        scheduler = DDPMScheduler(beta_schedule="scaled_linear", prediction_type=PREDICTIONS[prediction], **BETAS)
    if offset:
        noise = noise + offset * torch.randn((latents.shape[0], latents.shape[1], 1, 1))
    mixed_in = noise
    if perturbation:
        mixed_in = noise + perturbation * torch.randn_like(noise)
    noisy = scheduler.add_noise(latents, mixed_in, timesteps)
    target = noise
    if prediction == "v":
        target = scheduler.get_velocity(latents, noise, timesteps)
    output = unet(noisy, timesteps, text, return_dict=False)[0]
    if gamma is None:
        return F.mse_loss(output.float(), target.float(), reduction="mean")
    snr = compute_snr(scheduler, timesteps)
    weights = torch.stack([snr, gamma * torch.ones_like(timesteps)], dim=1).min(dim=1)[0]
    weights = weights / snr if prediction == "epsilon" else weights / (snr + 1)
    loss = F.mse_loss(output.float(), target.float(), reduction="none")
    return (loss.mean(dim=list(range(1, loss.ndim))) * weights).mean()


@pytest.mark.parametrize(
    ("prediction", "gamma", "offset", "perturbation"),
    itertools.product(["epsilon", "v"], [None, 5.0], [0.0, 0.1], [0.0, 0.1]),
)
def test_loss_and_gradient_are_the_scripts(prediction, gamma, offset, perturbation):
    torch.manual_seed(0)
    unet = make_unet()
    latents, text = torch.randn(16, 4, 8, 8), torch.randn(16, 12, 8)
    noise = KNN(k=4)(latents)
    path = VPPath("scaled_linear", prediction, min_snr=gamma, **BETAS)
    steps = torch.tensor([0, 1, 999, 998, *torch.randint(1000, (12,)).tolist()])
    t = (steps + 1) / 1000
    assert torch.equal(path.network_time(t), steps.float())

    torch.manual_seed(7)
    options = {"gamma": gamma, "offset": offset, "perturbation": perturbation}
    theirs = stock_step(unet, latents, noise, text, steps, prediction=prediction, **options)
    grads = torch.autograd.grad(theirs, list(unet.parameters()), allow_unused=True)

    torch.manual_seed(7)
    loss_fn = RegressionLoss(noise_offset=offset, input_perturbation=perturbation)
    ours = loss_fn(
        lambda x, time, cond: unet(x, time, cond["text"]).sample, path, latents, noise, t, {"text": text}
    ).mean()
    assert float(ours) == pytest.approx(float(theirs), rel=1e-5, abs=1e-6)
    mine = torch.autograd.grad(ours, list(unet.parameters()), allow_unused=True)
    for left, right in zip(mine, grads, strict=True):
        if left is not None:
            torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-6)


def test_augmentations_come_after_pairing_and_leave_the_noise_alone():
    noise, data = torch.randn(64, 4, 8, 8), torch.randn(64, 4, 8, 8)
    before, seen = noise.clone(), []

    def model(x, time, cond):
        seen.append(x)
        return torch.zeros_like(x)

    path, t = VPPath("scaled_linear", **BETAS), torch.ones(64)
    torch.manual_seed(0)
    RegressionLoss()(model, path, data, noise, t, None)
    RegressionLoss(noise_offset=0.5)(model, path, data, noise, t, None)
    RegressionLoss(input_perturbation=0.5)(model, path, data, noise, t, None)
    assert torch.equal(noise, before)
    plain, offset, perturbed = seen
    added = (offset - plain).flatten(2)
    assert added.std(dim=2).max() < 1e-5, "constant over a channel"
    assert float(added[:, :, 0].std()) == pytest.approx(0.5, rel=0.2)
    assert float((perturbed - plain).std()) == pytest.approx(0.5, rel=0.05)


def test_without_augmentation_nothing_is_drawn():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    data = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    RegressionLoss()(lambda x, t, c: x, VPPath(), data, data, torch.ones(4), None)
    assert torch.equal(state, torch.get_rng_state())
    assert RegressionLoss(0.1, 0.1).without_augmentation() == RegressionLoss()


def test_offset_needs_channels_and_is_not_negative():
    with pytest.raises(ValueError, match="noise_offset needs noise with channels"):
        RegressionLoss(0.1)(lambda x, t, c: x, VPPath(), torch.ones(2, 3), torch.ones(2, 3), torch.ones(2), None)
    with pytest.raises(ValueError, match="must be >= 0"):
        RegressionLoss(noise_offset=-1)
