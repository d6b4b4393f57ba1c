"""Sets of points in the plane."""

import pytest
import torch

from immiscible_diffusion.data.toy import TOYS, toy_points


@pytest.mark.parametrize("name", list(TOYS))
def test_a_set_is_a_function_of_its_seed(name):
    one, again, other = toy_points(name, seed=3), toy_points(name, seed=3), toy_points(name)
    assert torch.equal(one.points, again.points)
    assert torch.equal(one.group, again.group)
    assert not torch.equal(one.points, other.points)


@pytest.mark.parametrize("name", list(TOYS))
def test_points_are_centerd_and_groups_alike(name):
    world = toy_points(name)
    assert world.points.shape == (len(world), 2)
    assert world.points.dtype == torch.float32
    assert world.points.unique(dim=0).shape == world.points.shape
    torch.testing.assert_close(world.points.mean(dim=0), torch.zeros(2), atol=1e-5, rtol=0)
    assert 1.2 < float(world.points.square().mean().sqrt()) < 2.5
    assert float(world.points.abs().max()) < 3.9  # what the pictures show
    counts = world.group.bincount()
    assert len(counts) == world.groups == TOYS[name][1]
    assert int(counts.max() - counts.min()) <= 1


@pytest.mark.parametrize("name", ["eight_gaussians", "checkerboard", "five_points"])
def test_groups_lie_apart(name):
    """Every point is nearer to the mean of its own group than to that of another."""
    world = toy_points(name)
    means = torch.stack([world.points[world.group == g].mean(dim=0) for g in range(world.groups)])
    near = torch.cdist(world.points, means).argmin(dim=1)
    assert float((near == world.group).double().mean()) > 0.95


def test_the_board_has_no_point_on_a_light_square():
    world = toy_points("checkerboard", 400)
    for group in range(8):
        points = world.points[world.group == group]
        assert float((points.amax(dim=0) - points.amin(dim=0)).max()) < 1.6


def test_bad_input():
    with pytest.raises(ValueError, match="known: eight_gaussians, two_moons"):
        toy_points("nine_gaussians")
    with pytest.raises(ValueError, match="at least 8 points, got 7"):
        toy_points("eight_gaussians", 7)
    with pytest.raises(ValueError, match="five_points are five"):
        toy_points("five_points", 6)
