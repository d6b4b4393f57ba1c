"""The recipes for a CPU really learn: minutes each, so only where they are asked for."""

import os

import pytest

from helpers import train
from immiscible_diffusion.recipes import recipe_from_name

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.environ.get("IMMISCIBLE_SLOW") != "1", reason="minutes each; set IMMISCIBLE_SLOW=1"),
]


def distance(name, folder):
    """Frechet distance of the recipe's own sampler after its training, and its evaluator."""
    recipe = recipe_from_name(name)
    trainer = train(recipe, folder)
    evaluator = trainer.task.evaluator()
    result = evaluator.evaluate(trainer.pipeline, trainer.ema.model, 0, ("frechet",))
    return result.scores["frechet"], evaluator


def test_ddim_in_twenty_steps_is_within_twice_the_distance_of_halves_of_the_data(tmp_path):
    frechet, evaluator = distance("digits-ddim", tmp_path)
    assert recipe_from_name("digits-ddim").sampler.steps == 20
    assert frechet < 2 * evaluator.reference.floor.mean


def test_one_consistency_step_is_below_a_fifth_of_the_distance_of_noise(tmp_path):
    frechet, evaluator = distance("digits-consistency", tmp_path)
    assert recipe_from_name("digits-consistency").sampler.steps == 1
    assert frechet < evaluator.noise_distance(1000) / 5
