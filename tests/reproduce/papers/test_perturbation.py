"""The perturbation test on maps whose answer is known."""

import pytest
import torch

from reproduce.papers.perturbation import PerturbationTest

SHAPE = (1, 4, 5)


@pytest.fixture
def matrix():
    return torch.randn(20, 7, generator=torch.Generator().manual_seed(0))


def test_a_linear_map_changes_as_the_square_of_the_weight(matrix):
    found = PerturbationTest(weights=(0.1, 0.2, 0.4))(lambda n: n.flatten(1) @ matrix, SHAPE)
    small, double, four = (one.change.value for one in found.weights)
    assert double / small == pytest.approx(4, rel=1e-3)
    assert four / small == pytest.approx(16, rel=1e-3)
    for one in found.weights:
        assert abs(one.change.value - one.weight**2 / 2) < 3 * one.change.error
    assert found.weights[0].own.value == 1


def test_images_with_nothing_left_of_their_original():
    def hashed(noise):
        return torch.sin(1e4 * noise)

    found = PerturbationTest(noises=64)(hashed, SHAPE)
    for one in found.weights:
        assert abs(one.change.value - 1) < 4 * one.change.error < 0.1
        assert abs(one.own.value - 1 / 64) < 4 * max(one.own.error, 0.005)


def test_renormalizing_matters_by_length_alone():
    def direction(noise):
        return noise / noise.flatten(1).norm(dim=1).view(-1, 1, 1, 1)

    plain, same = (PerturbationTest(renormalize=r)(direction, SHAPE) for r in (False, True))
    for one, other in zip(plain.weights, same.weights, strict=True):
        assert one.change.value == pytest.approx(other.change.value, rel=1e-5)
    longer, kept = (PerturbationTest(renormalize=r)(lambda n: n, SHAPE) for r in (False, True))
    assert longer.weights[2].change.value > kept.weights[2].change.value


def test_noise_is_renormalized_to_unit_variance():
    seen = []
    PerturbationTest(weights=(2.0,), noises=500, renormalize=True)(
        lambda n: seen.append(n) or n, SHAPE
    )
    assert all(abs(float(noise.std()) - 1) < 0.02 for noise in seen)


def test_row_i_is_always_of_noise_i():
    """So a condition may be held for every row: here images are of their row alone."""
    rows = torch.eye(8)
    found = PerturbationTest(noises=8)(lambda noise: rows, SHAPE)
    assert all(one.change.value == 0 and one.own.value == 1 for one in found.weights)


def test_pictures_and_progress():
    seen = []
    test = PerturbationTest(noises=4, perturbations=5, shown=2)
    found = test(lambda n: n, SHAPE, progress=lambda *done: seen.append(done))
    images, columns = found.grid(rows=3)
    assert images.shape == (3 * columns, *SHAPE)
    assert columns == 1 + 3 * 2
    assert torch.equal(images[columns], found.originals[1])
    assert seen[-1] == (15, 15)


def test_bad_use_is_refused():
    with pytest.raises(ValueError, match="noises >= 2"):
        PerturbationTest(noises=1)
    with pytest.raises(ValueError, match="weights above 0"):
        PerturbationTest(weights=())
    with pytest.raises(ValueError, match="deterministic"):
        PerturbationTest()(torch.rand_like, SHAPE)
