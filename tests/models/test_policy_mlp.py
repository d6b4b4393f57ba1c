import pytest
import torch

from immiscible_diffusion.models import PolicyMLP

TINY, SEEN = PolicyMLP(width=32, depth=2), {"observation": (6,)}


def built():
    torch.manual_seed(0)
    model = TINY.build((16, 2), conditions=SEEN)
    with torch.no_grad():  # away from the zero start, so that inputs matter
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def inputs(count=4):
    generator = torch.Generator().manual_seed(0)
    x, seen = (torch.randn(count, *size, generator=generator) for size in ((16, 2), (6,)))
    return x, 100 * torch.rand(count, generator=generator), {"observation": seen}


def test_output_is_like_the_input_and_a_fresh_model_says_zero():
    x, time, cond = inputs()
    assert built()(x, time, cond).shape == x.shape
    assert not TINY.build((16, 2), conditions=SEEN)(x, time, cond).any()


def test_rows_do_not_see_each_other():
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
def test_a_model_asks_for_its_observation(cond):
    x, time, _ = inputs()
    with pytest.raises(ValueError, match=r"needs cond\['observation'\] of shape \(4, 6\)"):
        built()(x, time, cond)


@pytest.mark.parametrize("more", [{}, {"conditions": SEEN, "num_classes": 3}])
def test_data_that_do_not_fit(more):
    with pytest.raises(ValueError, match="told a vector 'observation' and knows no classes"):
        TINY.build((16, 2), **more)
