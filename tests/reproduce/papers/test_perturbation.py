"""The perturbation test on maps whose answer is known."""

import pytest
import torch

from helpers import generator
from reproduce.papers.perturbation import perturbation_test

SHAPE = (1, 4, 5)


def test_a_linear_map_changes_as_the_square_of_the_weight():
    matrix = torch.randn(20, 7, generator=generator())
    _, results = perturbation_test(lambda noise: noise.flatten(1) @ matrix, SHAPE, weights=(0.1, 0.2, 0.4))
    small, double, four = (one.change.value for one in results)
    assert double / small == pytest.approx(4, rel=1e-3)
    assert four / small == pytest.approx(16, rel=1e-3)
    for one in results:
        assert one.linear == pytest.approx(one.weight**2 / 2)
        assert abs(one.change.value - one.linear) < 3 * one.change.error
    assert results[0].own.value == 1


def test_images_with_nothing_left_of_their_original():
    _, results = perturbation_test(lambda noise: torch.sin(1e4 * noise), SHAPE, noises=64)
    for one in results:
        assert abs(one.change.value - 1) < 4 * one.change.error < 0.1
        assert abs(one.own.value - 1 / 64) < 4 * max(one.own.error, 0.005)


def test_renormalizing_matters_by_length_alone():
    def direction(noise):
        return noise / noise.flatten(1).norm(dim=1).view(-1, 1, 1, 1)

    def changes(sample, renormalize):
        _, results = perturbation_test(sample, SHAPE, noises=64, renormalize=renormalize)
        return results

    for one, other in zip(changes(direction, False), changes(direction, True), strict=True):
        assert one.change.value == pytest.approx(other.change.value, rel=1e-5)
    for one in changes(lambda noise: noise, True):
        assert one.linear < one.weight**2 / 2
        assert abs(one.change.value - one.linear) < 3 * one.change.error


def test_noise_is_renormalized_to_unit_variance():
    seen = []
    perturbation_test(lambda noise: seen.append(noise) or noise, SHAPE, weights=(2.0,), noises=500, renormalize=True)
    assert all(abs(float(noise.std()) - 1) < 0.02 for noise in seen)


def test_row_i_is_always_of_noise_i():
    """So a condition may be held for every row: here images are of their row alone."""
    _, results = perturbation_test(lambda noise: torch.eye(8), SHAPE, noises=8)
    assert all(one.change.value == 0 and one.own.value == 1 for one in results)


def test_bad_use_is_refused():
    with pytest.raises(ValueError, match="noises >= 2"):
        perturbation_test(lambda noise: noise, SHAPE, noises=1)
    with pytest.raises(ValueError, match="weights above 0"):
        perturbation_test(lambda noise: noise, SHAPE, weights=())
    with pytest.raises(ValueError, match="deterministic"):
        perturbation_test(torch.rand_like, SHAPE)
