import math

import pytest
import torch
from torch import nn

from immiscible_diffusion import EDMPath, FlowMatchingPath
from immiscible_diffusion.diffusion.losses import ConsistencyLoss, RegressionLoss, at_share
from immiscible_diffusion.diffusion.paths import Preconditioned

PATH = EDMPath()
T = torch.linspace(0.05, 1, 8)


def pair(count=8, *shape):
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(count, *(shape or (3,)), generator=generator) for _ in "ab")


class Seen(nn.Module):
    """Remembers where it was asked."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def forward(self, x, time, cond):
        self.calls.append((x, (4 * time).exp()))
        return x


def test_both_points_have_the_same_datum_and_the_same_noise():
    (data, noise), model = pair(), Seen()
    ConsistencyLoss(share=0.5)(model, PATH, data, noise, T, None)
    (x, sigma), (before, r) = model.calls
    assert bool((r < sigma).all())
    assert torch.allclose((x - data) / sigma[:, None], noise, rtol=1e-2, atol=1e-3)
    assert torch.allclose(data + r[:, None] * noise, before, rtol=1e-3, atol=1e-3)


def test_both_have_the_same_dropout():
    model = nn.Dropout(0.5)
    loss = ConsistencyLoss(share=0.5)(
        lambda x, time, cond: model(torch.ones_like(x)), PATH, *pair(8, 50), T, None
    )
    assert float(loss.abs().max()) < 1e-3


def test_the_later_point_alone_learns():
    data, noise = pair(8, 3)
    layer = nn.Linear(3, 3)
    loss_fn = ConsistencyLoss(share=0.5)
    loss_fn(lambda x, time, cond: layer(x), PATH, data, noise, T, None).sum().backward()
    found = layer.weight.grad.clone()
    sigma = PATH.sigma(T)
    before = loss_fn.earlier(sigma, PATH.sigma_min)
    wanted = layer(data + before[:, None] * noise).detach()
    said = layer(data + sigma[:, None] * noise)
    size = loss_fn.huber * math.sqrt(3)
    each = ((said - wanted).square().sum(1) + size**2 + 1e-12).sqrt() - size
    layer.zero_grad()
    ((1 / sigma.square() + 1 / PATH.sigma_data**2) * each).sum().backward()
    assert torch.allclose(layer.weight.grad, found, rtol=1e-3, atol=1e-3)


def test_a_consistent_model_has_no_loss():
    """Of one sample alone the consistency function is that sample, everywhere."""
    data, noise = pair()
    for share in (0.0, 0.4, 1.0):
        loss = ConsistencyLoss(share=share)(lambda x, time, cond: data, PATH, data, noise, T, None)
        assert float(loss.abs().max()) < 1e-3


def test_while_denoising_the_target_is_the_datum():
    (data, noise), loss_fn = pair(), ConsistencyLoss(denoise=0.5, share=0.2, huber=0)
    model = Preconditioned(nn.Module(), sigma_min=PATH.sigma_min)
    model.network.forward = lambda x, time, cond: torch.zeros_like(x)
    loss = loss_fn(model, PATH, data, noise, T, None)
    sigma = PATH.sigma(T)
    said = model(data + sigma[:, None] * noise, PATH.network_time(T), None)
    wanted = data + PATH.sigma_min * noise
    weight = 1 / sigma.square() + 4
    assert torch.allclose(loss, weight * (said - wanted).norm(dim=1), rtol=1e-3)


def test_the_gap_closes_in_stages():
    sigma = torch.tensor([0.01, 0.5, 5.0, 80.0])
    ratios = []
    for share in torch.linspace(0, 1, 9).tolist():
        r = ConsistencyLoss(share=share).earlier(sigma, PATH.sigma_min)
        assert bool((r >= PATH.sigma_min).all())
        assert bool((r < sigma).all())
        ratios.append(r / sigma)
    assert bool((torch.stack(ratios).diff(dim=0) >= 0).all())
    gap = 1 - ratios[-1][-1]  # at large sigma base^-stages
    assert float(gap) == pytest.approx(2.0**-8, rel=1e-3)
    assert ConsistencyLoss(denoise=0.3, share=0.29).stage is None
    assert [ConsistencyLoss(stages=4).at(s).stage for s in (0, 0.25, 0.99, 1, 1.5)] == [
        0,
        1,
        3,
        3,
        3,
    ]


def test_it_is_smooth_where_both_agree():
    data, noise = pair()
    bias = torch.zeros(3, requires_grad=True)
    loss = ConsistencyLoss(share=1.0)(
        lambda x, time, cond: 0 * x + bias, PATH, data, noise, T, None
    )
    loss.sum().backward()
    assert bool(bias.grad.isfinite().all())


def test_a_loss_without_curriculum_stays_itself():
    loss = RegressionLoss()
    assert at_share(loss, 0.3) is loss
    assert at_share(ConsistencyLoss(), 0.3).share == 0.3


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: ConsistencyLoss(base=1.0), "base > 1"),
        (lambda: ConsistencyLoss(denoise=1.0), "below 1"),
        (lambda: ConsistencyLoss(weighting="snr"), "edm or gap"),
        (
            lambda: ConsistencyLoss()(Seen(), FlowMatchingPath(), *pair(), T, None),
            "needs a EDMPath, got FlowMatchingPath",
        ),
    ],
)
def test_errors(make, said):
    with pytest.raises(ValueError, match=said):
        make()
