"""The papers' tests of trained models, on runs of a few steps."""

import dataclasses
import json

import pytest
import torch

from immiscible_diffusion.diffusion.samplers import start_noise
from immiscible_diffusion.evaluation.load_run import LoadedRun
from immiscible_diffusion.training.run_dir import RunDir
from immiscible_diffusion.training.trainer import Trainer
from reproduce.papers.trained_models import _Examined, examine


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
    return {row["label"]: row for row in section["rows"]}


def test_both_tests_of_a_run(run, tmp_path):
    seen = []
    found = examine(
        run, device="cpu", folder=tmp_path, noises=32, progress=lambda *part: seen.append(part)
    )
    json.dumps(found, allow_nan=False)
    assert [section["stands_for"] for section in found] == [
        "Fig. 3 of arXiv 2505.18521",
        "Fig. 3 of arXiv 2406.12303",
    ]
    assert seen == [(1, 2), (2, 2)]
    stability, layers = map(rows, found)
    changes = [stability[f"W = {w} %, as it is: change"] for w in (10, 20, 30)]
    values = [row["measured"]["value"] for row in changes]
    assert 0 < values[0] < values[1] < values[2]
    assert [row["expected"] for row in changes] == pytest.approx([0.005, 0.02, 0.045])
    # The best denoiser of KNN noise tells images apart at pure noise already.
    assert layers["t = 1.00 (pure noise): spread"]["expected"] > 0.3
    for section in found:
        for picture in section["pictures"]:
            assert (tmp_path / picture["file"]).stat().st_size > 100
        assert section["pictures"]


def test_the_same_twice_and_pictures_on_request(run):
    one, two = (examine(run.root, device="cpu", noises=16) for _ in range(2))
    assert one == two
    assert not any(section["pictures"] for section in one)


def test_without_pairing_the_best_there_can_be_knows_nothing(tiny, tmp_path):
    found = examine(trained(tiny, tmp_path), device="cpu", noises=16)
    assert rows(found[1])["t = 1.00 (pure noise): spread"]["expected"] < 1e-6


def test_a_matched_start_is_examined_as_well(tiny, tmp_path):
    sampler = dataclasses.replace(tiny.sampler, init_noise="matched")
    recipe = dataclasses.replace(tiny, coupling="knn:k=16", sampler=sampler)
    found = examine(trained(recipe, tmp_path), device="cpu", noises=16)
    titles = [section["title"] for section in found]
    assert len(set(titles)) == 4
    assert [", matched start" in title for title in titles] == [False, False, True, True]
    plain, matched = (rows(found[i])["W = 10 %, as it is: change"] for i in (0, 2))
    assert plain["measured"] != matched["measured"]


def test_a_conditional_run_is_compared_within_its_labels(tiny, tmp_path):
    recipe = dataclasses.replace(tiny, conditional=True)
    found = examine(trained(recipe, tmp_path), device="cpu", noises=40)
    assert "pure noise" in found[1]["rows"][0]["label"]
    assert found[1]["rows"][0]["expected"] is None


def examined(run, **parts):
    found = LoadedRun.load(run, "cpu")
    sampler = dataclasses.replace(found.recipe.sampler, **parts)
    return _Examined(found, sampler, found.generator(sampler), 80, 0, None)


def made_by_both(one):
    """The images of the tests, and those that ``sample`` makes of the same noise."""
    shape, rows = one.trained.dataset.shape, range(80)
    usual, _ = next(one.generator(one.trained.model, 80, seed=0, sampler=one.sampler))
    return one.make(start_noise(0, rows, shape, "cpu")), usual


def test_images_are_guided_as_those_of_sample_are(tiny, tmp_path):
    recipe = dataclasses.replace(tiny, conditional=True, cond_drop_prob=0.2)
    run = trained(recipe, tmp_path)
    mine, usual = made_by_both(examined(run, guidance=3.0))
    torch.testing.assert_close(mine, usual)
    assert not torch.allclose(mine, examined(run).make(start_noise(0, range(80), (1, 8, 8), "cpu")))


def test_the_bound_on_predicted_data_is_scaled_as_the_data_are(tmp_path):
    from immiscible_diffusion.recipes import recipe_from_name

    recipe = recipe_from_name("digits-ddim").tiny()
    recipe = dataclasses.replace(recipe, scaling=dataclasses.replace(recipe.scaling, factor=2.0))
    one = examined(trained(recipe, tmp_path), method="ddim", clip=0.01)
    mine, usual = made_by_both(one)
    torch.testing.assert_close(mine.abs().max(), torch.tensor(0.01))  # in the range of the data
    torch.testing.assert_close(mine, usual)


def test_mirror_images_are_among_the_data_where_training_mirrors(tiny, tmp_path):
    recipe = dataclasses.replace(tiny, data=dataclasses.replace(tiny.data, flip=True))
    one = examined(trained(recipe, tmp_path))
    data, count = one._data().data, len(one.trained.dataset)
    assert len(data) == 2 * count
    mean = data.mean(dim=0)
    torch.testing.assert_close(mean, mean.flip(-1), atol=1e-5, rtol=0)


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="not a run folder"):
        examine(tmp_path)
