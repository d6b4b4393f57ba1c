"""What the papers' code does and a recipe must do alike: prompts, initial weights, schedules, crops."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn

from fixtures.image_files import Image, encoded, noise
from immiscible_diffusion.data.image_decoding import decode_image
from immiscible_diffusion.data.images import ImageSet
from immiscible_diffusion.recipes import recipe_from_name


@pytest.mark.parametrize("name", ["imagenet-sd-scratch", "imagenet-sd-finetune", "sd-inpaint", "sd-outpaint"])
def test_the_prompt_of_an_imagenet_class_has_all_its_synonyms(name):
    images = ImageSet(
        torch.zeros(1, 1, 2, 2, dtype=torch.uint8), "one", torch.tensor([0]), class_names=("tench, Tinca tinca",)
    )
    prompts = recipe_from_name(name).task.captions.of_classes(images, None)
    assert prompts.choices(0) == ["tench, Tinca tinca"]


def test_ddim_has_the_average_the_length_and_the_attention_of_ddpm_torch():
    recipe = recipe_from_name("cifar10-ddim")
    assert recipe.ema.warmup
    assert recipe.steps == 2040 * (50_000 // 256)
    heads = [m.heads for m in recipe.model.build((3, 32, 32)).modules() if hasattr(m, "heads")]
    assert heads == [1] * 6


def zero_weights(model):
    return sum(m.weight.abs().max() == 0 for m in model.modules() if isinstance(m, nn.Conv2d | nn.Conv1d | nn.Linear))


def test_as_many_layers_begin_at_zero_as_in_torchcfms_network():
    torchcfm = pytest.importorskip("torchcfm.models.unet")
    options = {"num_res_blocks": 2, "num_channels": 128, "channel_mult": [1, 2, 2, 2], "num_heads": 4}
    theirs = torchcfm.UNetModel((3, 32, 32), num_head_channels=64, attention_resolutions="16", dropout=0.1, **options)
    ours = recipe_from_name("cifar10-flow").model
    assert zero_weights(ours.build((3, 32, 32))) == zero_weights(theirs) == 29
    assert zero_weights(dataclasses.replace(ours, init="torch").build((3, 32, 32))) == 1


def test_ddim_begins_with_xaviers_weights():
    model = recipe_from_name("cifar10-ddim").model.build((3, 32, 32))
    assert zero_weights(model) == 29
    weight = model.unet.down_blocks[0].resnets[0].conv1.weight
    bound = math.sqrt(6 / (9 * (128 + 128)))
    assert 0.99 * bound < float(weight.detach().abs().max()) <= bound
    assert float(model.unet.conv_in.bias.detach().abs().max()) == 0


def test_push_t_is_5000_epochs_and_its_last_ten_evaluations_the_last_tenth_of_them():
    recipe = recipe_from_name("pusht-policy")
    steps = recipe.task.eval.training_steps(recipe.steps)
    assert (recipe.steps, len(steps)) == (210_000, 100)
    assert steps[-10] == 210_000 - 9 * 2100
    assert (recipe.checkpoint_every, recipe.checkpoints_total_limit) == (2100, 10)


def test_celeba_is_cropped_as_ddpm_torch_does():
    image = noise(1, 218, 178)[0]
    data = recipe_from_name("celeba-consistency").task.data
    found = decode_image({"bytes": encoded(image)}, "RGB", data.size, data.crop, data.resize)
    expected = Image.fromarray(image[40:188, 15:163]).resize((64, 64), Image.Resampling.BILINEAR)
    assert torch.equal(found.permute(1, 2, 0), torch.from_numpy(np.asarray(expected).copy()))
    with pytest.raises(ValueError, match="reaches out of an image of 100 x 178"):
        decode_image({"bytes": encoded(image[:100])}, "RGB", data.size, data.crop)


@pytest.mark.parametrize(("height", "width"), [(347, 500), (500, 333), (200, 255), (256, 256)])
def test_stable_diffusion_resizes_as_torchvision(height, width):
    image = noise(1, height, width)[0]
    data = recipe_from_name("imagenet-sd-scratch").task.data
    found = decode_image({"bytes": encoded(image)}, "RGB", data.size, data.crop, data.resize)
    short = min(height, width)  # torchvision's Resize(256) and CenterCrop(256)
    rows, columns = (256 if side == short else int(256 * side / short) for side in (height, width))
    top, left = round((rows - 256) / 2.0), round((columns - 256) / 2.0)
    resized = Image.fromarray(image).resize((columns, rows), Image.Resampling.BILINEAR)
    expected = np.asarray(resized)[top : top + 256, left : left + 256].copy()
    assert torch.equal(found.permute(1, 2, 0), torch.from_numpy(expected))


def test_named_sets_and_networks_are_pinned_to_a_commit():
    from immiscible_diffusion.data import DataConfig
    from immiscible_diffusion.data.hf_images import load_arguments
    from immiscible_diffusion.utils.hub import split_revision

    assert len(load_arguments(DataConfig("cifar10"))["revision"]) == 40
    assert load_arguments(DataConfig("hub:a/b@v1")) == {"path": "a/b", "revision": "v1"}
    assert load_arguments(DataConfig("hub:a/b")) == {"path": "a/b"}
    name, revision = split_revision(recipe_from_name("imagenet-sd-scratch").task.codec.pretrained)
    assert (name, len(revision["revision"])) == ("CompVis/stable-diffusion-v1-4", 40)
