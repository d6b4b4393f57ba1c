"""What a run measures of its data and pairs before step 0, and keeps with its weights."""

import dataclasses
import subprocess
import sys

import pytest
import torch

from helpers import assert_same_weights, train, weights
from immiscible_diffusion.applications.stable_diffusion.unet import StableDiffusionUNet
from immiscible_diffusion.cli.main import main
from immiscible_diffusion.diffusion.paths import Preconditioned
from immiscible_diffusion.evaluation.load_run import load_run
from immiscible_diffusion.models import MLP, UNet
from immiscible_diffusion.recipes import recipe_from_name
from immiscible_diffusion.training.builders import build_run
from immiscible_diffusion.training.optim import OptimizerConfig
from immiscible_diffusion.training.run_dir import RunDir
from immiscible_diffusion.training.trainer import Trainer


def recipe(precondition, coupling="assignment", **changes):
    tiny = recipe_from_name("digits-flow").tiny()
    model = dataclasses.replace(tiny.model, precondition=precondition)
    return dataclasses.replace(tiny, model=model, coupling=coupling, batch_size=64, preview_every=0, **changes)


def test_pairs_are_those_of_training_and_travel_with_the_run(tmp_path):
    trainer = train(recipe("pairs"), tmp_path)
    model, data = trainer.run.model, trainer.task.dataset.batch(torch.arange(256)).data
    assert torch.allclose(model.data_mean, data.mean(0), atol=1e-5)
    assert float(model.data_variance) == pytest.approx(float(data.var(0, correction=0).mean()), rel=1e-4)
    noise = torch.cat([trainer.coupling(part) for _ in range(40) for part in data.split(64)])
    measured = ((data - data.mean(0)).repeat(40, 1, 1, 1) * noise).mean()
    assert float(model.covariance) == pytest.approx(float(measured), rel=0.05)
    assert float(model.covariance) > 0.1
    loaded = load_run(tmp_path).model
    assert isinstance(loaded, Preconditioned)
    x, time = torch.randn(3, 1, 8, 8), torch.tensor([1.0, 500.0, 999.0])
    assert torch.equal(loaded(x, time), trainer.ema.model(x, time))


def test_without_pairing_pairs_and_data_agree(tmp_path):
    pairs, data = (train(recipe(name, "independent"), tmp_path / name).run.model for name in ("pairs", "data"))
    assert float(pairs.covariance) == pytest.approx(0, abs=0.01)
    assert float(pairs.noise_variance) == pytest.approx(1, abs=0.01)
    assert float(data.covariance) == 0
    assert float(data.noise_variance) == 1
    assert torch.equal(pairs.data_variance, data.data_variance)


def test_published_networks_are_left_as_they_are(tmp_path):
    assert recipe_from_name("cifar10-flow").model.precondition == "none"
    assert not any(name.startswith("network.") for name in _trained(recipe("none"), tmp_path))


def _trained(recipe, folder):
    train(recipe, folder)
    return weights(folder)


def test_any_network_can_be_preconditioned(tmp_path):
    small = UNet(channels=8, multipliers=(1, 2), blocks=1, attention=(), groups=4, head_channels=4)
    chosen = dataclasses.replace(recipe("pairs"), model=dataclasses.replace(small, precondition="pairs"), steps=2)
    assert "network.unet.conv_in.weight" in _trained(chosen, tmp_path)


def test_pretrained_networks_are_not():
    with pytest.raises(ValueError, match="as it was trained to"):
        StableDiffusionUNet(precondition="data")
    assert MLP().precondition == "pairs"


def test_a_resumed_run_keeps_what_was_measured(tmp_path, monkeypatch):
    """Also where it would be measured otherwise: by other ranks, on another device."""
    chosen = recipe("pairs")
    train(chosen, tmp_path / "whole")
    train(chosen, tmp_path / "parts", until=4)
    monkeypatch.setattr(Preconditioned, "fit", lambda *arguments: pytest.fail("measured again"))
    resumed = train(chosen, tmp_path / "parts")
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")
    kept = zip(resumed.run.model.buffers(), resumed.ema.model.buffers(), strict=True)
    assert all(torch.equal(one, other) for one, other in kept)


def test_nothing_is_left_behind_by_an_optimizer_that_is_refused(tmp_path):
    wrong = dataclasses.replace(
        recipe("pairs", "knn:k=4,center=mean"), steps=1, optim=OptimizerConfig(use_8bit_adam=True)
    )
    with pytest.raises((ImportError, RuntimeError)):
        Trainer(wrong, RunDir.open(tmp_path, wrong), device="cpu")
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.subprocess
def test_ranks_that_assign_together_measure_what_one_process_does(tmp_path):
    options = ["digits-flow", "--tiny", "--device", "cpu", "--preview-every", "0", "--coupling"]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "immiscible_diffusion"]
    together = ["train", *options, "assignment:across_ranks=true", "--out", str(tmp_path / "two")]
    subprocess.run([sys.executable, *launch, *together], check=True, capture_output=True, timeout=300)
    assert main(["train", *options, "assignment", "--out", str(tmp_path / "one")]) == 0
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert float(one["covariance"]) > 0.05
    torch.testing.assert_close(two["covariance"], one["covariance"])


def test_a_network_that_is_trained_in_part_is_refused(tmp_path):
    run = build_run(recipe("data"), RunDir.open(tmp_path, recipe("data")), torch.device("cpu"))
    run.model.network.embed.requires_grad_(False)
    with pytest.raises(ValueError, match="trained as a whole"):
        run.fit_preconditioning()
