"""The best denoiser there can be: its loss is the irreducible one, and no network goes below."""

import pytest
import torch

from helpers import generator
from immiscible_diffusion import KNN, Independent, Moments
from immiscible_diffusion.analysis.estimates import mean_of
from immiscible_diffusion.analysis.miscibility import miscibility
from immiscible_diffusion.analysis.posterior import OptimalDenoiser
from immiscible_diffusion.couplings.gaussian_ot import GaussianOT
from immiscible_diffusion.diffusion.paths import FlowMatchingPath
from immiscible_diffusion.models.mlp import MLP

LEVELS = (0.4, 0.6, 0.8, 0.9, 1.0)
FIVE = torch.tensor([[0.0, 2.6], [-2.0, 0.6], [-1.7, -2.3], [1.4, -1.9], [1.7, 0.6]])


def couplings():
    transport = GaussianOT(Moments.fit(FIVE, directions=2), eps=2.0)
    return {"independent": Independent(), "knn": KNN(4), "transport": transport}


def losses(coupling, predict, t, count, seed):
    """Squared error ``[count]`` of ``predict(x_t)`` on fresh pairs, mean over dimensions."""
    rows = torch.randint(len(FIVE), (count,), generator=generator(seed))
    data = FIVE[rows]
    noise = coupling(data, generator=generator(seed + 1))
    point = FlowMatchingPath().sample(data, noise, torch.full((count,), t))
    return (predict(point.x_t) - point.target).square().mean(dim=1)


@pytest.mark.parametrize("name", list(couplings()))
def test_the_optimal_denoiser_reaches_the_irreducible_loss(name):
    """On fresh pairs, at every level, within 1% and three standard errors."""
    coupling = couplings()[name]
    best = OptimalDenoiser.of(FIVE, coupling, FlowMatchingPath())
    found = miscibility(FIVE, coupling, levels=LEVELS, probes=60_000)
    for t, level in zip(LEVELS, found.levels, strict=True):
        loss = mean_of(losses(coupling, lambda x, t=t: best.target(x, t), t, 60_000, 11))
        error = (loss.error**2 + level.irreducible.error**2) ** 0.5
        allowed = 0.01 * level.irreducible.value + 3 * error
        assert abs(loss.value - level.irreducible.value) < allowed, t


def trained(coupling, steps=500):
    torch.manual_seed(0)
    path, network = FlowMatchingPath(), MLP(width=64, depth=2).build((2,), None)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        data = FIVE[torch.randint(5, (512,), generator=generator(step))]
        t = path.sample_time(512, generator=generator(step))
        point = path.sample(data, coupling(data, generator=generator(step)), t)
        output = network(point.x_t, path.network_time(t), None)
        optimizer.zero_grad()
        (output - point.target).square().mean().backward()
        optimizer.step()
        schedule.step()
    return network.eval()


@pytest.mark.parametrize("coupling", [Independent(), KNN(4)])
@torch.no_grad()
def test_no_trained_network_goes_below_the_irreducible_loss(coupling):
    with torch.enable_grad():
        network = trained(coupling)
    found = miscibility(FIVE, coupling, levels=LEVELS, probes=20_000)
    for t, level in zip(LEVELS, found.levels, strict=True):

        def predict(x, t=t):
            return network(x, FlowMatchingPath().network_time(torch.full((len(x),), t)), None)

        loss = mean_of(losses(coupling, predict, t, 40_000, 101))
        error = (loss.error**2 + level.irreducible.error**2) ** 0.5
        assert loss.value > level.irreducible.value - 3 * error, t
        # It has learnt: where nothing is known it predict the mean, elsewhere it knows more.
        assert loss.value < 1.25 * level.irreducible.value + 0.1, t
