"""Costs, masks, oversample, parts and pools of the linear assignment, against all permutations."""

import dataclasses
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from immiscible_diffusion import LinearAssignment
from immiscible_diffusion.couplings import PairedLoader, pair_pool
from immiscible_diffusion.couplings.testing import check_coupling
from immiscible_diffusion.utils.batch import Batch

pytestmark = pytest.mark.filterwarnings("ignore:LinearAssignment pairs nothing")


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def distance(kind, x, n, valid):
    difference = (x - n)[valid]
    return {"inner": difference.square().sum() / 2, "norm": difference.norm()}.get(kind, difference.abs().sum())


def least_cost(kind, data, noise, valid, allowed=None):
    """Over all permutations; ``allowed[i, j]`` says whether sample i may get noise j."""
    pairs = zip(data, valid, strict=True)
    cost = torch.stack([torch.stack([distance(kind, x, n, v) for n in noise]) for x, v in pairs])
    rows = torch.arange(len(data))
    totals = [
        float(cost[rows, list(order)].sum())
        for order in permutations(range(len(noise)), len(data))
        if allowed is None or bool(allowed[rows, list(order)].all())
    ]
    return min(totals), cost


@pytest.mark.parametrize("kind", ["inner", "norm", "l1"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("count", [2, 3, 6])
def test_least_cost_of_all_permutations(kind, masked, count):
    data, noise = torch.randn(2, count, 2, 3, generator=seeded(count)).double()
    valid = torch.ones(count, 2, 3, dtype=torch.bool)
    if masked:
        valid = torch.rand(count, 2, 3, generator=seeded(9)) < 0.6
        valid[:, 0, 0] = True
    given_data = data.masked_fill(~valid, float("nan"))  # never read
    coupling = LinearAssignment(cost=kind)
    index = coupling.assign(given_data, noise, mask=valid if masked else None)
    assert index.sort().values.tolist() == list(range(count))
    least, cost = least_cost(kind, data, noise, valid)
    assert float(cost[torch.arange(count), index].sum()) == pytest.approx(least)


def test_surplus_picks_the_nearest_set_and_says_that_it_changes_the_law():
    data = torch.randn(3, 4, generator=seeded(1)).double()
    noise = torch.randn(6, 4, generator=seeded(2)).double()
    coupling = LinearAssignment(oversample=2)
    index = coupling.assign(data, noise)
    assert len(set(index.tolist())) == 3
    least, cost = least_cost("inner", data, noise, torch.ones(3, 4, dtype=torch.bool))
    assert float(cost[torch.arange(3), index].sum()) == pytest.approx(least)
    assert LinearAssignment().preserves_marginal
    assert not coupling.preserves_marginal
    many = torch.randn(400, 32, generator=seeded(3))
    shrunk = LinearAssignment(oversample=8)(many, generator=seeded(4))
    assert float(shrunk.square().mean()) < 0.97
    with pytest.raises(ValueError, match=r"noise must be \(6, 4\) with oversample=2, got .*\(3, 4\)"):
        coupling.pair(data, noise[:3])


def test_flipped_is_as_tied_and_as_far_as_the_other_is_near():
    data = torch.randn(64, 16, generator=seeded(5))
    near = LinearAssignment()(data, generator=seeded(6))
    far = LinearAssignment(negate=True)(data, generator=seeded(6))
    assert torch.equal(far, -near)
    assert LinearAssignment(negate=True).preserves_marginal


@pytest.mark.parametrize("options", [{}, {"max_size": 5}, {"cost": "l1"}, {"cond_key": "label"}])
def test_a_permutation_of_what_was_drawn(options):
    data = torch.randn(23, 6, generator=seeded(7))
    cond = {"label": torch.arange(23) % 3}
    noise = LinearAssignment(**options)(data, cond=cond, generator=seeded(8))
    drawn = torch.randn(23, 6, generator=seeded(8))
    assert torch.equal(noise.unique(dim=0), drawn.unique(dim=0))


def test_parts_are_assigned_each_by_itself():
    data, noise = torch.randn(2, 40, 6, generator=seeded(9))
    whole = LinearAssignment()
    index = LinearAssignment(max_size=10).assign(data, noise, generator=seeded(10))
    order = torch.randperm(40, generator=seeded(10))
    for rows in order.split(10):
        assert torch.equal(index[rows], rows[whole.assign(data[rows], noise[rows])])
    assert torch.equal(LinearAssignment(max_size=40).assign(data, noise), whole.assign(data, noise))


def test_pool_joins_batches_of_a_shape_in_a_paired_loader():
    data = torch.randn(24, 6, generator=seeded(11))
    coupling = LinearAssignment(pool=3)
    parts = [noise for _, noise, _ in PairedLoader(list(data.split(8)), coupling, seed=5)]
    with pytest.warns(UserWarning, match="pool=3 joins batches in PairedLoader or pair_pool"):
        coupling(data)
    noise = torch.cat(parts)
    drawn = noise[torch.randperm(24, generator=seeded(12))]
    best = dataclasses.replace(coupling, pool=1).pair(data, drawn)
    assert torch.equal(noise, best)  # the best over all 24, not over 8
    wide = torch.randn(4, 9, generator=seeded(13))
    mixed = pair_pool(coupling, [Batch(data[:8]), Batch(wide), Batch(data[8:16])])
    assert [tuple(n.shape) for n in mixed] == [(8, 6), (4, 9), (8, 6)]


def test_invalid_positions_stay_normal():
    data = 3 * torch.randn(3000, 4, generator=seeded(14))
    mask = torch.tensor([True, True, False, False])
    noise = torch.cat(
        [LinearAssignment()(part, mask=mask, generator=seeded(15 + i)) for i, part in enumerate(data.split(100))]
    )
    outside = noise[:, 2:]
    assert stats.kstest(outside.flatten().numpy(), "norm").pvalue > 1e-4
    assert abs(float((outside * data[:, 2:]).mean())) < 4 * 3 / 6000**0.5
    assert float((noise[:, :2] * data[:, :2]).mean()) > 1


def test_half_precision_that_overflows_squared():
    data = (3 * torch.randn(6, 65_536, generator=seeded(16))).half()
    noise = torch.randn(6, 65_536, generator=seeded(17)).half()
    index = LinearAssignment().assign(data, noise)
    assert torch.equal(index, LinearAssignment().assign(data.float(), noise.float()))
    aligned = LinearAssignment().assign(data, data[torch.tensor([3, 1, 0, 5, 2, 4])])
    assert aligned.tolist() == [2, 1, 4, 0, 5, 3]  # and not the inverse permutation


SHAPES = st.sampled_from([(1,), (7,), (2, 3), (3, 4, 4)])
DTYPES = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16])


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(1, 257),
    shape=SHAPES,
    dtype=DTYPES,
    options=st.sampled_from(
        [
            *({}, {"cost": "norm"}, {"cond_key": "c"}, {"max_size": 7}, {"negate": True}),
            *({"cond_key": "c", "cond_cost": "soft"}, {"oversample": 3}),
        ]
    ),
    masked=st.booleans(),
    seed=st.integers(0, 99),
)
@pytest.mark.filterwarnings("ignore:only")
def test_whatever_comes(count, shape, dtype, options, masked, seed):
    data = torch.randn(count, *shape, 2, generator=seeded(seed)).to(dtype)[..., 1]
    cond = {"c": torch.arange(count) % 5, "other": torch.zeros(count)}
    mask = None
    if masked:
        mask = torch.rand(count, *shape, generator=seeded(seed + 1)) < 0.5
        mask[(slice(None), *(0 for _ in shape))] = True
    before = data.clone()
    coupling = LinearAssignment(**options)
    noise = coupling(data, cond=cond, mask=mask, generator=seeded(seed))
    assert (noise.shape, noise.dtype, noise.device) == (data.shape, dtype, data.device)
    assert bool(noise.isfinite().all())
    assert torch.equal(data, before)
    assert torch.equal(cond["c"], torch.arange(count) % 5)
    again = coupling(data, cond=cond, mask=mask, generator=seeded(seed))
    assert torch.equal(noise, again)


@pytest.mark.parametrize(
    "options", [{"cost": "l1"}, {"negate": True}, {"oversample": 2}, {"max_size": 3}, {"across_ranks": True}], ids=str
)
def test_options_keep_the_promises_of_a_coupling(options):
    check_coupling(LinearAssignment(**options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"oversample": 0}, "oversample must be a whole number >= 1, got 0"),
        ({"pool": 1.5}, "pool must be a whole number >= 1, got 1.5"),
        ({"oversample": 2, "cost": "norm"}, "oversample > 1 needs cost='inner'"),
        ({"max_size": 1}, "max_size must be at least 2, got 1"),
        ({"mismatch_rate": 0.5}, "mismatch_rate must be above 0 and below 1/2, got 0.5"),
        ({"cond_cost": "firm"}, "cond_cost must be hard or soft, got 'firm'"),
        ({"cond_cost": "soft"}, "need a cond_key"),
        ({"mismatch_rate": 0.1}, "need a cond_key"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        LinearAssignment(**options)


def test_a_bad_row_is_named_whatever_the_parts():
    data = torch.zeros(6, 3)
    data[4, 1] = np.nan
    for options in ({}, {"max_size": 2}, {"cond_key": "c"}):
        with pytest.raises(ValueError, match="data row 4 is not finite"):
            LinearAssignment(**options)(data, cond={"c": torch.arange(6) % 2})


@pytest.mark.parametrize("count", [2, 7, 40])
def test_greedy_takes_the_closest_pair_again_and_again(count):
    """Against a sorted list of all pairs; so it is stable: no sample and noise are closer than both their pairs."""
    data, noise = torch.randn(2, count, 3, generator=torch.Generator().manual_seed(count))
    index = LinearAssignment(solver="greedy").assign(data, noise)
    distance = torch.cdist(data, noise)
    expected, used = {}, set()
    for pair in distance.flatten().argsort().tolist():
        i, j = divmod(pair, count)
        if i not in expected and j not in used:
            expected[i] = j
            used.add(j)
    assert index.tolist() == [expected[i] for i in range(count)]
    own = distance[torch.arange(count), index]
    of_noise = torch.empty(count).scatter_(0, index, own)
    assert not bool(((distance < own[:, None]) & (distance < of_noise)).any())
    assert float(own.square().sum()) >= float(
        distance.square()[range(count), LinearAssignment().assign(data, noise)].sum()
    )


def test_greedy_keeps_to_conditions_masks_and_ties():
    labels = torch.arange(8) % 2
    data, noise = torch.randn(2, 8, 3, generator=torch.Generator().manual_seed(0))
    index = LinearAssignment(solver="greedy", cond_key="label").assign(data, noise, cond={"label": labels})
    assert torch.equal(labels[index], labels)
    equal = LinearAssignment(solver="greedy").assign(torch.zeros(5, 2), torch.zeros(5, 2))
    assert sorted(equal.tolist()) == list(range(5))
    mask = torch.tensor([True, True, False])
    far = torch.where(mask, data, 1e6)
    masked = LinearAssignment(solver="greedy").assign(far, noise, mask=mask.expand(8, 3))
    assert torch.equal(masked, LinearAssignment(solver="greedy").assign(data[:, :2], noise[:, :2]))
    with pytest.raises(ValueError, match="solver"):
        LinearAssignment(solver="quick")
