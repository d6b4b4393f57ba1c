"""Assignment under conditions: what crosses, what it costs, and that conditions stay."""

import pytest
import torch

from immiscible_diffusion import LinearAssignment
from immiscible_diffusion.couplings.costs import add_condition_cost, assignment_cost, condition_distance


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def pairs(count, dim=4):
    return torch.randn(2, count, dim, generator=seeded(count)).double()


def test_hard_never_crosses_and_is_best_within_each_condition():
    data, noise = pairs(30)
    labels = torch.arange(30) % 4
    coupling = LinearAssignment(cond_key="label")
    index = coupling.assign(data, noise, cond={"label": labels})
    assert torch.equal(labels[index], labels)
    for label in range(4):
        rows = (labels == label).nonzero()[:, 0]
        assert torch.equal(index[rows], rows[LinearAssignment().assign(data[rows], noise[rows])])
    assert not torch.equal(index, LinearAssignment().assign(data, noise))


def test_hard_takes_conditions_of_any_kind():
    data, noise = pairs(12)
    embedding = torch.randn(3, 5, generator=seeded(1))[torch.arange(12) % 3]
    found = LinearAssignment(cond_key="text").assign(data, noise, cond={"text": embedding})
    want = LinearAssignment(cond_key="k").assign(data, noise, cond={"k": torch.arange(12) % 3})
    assert torch.equal(found, want)


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.3])
@pytest.mark.parametrize("kind", ["labels", "vectors"])
def test_soft_weight_leaves_the_share_that_was_asked_for(rate, kind):
    data, noise = pairs(200, 16)
    cond = torch.arange(200) % 4
    if kind == "vectors":
        cond = torch.randn(200, 3, generator=seeded(2))
    cost = assignment_cost("inner", data, noise, None, squared=True)
    total = add_condition_cost(cost, cond, rate)
    differ = condition_distance(cond) > 1e-9
    cheaper = total < total.diagonal()[:, None]
    assert float(cheaper[differ].double().mean()) == pytest.approx(rate, abs=0.002)


def test_soft_lies_between_free_and_hard():
    data, noise = pairs(200, 3)
    cond = {"label": torch.arange(200) % 4}

    def crossing(coupling):
        index = coupling.assign(data, noise, cond=cond)
        return float((cond["label"][index] != cond["label"]).double().mean())

    shares = [
        crossing(LinearAssignment()),
        *(
            crossing(LinearAssignment(cond_key="label", cond_cost="soft", mismatch_rate=share))
            for share in (0.4, 0.05, 1e-3)
        ),
        crossing(LinearAssignment(cond_key="label")),
    ]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 0.6 > shares[2]
    assert shares[-1] == 0


@pytest.mark.filterwarnings("ignore:only 0%")
def test_conditions_stay_as_they_are_bit_for_bit():
    # C2OT normalizes in place, and may hand back other conditions than it was given.
    data, noise = pairs(20)
    for kind in ("hard", "soft"):
        cond = {"text": torch.randn(20, 5, generator=seeded(3)) * 7, "label": torch.arange(20)}
        before = {name: value.clone() for name, value in cond.items()}
        for key in cond:
            coupling = LinearAssignment(cond_key=key, cond_cost=kind)
            coupling.pair(data, noise, cond=cond)
        assert all(torch.equal(cond[name], before[name]) for name in before)


def test_a_weight_that_was_zero_once_does_not_stay_zero():
    # C2OT keeps its weight from batch to batch, and takes 0 for "not asked for".
    data, noise = pairs(50)
    coupling = LinearAssignment(cond_key="label", cond_cost="soft", mismatch_rate=1e-3)
    alike, unlike = {"label": torch.zeros(50).long()}, {"label": torch.arange(50) % 2}
    fresh = coupling.assign(data, noise, cond=unlike)
    coupling.assign(data, noise, cond=alike)
    assert torch.equal(coupling.assign(data, noise, cond=unlike), fresh)
    assert torch.equal(coupling.assign(data, noise, cond=alike), LinearAssignment().assign(data, noise))


def test_few_movable_rows_are_said():
    data, noise = pairs(100)
    labels = torch.cat([torch.zeros(10), torch.arange(1, 91)]).long()
    with pytest.warns(UserWarning, match="only 10% of 100 data share their condition"):
        LinearAssignment(cond_key="label").pair(data, noise, cond={"label": labels})


@pytest.mark.parametrize(
    ("cond", "message"),
    [
        (None, r'cond_key="label" needs cond\["label"\]; conditions given: none'),
        ({"text": torch.zeros(5)}, "conditions given: text"),
        ({"label": torch.zeros(4)}, r'cond\["label"\] must be a tensor \[5, ...\], got .*\(4,\)'),
    ],
)
def test_missing_conditions_are_named(cond, message):
    with pytest.raises(ValueError, match=message):
        LinearAssignment(cond_key="label")(torch.zeros(5, 2), cond=cond)
