"""The U-Net of Stable Diffusion in its four forms."""

import pytest
import torch

from fixtures.stable_diffusion import make_unet
from immiscible_diffusion.applications.stable_diffusion.load_pipeline import silence_hf_logging
from immiscible_diffusion.applications.stable_diffusion.unet import LoRA, StableDiffusionUNet
from immiscible_diffusion.models.trainable import (
    copy_sharing_frozen,
    load_trainable_state,
    trainable_names,
    trainable_parameters,
    trainable_state,
)

SHAPE = (4, 8, 8)


def inputs(count=3, inpainting=False):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, *SHAPE, generator=generator)
    cond = {"text": torch.randn(count, 12, 8, generator=generator)}
    if inpainting:
        mask = (torch.rand(count, 1, 8, 8, generator=generator) < 0.5).float()
        latents = torch.randn(count, *SHAPE, generator=generator)
        cond |= {"inpaint_mask": mask, "masked_latents": latents}
    return x, torch.tensor([3.0, 500.0, 999.0][:count]), cond


def diffusers_unet(small_sd):
    with silence_hf_logging():
        from diffusers import UNet2DConditionModel

        return UNet2DConditionModel.from_pretrained(small_sd, subfolder="unet").eval()


def test_pretrained_weights_have_the_output_of_diffusers(small_sd):
    model = StableDiffusionUNet(str(small_sd)).build(SHAPE)
    x, time, cond = inputs()
    expected = diffusers_unet(small_sd)(x, time.long(), cond["text"]).sample
    torch.testing.assert_close(model(x, time, cond), expected)
    assert model.training, "dropout, where there is some, works in training"


def test_scratch_is_the_same_network_with_other_weights_of_the_seed(small_sd):
    config = StableDiffusionUNet(str(small_sd), init="scratch")
    built = []
    for _ in range(2):
        torch.manual_seed(3)
        built.append(config.build(SHAPE))
    one, two = (model.state_dict() for model in built)
    assert all(torch.equal(one[name], two[name]) for name in one)
    pretrained = StableDiffusionUNet(str(small_sd)).build(SHAPE).state_dict()
    assert {n: v.shape for n, v in one.items()} == {n: v.shape for n, v in pretrained.items()}
    assert not torch.equal(one["unet.conv_out.weight"], pretrained["unet.conv_out.weight"])


def test_a_widened_network_has_the_same_output_until_it_is_trained(small_sd):
    model = StableDiffusionUNet(str(small_sd), inpainting=True).build(SHAPE)
    x, time, cond = inputs(inpainting=True)
    expected = diffusers_unet(small_sd)(x, time, cond["text"]).sample
    torch.testing.assert_close(model(x, time, cond), expected)
    assert model.unet.conv_in.in_channels == model.unet.config.in_channels == 9
    assert (model.unet.conv_in.weight[:, 4:] == 0).all()
    model(x, time, cond).square().mean().backward()
    grad = model.unet.conv_in.weight.grad
    assert (grad[:, 4:].abs().amax((0, 2, 3)) > 0).all(), "it learns from mask and masked image"


def test_an_inpainting_network_stays_as_it_is(tmp_path):
    unet = make_unet(in_channels=9)
    unet.save_pretrained(tmp_path / "unet")
    model = StableDiffusionUNet(str(tmp_path), inpainting=True).build(SHAPE)
    assert torch.equal(model.unet.conv_in.weight, unet.conv_in.weight)
    with pytest.raises(ValueError, match=r"takes 9 channels.*model\.inpainting"):
        StableDiffusionUNet(str(tmp_path)).build(SHAPE)


def test_adapters_alone_are_trained_and_start_at_nothing(small_sd):
    torch.manual_seed(0)
    model = StableDiffusionUNet(str(small_sd), lora=LoRA(rank=2)).build(SHAPE)
    x, time, cond = inputs()
    torch.testing.assert_close(model(x, time, cond), diffusers_unet(small_sd)(x, time, cond["text"]).sample)
    names = trainable_names(model)
    assert names
    assert all("lora_" in name for name in names)
    model(x, time, cond).square().mean().backward()
    assert all(w.grad is not None for w in trainable_parameters(model))
    assert all(w.grad is None for w in model.parameters() if not w.requires_grad)


def test_what_is_copied_and_saved_of_adapters_is_the_adapters(small_sd):
    model = StableDiffusionUNet(str(small_sd), lora=LoRA(rank=2)).build(SHAPE)
    names = trainable_names(model)
    state = trainable_state(model)
    assert sum(v.numel() for v in state.values()) < 0.3 * sum(w.numel() for w in model.parameters())
    copy = copy_sharing_frozen(model)
    for (name, mine), other in zip(model.named_parameters(), copy.parameters(), strict=True):
        assert (mine is other) == (name not in names)
    load_trainable_state(copy, {name: torch.ones_like(v) for name, v in state.items()})
    assert all((w == 1).all() for w in trainable_parameters(copy))
    assert not all((w == 1).all() for w in trainable_parameters(model))
    with pytest.raises(RuntimeError, match="expected the"):
        load_trainable_state(copy, {"unet.conv_in.weight": torch.ones(1)})


@pytest.mark.parametrize("lora", [None, LoRA(rank=2)])
def test_gradient_checkpointing_changes_no_gradient(small_sd, lora):
    grads = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        config = StableDiffusionUNet(str(small_sd), gradient_checkpointing=checkpointing, lora=lora)
        model = config.build(SHAPE)
        model(*inputs()).square().mean().backward()
        grads.append([w.grad for w in trainable_parameters(model)])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)


def test_frozen_weights_in_half_and_adapters_in_full(small_sd):
    torch.manual_seed(0)
    model = StableDiffusionUNet(str(small_sd), lora=LoRA(rank=2)).build(SHAPE)
    x, time, cond = inputs()
    exact = model(x, time, cond)
    model.cast_frozen(torch.bfloat16)
    assert {w.dtype for w in trainable_parameters(model)} == {torch.float32}
    output = model(x, time, cond)
    assert (output.float() - exact).std() < 0.1 * exact.std()
    output.float().square().mean().backward()
    assert all(w.grad.dtype == torch.float32 for w in trainable_parameters(model))


@pytest.mark.parametrize("folder", ["unet", "unet_ema"])
def test_a_checkpoint_of_diffusers_script_is_a_start(tmp_path, folder):
    """``checkpoint-500/`` holds ``unet/`` and ``unet_ema/``; the latter as EMAModel saves it."""
    with silence_hf_logging():
        from diffusers import UNet2DConditionModel
        from diffusers.training_utils import EMAModel
    unet = make_unet()
    unet.save_pretrained(tmp_path / "unet")
    average = EMAModel(unet.parameters(), model_cls=UNet2DConditionModel, model_config=unet.config)
    for weight in average.shadow_params:
        weight.add_(1)
    average.save_pretrained(tmp_path / "unet_ema")
    model = StableDiffusionUNet(str(tmp_path), subfolder=folder).build(SHAPE)
    added = 0 if folder == "unet" else 1
    torch.testing.assert_close(model.unet.conv_in.weight, unet.conv_in.weight + added)
    alone = StableDiffusionUNet(str(tmp_path / folder)).build(SHAPE)
    assert torch.equal(alone.unet.conv_in.weight, model.unet.conv_in.weight)


def test_errors_name_what_is_missing(small_sd, tmp_path):
    x, time, cond = inputs()
    model = StableDiffusionUNet(str(small_sd), inpainting=True).build(SHAPE)
    with pytest.raises(ValueError, match="needs cond with text, inpaint_mask, masked_latents, got text"):
        model(x, time, cond)
    with pytest.raises(ValueError, match=r"no U-Net unet at .*hf download"):
        StableDiffusionUNet(str(tmp_path)).build(SHAPE)
    with pytest.raises(ValueError, match=r"model\.pretrained"):
        StableDiffusionUNet().build(SHAPE)
    with pytest.raises(ValueError, match="latents of 2 channels need 2"):
        StableDiffusionUNet(str(small_sd)).build((2, 8, 8))
    with pytest.raises(ValueError, match="adapters of random weights"):
        StableDiffusionUNet(init="scratch", lora=LoRA())
    with pytest.raises(ValueError, match=r"lora\.rank"):
        LoRA(rank=0)
