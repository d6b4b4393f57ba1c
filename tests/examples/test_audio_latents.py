"""An application of one's own goes through trainer, resume, loading and sampling untouched."""

import dataclasses
import sys

import pytest
import torch

from examples import audio_latents
from helpers import assert_same_weights, train
from immiscible_diffusion.evaluation.load_run import load_run
from immiscible_diffusion.training.recipe import Recipe


@pytest.fixture
def recipe() -> Recipe:
    return dataclasses.replace(audio_latents.audio_flow().tiny(), coupling="knn:k=4,center=label")


def test_a_recipe_with_a_task_of_ones_own_survives_json(recipe):
    assert Recipe.from_dict(recipe.to_dict()) == recipe


def test_resumed_equals_uninterrupted_and_samples_depend_on_their_index(recipe, tmp_path):
    train(recipe, tmp_path / "whole")
    train(recipe, tmp_path / "parts", until=3)
    train(recipe, tmp_path / "parts")
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")
    run = load_run(tmp_path / "whole", "cpu")
    together, alone = (torch.cat([data for data, _ in run.pipeline(size)(run.model, 5, seed=1)]) for size in (5, 2))
    assert together.shape == (5, 2, 32)
    torch.testing.assert_close(together, alone)


def test_training_brings_the_spectrum_nearer(monkeypatch, capsys, tmp_path):
    distances = []
    for steps in ("1", "500"):
        out = str(tmp_path / steps)
        monkeypatch.setattr(sys, "argv", ["audio_latents.py", "--steps", steps, "--out", out])
        audio_latents.main()
        distances.append(float(capsys.readouterr().out.split()[-1].rstrip("}")))
    assert distances[1] < 0.5 * distances[0]
