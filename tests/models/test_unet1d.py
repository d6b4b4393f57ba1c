import pytest
import torch

from immiscible_diffusion.models import UNet1D

TINY = UNet1D(channels=(16, 32), groups=4, embedding=16)
SHAPES = {"observation": (6,)}


def built(config=TINY, shape=(16, 2), conditions=SHAPES):
    torch.manual_seed(0)
    model = config.build(shape, conditions=conditions).eval()
    with torch.no_grad():  # away from the zero start, so that inputs matter
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def inputs(count=4, steps=16, actions=2, size=6):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, steps, actions, generator=generator)
    time = 100 * torch.rand(count, generator=generator)
    return x, time, {"observation": torch.randn(count, size, generator=generator)}


@pytest.mark.parametrize(("size", "count"), [(10, 65_353_218), (40, 65_783_298)])
def test_full_size_is_that_of_diffusion_policy(size, count):
    """Numbers of parameters that the published implementation has for the same settings."""
    with torch.device("meta"):
        model = UNet1D().build((16, 2), conditions={"observation": (size,)})
    assert sum(parameter.numel() for parameter in model.parameters()) == count


@pytest.mark.parametrize(("channels", "steps", "actions"), [((16,), 5, 1), ((16, 32), 16, 2), ((8, 16, 32), 8, 7)])
def test_output_is_like_the_input(channels, steps, actions):
    model = built(UNet1D(channels=channels, groups=4, embedding=16), (steps, actions))
    x, time, cond = inputs(steps=steps, actions=actions)
    out = model(x, time, cond)
    assert out.shape == x.shape
    assert bool(out.isfinite().all())


def test_a_fresh_model_returns_zero():
    x, time, cond = inputs()
    assert not TINY.build((16, 2), conditions=SHAPES)(x, time, cond).any()


def test_rows_are_independent():
    model = built()
    x, time, cond = inputs()
    whole = model(x, time, cond)
    rows = [model(x[i : i + 1], time[i : i + 1], {"observation": cond["observation"][i : i + 1]}) for i in range(4)]
    torch.testing.assert_close(whole, torch.cat(rows), atol=1e-4, rtol=1e-4)


def test_time_and_observation_matter():
    model = built()
    x, time, cond = inputs()
    out = model(x, time, cond)
    other = {"observation": cond["observation"] + 1}
    assert not torch.allclose(out, model(x, time + 10, cond), atol=1e-4)
    assert not torch.allclose(out, model(x, time, other), atol=1e-4)


def test_film_scales_and_shifts_every_channel():
    """``scale * hidden + shift`` with scale and shift linear in the context."""
    block = built().middle[0]
    hidden, context = torch.randn(3, 32, 8), torch.randn(3, 16 + 6)
    plain = block.first(hidden)
    scale, shift = block.film(context).chunk(2, dim=1)
    expected = block.second(scale[..., None] * plain + shift[..., None]) + hidden
    torch.testing.assert_close(block(hidden, context), expected)
    with torch.no_grad():
        block.film.weight.zero_()
    torch.testing.assert_close(block(hidden, context), block(hidden, -context))


def test_every_action_sees_every_other_at_two_levels():
    """Of a plan of 16 the lower level has 8 steps, and four convolutions of width 5 reach them all.

    Group norms reach everywhere anyway; with them taken out the convolutions alone must.
    """
    model = built()
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, torch.nn.GroupNorm):
                setattr(module, name, torch.nn.Identity())
    x, time, cond = inputs(count=1)
    x.requires_grad_()
    slope = torch.autograd.grad(model(x, time, cond)[0, 0].sum(), x)[0][0].abs().sum(dim=1)
    assert bool((slope > 0).all())


def test_without_levels_an_action_sees_its_neighbors_only():
    """Two blocks down, two in the middle, one at the end: nine convolutions reach 18 steps."""
    model = built(UNet1D(channels=(16,), groups=4, embedding=16), (64, 2))
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, torch.nn.GroupNorm):
                setattr(module, name, torch.nn.Identity())
    x, time, cond = inputs(count=1, steps=64)
    x.requires_grad_()
    slope = torch.autograd.grad(model(x, time, cond)[0, 32].sum(), x)[0][0].abs().sum(dim=1)
    assert slope.nonzero().flatten().tolist() == list(range(32 - 18, 32 + 18 + 1))


def test_it_learns_an_action_given_by_the_observation():
    torch.manual_seed(0)
    model = TINY.build((16, 2), conditions={"observation": (2,)})
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(60):
        observation = torch.randn(64, 2)
        x, time = torch.randn(64, 16, 2), 100 * torch.rand(64)
        loss = (model(x, time, {"observation": observation}) - observation[:, None]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.2  # 1 without the observation


@pytest.mark.parametrize("cond", [None, {}, {"observation": torch.zeros(4, 5)}])
def test_a_missing_or_misshapen_condition_is_refused(cond):
    x, time, _ = inputs()
    with pytest.raises(ValueError, match=r"needs cond\['observation'\] of shape \(4, 6\)"):
        built()(x, time, cond)


@pytest.mark.parametrize(
    ("shape", "more", "message"),
    [
        ((15, 2), {"conditions": SHAPES}, "T a multiple of 2"),
        ((3, 16, 16), {"conditions": SHAPES}, "takes action sequences"),
        ((16, 2), {"conditions": SHAPES, "num_classes": 3}, "not on classes"),
        ((16, 2), {}, "conditioned on observations"),
    ],
)
def test_data_that_do_not_fit(shape, more, message):
    with pytest.raises(ValueError, match=message):
        TINY.build(shape, **more)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"channels": (12, 32)}, "must divide the channels"),
        ({"channels": ()}, "must divide the channels"),
        ({"kernel": 4}, "odd kernel"),
        ({"embedding": 15}, "even embedding"),
    ],
)
def test_settings_that_do_not_fit(wrong, message):
    with pytest.raises(ValueError, match=message):
        UNet1D(**{"groups": 8, **wrong})
