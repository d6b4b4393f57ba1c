"""The MLP with continuous conditions, as policies use it."""

import pytest
import torch

from immiscible_diffusion.models import MLP

TINY, SHAPES = MLP(width=32, depth=2), {"observation": (6,)}


def built():
    torch.manual_seed(0)
    model = TINY.build((16, 2), conditions=SHAPES)
    with torch.no_grad():  # away from the zero start, so that inputs matter
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def inputs(count=4):
    generator = torch.Generator().manual_seed(0)
    x, observation = (torch.randn(count, *size, generator=generator) for size in ((16, 2), (6,)))
    return x, 100 * torch.rand(count, generator=generator), {"observation": observation}


def test_output_is_like_the_input_and_a_fresh_model_returns_zero():
    x, time, cond = inputs()
    assert built()(x, time, cond).shape == x.shape
    assert not TINY.build((16, 2), conditions=SHAPES)(x, time, cond).any()


def test_rows_are_independent():
    model, (x, time, cond) = built(), inputs()
    turned = {"observation": cond["observation"].flip(0)}
    whole = model(x, time, cond)
    torch.testing.assert_close(model(x.flip(0), time.flip(0), turned).flip(0), whole)


def test_every_input_matters():
    model, (x, time, cond) = built(), inputs()
    out = model(x, time, cond)
    other = {"observation": cond["observation"] + 1}
    for changed in ((x + 1, time, cond), (x, time + 10, cond), (x, time, other)):
        assert not torch.allclose(out, model(*changed), atol=1e-4)


@pytest.mark.parametrize("cond", [None, {}, {"observation": torch.zeros(4, 5)}])
def test_a_missing_or_misshapen_condition_is_refused(cond):
    x, time, _ = inputs()
    with pytest.raises(ValueError, match=r"needs cond\['observation'\] of shape \(4, 6\)"):
        built()(x, time, cond)


def test_several_conditions_and_labels_together():
    torch.manual_seed(0)
    shapes = {"observation": (6,), "goal": (2, 2)}
    model = TINY.build((16, 2), num_classes=3, conditions=shapes)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    x, time, cond = inputs()
    cond |= {"goal": torch.randn(4, 2, 2), "label": torch.arange(4) % 3}
    out = model(x, time, cond)
    for name, value in {"goal": cond["goal"] + 1, "label": (cond["label"] + 1) % 3}.items():
        assert not torch.allclose(out, model(x, time, {**cond, name: value}), atol=1e-4)
