import dataclasses
import json

import pytest
import torch

from immiscible_diffusion.applications.images.task import Images
from immiscible_diffusion.data import DataConfig
from immiscible_diffusion.evaluation.config import ImageEvalConfig
from immiscible_diffusion.models import MLP, UNet
from immiscible_diffusion.recipes import RECIPES, recipe_from_name
from immiscible_diffusion.training.ema import EMAConfig
from immiscible_diffusion.training.optim import OptimizerConfig
from immiscible_diffusion.training.recipe import Recipe, differences


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_survive_json(name):
    recipe = recipe_from_name(name)
    assert recipe.name == name
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
    tiny = recipe.tiny()
    assert Recipe.from_dict(json.loads(json.dumps(tiny.to_dict()))) == tiny


def test_cifar10_flow_is_as_published():
    recipe = recipe_from_name("cifar10-flow")
    assert recipe.model == UNet(128, (1, 2, 2, 2), 2, (16,), 64, 32, 0.1, "zero")
    settings = recipe.optim
    assert (settings.lr, settings.warmup_steps, settings.max_grad_norm) == (2e-4, 5000, 1.0)
    assert recipe.ema == EMAConfig(0.9999)
    assert (recipe.batch_size, recipe.steps, recipe.task.data.flip) == (256, 400_000, True)
    assert str(recipe.sampler) == "euler 50"
    model = recipe.model.build((3, 32, 32), None)
    assert sum(p.numel() for p in model.parameters()) == 35_746_307  # TorchCFM's count


@pytest.mark.parametrize(
    ("name", "batch_size", "steps"),
    [
        ("cifar10-ddim", 256, 397_800),
        ("cifar10-consistency", 512, 800_000),
        ("celeba-consistency", 1024, 800_000),
        ("tiny-imagenet-consistency", 2048, 800_000),
    ],
)
def test_the_others_have_the_published_batch(name, batch_size, steps):
    recipe = recipe_from_name(name)
    assert (recipe.batch_size, recipe.steps, recipe.task.data.flip) == (batch_size, steps, True)
    size = recipe.task.data.size or 32
    with torch.device("meta"):
        recipe.model.build((3, size, size))  # the levels can halve the images


def test_unknown_recipe_lists_names_and_guesses():
    with pytest.raises(ValueError, match=r"known: .*did you mean 'digits-flow'"):
        recipe_from_name("digit-flow")


@pytest.mark.parametrize(
    "change",
    [
        {"batch_size": 0},
        {"steps": 0},
        {"checkpoint_every": 0},
        {"prefetch": -1},
        {"conditional": True, "task": Images(data=DataConfig(labels=False))},
    ],
)
def test_bad_recipes_are_refused(change):
    with pytest.raises(ValueError):
        dataclasses.replace(recipe_from_name("digits-flow"), **change)


def test_bad_parts_are_refused():
    with pytest.raises(ValueError, match="lr"):
        OptimizerConfig(lr=0)
    with pytest.raises(ValueError, match="sampling_steps"):
        ImageEvalConfig(sampling_steps=())
    with pytest.raises(ValueError, match="samples"):
        ImageEvalConfig(samples=1)


def test_from_dict_refuses_unknown_fields():
    values = recipe_from_name("digits-flow").to_dict()
    with pytest.raises(ValueError, match="unknown or missing fields: color"):
        Recipe.from_dict({**values, "color": 1})
    with pytest.raises(ValueError, match=r"recipe\.model must be one of "):
        Recipe.from_dict({**values, "model": {"kind": "os.system"}})


def test_recipes_from_before_a_field_was_there_can_be_read():
    recipe = recipe_from_name("digits-flow")
    values = recipe.to_dict()
    del values["scaling"], values["prefetch"]
    assert Recipe.from_dict(values) == recipe
    del values["name"]
    with pytest.raises(ValueError, match="unknown or missing fields: name"):
        Recipe.from_dict(values)


def test_differences_names_what_changed():
    one = recipe_from_name("digits-flow")
    other = dataclasses.replace(one, seed=3, model=MLP(width=8, depth=2))
    assert differences(one, other) == ["model.depth: 4 -> 2", "model.width: 160 -> 8", "seed: 0 -> 3"]


def test_evaluation_steps_may_be_given():
    evaluation = ImageEvalConfig(steps=(400, 20, 100))
    assert evaluation.training_steps(400) == (20, 100, 400)
    assert evaluation.training_steps(150) == (20, 100, 150)
    assert evaluation.training_steps(500) == (20, 100, 400, 500)
    with pytest.raises(ValueError, match=r"eval\.steps"):
        ImageEvalConfig(steps=(0, 5))
    assert recipe_from_name("cifar10-flow").tiny().task.eval.training_steps(8) == (4, 8)


def test_the_papers_steps_are_evaluated():
    flow = recipe_from_name("cifar10-flow")
    assert flow.task.eval.training_steps(flow.steps) == (20_000, 100_000, 200_000, 400_000)
    ddim = recipe_from_name("cifar10-ddim")
    assert {70_200, 163_800} < set(ddim.task.eval.training_steps(ddim.steps))


def test_cifar10_otcfm_is_cifar10_flow_but_for_torchcfms_settings():
    flow, otcfm = recipe_from_name("cifar10-flow"), recipe_from_name("cifar10-otcfm")
    assert (otcfm.batch_size, otcfm.coupling) == (128, "assignment")
    assert str(otcfm.sampler) == "dopri5 1e-05"
    changed = {line.split(":")[0].split(".")[0] for line in differences(flow, otcfm)}
    assert changed == {"name", "batch_size", "coupling", "sampler"}


@pytest.mark.parametrize("name", ["digits-flow", "fashion-flow"])
def test_guided_recipes_are_their_plain_ones_paired_without_labels_and_sampled_with_guidance(name):
    plain, guided = recipe_from_name(name), recipe_from_name(f"{name}-guided")
    assert (guided.coupling, guided.conditional, guided.cond_drop_prob) == ("assignment", True, 0.1)
    changed = {line.split(":")[0] for line in differences(plain, guided)}
    changed -= {"conditional", "cond_drop_prob"}  # those of fashion-flow are so already
    assert changed == {"name", "coupling", "sampler.guidance"}


def test_evaluation_steps_are_evenly_spaced_in_the_logarithm():
    assert ImageEvalConfig(num=3, start=0.01).training_steps(1000) == (10, 100, 1000)
    assert ImageEvalConfig(num=1).training_steps(7) == (7,)
    assert ImageEvalConfig(num=6, start=0.1).training_steps(8)[-1] == 8


def test_recipes_of_an_old_release_say_so():
    values = recipe_from_name("digits-flow").to_dict()
    values["data"] = values.pop("task")["data"]
    with pytest.raises(ValueError, match=r"before 0\.2.*train the recipe again"):
        Recipe.from_dict(values)


def test_only_the_kinds_of_a_field_are_read():
    values = recipe_from_name("digits-flow").to_dict()
    with pytest.raises(ValueError, match=r"recipe\.task must be one of .*Images"):
        Recipe.from_dict({**values, "task": {"kind": "UNet"}})
