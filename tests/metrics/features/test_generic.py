import pytest
import torch

from immiscible_diffusion.metrics import FeatureStatistics, floor_of, frechet_distance
from immiscible_diffusion.metrics.features.generic import GenericFeatures, principal_directions
from tests.helpers import generator


def distance(one, other):
    return frechet_distance(FeatureStatistics.of(one), FeatureStatistics.of(other))


def test_the_distance_sees_more_than_mean_and_covariance():
    """A ring of eight points and a Gaussian with its covariance."""
    angle = torch.randint(8, (2000,), generator=generator()) * torch.pi / 4
    data = torch.stack([angle.cos(), angle.sin()], dim=1)
    features = GenericFeatures.fit(data)
    gaussian = 0.5**0.5 * torch.randn(1000, 2, generator=generator(1))
    floor = floor_of(features(data), 1000, 0)
    assert distance(features(gaussian), features(data[:1000])) > 3 * floor.high


def test_the_distance_is_of_the_joint_distribution_with_conditions():
    label = torch.arange(1000) % 2
    data = torch.randn(1000, 3, generator=generator()) + 4 * label[:, None]
    condition = torch.nn.functional.one_hot(label).float()
    features = GenericFeatures.fit(data, condition)
    wrong = features(data, condition[torch.randperm(1000, generator=generator(1))])
    floor = floor_of(features(data, condition), 500, 0)
    assert distance(wrong, features(data, condition)) > 10 * floor.high


def test_features_depend_on_the_data_alone():
    """Neither on torch's global generator nor on the first rows, where labels are sorted."""
    label = torch.arange(30_000) // 1_500
    condition = torch.nn.functional.one_hot(label).float()
    data = torch.randn(30_000, 4, generator=generator())
    torch.manual_seed(0)
    first = GenericFeatures.fit(data, condition)
    torch.manual_seed(1)
    again = GenericFeatures.fit(data, condition)
    assert torch.equal(first(data[:9], condition[:9]), again(data[:9], condition[:9]))
    late = condition[-6_000:] @ first.condition_directions.T  # labels that the first 10,000 rows lack
    assert float(late.abs().max()) > 1e-3


def test_there_are_no_more_features_than_asked_for():
    data, condition = torch.randn(100, 50, generator=generator()), torch.eye(100)
    for most in (4, 12, 40, 128):
        assert GenericFeatures.fit(data, condition, max_features=most)(data, condition).shape[1] <= most


def test_a_condition_that_never_changes_says_nothing():
    data = torch.randn(100, 3, generator=generator())
    features = GenericFeatures.fit(data, torch.ones(100, 2))(data, torch.ones(100, 2))
    assert bool(features.isfinite().all())
    assert float(features[:, -2:].std(dim=0).abs().max()) == 0


@pytest.mark.parametrize("shape", [(200, 30), (40, 300), (300, 2500)])
def test_principal_directions_are_those_of_the_singular_value_decomposition(shape):
    values = torch.randn(shape, generator=generator()) * torch.linspace(3, 0.1, shape[1])
    directions = principal_directions(values, 5)
    _, _, expected = torch.linalg.svd((values - values.mean(dim=0)).double(), full_matrices=False)
    overlap = (directions.double() * expected[:5]).sum(dim=1).abs()
    assert torch.allclose(overlap, torch.ones(5).double(), atol=1e-4)
