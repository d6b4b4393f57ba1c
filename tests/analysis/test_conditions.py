import math

import pytest
import torch

from immiscible_diffusion.analysis.conditions import conditions, is_label, scott, together

NORMAL = torch.randn(4000, 3, generator=torch.Generator().manual_seed(0))


def test_bandwidth_is_scotts_rule_in_as_many_dimensions_as_vary():
    features = (NORMAL - NORMAL.mean(0)).double() / NORMAL.double().std(0, correction=0)
    assert scott(features) == pytest.approx(4000 ** (-1 / 7), rel=0.01)
    # The same three directions seen through 60 numbers: longer, and no more dimensions.
    axes = torch.linalg.qr(torch.randn(60, 3, generator=torch.Generator().manual_seed(1)).double())
    spread = features @ axes.Q.T * math.sqrt(20)
    assert scott(spread) == pytest.approx(math.sqrt(20) * scott(features), rel=0.01)


def test_a_continuous_condition_is_varied_in_bandwidth():
    found = conditions({"obs": NORMAL}, ["obs"])
    widths = [one.weights.bandwidth for one in found]
    assert widths[1] == pytest.approx(widths[0] / 2, rel=1e-3)
    assert widths[2] == pytest.approx(widths[0] * 2, rel=1e-3)
    assert all(f"bandwidth {width:g}" in one.text for width, one in zip(widths, found, strict=True))
    assert "the default" in found[0].text
    assert conditions({"obs": NORMAL}, ["obs"], 0.7)[0].weights.bandwidth == 0.7


def test_units_of_a_condition_do_not_matter():
    scaled = NORMAL * torch.tensor([1.0, 1000.0, 1e-3]) + 5
    one, other = (conditions({"obs": x}, ["obs"])[0].weights for x in (NORMAL, scaled))
    rows = torch.arange(5)
    assert torch.allclose(one(rows), other(rows), rtol=1e-2, atol=1e-2)


def test_labels_and_continuous_conditions_go_together():
    label = torch.arange(4000) % 5
    found = conditions({"label": label, "obs": NORMAL, "unused": NORMAL}, ["label", "obs"])
    assert len(found) == 3
    assert torch.equal(found[0].labels, label)
    assert found[0].text.startswith("the label and 'obs' (Gaussian kernel")
    assert conditions({"label": label}, ["label"])[0].weights is None


def test_several_labels_are_one():
    a, b = torch.arange(12) % 2, torch.arange(12) % 3
    joint = together([a, b])
    same = (a[:, None] == a) & (b[:, None] == b)
    assert torch.equal(joint[:, None] == joint, same)
    assert is_label(a)
    assert not is_label(a.float())


@pytest.mark.parametrize(
    ("cond", "expected"),
    [
        ({}, "no condition 'obs'"),
        ({"obs": torch.ones(10, 2)}, "leave it out"),
        ({"obs": torch.full((10, 2), torch.nan)}, "not finite"),
        ({"obs": torch.ones(10, 5000)}, "pool it"),
    ],
)
def test_conditions_that_cannot_be_used_are_refused(cond, expected):
    with pytest.raises(ValueError, match=expected):
        conditions(cond, ["obs"])
