"""LeRobot: ``compute_loss(batch)`` of Diffusion Policy and the forward of SmolVLA and pi0."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import DDPMScheduler
from torch import nn
from torch.nn import functional

from immiscible_diffusion import KNN
from immiscible_diffusion.integrations import pull


class DiffusionModel(nn.Module):
    """The loss of Diffusion Policy; the line of the page in its place."""

    def __init__(self, page, coupling, unet, **config):
        super().__init__()
        self.page, self.coupling, self.unet = page("lerobot"), coupling, unet
        defaults = {"prediction_type": "epsilon", "do_mask_loss_for_padding": False}
        self.config = SimpleNamespace(**defaults | config)
        self.noise_scheduler = DDPMScheduler(num_train_timesteps=100)

    def compute_loss(self, batch):
        trajectory = batch["action"]
        local = {"self": self, "trajectory": trajectory, "batch": batch}
        self.eps = eps = self.page.run("after", coupling=self.coupling, **local).eps
        timesteps = torch.randint(100, (len(trajectory),))
        pred = self.unet(self.noise_scheduler.add_noise(trajectory, eps, timesteps), timesteps)
        target = eps if self.config.prediction_type == "epsilon" else trajectory
        loss = functional.mse_loss(pred, target, reduction="none")
        if self.config.do_mask_loss_for_padding:
            mask = ~batch["action_is_pad"].unsqueeze(-1)
            return (loss * mask).sum() / (mask.sum() * loss.shape[-1]).clamp_min(1)
        return loss.mean()


@pytest.fixture
def batch():
    """Windows of 16 x 2 actions in [-1, 1]; every second leaves its episode after 5 steps."""
    generator = torch.Generator().manual_seed(2)
    action = 2 * torch.rand(2000, 16, 2, generator=generator) - 1
    pad = torch.zeros(2000, 16, dtype=torch.bool)
    pad[::2, 5:] = True
    action[::2, 5:] = action[::2, 4:5]
    return {"action": action, "action_is_pad": pad, "observation.state": torch.arange(2000)}


def test_training_is_paired_and_mixture_and_target_are_one(page, batch, recorder):
    model, before = DiffusionModel(page, KNN(k=2), recorder), batch["action"].clone()
    model.compute_loss(batch).backward()
    assert pull(before, model.eps).mean() > 0.25
    mixed = model.noise_scheduler.add_noise(before, model.eps, recorder.seen[0].t)
    assert torch.equal(recorder.seen[0].x_t, mixed)
    assert torch.equal(batch["action"], before)
    assert torch.equal(batch["observation.state"], torch.arange(2000))


def test_predicting_the_sample(page, batch, recorder):
    model = DiffusionModel(page, KNN(k=2), recorder, prediction_type="sample")
    loss = model.compute_loss(batch)
    torch.testing.assert_close(loss.detach(), batch["action"].square().mean())


def test_held_out_loss_is_left_alone(page, batch, recorder):
    model = DiffusionModel(page, KNN(k=8), recorder).eval()
    model.compute_loss(batch)
    torch.manual_seed(0)
    assert torch.equal(model.eps, torch.randn(batch["action"].shape))


def test_a_masked_loss_masks_the_distance(page, batch, recorder):
    model = DiffusionModel(page, KNN(k=8), recorder, do_mask_loss_for_padding=True)
    model.compute_loss(batch)
    first, copies = batch["action"].clone(), batch["action_is_pad"]
    eps = model.eps
    batch["action"][copies] = 100.0  # whatever the padding holds
    torch.manual_seed(0)
    model.compute_loss(batch)
    torch.testing.assert_close(model.eps, eps)
    assert pull(first, eps, mask=~copies[..., None]).mean() > 0.5
    outside = eps[copies]
    assert abs(outside.var() - 1) < 4 * (2 / outside.numel()) ** 0.5
    inside = (first.masked_fill(~copies[..., None], 0) * eps).sum() / first[copies].norm()
    assert abs(inside) < 4


def test_a_loss_without_mask_pairs_the_copies_too(page, batch, recorder):
    model = DiffusionModel(page, KNN(k=8), recorder)
    model.compute_loss(batch)
    assert pull(batch["action"][::2, 5:], model.eps[::2, 5:]).mean() > 0.25


def smolvla(page, batch, noise=None, training=True):
    """What its block makes; ``actions`` are normalized and filled up to 32."""
    config = SimpleNamespace(action_feature=SimpleNamespace(shape=(2,)))
    model = SimpleNamespace(sample_noise=lambda shape, device: torch.randn(shape, device=device))
    local = {"self": SimpleNamespace(training=training, config=config, model=model), "coupling": KNN(k=8)}
    actions = functional.pad(batch["action"], (0, 30))
    return page("lerobot").run("smolvla", batch=batch, actions=actions, noise=noise, **local)


def pi0(page, batch, training=True):
    policy = SimpleNamespace(
        training=training,
        config=SimpleNamespace(output_features={"action": SimpleNamespace(shape=(2,))}),
        model=SimpleNamespace(sample_noise=lambda shape, device: torch.randn(shape, device=device)),
    )
    actions = functional.pad(batch["action"], (0, 30)).bfloat16()
    local = {"self": policy, "actions": actions, "batch": batch, "coupling": KNN(k=8)}
    return page("lerobot").run("pi0", **local)


@pytest.mark.parametrize("policy", [smolvla, pi0])
def test_time_and_action_dimension_are_masked(page, batch, policy):
    noise = policy(page, batch).noise
    actions = functional.pad(batch["action"], (0, 30))
    valid = functional.pad(~batch["action_is_pad"][..., None].expand(-1, -1, 2), (0, 30))
    assert noise.shape == actions.shape
    assert noise.dtype == torch.float32
    assert pull(actions, noise, mask=valid).mean() > 0.5
    free = noise[~valid]
    assert abs(free.var() - 1) < 4 * (2 / free.numel()) ** 0.5
    assert noise[valid].var() < 0.9  # selected: shorter, in so few dimensions


@pytest.mark.parametrize("policy", [smolvla, pi0])
def test_a_missing_padding_mask_is_an_error(page, batch, policy):
    del batch["action_is_pad"]
    with pytest.raises(ValueError, match="has no 'action_is_pad'"):
        policy(page, batch)


def test_smolvla_keeps_noise_that_is_given_and_evaluation(page, batch):
    given = torch.zeros(1)
    assert smolvla(page, batch, noise=given).noise is given
    assert smolvla(page, batch, training=False).noise is None


def test_pi0_in_evaluation(page, batch):
    noise = pi0(page, batch, training=False).noise
    torch.manual_seed(0)
    assert torch.equal(noise, torch.randn(noise.shape))


def test_without_a_fork(page, batch, recorder):
    policy = SimpleNamespace(training=True, diffusion=Bare(recorder), forward=None)
    paired = page("lerobot").run("whole", policy=policy, device="cpu").paired
    policy.diffusion.compute_loss(batch)
    assert paired.pull > 0.15
    paired.remove()


class Bare(nn.Module):
    """The loss of Diffusion Policy as it is."""

    def __init__(self, unet):
        super().__init__()
        self.unet, self.noise_scheduler = unet, DDPMScheduler(num_train_timesteps=100)
        self.config = SimpleNamespace(do_mask_loss_for_padding=False)

    def compute_loss(self, batch):
        eps = torch.randn(batch["action"].shape)
        timesteps = torch.randint(100, (len(eps),))
        mixed = self.noise_scheduler.add_noise(batch["action"], eps, timesteps)
        return functional.mse_loss(self.unet(mixed, timesteps), eps)


def test_variance_in_few_dimensions_is_what_the_page_says():
    """32 dimensions, actions uniform in [-1, 1]: 0.80 at k = 4, 0.62 at k = 64."""
    data = 2 * torch.rand(20000, 16, 2) - 1
    for k, variance in [(4, 0.80), (64, 0.62)]:
        assert abs(KNN(k=k)(data).var() - variance) < 0.03


def test_check_prints_the_pull(page, batch, capsys):
    noise = KNN(k=2)(batch["action"])
    page("lerobot").run("check", trajectory=batch["action"], eps=noise, valid=None)
    assert 0.25 < float(capsys.readouterr().out.split()[1]) < 0.55
