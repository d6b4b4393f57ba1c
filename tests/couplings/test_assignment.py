"""Linear assignment: optimal, one to one, and free of the faults of its peers."""

import itertools
import warnings

import hypothesis
import pytest
import torch
from hypothesis import strategies
from scipy.optimize import linear_sum_assignment

from immiscible_diffusion import LinearAssignment


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def drawn(count, *shape, seed=0, dtype=torch.float32):
    generator = seeded(seed)
    return tuple(torch.randn(count, *shape, generator=generator).to(dtype) for _ in range(2))


def distances(data, noise):
    """[B, B] float64, not squared, by differences."""
    data, noise = data.flatten(1).double(), noise.flatten(1).double()
    return (data[:, None] - noise[None]).norm(dim=2)


def total(cost, permutation):
    return float(cost[torch.arange(len(cost)), permutation].sum())


@pytest.mark.parametrize("count", [2, 3, 4, 5, 6])
@pytest.mark.parametrize(("cost", "power"), [("inner", 2), ("norm", 1)])
def test_no_permutation_is_cheaper(count, cost, power):
    for seed in range(5):
        data, noise = drawn(count, 3, seed=seed)
        table = distances(data, noise) ** power
        least = min(total(table, torch.tensor(order)) for order in itertools.permutations(range(count)))
        found = total(table, LinearAssignment(cost=cost).assign(data, noise))
        assert found == pytest.approx(least, rel=1e-6)


@pytest.mark.parametrize(("cost", "power"), [("inner", 2), ("norm", 1)])
def test_as_cheap_as_scipy_on_the_distances(cost, power):
    data, noise = drawn(256, 3, 8, 8)
    table = distances(data, noise) ** power
    least = float(table.numpy()[linear_sum_assignment(table.numpy())].sum())
    found = total(table, LinearAssignment(cost=cost).assign(data, noise))
    assert found == pytest.approx(least, rel=1e-6)


@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(strategies.integers(2, 30), strategies.integers(1, 20), strategies.integers(0, 10**6))
def test_never_dearer_than_no_pairing(count, dim, seed):
    data, noise = drawn(count, dim, seed=seed)
    for cost, power in (("inner", 2), ("norm", 1)):
        table = distances(data, noise) ** power
        permutation = LinearAssignment(cost=cost).assign(data, noise)
        # Rounding of float32 costs is all that may be lost.
        assert total(table, permutation) <= table.trace() * (1 + 1e-5)


@pytest.mark.parametrize("cost", ["inner", "norm"])
def test_a_permutation_of_the_noise_and_no_duplicates(cost):
    # TCFM#142: pairs drawn with replacement repeat data and lose others.
    data, noise = drawn(50, 2, 3)
    coupling = LinearAssignment(cost=cost)
    permutation = coupling.assign(data, noise)
    assert permutation.dtype == torch.int64
    assert torch.equal(permutation.sort().values, torch.arange(50))
    assert torch.equal(coupling.pair(data, noise), noise[permutation])


def test_not_the_inverse_permutation():
    # TCFM#178. A cycle of three is not its own inverse: sample i is nearest to noise cycle[i].
    cycle = torch.tensor([1, 2, 0])
    noise = torch.tensor([[0.0, 9.0], [9.0, 0.0], [-9.0, -9.0]])
    data = noise[cycle] + 0.1
    assert torch.equal(LinearAssignment().assign(data, noise), cycle)
    assert torch.equal(LinearAssignment().pair(data, noise), noise[cycle])


def test_draws_the_noise_of_the_generator_and_moves_it_only():
    data, _ = drawn(40, 5)
    noise = LinearAssignment()(data, generator=seeded(3))
    given = torch.randn(40, 5, generator=seeded(3))
    assert torch.equal(noise, LinearAssignment().pair(data, given))
    assert torch.equal(noise.unique(dim=0), given.unique(dim=0))
    assert not torch.equal(noise, given)


def test_data_and_given_noise_are_not_touched():
    data, noise = drawn(20, 4)
    before = data.clone(), noise.clone()
    LinearAssignment().pair(data, noise)
    assert torch.equal(data, before[0])
    assert torch.equal(noise, before[1])


@pytest.mark.parametrize("cost", ["inner", "norm"])
def test_half_precision_does_not_overflow(cost):
    # Squares and sums of 40,000 of these leave float16; ties of rounded norms are not optimal.
    data, noise = drawn(12, 40_000, dtype=torch.float16)
    data = data * 3
    table = distances(data, noise)
    least = float(table.numpy()[linear_sum_assignment(table.numpy())].sum())
    permutation = LinearAssignment(cost=cost).assign(data, noise)
    assert total(table, permutation) == pytest.approx(least, rel=1e-4)
    assert LinearAssignment(cost=cost)(data).dtype == torch.float16


def test_one_datum_warns_naming_knn():
    with pytest.warns(UserWarning, match="KNN"):
        noise = LinearAssignment()(torch.zeros(1, 3), generator=seeded(0))
    assert torch.equal(noise, torch.randn(1, 3, generator=seeded(0)))


def test_two_data_do_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LinearAssignment()(torch.zeros(2, 3))


@pytest.mark.parametrize("cost", ["inner", "norm"])
def test_a_row_that_is_not_finite_is_named(cost):
    data, noise = drawn(6, 3)
    data[4, 1] = float("nan")
    with pytest.raises(ValueError, match="data row 4 is not finite"):
        LinearAssignment(cost=cost).pair(data, noise)


def test_errors_say_what_came():
    data, noise = drawn(6, 3)
    with pytest.raises(ValueError, match="inner, norm, l1, got 'l2'"):
        LinearAssignment(cost="l2")
    with pytest.raises(ValueError, match=r"noise must be \(6, 3\) like data, got .*\(5, 3\)"):
        LinearAssignment().pair(data, noise[:5])
    with pytest.raises(ValueError, match=r"torch\.int64"):
        LinearAssignment()(torch.zeros(3, 3, dtype=torch.int64))
