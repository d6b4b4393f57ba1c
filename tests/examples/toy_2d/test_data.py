"""Sets of points in the plane."""

import pytest
import torch

from examples.toy_2d.data import GROUPS, toy_data


@pytest.mark.parametrize("name", list(GROUPS))
def test_a_set_is_a_function_of_its_seed(name):
    one, again, other = toy_data(name, seed=3), toy_data(name, seed=3), toy_data(name)
    assert torch.equal(one.points, again.points)
    assert torch.equal(one.group, again.group)
    assert not torch.equal(one.points, other.points)


@pytest.mark.parametrize("name", list(GROUPS))
def test_points_are_centered_and_groups_alike(name):
    data = toy_data(name)
    assert data.points.shape == (len(data), 2)
    assert data.points.dtype == torch.float32
    assert data.points.unique(dim=0).shape == data.points.shape
    torch.testing.assert_close(data.points.mean(dim=0), torch.zeros(2), atol=1e-5, rtol=0)
    assert 1.2 < float(data.points.square().mean().sqrt()) < 2.5
    assert float(data.points.abs().max()) < 3.9  # what the pictures show
    counts = data.group.bincount()
    assert len(counts) == data.groups == GROUPS[name]
    assert int(counts.max() - counts.min()) <= 1


@pytest.mark.parametrize("name", ["eight_gaussians", "checkerboard", "five_points"])
def test_groups_lie_apart(name):
    """Every point is nearer to the mean of its own group than to that of another."""
    data = toy_data(name)
    means = torch.stack([data.points[data.group == g].mean(dim=0) for g in range(data.groups)])
    near = torch.cdist(data.points, means).argmin(dim=1)
    assert float((near == data.group).double().mean()) > 0.95


def test_the_board_has_no_point_on_a_light_square():
    data = toy_data("checkerboard", 400)
    for group in range(8):
        points = data.points[data.group == group]
        assert float((points.amax(dim=0) - points.amin(dim=0)).max()) < 1.6


def test_bad_input():
    with pytest.raises(ValueError, match="known: eight_gaussians, two_moons"):
        toy_data("nine_gaussians")
    with pytest.raises(ValueError, match="at least 8 points, got 7"):
        toy_data("eight_gaussians", 7)
    with pytest.raises(ValueError, match="five_points are five"):
        toy_data("five_points", 6)
