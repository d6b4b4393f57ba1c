"""The plane, where everything is exact: sampling paths, and the distribution of assignment."""

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from scipy.stats import chisquare

from examples.toy_2d.assignment_theory import AssignmentDensity, diagram
from examples.toy_2d.data import toy_data
from examples.toy_2d.result import Extent, compute, euler_ends, exact_paths, path_times, plane_density, straightness
from helpers import generator
from immiscible_diffusion import KNN, Independent, LinearAssignment, Moments
from immiscible_diffusion.analysis.miscibility import miscibility
from immiscible_diffusion.analysis.posterior import OptimalDenoiser
from immiscible_diffusion.couplings.gaussian_ot import GaussianOT
from immiscible_diffusion.diffusion.paths import FlowMatchingPath

FIVE = toy_data("five_points").points
RING = toy_data("eight_gaussians", 16)


def couplings():
    transport = GaussianOT(Moments.fit(FIVE, directions=2), eps=2.0)
    return {"independent": Independent(), "knn": KNN(4), "transport": transport}


@pytest.mark.parametrize("name", list(couplings()))
def test_exact_paths_turn_the_noise_of_training_into_the_data(name):
    """From the distribution of its own noise every point is reached as often."""
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
        lengths[type(coupling)] = straightness(paths)
    assert 1 < lengths[KNN] < lengths[Independent]


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
        ended = RING.nearest_group(exact_paths(best, noise, steps=30)[-1])
        shares.append(float((ended == RING.group[rows]).double().mean()))
    assert shares[0] < 0.25
    assert shares[1] > 0.6


def test_the_diagram_is_what_assignments_without_each_sample_cost():
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


def test_the_density_of_assignment_is_that_of_its_pairs():
    """Where a density is exact the mean negative log-likelihood is the mean entropy."""
    density = AssignmentDensity.measure(FIVE, batch_size=10, batches=1500)
    assert "measured on 1,500 batches of 10" in density.estimate
    options = {"density": density, "batch_size": 10, "probes": 4000, "levels": (0.5, 0.8, 1.0)}
    for level in miscibility(FIVE, LinearAssignment(), **options).levels:
        error = (level.nll.error**2 + level.entropy.error**2) ** 0.5
        assert abs(level.nll.value - level.entropy.value) < 3 * error + 0.01
        error = (level.model_loss.error**2 + level.irreducible.error**2) ** 0.5
        allowed = 3 * error + 0.02 * level.irreducible.value
        assert abs(level.model_loss.value - level.irreducible.value) < allowed


def test_bad_input():
    with pytest.raises(ValueError, match=r"must be \[N, 2\]"):
        AssignmentDensity.measure(torch.randn(4, 3))
    with pytest.raises(ValueError, match="batches >= 1 of >= 2"):
        AssignmentDensity.measure(FIVE, batch_size=1)
    density = AssignmentDensity.measure(FIVE, batch_size=4, batches=2)
    with pytest.raises(ValueError, match="measured on 5 points, got 4"):
        miscibility(FIVE[:4], LinearAssignment(), density=density, probes=4, batch_size=4)


SMALL = Extent(probes=16, paths=4, pairs=8, batch_size=8, batches=2)


def test_the_same_seed_gives_the_same_figures():
    data = toy_data("five_points")
    one, again = (compute(data, "knn:k=4", SMALL) for _ in range(2))
    assert one.metrics == again.metrics
    other = compute(data, "independent", SMALL)
    assert torch.equal(one.start, other.start)
    assert torch.equal(one.rows, other.rows)


def test_destinations_are_chances_and_know_up_from_right():
    data = toy_data("five_points")
    where = compute(data, "knn:k=16", SMALL).destinations
    total = where.sum(dim=2)
    torch.testing.assert_close(total, torch.ones_like(total))
    top = int(data.points[:, 1].argmax())  # the point farthest up
    assert int(where[-1, 60].argmax()) == top


def test_an_estimate_is_used_where_there_is_no_diagram():
    assert "batches" in plane_density(LinearAssignment(), RING, SMALL).estimate
    assert "regression" in plane_density(LinearAssignment(negate=True), RING, SMALL).estimate
