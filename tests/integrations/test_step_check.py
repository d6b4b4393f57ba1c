"""``check_step`` around steps of trainers that are right, and of those whose pairs go astray."""

import pytest
import torch
from diffusers import DDPMScheduler
from torch import nn
from torch.nn import functional

from fixtures.lucidrains import GaussianDiffusion, RectifiedFlow
from immiscible_diffusion import KNN, Calibrated, Independent, LinearAssignment, Moments, Shuffled
from immiscible_diffusion.couplings import NoiseDistribution
from immiscible_diffusion.integrations import as_torchcfm, check_step

SCHEDULER = DDPMScheduler(num_train_timesteps=1000)


class Network(nn.Module):
    """One layer over the mixture."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x_t, t):
        return self.layer(x_t)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def network():
    return Network()


@pytest.fixture
def images():
    return torch.rand(32, 3, 12, 12, generator=torch.Generator().manual_seed(0)) * 2 - 1


def diffusion_step(network, data, noise, target=None, kind="epsilon"):
    """As in a training script of diffusers: ``target`` noise other than the mixture's, if any."""
    t = torch.randint(1000, (len(data),))
    target = noise if target is None else target
    if kind == "v":
        target = SCHEDULER.get_velocity(data, target, t)
    return functional.mse_loss(network(SCHEDULER.add_noise(data, noise, t), t), target)


def flow_step(network, data, noise):
    """With a loss written by hand."""
    t = torch.rand(len(data)).view(-1, 1, 1, 1).to(data)
    return ((network((1 - t) * data + t * noise, t) - (noise - data)) ** 2).mean()


@pytest.mark.parametrize("coupling", [KNN(k=8), LinearAssignment()])
@pytest.mark.parametrize("kind", ["epsilon", "v"])
def test_a_trainer_that_is_right(network, images, coupling, kind):
    with check_step() as report:
        diffusion_step(network, images, coupling(images), kind=kind).backward()
    assert report.problems == []
    assert report.correlation == pytest.approx(1, abs=1e-4)
    assert report.in_place == 1
    assert report.data_cosine == pytest.approx(1, abs=1e-4)
    assert report.pull == pytest.approx(report.expected_pull, abs=4 / len(images) ** 0.5)
    assert report.pull > 0.4
    assert "no problem found" in str(report)


@pytest.mark.parametrize("coupling", [KNN(k=8), Independent(), Shuffled(KNN(k=8))])
def test_flow_with_a_loss_written_by_hand(network, images, coupling):
    with check_step() as report:
        flow_step(network, images, coupling.pair(images, torch.randn_like(images)))
    assert report.problems == []
    assert report.correlation == pytest.approx(1, abs=1e-4)
    assert (report.expected_pull > 0.4) == (coupling == KNN(k=8))


def test_wrappers_and_halves(network, images):
    moments = Moments.fit(images)
    coupling = Calibrated(KNN(8), NoiseDistribution.measure(KNN(8), [images] * 3, moments))
    network, images = network.bfloat16(), images.bfloat16()
    with check_step() as report:
        flow_step(network, images, coupling(images))
    assert report.problems == []
    assert report.in_place == 1


def test_target_that_is_the_data(network, images):
    with check_step() as report:
        functional.l1_loss(network(images + 2 * KNN(8)(images), 0), images)
    assert report.problems == []
    assert report.correlation is None


def test_offset_and_perturbation_are_no_problem(network, images):
    with check_step() as report:
        noise = KNN(8)(images)
        noise += 0.1 * torch.randn(len(images), 3, 1, 1)
        diffusion_step(network, images, noise + 0.1 * torch.randn_like(noise), noise)
    assert report.problems == []
    assert 0.9 < report.correlation < 1


def test_noise_of_many_resolutions_on_top_is_no_problem(network, images):
    with check_step() as report:
        noise = KNN(8)(images) + nn.Upsample(scale_factor=1)(torch.randn_like(images))
        flow_step(network, images, noise / noise.std())
    assert report.problems == []
    assert report.in_place == 1


def problem_of(report):
    """The one problem that was found."""
    assert len(report.problems) == 1, report
    assert report.problems[0] in str(report)
    return report.problems[0]


def test_a_result_that_is_dropped(network, images):
    with check_step() as report:
        noise = torch.randn_like(images)
        KNN(8).pair(images, noise)
        diffusion_step(network, images, noise)
    assert "another noise" in problem_of(report)
    assert report.in_place == 0


@pytest.mark.parametrize("paired_first", [True, False])
def test_pairs_in_the_mixture_or_the_target_alone(network, images, paired_first):
    with check_step() as report:
        noise = torch.randn_like(images)
        both = [KNN(8).pair(images, noise), noise]
        diffusion_step(network, images, *(both if paired_first else both[::-1]))
    assert "the noise in the target" in report.problems[-1]
    assert abs(report.correlation) < 0.3


def test_data_that_move_after_pairing(network, images):
    with check_step() as report:
        noise, order = KNN(8)(images), torch.randperm(len(images))
        diffusion_step(network, images[order], noise)
    assert "are not those that were paired" in report.problems[0]


def test_validation(network, images):
    for coupling, paired in [(KNN(8), True), (Independent(), False)]:
        with check_step(paired=False) as report, torch.no_grad():
            diffusion_step(network, images, coupling(images))
        assert bool(report.problems) == paired
    with check_step(paired=False) as report, torch.no_grad():
        diffusion_step(network, images, torch.randn_like(images))
    assert report.problems == []


def test_no_pairing_no_network_and_too_few_numbers(network, images):
    with check_step() as report:
        diffusion_step(network, images, torch.randn_like(images))
    assert "no coupling was called" in problem_of(report)
    with check_step(data=images) as report:
        diffusion_step(network, images, torch.randn_like(images))
    assert "not paired with its sample" in problem_of(report)
    with check_step() as report:
        functional.mse_loss(network(KNN(8)(images) + 0.05 * images, 0), images)
    assert "all but noise" in problem_of(report)
    with check_step() as report:
        KNN(8)(images)
    assert "no module got a mixture" in problem_of(report)
    with pytest.raises(ValueError, match="16 numbers"), check_step():
        KNN(8)(torch.randn(8, 2))


def test_pairs_of_a_loader(network, images):
    noise = KNN(8)(images)
    with check_step(data=images, noise=noise) as report:
        flow_step(network, images, noise)
    assert report.problems == []
    assert report.pull > 0.4


def test_torchcfm(network, images):
    pytest.importorskip("torchcfm", reason="needs torchcfm", exc_type=ImportError)
    from torchcfm import ExactOptimalTransportConditionalFlowMatcher

    matcher = ExactOptimalTransportConditionalFlowMatcher(sigma=0.0)
    matcher.ot_sampler = as_torchcfm(KNN(8))
    with check_step() as report:
        t, x_t, u = matcher.sample_location_and_conditional_flow(torch.randn_like(images), images)
        torch.mean((network(x_t, t) - u) ** 2).backward()
    assert report.problems == []
    assert report.correlation == pytest.approx(1, abs=1e-4)


def test_a_step_that_fails_leaves_nothing_behind(network, images):
    before = KNN.__call__, KNN.pair
    with pytest.raises(RuntimeError), check_step():
        network(images.flatten(), 0)
    assert (KNN.__call__, KNN.pair) == before
    assert not torch.nn.modules.module._global_forward_pre_hooks


# -- the two peers ----------------------------------------------------------------------------------


def test_lucidrains_diffusion_has_another_noise_in_the_target(network, images):
    pixels = (images + 1) / 2
    with check_step(data=pixels) as report:
        GaussianDiffusion(network, immiscible=True)(pixels)
    assert "the noise in the target" in problem_of(report)
    assert abs(report.correlation) < 0.2
    assert report.pull > 1


def test_lucidrains_flow_is_given_pairs_of_other_data(network, images):
    images = images / 2 + torch.linspace(-0.5, 0.5, len(images)).view(-1, 1, 1, 1)  # dark and bright
    pixels = (images + 1) / 2
    with check_step() as report:
        RectifiedFlow(network)(pixels, noise=KNN(8)(pixels))
    assert "are not those that were paired" in problem_of(report)
    assert abs(report.pull) < 0.7 * report.expected_pull
    with check_step() as report:
        RectifiedFlow(network)(pixels, noise=KNN(8)(images))
    assert report.problems == []
    assert report.pull == pytest.approx(report.expected_pull, abs=4 / len(images) ** 0.5)
