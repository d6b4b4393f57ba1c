"""Images scored in pixels too."""

import dataclasses
import json

import pytest
import torch

from immiscible_diffusion.cli.main import main
from immiscible_diffusion.data import DataConfig, load_images
from immiscible_diffusion.evaluation.config import ImageEvalConfig
from immiscible_diffusion.evaluation.images import ImageEvaluator
from immiscible_diffusion.metrics import FeatureStatistics, frechet_distance
from immiscible_diffusion.recipes import recipe_from_name

CONFIG = ImageEvalConfig(features="pixels", samples=100, pixels=True)


@pytest.fixture(scope="module")
def digits():
    return load_images(DataConfig("digits", max_samples=400))


def test_the_distance_is_that_of_all_pixels_whatever_the_batches(digits):
    evaluator = ImageEvaluator.of(digits, CONFIG)
    images = 1.1 * torch.rand(150, 1, 8, 8, generator=torch.Generator().manual_seed(0)) - 0.5
    statistics = [
        FeatureStatistics.of(x.flatten(1)) for x in (images.clamp(-1, 1), digits.batch(torch.arange(400)).data)
    ]
    expected = frechet_distance(*statistics)
    for metrics in (("frechet",), ("frechet", "kid")):
        scores = evaluator.measure(iter(images.split(40)), metrics)
        assert scores.pixels == pytest.approx(expected, rel=1e-6)
        assert scores.pixels == pytest.approx(scores.frechet, rel=1e-6)  # whose features are the pixels here
    assert evaluator.measure(iter([images]), ("kid",)).pixels is None
    alone = ImageEvaluator.of(digits, dataclasses.replace(CONFIG, pixels=False)).measure(iter([images]), ("frechet",))
    assert (alone.pixels, alone.samples) == (None, 150)
    assert alone.frechet == pytest.approx(expected, rel=1e-6)


def test_too_few_for_the_number_of_pixels(digits):
    few = dataclasses.replace(CONFIG, features="classifier", samples=65)
    assert ImageEvaluator.of(digits, few, max_real=65).pixels is not None
    with pytest.warns(UserWarning, match="65 samples and 64 real data are too few for a Frechet distance of 64 pix"):
        assert ImageEvaluator.of(digits, few, max_real=64).pixels is None


def test_features_that_are_pixels_are_computed_once(digits, monkeypatch):
    evaluator = ImageEvaluator.of(digits, CONFIG)
    monkeypatch.setattr("immiscible_diffusion.evaluation.images.frechet_distance", None)
    scores = evaluator.measure(iter([torch.rand(150, 1, 8, 8)]), ("frechet",))
    assert scores.pixels == scores.frechet > 0


@pytest.mark.parametrize("name", ["digits-flow", "digits-ddim", "digits-consistency", "fashion-flow"])
def test_small_recipes_score_pixels(name):
    assert recipe_from_name(name).task.eval.pixels
    assert not recipe_from_name("cifar10-flow").task.eval.pixels


def test_evaluate_prints_them(tmp_path):
    run = tmp_path / "run"
    assert main(["train", "digits-flow", "--tiny", "--device", "cpu", "--out", str(run), "--preview-every", "0"]) == 0
    for words in (["frechet"], ["frechet", "--pixels", "False"], ["kid", "--real", "64"]):
        assert main(["evaluate", str(run), "--metrics", *words]) == 0
    assert main(["evaluate", str(run), "--metrics", "kid", "--real", "64", "--pixels", "True"]) == 2
    with_pixels, without, few = json.loads((run / "evaluation.json").read_text())
    assert (few["pixels"], few["kid"] is None) == (None, False)
    assert with_pixels["pixels"] > 0
    assert without["pixels"] is None
    assert with_pixels["frechet"] == without["frechet"]
