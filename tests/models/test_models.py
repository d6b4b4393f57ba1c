from dataclasses import replace

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from immiscible_diffusion.models import MLP, DiT, UNet, UNet1D
from immiscible_diffusion.models.mlp import time_features

TINY = UNet(channels=16, multipliers=(1, 2), blocks=1, attention=(4,), head_channels=8, groups=8)
SMALL = DiT(heads=2, head_channels=8, depth=2)


def kinds():
    return [(MLP(width=32, depth=2), (3, 8, 8)), (MLP(width=16, depth=1), (5,)), (TINY, (3, 8, 8)), (SMALL, (3, 8, 8))]


def inputs(shape, count=4):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, *shape, generator=generator)
    return x, 1000 * torch.rand(count, generator=generator), {"label": torch.arange(count) % 3}


def built(config, shape, num_classes):
    if isinstance(config, (DiT, UNet)):
        pytest.importorskip("diffusers")
    torch.manual_seed(0)
    model = config.build(shape, num_classes).eval()
    with torch.no_grad():  # away from the zero start, so that inputs matter
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize(("config", "shape"), kinds())
@pytest.mark.parametrize("num_classes", [None, 3])
def test_output_is_like_the_input(config, shape, num_classes):
    x, time, cond = inputs(shape)
    out = built(config, shape, num_classes)(x, time, cond if num_classes else None)
    assert out.shape == x.shape
    assert bool(out.isfinite().all())


@pytest.mark.parametrize(("config", "shape"), kinds())
def test_a_fresh_model_returns_zero(config, shape):
    if isinstance(config, (DiT, UNet)):
        pytest.importorskip("diffusers")
    x, time, _ = inputs(shape)
    assert not config.build(shape, None).eval()(x, time, None).any()


@pytest.mark.parametrize(("config", "shape"), kinds())
def test_rows_are_independent(config, shape):
    model = built(config, shape, 3)
    x, time, cond = inputs(shape)
    whole = model(x, time, cond)
    rows = [model(x[i : i + 1], time[i : i + 1], {"label": cond["label"][i : i + 1]}) for i in range(4)]
    assert torch.allclose(whole, torch.cat(rows), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(("config", "shape"), kinds())
def test_time_and_label_matter(config, shape):
    model = built(config, shape, 3)
    x, time, cond = inputs(shape)
    out = model(x, time, cond)
    assert not torch.allclose(out, model(x, time + 100, cond), atol=1e-4)
    assert not torch.allclose(out, model(x, time, {"label": (cond["label"] + 1) % 3}), atol=1e-4)


@pytest.mark.parametrize(("config", "shape"), kinds())
@pytest.mark.parametrize("cond", [None, {}, {"text": torch.zeros(4)}])
def test_class_conditional_models_ask_for_labels(config, shape, cond):
    x, time, _ = inputs(shape)
    with pytest.raises(ValueError, match=r"give cond=\{'label'"):
        built(config, shape, 3)(x, time, cond)


@pytest.mark.parametrize(("config", "shape"), kinds())
def test_unconditional_models_let_labels_pass(config, shape):
    x, time, cond = inputs(shape)
    model = built(config, shape, None)
    assert torch.equal(model(x, time, cond), model(x, time, None))


@pytest.mark.parametrize(("config", "shape"), kinds())
def test_every_parameter_learns(config, shape):
    model = built(config, shape, 3)
    x, time, cond = inputs(shape)
    (model(x, time, cond) * x).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_time_features_tell_times_apart():
    features = time_features(torch.arange(0.0, 1001.0), 64)
    assert features.shape == (1001, 64)
    assert features.abs().max() <= 1
    assert torch.pdist(features).min() > 0.1


def test_dropout_acts_in_training_alone():
    model = built(MLP(width=32, depth=2, dropout=0.5), (6,), None)
    x, time, _ = inputs((6,))
    assert torch.equal(model(x, time), model(x, time))
    model.train()
    assert not torch.equal(model(x, time), model(x, time))


@pytest.mark.parametrize(
    ("config", "shape", "message"),
    [
        (TINY, (3, 8, 6), r"multiple of 2, got \(3, 8, 6\)"),
        (TINY, (3, 9, 9), r"multiple of 2, got \(3, 9, 9\)"),
        (UNet(), (3, 28, 28), "multiple of 8.*set data.size or fewer model.multipliers"),
        (TINY, (8, 8), r"got \(8, 8\)"),
        (UNet(channels=24), (3, 8, 8), r"groups 32 must divide .*\[24, 48, 48, 48\]"),
    ],
)
def test_images_that_the_unet_cannot_take(config, shape, message):
    with pytest.raises(ValueError, match=message):
        config.build(shape, None)


def test_attention_stands_where_it_is_asked_for():
    pytest.importorskip("diffusers")
    model = TINY.build((3, 8, 8), None)
    down = [type(block).__name__ for block in model.unet.down_blocks]
    up = [type(block).__name__ for block in model.unet.up_blocks]
    assert down == ["DownBlock2D", "AttnDownBlock2D"]
    assert up == ["AttnUpBlock2D", "UpBlock2D"]


@pytest.mark.parametrize("config", [TINY, SMALL])
def test_networks_of_images_take_no_conditions_except_labels(config):
    with pytest.raises(ValueError, match="no conditions except labels, and the data have observ"):
        config.build((3, 8, 8), None, {"observation": (6,)})


def test_a_dit_drops_no_label_of_its_own():
    model = built(SMALL, (1, 8, 8), 3).train()
    x, time, cond = inputs((1, 8, 8))
    assert torch.equal(model(x, time, cond), model(x, time, cond))


def test_a_dit_takes_whole_patches():
    with pytest.raises(ValueError, match=r"set data\.size or model\.patch"):
        DiT(patch=4).build((1, 14, 14), None)


@pytest.mark.parametrize(
    ("config", "shape", "mode"),
    [
        (replace(TINY, dropout=0.3), (3, 8, 8), "float32"),
        (replace(TINY, dropout=0.3), (3, 8, 8), "bfloat16"),
        (replace(SMALL, dropout=0.3), (3, 8, 8), "float32"),
        (replace(SMALL, dropout=0.3), (3, 8, 8), "compiled"),
        (UNet1D(channels=(16, 32)), (16, 2), "float32"),
    ],
)
def test_gradient_checkpointing_keeps_less_and_changes_no_gradient(config, shape, mode):
    """Dropout among them, which is drawn again as it was, whatever is drawn in between."""
    cond, grads, kept = {"observation": torch.ones(4, 6)}, [], []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        conditions = {"observation": (6,)} if isinstance(config, UNet1D) else None
        model = replace(config, gradient_checkpointing=checkpointing).build(shape, conditions=conditions)
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
        if mode == "compiled":
            torch._dynamo.reset()
            model.compile(backend="aot_eager")
        held: dict[int, int] = {}

        def pack(tensor, held=held):
            held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        x, time, _ = inputs(shape)
        with (
            saved_tensors_hooks(pack, lambda tensor: tensor),
            torch.autocast("cpu", torch.bfloat16, enabled=mode == "bfloat16"),
        ):
            out = model(x, time, cond)
        for parameter in model.parameters():
            held.pop(parameter.untyped_storage().data_ptr(), None)
        kept.append(sum(held.values()))
        torch.manual_seed(1)
        out.float().square().mean().backward()
        grads.append([parameter.grad for parameter in model.parameters()])
    assert kept[1] < 0.6 * kept[0]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)


def test_what_cannot_compute_twice_says_what_to_use():
    with pytest.raises(ValueError, match=r"MLP keeps its activations.* use UNet, UNet1D or DiT"):
        MLP(gradient_checkpointing=True)
