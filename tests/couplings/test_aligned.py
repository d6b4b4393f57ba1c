"""Contrastive noise alignment: its gradient, what it lowers, how little it moves, the modes it works in."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from immiscible_diffusion.couplings import KNN, Independent, LinearAssignment, parse_coupling
from immiscible_diffusion.couplings.aligned import Aligned
from immiscible_diffusion.couplings.projected import Projected


def batch(count=32, dim=20, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, count, dim, generator=generator)


def loss(coupling, noise, data):
    """As published."""
    units, toward = normalize(noise, dim=1), normalize(data, dim=1)
    pull = cross_entropy(units @ toward.T / coupling.temperature, torch.arange(len(noise)))
    near = (units @ units.T / coupling.spread).masked_fill(torch.eye(len(noise), dtype=torch.bool), -torch.inf)
    return pull + coupling.beta * near.logsumexp(dim=1).mean() + coupling.shrink * noise.square().sum(dim=1).mean()


def test_the_gradient_is_that_of_the_published_loss():
    coupling = Aligned(Independent(), beta=3.0, temperature=0.2, spread=0.3, shrink=0.01)
    noise, data = batch()
    noise = noise.double().requires_grad_()
    loss(coupling, noise, data.double()).backward()
    ours = coupling.gradient(noise.detach(), normalize(data.double(), dim=1))
    assert torch.allclose(ours, noise.grad, rtol=1e-9, atol=1e-12)


def test_the_steps_are_those_of_adam():
    coupling = Aligned(Independent())
    noise, data = batch()
    free = noise.clone().requires_grad_()
    adam = torch.optim.Adam([free], lr=coupling.rate)
    for _ in range(coupling.steps):
        adam.zero_grad()
        loss(coupling, free, data).backward()
        adam.step()
    assert torch.allclose(coupling.pair(data, noise), free.detach(), atol=2e-4)


@pytest.mark.parametrize("inner", [Independent(), LinearAssignment()])
def test_noise_leans_to_its_sample_and_moves_by_little(inner):
    coupling = Aligned(inner)
    noise, data = batch(count=128, dim=192)
    before, after = inner.pair(data, noise), coupling.pair(data, noise)
    assert loss(coupling, after, data) < loss(coupling, before, data)
    assert float((after - before).abs().max()) <= 1.02 * coupling.steps * coupling.rate
    cosine = [float((normalize(n, dim=1) * normalize(data, dim=1)).sum(dim=1).mean()) for n in (before, after)]
    assert cosine[1] > cosine[0] + 0.003
    assert float(after.var()) == pytest.approx(1, abs=0.05)
    assert float(after.mean(dim=0).abs().mean()) < 0.1


def test_it_works_in_every_mode_and_alone():
    coupling = Aligned(LinearAssignment(), beta=2.0)
    noise, data = batch()
    with torch.inference_mode():
        expected = coupling.pair(data, noise)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(coupling.pair(data, noise), expected)
    assert not coupling.pair(data.requires_grad_(), noise).requires_grad
    assert torch.equal(coupling.pair(data[:1], noise[:1]), noise[:1])
    half = coupling.pair(data.detach().bfloat16(), noise.bfloat16())
    assert half.dtype == torch.bfloat16
    assert bool(half.isfinite().all())


def test_a_sample_that_is_not_finite_is_named_and_spoils_no_other():
    noise, data = batch()
    data[3, 0] = math.inf
    with pytest.raises(ValueError, match="data row 3 is not finite"):
        Aligned(Independent()).pair(data, noise)
    with pytest.raises(ValueError, match="noise row 3 is not finite"):
        Aligned(Independent()).pair(noise, data)


def test_its_name_is_read_back_and_bad_numbers_are_refused():
    coupling = parse_coupling("aligned(beta=30.0):assignment")
    assert coupling == Aligned(LinearAssignment(), beta=30.0)
    assert parse_coupling(str(coupling)) == coupling
    assert not coupling.preserves_marginal
    for wrong in ({"rate": 0.0}, {"rate": math.inf}, {"steps": 0}, {"beta": -1.0}, {"beta": math.nan}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Aligned(Independent(), **wrong)


def test_a_mask_is_refused_whatever_is_wrapped():
    data = batch()[1].view(-1, 5, 4)
    for coupling in (Aligned(KNN(2)), Projected(KNN(2), pool=2)):
        with pytest.raises(ValueError, match=r"the data have a mask, which .*:knn:k=2 does not take"):
            coupling(data, mask=torch.arange(4) < 2)
