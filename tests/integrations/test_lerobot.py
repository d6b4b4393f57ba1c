"""``pair_lerobot`` in stand-ins of the interfaces that LeRobot's policies have at 7427f318."""

import copy
import pickle
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional

from immiscible_diffusion import KNN, LinearAssignment, Moments
from immiscible_diffusion.couplings import NoiseDistribution
from immiscible_diffusion.integrations import matched_noise, pair_actions, pair_lerobot, pull

HORIZON, DIMS, FILLED = 16, 2, 32


class Scheduler:
    """``add_noise`` of a DDPM scheduler; anything else is asked of it too."""

    num_train_timesteps = 100

    def add_noise(self, data, noise, timesteps):
        share = (timesteps.float() / 100)[:, None, None]
        self.added = noise
        return (1 - share) * data + share * noise


class DiffusionModel(nn.Module):
    """What ``DiffusionPolicy.diffusion`` does: noise drawn inside, and in the target."""

    def __init__(self, unet, prediction_type="epsilon", masked=False, scheduler=None):
        super().__init__()
        self.unet = unet
        self.config = SimpleNamespace(prediction_type=prediction_type, do_mask_loss_for_padding=masked)
        self.noise_scheduler = scheduler or Scheduler()

    def compute_loss(self, batch):
        trajectory = batch["action"]
        eps = torch.randn(trajectory.shape)
        timesteps = torch.randint(0, self.noise_scheduler.num_train_timesteps, (len(trajectory),))
        mixed = self.noise_scheduler.add_noise(trajectory, eps, timesteps)
        pred = self.unet(mixed, timesteps)
        self.target = eps if self.config.prediction_type == "epsilon" else trajectory
        loss = functional.mse_loss(pred, self.target, reduction="none")
        if self.config.do_mask_loss_for_padding:
            mask = ~batch["action_is_pad"].unsqueeze(-1)
            return (loss * mask).sum() / (mask.sum() * loss.shape[-1]).clamp_min(1)
        return loss.mean()


class DiffusionPolicy(nn.Module):
    def __init__(self, unet, **options):
        super().__init__()
        self.diffusion = DiffusionModel(unet, **options)

    def forward(self, batch):
        return self.diffusion.compute_loss(batch), None


class FlowModel(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def sample_noise(self, shape, device):
        return torch.randn(shape, device=device)

    def forward(self, actions, noise=None):
        noise = self.sample_noise(actions.shape, actions.device) if noise is None else noise
        self.noise = noise
        time = torch.rand(len(actions))[:, None, None]
        said = self.net(time * noise + (1 - time) * actions, time)
        return functional.mse_loss(noise - actions, said, reduction="none")


class FlowPolicy(nn.Module):
    """SmolVLA (``outside=False``: noise drawn by the model), pi0 and pi05 (by the policy)."""

    def __init__(self, net, outside=False):
        super().__init__()
        self.model, self.outside = FlowModel(net), outside
        shape = SimpleNamespace(shape=(DIMS,))
        self.config = SimpleNamespace(output_features={"action": shape})
        if not outside:
            self.config.action_feature = shape

    def prepare_action(self, batch):
        return functional.pad(batch["action"], (0, FILLED - DIMS))

    def forward(self, batch, noise=None):
        actions = self.prepare_action(batch)
        if self.outside:
            noise = self.model.sample_noise(actions.shape, actions.device)
        losses = self.model.forward(actions, noise)[..., :DIMS]
        return losses.mean(), {}

    def select(self, batch, noise=None):
        shape = (len(batch["action"]), HORIZON, FILLED)
        return self.model.sample_noise(shape, "cpu") if noise is None else noise


class PI05Policy(FlowPolicy):
    """Draws noise, times and the prefix that is known, which the loss leaves out."""

    def forward(self, batch, reduction="mean"):
        actions = self.prepare_action(batch)
        noise = self.model.sample_noise(actions.shape, actions.device)
        prefix = torch.arange(HORIZON) < torch.randint(0, 4, (len(actions), 1))
        losses = self.model.forward(actions, noise)[..., :DIMS] * ~prefix[..., None]
        return losses.mean(), {}


class EO1Policy(FlowPolicy):
    """The same names; its actions are prepared without the batch."""

    def prepare_action(self, action):
        return functional.pad(action, (0, FILLED - DIMS))


class MultiTaskDiT(nn.Module):
    """A ``compute_loss`` of other arguments."""

    def __init__(self, net):
        super().__init__()
        self.diffusion = self

    def compute_loss(self, model, batch, conditioning_vec):
        return torch.zeros(())


class Scaled(nn.Module):
    """A network of one weight."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x_t, t):
        return self.weight * x_t


@pytest.fixture
def batch():
    """Windows of 16 x 2 actions in [-1, 1]; every second leaves its episode after 5 steps."""
    generator = torch.Generator().manual_seed(2)
    action = 2 * torch.rand(1500, HORIZON, DIMS, generator=generator) - 1
    pad = torch.zeros(1500, HORIZON, dtype=torch.bool)
    pad[::2, 5:] = True
    action[::2, 5:] = action[::2, 4:5]
    state = torch.randn(1500, 2, 5, generator=generator)
    return {"action": action, "action_is_pad": pad, "observation.state": state}


def valid_of(batch):
    return (~batch["action_is_pad"])[..., None].expand_as(batch["action"])


# -- Diffusion Policy -----------------------------------------------------------------------------


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample"])
def test_mixture_and_target_are_of_the_paired_noise(batch, recorder, prediction_type):
    policy = DiffusionPolicy(recorder, prediction_type=prediction_type)
    paired, before = pair_lerobot(policy, KNN(k=8)), {k: v.clone() for k, v in batch.items()}
    policy.forward(batch)[0].backward()
    inner, eps = policy.diffusion, policy.diffusion.noise_scheduler.added
    assert pull(batch["action"], eps).mean() > 0.4
    assert paired.pull == pytest.approx(float(pull(batch["action"], eps).mean()))
    assert torch.equal(inner.target, eps if prediction_type == "epsilon" else before["action"])
    share = (recorder.seen[0].t.float() / 100)[:, None, None]
    mixed = (1 - share) * before["action"] + share * eps
    assert torch.equal(recorder.seen[0].x_t, mixed)
    assert all(torch.equal(batch[name], before[name]) for name in batch)


def test_the_packages_own_scheduler(batch, recorder):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=100)
    scheduler.num_train_timesteps = 100
    policy = DiffusionPolicy(recorder, scheduler=scheduler)
    pair_lerobot(policy, KNN(k=8))
    policy.forward(batch)
    assert pull(batch["action"], policy.diffusion.target).mean() > 0.4


def test_a_masked_loss_masks_the_distance_and_padding_does_not_count(batch, recorder):
    policy = DiffusionPolicy(recorder, masked=True)
    pair_lerobot(policy, KNN(k=8))
    noises = []
    for fill in (None, 100.0):
        if fill is not None:
            batch["action"] = batch["action"].masked_fill(~valid_of(batch), fill)
        torch.manual_seed(3)
        policy.forward(batch)
        noises.append(policy.diffusion.noise_scheduler.added)
    assert torch.equal(*noises)
    outside = noises[0][~valid_of(batch)]
    assert abs(float(outside.var()) - 1) < 4 * (2 / outside.numel()) ** 0.5


def test_a_loss_that_learns_copies_pairs_them(batch, recorder):
    policy = DiffusionPolicy(recorder, masked=False)
    pair_lerobot(policy, KNN(k=8))
    policy.forward(batch)
    noise = policy.diffusion.noise_scheduler.added
    assert pull(batch["action"][::2, 5:], noise[::2, 5:]).mean() > 0.25


@pytest.mark.parametrize("masked", [True, None])
def test_a_missing_padding_mask_is_an_error(batch, recorder, masked):
    policy = DiffusionPolicy(recorder, masked=bool(masked))
    pair_lerobot(policy, KNN(k=8), do_mask_loss_for_padding=None if masked else True)
    del batch["action_is_pad"]
    with pytest.raises(ValueError, match="the batch has no 'action_is_pad'"):
        policy.forward(batch)


def test_held_out_loss_is_left_alone(batch, recorder):
    policy = DiffusionPolicy(recorder)
    paired = pair_lerobot(policy, KNN(k=8))
    policy.eval()
    torch.manual_seed(0)
    policy.forward(batch)
    torch.manual_seed(0)
    assert torch.equal(policy.diffusion.noise_scheduler.added, torch.randn(batch["action"].shape))
    assert paired.pull is None


def test_a_loss_that_adds_no_noise_is_told(batch, recorder):
    class Silent(DiffusionModel):
        def compute_loss(self, batch):
            return torch.zeros(())

    policy = DiffusionPolicy(recorder)
    policy.diffusion = Silent(recorder)
    pair_lerobot(policy, KNN(k=8))
    with pytest.raises(ValueError, match=r"did not call noise_scheduler\.add_noise"):
        policy.forward(batch)


def test_conditions_reach_the_coupling(batch, recorder):
    seen = {}

    class Looks(KNN):
        def pair(self, data, noise, *, cond=None, mask=None, generator=None):
            seen.update(cond)
            return super().pair(data, noise, cond=cond, mask=mask, generator=generator)

    policy = DiffusionPolicy(recorder)
    pair_lerobot(policy, Looks(2))
    policy.forward(batch)
    assert torch.equal(seen["observation"], batch["observation.state"].flatten(1))


# -- SmolVLA and pi0 ------------------------------------------------------------------------------


@pytest.mark.parametrize("outside", [False, True], ids=["smolvla", "pi0"])
def test_time_and_action_dimension_are_masked(batch, recorder, outside):
    policy = FlowPolicy(recorder, outside)
    paired = pair_lerobot(policy, KNN(k=8))
    policy.forward(batch)
    noise, actions = policy.model.noise, policy.prepare_action(batch)
    assert noise.shape == (1500, HORIZON, FILLED)
    valid = functional.pad(valid_of(batch), (0, FILLED - DIMS), value=False)
    assert pull(actions, noise, mask=valid).mean() > 0.4
    assert paired.pull == pytest.approx(float(pull(actions, noise, mask=valid).mean()))
    free = noise[~valid]
    assert abs(float(free.var()) - 1) < 4 * (2 / free.numel()) ** 0.5
    copies = pull(batch["action"][::2, 5:], noise[::2, 5:, :DIMS])
    assert abs(float(copies.mean())) < 4 / len(copies) ** 0.5


@pytest.mark.parametrize("outside", [False, True], ids=["smolvla", "pi0"])
def test_flow_policies_need_the_padding_mask(batch, recorder, outside):
    policy = FlowPolicy(recorder, outside)
    paired = pair_lerobot(policy, KNN(k=8))
    del batch["action_is_pad"]
    with pytest.raises(ValueError, match="the batch has no 'action_is_pad'"):
        policy.forward(batch)
    paired.remove()
    pair_lerobot(policy, KNN(k=8), do_mask_loss_for_padding=False)
    policy.forward(batch)
    assert pull(batch["action"], policy.model.noise[..., :DIMS]).mean() > 0.4


def test_noise_that_is_given_evaluation_and_inference_are_left_alone(batch, recorder):
    policy = FlowPolicy(recorder)
    pair_lerobot(policy, KNN(k=8))
    given = torch.zeros(1500, HORIZON, FILLED)
    policy.forward(batch, noise=given)
    assert policy.model.noise is given
    policy.eval()
    torch.manual_seed(0)
    policy.forward(batch)
    torch.manual_seed(0)
    plain = torch.randn(1500, HORIZON, FILLED)
    assert torch.equal(policy.model.noise, plain)
    torch.manual_seed(0)
    assert torch.equal(policy.select(batch), plain)


def test_actions_in_half_precision(batch, recorder):
    policy = FlowPolicy(recorder)
    pair_lerobot(policy, KNN(k=8))
    batch["action"] = batch["action"].bfloat16()
    policy.forward(batch)
    assert policy.model.noise.dtype == torch.float32
    assert pull(batch["action"], policy.model.noise[..., :DIMS]).mean() > 0.3


def test_a_coupling_that_draws_its_own_noise(batch, recorder):
    policy = FlowPolicy(recorder)
    pair_lerobot(policy, lambda data, *, cond, mask, generator: torch.full_like(data, 7.0))
    policy.forward(batch)
    assert bool((policy.model.noise == 7).all())


# -- both -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [DiffusionPolicy, FlowPolicy, PI05Policy])
@pytest.mark.parametrize("again", [copy.deepcopy, lambda policy: pickle.loads(pickle.dumps(policy))])
def test_a_copy_runs_and_trains_its_own_weights(batch, kind, again):
    policy = kind(Scaled())
    paired = pair_lerobot(policy, KNN(k=8), generator=torch.Generator())
    other = again(policy)
    other.load_state_dict({name: torch.zeros_like(weight) for name, weight in other.state_dict().items()})
    losses = []
    for one in (policy, other):
        torch.manual_seed(0)
        losses.append(one(batch)[0])
    assert paired.pull > 0.4
    losses[1].backward()
    assert losses[0] != losses[1]
    assert next(policy.parameters()).grad is None
    assert next(other.parameters()).grad is not None
    paired.remove()
    torch.manual_seed(0)
    assert other._immiscible.pull == pytest.approx(paired.pull)
    assert other(batch)[0] != losses[1]  # the next numbers of its own generator


@pytest.mark.parametrize("kind", [DiffusionPolicy, FlowPolicy, PI05Policy])
def test_with_a_generator_k_leaves_times_alone(batch, kind):
    states = []
    for k in (1, 8):
        policy = kind(Scaled())
        pair_lerobot(policy, KNN(k=k), generator=torch.Generator().manual_seed(5))
        torch.manual_seed(0)
        policy(batch)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


@pytest.mark.parametrize("kind", [DiffusionPolicy, FlowPolicy])
def test_remove_puts_everything_back(batch, recorder, kind):
    policy = kind(recorder)
    before = [dict(vars(module)) for module in policy.modules()]
    names = list(policy.state_dict())
    paired = pair_lerobot(policy, KNN(k=8))
    assert list(policy.state_dict()) == names
    with pytest.raises(ValueError, match="paired already"):
        pair_lerobot(policy, KNN(k=8))
    paired.remove()
    assert [dict(vars(module)) for module in policy.modules()] == before


@pytest.mark.parametrize("kind", [EO1Policy, MultiTaskDiT, nn.Sequential])
def test_a_policy_built_otherwise(recorder, kind):
    with pytest.raises(ValueError, match="built like neither Diffusion Policy"):
        pair_lerobot(kind(recorder), KNN(k=8))


def test_a_method_replaced_already_is_kept(recorder):
    policy = FlowPolicy(recorder)
    policy.model.sample_noise = print
    with pytest.raises(ValueError, match="sample_noise of this FlowModel is replaced already"):
        pair_lerobot(policy, KNN(k=8))
    assert policy.model.sample_noise is print


@pytest.mark.parametrize(
    ("pad", "message"),
    [
        (torch.zeros(4, HORIZON), "must be a boolean tensor"),
        (torch.zeros(4, 8, dtype=torch.bool), r"must be \(4, 16\) like actions"),
        ([False], "must be a boolean tensor"),
    ],
)
def test_padding_masks_that_are_none(pad, message):
    with pytest.raises(ValueError, match=message):
        pair_actions(KNN(k=2), torch.zeros(4, HORIZON, DIMS), {"action_is_pad": pad})


@pytest.mark.parametrize("dims", [0, 3])
def test_dimensions_that_are_none(dims):
    with pytest.raises(ValueError, match="dims must be from 1 to 2"):
        pair_actions(KNN(k=2), torch.zeros(4, 3, DIMS), {}, dims=dims, do_mask_loss_for_padding=False)
    with pytest.raises(ValueError, match="floating-point tensor"):
        pair_actions(KNN(k=2), torch.zeros(4, DIMS), {}, do_mask_loss_for_padding=False)


def test_an_assignment_over_real_actions(batch):
    actions = functional.pad(batch["action"][:128], (0, 30))
    part = {name: value[:128] for name, value in batch.items()}
    noise = torch.randn(actions.shape, generator=torch.Generator().manual_seed(0))
    found = pair_actions(LinearAssignment(), actions, part, dims=DIMS, noise=noise)
    assert sorted(found.tolist()) == sorted(noise.tolist())
    valid = functional.pad(valid_of(part), (0, 30), value=False)
    assert pull(actions, found, mask=valid).mean() > 0.8


def test_matched_noise_has_the_law_in_real_dimensions_alone():
    data = 2 * torch.rand(4000, HORIZON, DIMS, generator=torch.Generator().manual_seed(0)) - 1
    law = NoiseDistribution.measure(KNN(k=16), data.split(500), Moments.fit(data))
    noise = matched_noise(law, 4000, size=FILLED, generator=torch.Generator().manual_seed(1))
    wanted = KNN(k=16)(data, generator=torch.Generator().manual_seed(2)).var()
    assert noise.shape == (4000, HORIZON, FILLED)
    assert float(noise[..., :DIMS].var()) == pytest.approx(float(wanted), abs=0.02)
    assert float(noise[..., DIMS:].var()) == pytest.approx(1, abs=0.01)
    with pytest.raises(ValueError, match="size >= 2"):
        matched_noise(law, 3, size=1)
