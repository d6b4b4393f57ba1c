"""Pairing by a part of the data: the map is orthonormal, the rest of the noise untouched, selection exact."""

import pytest
import torch
from scipy.stats import ks_2samp, kstest

from immiscible_diffusion.couplings import (
    KNN,
    Independent,
    LinearAssignment,
    Moments,
    Quantile,
    SemidiscretePlan,
    check_coupling_name,
    parse_coupling,
)
from immiscible_diffusion.couplings.projected import Projected, pooled, spread

SHAPE = (2, 4, 6)


def draw(count, *shape, seed=0):
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(3, 8), SHAPE, (1, 4, 4, 4)])
def test_pooling_is_an_orthonormal_map_and_spreading_its_transpose(shape):
    x, y = draw(5, *shape).double(), pooled(draw(5, *shape, seed=1).double(), 2)
    assert torch.allclose(pooled(spread(y, 2), 2), y)
    assert torch.allclose((pooled(x, 2) * y).sum(), (x * spread(y, 2)).sum())


def projections():
    data = draw(300, *SHAPE)
    yield Projected(KNN(k=8), pool=2), lambda x: pooled(x, 2).flatten(1)
    moments = Moments.fit(data, directions=5)
    yield Projected(KNN(k=8), moments=moments, rank=5), lambda x: x.flatten(1) @ moments.directions.T


@pytest.mark.parametrize("which", [0, 1])
def test_selection_is_that_of_brute_force_by_the_distance_under_the_map(which):
    coupling, low = list(projections())[which]
    data = 1.5 * draw(4000, *SHAPE)
    candidates = draw(4000 * 8, *SHAPE, seed=2).view(4000, 8, *SHAPE)
    distance = (low(candidates.flatten(0, 1)).view(4000, 8, -1) - low(data)[:, None]).square().sum(dim=2)
    nearest = candidates[torch.arange(4000), distance.argmin(dim=1)]
    noise = coupling(data, generator=torch.Generator().manual_seed(3))
    units = torch.nn.functional.normalize(low(data), dim=1)
    for statistic in (
        lambda n: (low(n) * units).sum(dim=1),  # along the sample, under the map
        lambda n: low(n).square().sum(dim=1),
        lambda n: n.flatten(1).square().sum(dim=1) - low(n).square().sum(dim=1),  # what the map leaves out
        lambda n: n[:, 0, 0, 0] - n[:, 0, 0, 1],
    ):
        assert ks_2samp(statistic(noise).numpy(), statistic(nearest).numpy()).pvalue > 1e-3


def test_what_the_map_leaves_out_stays_and_an_assignment_stays_normal():
    data, noise = draw(64, *SHAPE), draw(64, *SHAPE, seed=1)
    paired = Projected(LinearAssignment(), pool=2).pair(data, noise)
    rest = lambda n: n - spread(pooled(n, 2), 2)  # noqa: E731
    assert torch.allclose(rest(paired), rest(noise), atol=1e-6)
    given, own = pooled(paired, 2).flatten(1), pooled(noise, 2).flatten(1)
    assert torch.allclose(given.sum(dim=0), own.sum(dim=0), atol=1e-4)  # the same noises, to other samples
    assert not torch.allclose(given, own, atol=0.1)
    many = torch.cat([Projected(LinearAssignment(), pool=2)(data).flatten() for _ in range(20)])
    assert kstest(many.numpy()[::5], "norm").pvalue > 1e-3
    assert Projected(LinearAssignment(), pool=2).preserves_marginal
    assert not Projected(KNN(k=2), pool=2).preserves_marginal


def test_in_many_dimensions_it_pulls_where_the_whole_distance_does_not():
    data = spread(draw(200, 4, 4, 4), 16) * 16**0.5  # smooth: all of it is in the averages
    along = lambda n: float((n * data).flatten(1).sum(dim=1).div(data.flatten(1).norm(dim=1)).mean())  # noqa: E731
    generator = torch.Generator().manual_seed(0)
    whole, part = KNN(k=8)(data, generator=generator), Projected(KNN(k=8), pool=16)(data, generator=generator)
    assert along(part) > along(whole) + 0.1
    shrunk = [1 - float(noise.square().mean()) for noise in (whole, part)]
    assert shrunk[1] < shrunk[0] / 2


def test_names_are_read_back_and_what_does_not_fit_is_refused():
    coupling = parse_coupling("projected(pool=2):knn:k=8")
    assert parse_coupling(str(coupling)) == coupling == Projected(KNN(k=8), pool=2)
    moments = Moments.fit(draw(100, *SHAPE))
    assert parse_coupling("projected(rank=3):assignment", moments).moments == moments
    with pytest.raises(ValueError, match="multiples of it"):
        coupling(draw(3, 2, 5, 4))
    for wrong in (
        {},
        {"pool": 2, "rank": 3},
        {"rank": 3, "moments": "all"},
        {"pool": 1},
        {"rank": 3},
        {"rank": 0, "moments": moments},
    ):
        with pytest.raises(ValueError, match=r"pool|rank"):
            Projected(Independent(), **wrong)
    with pytest.raises(ValueError, match="needs the moments"):
        parse_coupling("projected(rank=3):knn:k=2")


@pytest.mark.parametrize(
    ("inner", "instead"),
    [
        ("quantile", "rank=R, without projected"),
        ("gaussian_ot", "rank=R, without projected"),
        ("knn:k=2,center=mean", "leave out center"),
        ("shuffled:knn:k=2,center=channel", "leave out center"),
        ("calibrated:knn:k=2", "calibrated: in front"),
    ],
)
def test_by_name_nothing_is_fitted_inside_which_would_be_to_complete_data(inner, instead):
    with pytest.raises(ValueError, match=f"inside 'projected' nothing is fitted.*{instead}"):
        check_coupling_name(f"aligned:projected(pool=2):{inner}")
    check_coupling_name("calibrated:projected(pool=2):knn:k=2")


def test_what_is_fitted_to_the_parts_of_the_data_pairs_them():
    data = draw(300, *SHAPE)
    small = pooled(data, 2)
    plan = SemidiscretePlan.fit(small, Moments.fit(small), rank=1, max_steps=0)
    noise = Projected(Quantile(plan), pool=2)(data)
    ranks = [(x.flatten(1) @ plan.directions[0]).argsort() for x in (small, pooled(noise, 2))]
    assert torch.equal(*ranks)
    assert parse_coupling("projected(pool=2):quantile", plan=plan) == Projected(Quantile(plan), pool=2)
