import math

import pytest
import torch

from immiscible_diffusion import Aligned, LinearAssignment
from immiscible_diffusion.couplings import describe
from immiscible_diffusion.couplings.theory import assignment_budget


@pytest.mark.parametrize("cost", ["inner", "norm"])
def test_few_numbers_have_the_law_of_many(monkeypatch, cost):
    coupling = LinearAssignment(cost=cost)
    short = describe.simulate(coupling, 500, 0.5, 64)
    monkeypatch.setattr(describe, "_draw_reduced", describe._draw_complete)
    whole = describe.simulate(coupling, 500, 0.5, 64, seed=1)
    assert abs(short.pull - whole.pull) < 3 * math.hypot(short.pull_error, whole.pull_error)
    assert abs(short.distance_reduction - whole.distance_reduction) < 3 * math.hypot(
        short.distance_error, whole.distance_error
    )
    assert short.second_moment == 1


def test_a_pair_of_data():
    # The better of two ways to pair: together they gain E |<x_1 - x_2, n_1 - n_2>| / 2.
    found = describe.simulate(LinearAssignment(), 3072, 1.0, 2)
    expected = math.sqrt(2 / math.pi) / 2
    assert abs(found.pull - expected) < 3 * found.pull_error
    assert describe.simulate(LinearAssignment(), 3072, 1.0, 1).distance_reduction == 0


def test_reduced_data_are_gaussian_of_the_full_dimension():
    data, noise = describe._draw_reduced(10_000, 50, torch.Generator().manual_seed(0))
    for rows in (data, noise):
        assert torch.allclose(rows.square().sum(dim=1), torch.tensor(1e4).double(), rtol=0.1)
    assert (data @ data.T - 1e4 * torch.eye(50)).abs().max() < 6 * 100 * math.sqrt(2)


def test_the_bound_on_information_holds_for_two_in_one_dimension():
    # Two data in one dimension: the noises are sorted as the data, one of two ways: log 2 in all.
    assert math.isclose(2 * assignment_budget(2), math.log(2))


def test_gradient_steps_after_an_assignment():
    coupling = Aligned(LinearAssignment(pool=2), beta=1.0)
    found = describe.simulate(coupling.within_process(), 24, 0.5, 32)
    generator = torch.Generator().manual_seed(1)
    data = 0.5 * torch.randn(100, 32, 24, generator=generator)
    noise = torch.stack([coupling.within_process()(x, generator=generator) for x in data])
    pull = (noise * torch.nn.functional.normalize(data, dim=2)).sum(dim=2).mean(dim=1)
    error = math.hypot(found.pull_error, float(pull.std()) / 10)
    assert abs(found.pull - float(pull.mean())) < 4 * error
    assert abs(found.second_moment - float(noise.square().mean())) < 0.04
    assert found.pull > describe.simulate(LinearAssignment(), 24, 0.5, 32).pull + 4 * error


def test_large_problems_are_refused():
    with pytest.raises(ValueError, match="take too long"):
        describe.simulate(LinearAssignment(), 3072, 1.0, 5000)
