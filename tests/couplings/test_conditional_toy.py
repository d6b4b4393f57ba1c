"""Eight gaussians to two moons, given the moon: what C2OT (arXiv 2503.10636) shows.

Pairing without regard to the condition makes noise depend on it; sampling does not know.
"""

import math

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import nn

from immiscible_diffusion import FlowMatchingPath, Independent, LinearAssignment
from immiscible_diffusion.diffusion.samplers import sample_euler

STEPS, BATCH, SAMPLES = 600, 128, 400


def eight_gaussians(count, generator):
    angle = torch.randint(8, (count,), generator=generator) * (math.pi / 4)
    center = 2.5 * torch.stack([angle.cos(), angle.sin()], dim=1)
    return center + 0.25 * torch.randn(count, 2, generator=generator)


def moons(count, generator):
    """Points ``[count, 2]`` of two moons, and which moon."""
    label = torch.arange(count) % 2
    angle = math.pi * torch.rand(count, generator=generator)
    upper = torch.stack([angle.cos(), angle.sin()], dim=1)
    lower = torch.stack([1 - angle.cos(), 0.5 - angle.sin()], dim=1)
    points = torch.where(label[:, None] == 0, upper, lower)
    points = 1.8 * (points - torch.tensor([0.5, 0.25]))
    return points + 0.05 * torch.randn(count, 2, generator=generator), label


class Velocity(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(5, 96), nn.SiLU(), nn.Linear(96, 96), nn.SiLU(), nn.Linear(96, 2))

    def forward(self, x, t, label):
        one_hot = nn.functional.one_hot(label, 2).float()
        return self.layers(torch.cat([x, t[:, None], one_hot], dim=1))


def distance_given_the_moon(coupling, seed):
    """Squared 2-Wasserstein distance of samples to the moon they were asked for, mean of both."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model, path = Velocity(), FlowMatchingPath()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for _ in range(STEPS):
        data, label = moons(BATCH, generator)
        noise = eight_gaussians(BATCH, generator)
        noise = coupling.pair(data, noise, cond={"label": label}, generator=generator)
        t = path.sample_time(BATCH, generator=generator)
        point = path.sample(data, noise, t)
        loss = (model(point.x_t, t, label) - point.target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()
    found = []
    for moon in (0, 1):
        label = torch.full((SAMPLES,), moon)
        start = eight_gaussians(SAMPLES, torch.Generator().manual_seed(99))
        made = sample_euler(lambda x, t, label=label: model(x, t, label), start, steps=40).data
        data, labels = moons(2 * SAMPLES, torch.Generator().manual_seed(98))
        cost = torch.cdist(made, data[labels == moon]).square()
        rows, columns = linear_sum_assignment(cost.numpy())
        found.append(float(cost[rows, columns].mean()))
    return sum(found) / 2


@pytest.mark.parametrize("seed", [0])
def test_the_condition_cost_mends_what_plain_assignment_breaks(seed):
    independent = distance_given_the_moon(Independent(), seed)
    plain = distance_given_the_moon(LinearAssignment(), seed)
    hard = distance_given_the_moon(LinearAssignment(cond_key="label"), seed)
    assert plain > 1.5 * independent
    assert hard < 1.2 * independent
