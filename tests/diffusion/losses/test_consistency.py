import math

import pytest
import torch
from torch import nn

from immiscible_diffusion import EDMPath, FlowMatchingPath
from immiscible_diffusion.diffusion.losses import ConsistencyLoss, RegressionLoss
from immiscible_diffusion.diffusion.paths import Preconditioned
from immiscible_diffusion.diffusion.samplers import SamplerConfig

PATH = EDMPath()
CONSISTENCY = SamplerConfig("consistency", steps=1)
T = torch.linspace(0.05, 1, 8)


def pair(count=8, *shape):
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(count, *(shape or (3,)), generator=generator) for _ in "ab")


class RecordInputs(nn.Module):
    """The identity, which records its inputs and their sigma."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def forward(self, x, time, cond):
        self.calls.append((x, (4 * time).exp()))
        return x


def test_both_points_have_the_same_sample_and_the_same_noise():
    (data, noise), model = pair(), RecordInputs()
    ConsistencyLoss()(model, PATH, data, noise, T, None, progress=0.5)
    (x, sigma), (before, r) = model.calls
    assert bool((r < sigma).all())
    assert torch.allclose((x - data) / sigma[:, None], noise, rtol=1e-2, atol=1e-3)
    assert torch.allclose(data + r[:, None] * noise, before, rtol=1e-3, atol=1e-3)


def test_both_have_the_same_dropout():
    model = nn.Dropout(0.5)
    loss = ConsistencyLoss()(
        lambda x, time, cond: model(torch.ones_like(x)), PATH, *pair(8, 50), T, None, progress=0.5
    )
    assert float(loss.abs().max()) < 1e-3


def test_the_later_point_alone_learns():
    data, noise = pair(8, 3)
    layer = nn.Linear(3, 3)
    loss_fn = ConsistencyLoss()
    loss = loss_fn(lambda x, time, cond: layer(x), PATH, data, noise, T, None, progress=0.5)
    loss.sum().backward()
    grad = layer.weight.grad.clone()
    sigma = PATH.sigma(T)
    r = loss_fn.earlier_sigma(sigma, PATH.sigma_min, 0.5)
    target = layer(data + r[:, None] * noise).detach()
    prediction = layer(data + sigma[:, None] * noise)
    size = loss_fn.huber * math.sqrt(3)
    each = ((prediction - target).square().sum(1) + size**2 + 1e-12).sqrt() - size
    layer.zero_grad()
    ((1 / sigma.square() + 1 / PATH.sigma_data**2) * each).sum().backward()
    assert torch.allclose(layer.weight.grad, grad, rtol=1e-3, atol=1e-3)


def test_a_consistent_model_has_no_loss():
    """Of one sample alone the consistency function is that sample, everywhere."""
    data, noise = pair()
    for progress in (0.0, 0.4, 1.0):
        loss = ConsistencyLoss()(lambda x, time, cond: data, PATH, data, noise, T, None, progress=progress)
        assert float(loss.abs().max()) < 1e-3


def test_while_denoising_the_target_is_the_sample():
    (data, noise), loss_fn = pair(), ConsistencyLoss(pretrain_fraction=0.5, huber=0)
    model = Preconditioned(nn.Module(), PATH, identity_sigma=PATH.sigma_min)
    model.network.forward = lambda x, time, cond: torch.zeros_like(x)
    loss = loss_fn(model, PATH, data, noise, T, None, progress=0.2)
    sigma = PATH.sigma(T)
    prediction = model(data + sigma[:, None] * noise, PATH.network_time(T), None)
    target = data + PATH.sigma_min * noise
    weight = 1 / sigma.square() + 4
    assert torch.allclose(loss, weight * (prediction - target).norm(dim=1), rtol=1e-3)


def test_the_gap_closes_in_stages():
    sigma = torch.tensor([0.01, 0.5, 5.0, 80.0])
    ratios = []
    for progress in torch.linspace(0, 1, 9).tolist():
        r = ConsistencyLoss().earlier_sigma(sigma, PATH.sigma_min, progress)
        assert bool((r >= PATH.sigma_min).all())
        assert bool((r < sigma).all())
        ratios.append(r / sigma)
    assert bool((torch.stack(ratios).diff(dim=0) >= 0).all())
    gap = 1 - ratios[-1][-1]  # at large sigma q^-num_stages
    assert float(gap) == pytest.approx(2.0**-8, rel=1e-3)
    assert ConsistencyLoss(pretrain_fraction=0.3).stage(0.29) is None
    stages = [ConsistencyLoss(num_stages=4).stage(p) for p in (0, 0.25, 0.99, 1, 1.5)]
    assert stages == [0, 1, 3, 3, 3]


def test_it_is_smooth_where_both_agree():
    data, noise = pair()
    bias = torch.zeros(3, requires_grad=True)
    loss = ConsistencyLoss()(lambda x, time, cond: 0 * x + bias, PATH, data, noise, T, None)
    loss.sum().backward()
    assert bool(bias.grad.isfinite().all())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ConsistencyLoss(q=1.0), "q must be > 1"),
        (lambda: ConsistencyLoss(pretrain_fraction=1.0), "pretrain_fraction must be >= 0 and < 1"),
        (lambda: ConsistencyLoss(weighting="snr"), "weighting must be one of"),
        (
            lambda: ConsistencyLoss()(RecordInputs(), FlowMatchingPath(), *pair(), T, None),
            "needs an EDMPath, got FlowMatchingPath",
        ),
        (lambda: ConsistencyLoss().check(FlowMatchingPath(), CONSISTENCY), "needs an EDMPath, got FlowMatchingPath"),
        (lambda: ConsistencyLoss().check(PATH, SamplerConfig("edm")), "consistency, got edm"),
        (lambda: ConsistencyLoss().check(EDMPath(time="discrete"), CONSISTENCY), "continuous noise levels"),
        (lambda: RegressionLoss().check(PATH, CONSISTENCY), "needs ConsistencyLoss"),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()
