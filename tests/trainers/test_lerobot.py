"""LeRobot: ``compute_loss(batch)`` of Diffusion Policy and the forward of SmolVLA and pi0."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import DDPMScheduler
from torch import nn
from torch.nn import functional

from immiscible_diffusion import KNN
from immiscible_diffusion.interop import pull


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


@pytest.mark.parametrize("pad", [True, False])
def test_smolvla_masks_time_and_action_dimension(page, batch, pad):
    actions = functional.pad(batch["action"], (0, 30))
    policy = SimpleNamespace(
        training=True, config=SimpleNamespace(action_feature=SimpleNamespace(shape=(2,)))
    )
    local = {"self": policy, "noise": None, "actions": actions, "coupling": KNN(k=8)}
    local["actions_is_pad"] = batch["action_is_pad"] if pad else None
    found = page("lerobot").run("smolvla", **local)
    valid = found.valid.broadcast_to(actions.shape)
    assert found.noise.shape == actions.shape
    assert int(valid.sum()) == int((~batch["action_is_pad"]).sum() if pad else 2000 * 16) * 2
    assert pull(actions, found.noise, mask=valid).mean() > 0.5
    free = found.noise[~valid]
    assert abs(free.var() - 1) < 4 * (2 / free.numel()) ** 0.5
    assert found.noise[valid].var() < 0.9  # selected: shorter, in so few dimensions


def test_smolvla_keeps_noise_that_is_given_and_evaluation(page, batch):
    config = SimpleNamespace(action_feature=SimpleNamespace(shape=(2,)))
    local = {"actions": batch["action"], "actions_is_pad": None, "coupling": KNN(k=8)}
    given = torch.zeros(1)
    training = SimpleNamespace(training=True, config=config)
    assert page("lerobot").run("smolvla", self=training, noise=given, **local).noise is given
    held_out = SimpleNamespace(training=False, config=config)
    assert page("lerobot").run("smolvla", self=held_out, noise=None, **local).noise is None


@pytest.mark.parametrize("training", [True, False])
def test_pi0(page, batch, training):
    actions = functional.pad(batch["action"], (0, 30)).bfloat16()
    policy = SimpleNamespace(
        training=training,
        config=SimpleNamespace(output_features={"action": SimpleNamespace(shape=(2,))}),
        model=SimpleNamespace(sample_noise=lambda shape, device: torch.randn(shape, device=device)),
    )
    noise = page("lerobot").run("pi0", self=policy, actions=actions, coupling=KNN(k=8)).noise
    assert noise.dtype == torch.float32
    assert (pull(actions[..., :2], noise[..., :2]).mean() > 0.5) == training
    torch.manual_seed(0)
    assert torch.equal(noise[..., 2:], torch.randn(actions.shape)[..., 2:])


def test_variance_in_few_dimensions_is_what_the_page_says():
    """32 dimensions, actions uniform in [-1, 1]: 0.80 at k = 4, 0.62 at k = 64."""
    data = 2 * torch.rand(20000, 16, 2) - 1
    for k, variance in [(4, 0.80), (64, 0.62)]:
        assert abs(KNN(k=k)(data).var() - variance) < 0.03


def test_check_prints_the_pull(page, batch, capsys):
    noise = KNN(k=2)(batch["action"])
    page("lerobot").run("check", trajectory=batch["action"], eps=noise, valid=None)
    assert 0.25 < float(capsys.readouterr().out.split()[1]) < 0.55
