"""The plane, where everything is exact: best losses, sampling paths, the law of assignment."""

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from scipy.stats import chisquare

from immiscible_diffusion import KNN, Independent, LinearAssignment, Moments
from immiscible_diffusion.analysis.estimates import mean_of
from immiscible_diffusion.analysis.miscibility import miscibility
from immiscible_diffusion.analysis.posterior import OptimalDenoiser
from immiscible_diffusion.couplings.gaussian_ot import GaussianTransport
from immiscible_diffusion.data.toy import toy_points
from immiscible_diffusion.diffusion.paths import FlowMatchingPath
from immiscible_diffusion.models.mlp import MLP
from immiscible_diffusion.toy.assigned import Assigned, diagram
from immiscible_diffusion.toy.paths import euler_ends, exact_paths, path_times, straightness
from immiscible_diffusion.toy.world import group_of

LEVELS = (0.4, 0.6, 0.8, 0.9, 1.0)
FIVE = toy_points("five_points").points
RING = toy_points("eight_gaussians", 16)


def couplings():
    transport = GaussianTransport(Moments.fit(FIVE, directions=2), eps=2.0)
    return {"independent": Independent(), "knn": KNN(4), "transport": transport}


def generator(seed):
    return torch.Generator().manual_seed(seed)


def losses(coupling, says, t, count, seed):
    """Squared error ``[count]`` of ``says(x_t)`` on fresh pairs, mean over dimensions."""
    rows = torch.randint(len(FIVE), (count,), generator=generator(seed))
    data = FIVE[rows]
    noise = coupling(data, generator=generator(seed + 1))
    point = FlowMatchingPath().sample(data, noise, torch.full((count,), t))
    return (says(point.x_t) - point.target).square().mean(dim=1)


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
        said = network(point.x_t, path.network_time(t), None)
        optimizer.zero_grad()
        (said - point.target).square().mean().backward()
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

        def says(x, t=t):
            return network(x, FlowMatchingPath().network_time(torch.full((len(x),), t)), None)

        loss = mean_of(losses(coupling, says, t, 40_000, 101))
        error = (loss.error**2 + level.irreducible.error**2) ** 0.5
        assert loss.value > level.irreducible.value - 3 * error, t
        # It has learnt: where nothing is known it says the mean, elsewhere it knows more.
        assert loss.value < 1.25 * level.irreducible.value + 0.1, t


@pytest.mark.parametrize("name", list(couplings()))
def test_exact_paths_turn_the_noise_of_training_into_the_data(name):
    """From the law of its own noise (N(0, I) without pairing) every point is reached as often."""
    coupling, count = couplings()[name], 1500
    data = FIVE[torch.randint(5, (count,), generator=generator(5))]
    noise = coupling(data, generator=generator(6))
    ends = exact_paths(OptimalDenoiser.of(FIVE, coupling, FlowMatchingPath()), noise, steps=50)[-1]
    distance, row = torch.cdist(ends, FIVE.double()).min(dim=1)
    assert float(distance.max()) < 1e-6
    assert chisquare(row.bincount(minlength=5).numpy()).pvalue > 1e-3


def test_between_two_points_the_middle_decides():
    """By symmetry a noise goes to the side that it is on; without pairing, after a bend."""
    two = torch.tensor([[1.5, 0.5], [-1.5, -0.5]])
    noise = torch.randn(300, 2, generator=generator(0))
    side = (noise @ two[0] < 0).long()
    lengths = {}
    for coupling in (Independent(), KNN(4)):
        paths = exact_paths(OptimalDenoiser.of(two, coupling, FlowMatchingPath()), noise)
        torch.testing.assert_close(paths[-1], two[side].double(), atol=1e-6, rtol=0)
        lengths[str(coupling)] = straightness(paths)
    assert 1 < lengths["KNN(k=4)"] < lengths["Independent()"]


def test_one_point_is_reached_straight_and_in_one_step():
    noise = torch.randn(20, 2, generator=generator(0))
    best = OptimalDenoiser.of(FIVE[:1], Independent(), FlowMatchingPath())
    paths = exact_paths(best, noise, steps=10)
    assert straightness(paths) == pytest.approx(1)
    lines = FIVE[0] + path_times(10)[:, None, None] * (noise - FIVE[0])
    torch.testing.assert_close(paths, lines)
    torch.testing.assert_close(euler_ends(best, noise, 1), paths[-1])


def test_paths_are_of_second_order():
    best = OptimalDenoiser.of(FIVE, KNN(4), FlowMatchingPath())
    noise = torch.randn(40, 2, generator=generator(1))
    middle = [exact_paths(best, noise, steps=n)[n // 2] for n in (20, 40, 320)]
    coarse, fine = ((x - middle[2]).norm(dim=1).mean() for x in middle[:2])
    assert coarse / fine > 3


def test_neighbors_stay_neighbors_on_the_way():
    """A flow keeps orientation: small triangles of noises never turn over before they meet."""
    corners = torch.tensor([[0.0, 0.0], [1e-3, 0.0], [0.0, 1e-3]])
    noise = torch.randn(60, 1, 2, generator=generator(2)) + corners
    best = OptimalDenoiser.of(RING.points, Independent(), FlowMatchingPath())
    paths = exact_paths(best, noise.view(-1, 2), steps=160)[:120].view(120, 60, 3, 2)
    sides = paths[:, :, 1:] - paths[:, :, :1]
    assert bool((torch.linalg.det(sides) > 0).all())


def test_pairing_keeps_a_noise_with_its_group():
    rows, shares = torch.arange(200) % 16, []
    for coupling in (Independent(), KNN(64)):
        noise = coupling(RING.points[rows], generator=generator(3))
        best = OptimalDenoiser.of(RING.points, coupling, FlowMatchingPath())
        ended = group_of(RING, exact_paths(best, noise, steps=30)[-1])
        shares.append(float((ended == RING.group[rows]).double().mean()))
    assert shares[0] < 0.25
    assert shares[1] > 0.6


def test_the_diagram_is_what_assignments_without_each_datum_cost():
    data, noise = (torch.randn(n, 2, generator=generator(n)).double() for n in (9, 8))
    weights = diagram(data, noise)
    costs = []
    for i in range(9):
        cost = -(noise @ data[torch.arange(9) != i].T).numpy()
        costs.append(cost[linear_sum_assignment(cost)].sum())
    costs = torch.tensor(costs)
    torch.testing.assert_close(weights - weights[0], costs - costs[0])
    for last in torch.randn(20, 2, generator=generator(1)).double():
        cost = -(torch.cat([noise, last[None]]) @ data.T)
        assert int((weights - data @ last).argmin()) == linear_sum_assignment(cost.numpy())[1][-1]


def test_the_law_of_assignment_is_that_of_its_pairs():
    """Where a density is exact the mean surprise is the mean entropy."""
    law = Assigned.measure(FIVE, batch_size=10, batches=1500)
    assert "measured on 1,500 batches of 10" in law.estimate
    options = {"density": law, "batch_size": 10, "probes": 4000, "levels": (0.5, 0.8, 1.0)}
    for level in miscibility(FIVE, LinearAssignment(), **options).levels:
        error = (level.surprise.error**2 + level.entropy.error**2) ** 0.5
        assert abs(level.surprise.value - level.entropy.value) < 3 * error + 0.01
        error = (level.reached.error**2 + level.irreducible.error**2) ** 0.5
        allowed = 3 * error + 0.02 * level.irreducible.value
        assert abs(level.reached.value - level.irreducible.value) < allowed


def test_bad_input():
    with pytest.raises(ValueError, match=r"must be \[N, 2\]"):
        Assigned.measure(torch.randn(4, 3))
    with pytest.raises(ValueError, match="batches >= 1 of >= 2"):
        Assigned.measure(FIVE, batch_size=1)
    law = Assigned.measure(FIVE, batch_size=4, batches=2)
    with pytest.raises(ValueError, match="measured on 5 points, got 4"):
        miscibility(FIVE[:4], LinearAssignment(), density=law, probes=4, batch_size=4)
