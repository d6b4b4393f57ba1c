"""The twins for a CPU really learn: minutes each, so only where they are asked for."""

import os

import pytest
import torch

from immiscible_diffusion.diffusion.pipeline import Generator
from immiscible_diffusion.evaluation.images import ImageEvaluator, judged
from immiscible_diffusion.recipes import recipe_from_name
from immiscible_diffusion.training.run_dir import RunDir
from immiscible_diffusion.training.trainer import Trainer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        os.environ.get("IMMISCIBLE_SLOW") != "1", reason="minutes each; set IMMISCIBLE_SLOW=1"
    ),
]


def distance(name, folder):
    """Frechet distance of the recipe's own sampler after its whole training, and its judge."""
    recipe = recipe_from_name(name)
    trainer = Trainer(recipe, RunDir.open(folder, recipe), device="cpu")
    trainer.train(quiet=True)
    judge = ImageEvaluator.of(recipe, trainer.dataset)
    generator = Generator(recipe, trainer.dataset)
    model = trainer.average.current()
    quality, _, _ = judged(generator, judge, model, 0, recipe.sampler, metrics=("frechet",))
    return quality.frechet, judge


def test_ddim_in_twenty_steps_is_within_twice_the_distance_of_halves_of_the_data(tmp_path):
    frechet, judge = distance("digits-ddim", tmp_path)
    assert recipe_from_name("digits-ddim").sampler.steps == 20
    assert frechet < 2 * judge.reference.floor.mean


def test_one_consistency_step_is_below_a_fifth_of_the_distance_of_noise(tmp_path):
    frechet, judge = distance("digits-consistency", tmp_path)
    assert recipe_from_name("digits-consistency").sampler.steps == 1
    noise = torch.randn(1000, *judge.dataset.shape, generator=torch.Generator().manual_seed(0))
    assert frechet < judge([noise], ("frechet",)).frechet / 5
