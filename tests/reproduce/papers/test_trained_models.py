"""The papers' tests of trained models, on runs of a few steps."""

import dataclasses
import json

import pytest
import torch
from PIL import Image

from immiscible_diffusion.diffusion.samplers import start_noise
from immiscible_diffusion.evaluation.load_run import load_run
from immiscible_diffusion.training.run_dir import RunDir
from immiscible_diffusion.training.trainer import Trainer
from reproduce.papers.trained_models import TrainedModel, run_paper_tests


def trained(recipe, folder):
    run = RunDir.open(folder, recipe)
    Trainer(recipe, run, device="cpu").train(quiet=True)
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    from immiscible_diffusion.recipes import recipe_from_name

    recipe = dataclasses.replace(recipe_from_name("digits-flow").tiny(), coupling="knn:k=16")
    return trained(recipe, tmp_path_factory.mktemp("run"))


def rows(section):
    return {row.label: row for row in section.rows}


def sections_of(run, **options):
    return list(run_paper_tests(run, device="cpu", **options))


def test_both_tests_of_a_run(run, tmp_path):
    sections = sections_of(run, folder=tmp_path, noises=32)
    json.dumps([section.to_json() for section in sections], allow_nan=False)
    assert [section.stands_for for section in sections] == ["Fig. 3 of arXiv 2505.18521", "Fig. 3 of arXiv 2406.12303"]
    perturbed, steps = map(rows, sections)
    changes = [perturbed[f"W = {w} %: change"] for w in (10, 20, 30)]
    values = [row.measured.value for row in changes]
    assert 0 < values[0] < values[1] < values[2]
    assert [row.expected for row in changes] == pytest.approx([0.005, 0.02, 0.045])
    # The best denoiser of KNN noise tells images apart at pure noise already.
    assert steps["t = 1.00 (pure noise): spread"].expected > 0.3
    sizes = []
    for section in sections:
        [(file, _)] = section.images
        sizes.append(Image.open(tmp_path / file).size)
    # Digits four times as large, a pixel apart: 8 noises by 1 + 9 images, 10 steps by 6 rows.
    assert sizes == [(10 * 33 - 1, 8 * 33 - 1), (10 * 33 - 1, 6 * 33 - 1)]


def test_the_same_twice_and_images_on_request(run):
    one, two = (sections_of(run.root, noises=16) for _ in range(2))
    assert one == two
    assert not any(section.images for section in one)


def test_without_pairing_the_best_there_can_be_knows_nothing(tiny, tmp_path):
    sections = sections_of(trained(tiny, tmp_path), noises=16)
    assert rows(sections[1])["t = 1.00 (pure noise): spread"].expected < 1e-6


def test_a_matched_start_is_tested_as_well(tiny, tmp_path):
    sampler = dataclasses.replace(tiny.sampler, init_noise="matched")
    recipe = dataclasses.replace(tiny, coupling="knn:k=16", sampler=sampler)
    sections = sections_of(trained(recipe, tmp_path / "run"), noises=16, folder=tmp_path)
    assert len({section.title for section in sections}) == 4
    assert len({file for section in sections for file, _ in section.images}) == 4
    plain, matched = (rows(sections[i])["W = 10 %: change"] for i in (0, 2))
    assert plain.measured != matched.measured


def test_a_conditional_run_is_compared_within_its_labels(tiny, tmp_path):
    recipe = dataclasses.replace(tiny, conditional=True)
    sections = sections_of(trained(recipe, tmp_path), noises=40)
    assert rows(sections[1])["t = 1.00 (pure noise): spread"].expected is None


def loaded(run, **options):
    found = load_run(run, "cpu")
    return TrainedModel(found.with_sampler(dataclasses.replace(found.recipe.sampler, **options)), 0)


def sampled_both_ways(one):
    """The images of the tests, and those that ``immiscible sample`` makes of the same noise."""
    usual, _ = next(one.pipeline(one.run.model, 80, seed=0))
    return one.sample(start_noise(0, range(80), one.pipeline.shape, "cpu")), usual


def test_images_are_guided_as_those_of_sample_are(tiny, tmp_path):
    recipe = dataclasses.replace(tiny, conditional=True, cond_drop_prob=0.2)
    run = trained(recipe, tmp_path)
    mine, usual = sampled_both_ways(loaded(run, guidance=3.0))
    torch.testing.assert_close(mine, usual)
    assert not torch.allclose(mine, loaded(run).sample(start_noise(0, range(80), (1, 8, 8), "cpu")))


def test_the_bound_on_predicted_data_is_scaled_as_the_data_are(tmp_path):
    from immiscible_diffusion.recipes import recipe_from_name

    recipe = recipe_from_name("digits-ddim").tiny()
    recipe = dataclasses.replace(recipe, scaling=dataclasses.replace(recipe.scaling, factor=2.0))
    one = loaded(trained(recipe, tmp_path), method="ddim", clip=0.01)
    mine, usual = sampled_both_ways(one)
    torch.testing.assert_close(mine.abs().max(), torch.tensor(0.01))  # in the range of the data
    torch.testing.assert_close(mine, usual)


def test_mirror_images_are_among_the_data_where_training_mirrors(tiny, tmp_path):
    data = dataclasses.replace(tiny.task.data, flip=True)
    recipe = dataclasses.replace(tiny, task=tiny.task.replace(data=data))
    one = loaded(trained(recipe, tmp_path))
    data, count = one.data().data, len(one.run.task.dataset)
    assert len(data) == 2 * count
    mean = data.mean(dim=0)
    torch.testing.assert_close(mean, mean.flip(-1), atol=1e-5, rtol=0)


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="not a run folder"):
        sections_of(tmp_path)
