"""torchcfm's own network and ours, with its weights, are one function."""

import dataclasses

import pytest
import torch

from immiscible_diffusion.data import DataConfig, load_images
from immiscible_diffusion.diffusion.samplers import start_noise
from immiscible_diffusion.evaluation.load_run import load_run
from immiscible_diffusion.recipes import recipe_from_name
from reproduce import torchcfm_weights
from reproduce.torchcfm_weights import convert, write_run

unet = pytest.importorskip("torchcfm.models.unet.unet", reason="torchcfm's network")


def theirs(channels):
    model = unet.UNetModelWrapper(
        dim=(3, 32, 32),
        num_res_blocks=2,
        num_channels=channels,
        channel_mult=[1, 2, 2, 2],
        num_heads=4,
        num_head_channels=64,
        attention_resolutions="16",
        dropout=0.1,
    )
    generator = torch.Generator().manual_seed(0)
    for weight in model.parameters():  # those that begin at zero too
        torch.nn.init.normal_(weight, std=0.05, generator=generator)
    return model.eval()


def test_the_networks_are_equal_but_for_the_direction_of_time():
    model, config = theirs(64), dataclasses.replace(recipe_from_name("cifar10-flow").model, channels=64)
    ours = config.build((3, 32, 32)).eval()
    ours.load_state_dict(convert(model.state_dict(), config))
    x, t = torch.randn(2, 3, 32, 32), torch.tensor([0.1, 0.8])
    with torch.no_grad():
        expected, found = model(t, x), ours(x, 1 - t)
    torch.testing.assert_close(found, -expected, rtol=0, atol=2e-5 * float(expected.abs().max()))


def test_weights_of_another_network_are_refused():
    config = recipe_from_name("cifar10-flow").model
    with pytest.raises(ValueError, match="another network: label_emb"):
        convert({"label_emb.weight": torch.zeros(2)}, config)


def test_a_checkpoint_becomes_a_run_that_samples_as_theirs(tmp_path, monkeypatch):
    recipe = recipe_from_name("cifar10-otcfm")
    small = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, channels=64))
    monkeypatch.setattr(torchcfm_weights, "recipe_from_name", lambda name: small)
    model = theirs(64)
    torch.save({"ema_model": {f"module.{k}": v for k, v in model.state_dict().items()}, "step": 7}, tmp_path / "a.pt")
    write_run(tmp_path / "a.pt", "otcfm", tmp_path / "run")
    images = load_images(DataConfig("digits", size=32, channels=3, max_samples=4))
    run = load_run(tmp_path / "run", "cpu", images)
    assert run.step == 7
    sampled = run.with_sampler(dataclasses.replace(recipe.sampler, method="euler", steps=2)).pipeline().sample
    found = sampled(run.model, [0, 1], seed=0).data
    x = start_noise(0, [0, 1], (3, 32, 32))
    with torch.no_grad():
        for t in (0.0, 0.5):  # torchcfm's direction
            x = x + 0.5 * model(torch.full((2,), t), x)
    torch.testing.assert_close(found, x, rtol=0, atol=1e-4 * float(x.abs().max()))
