"""Every path, loss and sampler through the one trainer and the one generator."""

import dataclasses

import pytest
import torch

from helpers import train, weights
from immiscible_diffusion.applications.images.task import Images
from immiscible_diffusion.data import DataConfig
from immiscible_diffusion.diffusion.losses import ConsistencyLoss, RegressionLoss
from immiscible_diffusion.diffusion.paths import EDMPath, FlowMatchingPath, VPPath
from immiscible_diffusion.diffusion.samplers import SamplerConfig
from immiscible_diffusion.evaluation.load_run import load_run
from immiscible_diffusion.models import MLP, DiT
from immiscible_diffusion.models.condition_dropout import drop_labels
from immiscible_diffusion.recipes import RECIPES, recipe_from_name
from immiscible_diffusion.training.recipe import Recipe

IMAGES = [name for name in RECIPES if isinstance(recipe_from_name(name).task, Images)]
GUIDED = {"conditional": True, "cond_drop_prob": 0.5}
KINDS = {
    "ddpm": {"path": VPPath(), "sampler": SamplerConfig("ddpm", 4)},
    "ddim": {"path": VPPath("cosine", "v"), "sampler": SamplerConfig("ddim", 4, eta=0.5)},
    "edm": {"path": EDMPath(), "sampler": SamplerConfig("edm", 3)},
    "consistency": {
        "path": EDMPath(),
        "loss": ConsistencyLoss(num_stages=3, pretrain_fraction=0.4),
        "sampler": SamplerConfig("consistency", 2),
    },
    "guided": GUIDED | {"sampler": SamplerConfig("euler", 3, guidance=2.0)},
    "guided ddim": GUIDED | {"path": VPPath(), "sampler": SamplerConfig("ddim", 3, guidance=3.0)},
    "dit": {"model": DiT(heads=2, head_channels=8, depth=1), "preview_every": 0},
}


def trained_weights(recipe, folder, until=None):
    train(recipe, folder, until)
    return weights(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_it_trains_resumes_and_survives_json(tiny, tmp_path, kind):
    recipe = dataclasses.replace(tiny, coupling="knn:k=4", **KINDS[kind])
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    whole = trained_weights(recipe, tmp_path / "whole")
    trained_weights(recipe, tmp_path / "parts", until=recipe.steps // 2)
    parts = trained_weights(recipe, tmp_path / "parts")
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_depends_on_its_seed_and_number_alone(tiny, tmp_path, kind):
    recipe = dataclasses.replace(tiny, **KINDS[kind])
    trained_weights(recipe, tmp_path, until=2)
    run = load_run(tmp_path, "cpu")
    made = [torch.cat([images for images, _ in run.pipeline(size)(run.model, 9, seed=3)]) for size in (64, 4)]
    assert made[0].shape[0] == 9
    assert torch.allclose(made[0], made[1], atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_k_of_one_gives_the_weights_of_independent_noise(tiny, tmp_path, kind):
    recipe = dataclasses.replace(tiny, **{**KINDS[kind], "preview_every": 0})
    plain = trained_weights(recipe, tmp_path / "plain")
    one = trained_weights(dataclasses.replace(recipe, coupling="knn:k=1"), tmp_path / "one")
    assert all(torch.equal(plain[name], one[name]) for name in plain)


@pytest.mark.parametrize("name", IMAGES)
def test_k_of_one_of_every_recipe_gives_the_weights_of_independent_noise(tmp_path, name):
    recipe = recipe_from_name(name)
    channels = 1 if isinstance(recipe.model, MLP) else 3
    size = 16 if channels == 3 else 8
    recipe = dataclasses.replace(
        recipe.tiny(),
        task=recipe.tiny().task.replace(
            data=DataConfig("digits", size=size, channels=channels, max_samples=64, flip=recipe.task.data.flip)
        ),
        preview_every=0,
        steps=3,
    )
    plain, one, four = (
        trained_weights(dataclasses.replace(recipe, coupling=coupling), tmp_path / folder)
        for folder, coupling in (("plain", "independent"), ("one", "knn:k=1"), ("four", "knn:k=4"))
    )
    assert all(torch.equal(plain[part], one[part]) for part in plain)
    assert not all(torch.equal(plain[part], four[part]) for part in plain)


def test_labels_are_dropped_at_their_share_and_nothing_else_changes():
    label = torch.arange(10_000) % 7
    cond = {"label": label, "text": torch.randn(10_000, 2)}
    generator = torch.Generator().manual_seed(0)
    found = drop_labels(cond, 7, 0.1, generator)
    gone = found["label"] == 7
    assert float(gone.double().mean()) == pytest.approx(0.1, abs=0.01)
    assert torch.equal(found["label"][~gone], label[~gone])
    assert found["text"] is cond["text"]
    assert bool((drop_labels(cond, 7, 1.0)["label"] == 7).all())
    assert torch.equal(drop_labels(cond, 7, 0.0)["label"], label)


def test_a_guided_network_knows_one_label_more(tiny):
    recipe = dataclasses.replace(tiny, conditional=True)
    plain, more = (
        part.task.build(part, torch.device("cpu")).build_model()
        for part in (recipe, dataclasses.replace(recipe, cond_drop_prob=0.1))
    )
    assert more.network.label.num_embeddings == plain.network.label.num_embeddings + 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"cond_drop_prob": 0.1}, "needs conditional"),
        ({"sampler": SamplerConfig(guidance=2.0)}, "conditional and cond_drop_prob"),
        ({"loss": ConsistencyLoss()}, "needs an? EDMPath, got FlowMatchingPath"),
        ({"sampler": SamplerConfig("ddim")}, "ddim samples a VPPath, got FlowMatchingPath"),
        ({"path": VPPath(), "sampler": SamplerConfig("edm")}, "edm samples a EDMPath"),
    ],
)
def test_parts_that_do_not_fit_are_refused(tiny, change, said):
    assert isinstance(tiny.path, FlowMatchingPath)
    assert isinstance(tiny.loss, RegressionLoss)
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(tiny, **change)
