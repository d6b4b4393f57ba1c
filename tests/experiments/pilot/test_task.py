from dataclasses import replace

import pytest
import torch

from immiscible_diffusion.data.in_memory import InMemoryData
from immiscible_diffusion.experiments.pilot.data import LABEL, VECTOR, Samples
from immiscible_diffusion.experiments.pilot.task import ArrayEvaluator, pilot_recipe
from immiscible_diffusion.models import MLP, UNet
from immiscible_diffusion.training.recipe import Recipe
from immiscible_diffusion.utils.batch import Batch
from immiscible_diffusion.utils.random import RandomStreams
from tests.helpers import generator

CPU = torch.device("cpu")
STEPS = {"steps": 4, "eval_steps": (4,), "sampling_steps": (2,)}


def samples(*shape, conditions=(), **parts):
    data = torch.randn(*shape, generator=generator())
    return Samples.of(InMemoryData("mine", "", Batch(data, **parts)), conditions)


def task_of(data, seed=0, network="mlp"):
    recipe = replace(pilot_recipe(data, network, CPU, **STEPS), seed=seed)
    return recipe.task.build(recipe, CPU, data.split(seed))


@pytest.fixture
def windows():
    mask = torch.ones(70, 6, 1).bool()
    mask[::2, 4:] = False
    cond = {"kind": torch.arange(70) % 3, "state": torch.randn(70, 2, 2, generator=generator(1))}
    return samples(70, 6, 2, conditions=("kind", "state"), cond=cond, mask=mask)


def test_the_network_is_given_conditions_and_the_mask(windows):
    task = task_of(windows)
    model = task.build_model()
    for parameter in model.parameters():  # the last layer begins at zero
        torch.nn.init.normal_(parameter, std=0.1, generator=generator())
    batch = task.encode(task.dataset.batch(torch.arange(35)))
    cond = task.drop_conditions(batch.cond, RandomStreams(0))
    assert set(cond) == {LABEL, VECTOR}
    t = torch.full((35,), 500.0)
    output = model(batch.data, t, cond)
    assert output.shape == batch.data.shape
    for name, other in ((LABEL, (cond[LABEL] + 1) % 3), (VECTOR, cond[VECTOR] + 1)):
        assert not torch.allclose(model(batch.data, t, {**cond, name: other}), output)


def test_sample_i_has_the_conditions_of_what_is_held_out(windows):
    task = task_of(windows, seed=1)
    cond = task.conditions(range(3, 7))
    held_out = windows.take(task.dataset.held_out[3:7]).cond
    assert torch.equal(cond[LABEL], held_out[LABEL])
    assert torch.equal(cond[VECTOR], held_out[VECTOR])
    assert task_of(samples(70, 3)).conditions(range(4)) is None


def test_what_is_generated_where_the_mask_is_false_counts_for_nothing(windows):
    evaluator = ArrayEvaluator(windows.split(0))
    data = torch.randn(35, 6, 2, generator=generator())
    mask = windows.every.mask[evaluator.samples.held_out]
    assert evaluator.distance(data) == evaluator.distance(torch.where(mask, data, 99.0))
    assert evaluator.distance(data) != evaluator.distance(torch.where(mask, 99.0, data))


def test_what_is_held_out_is_at_no_distance_from_itself(windows):
    evaluator = ArrayEvaluator(windows.split(0))
    held_out = windows.every.data[evaluator.samples.held_out]
    assert evaluator.distance(held_out) == pytest.approx(0, abs=1e-6)
    assert evaluator.untrained > evaluator.floor.mean


def test_equal_seeds_begin_with_equal_weights():
    data = samples(70, 5)
    one, two, other = (task_of(data, seed).build_model().state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_a_network_narrower_than_the_data_can_pass_the_noise_on():
    """Data that are all 0: the target is the noise, ``x_t / t``, of 300 numbers by 256."""
    model = task_of(samples(70, 300)).build_model()
    model.fit([(torch.zeros(64, 300), None)])
    t = torch.linspace(0.3, 1, 64)
    noise = torch.randn(64, 300, generator=generator())
    output = model(t[:, None] * noise, 1000 * t, None)
    assert float((output - noise).detach().square().mean()) < 1e-3


def test_the_network_is_chosen_by_data_and_device():
    def model(shape, network="auto", device="cpu", **parts):
        return pilot_recipe(samples(70, *shape, **parts), network, torch.device(device), **STEPS).model

    assert isinstance(model((1, 8, 8)), MLP)
    assert isinstance(model((1, 8, 8), "unet"), UNet)
    assert isinstance(model((1, 8, 8), device="meta"), UNet)
    assert isinstance(model((7, 2), device="meta"), MLP)
    cond = {"state": torch.randn(70, 2)}
    assert isinstance(model((1, 8, 8), device="meta", conditions=("state",), cond=cond), MLP)
    with pytest.raises(ValueError, match="--network mlp"):
        model((7, 2), "unet")
    with pytest.raises(ValueError, match="must be one of"):
        model((7, 2), "transformer")


def test_a_recipe_is_read_back_from_its_file(windows):
    recipe = pilot_recipe(windows, "mlp", CPU, **STEPS)
    assert Recipe.from_dict(recipe.to_dict()) == recipe
