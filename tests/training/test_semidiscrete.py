"""A run that pairs over its whole data set: fitted once, kept, resumed exactly, within labels where asked."""

import dataclasses

import pytest
import torch

from helpers import assert_same_weights, train
from immiscible_diffusion.cli.main import main
from immiscible_diffusion.couplings import semidiscrete_fit
from immiscible_diffusion.data.images import ImageSet
from immiscible_diffusion.recipes import recipe_from_name
from immiscible_diffusion.training import builders

NAME = "semidiscrete:noises=2,refresh=3"


@pytest.fixture(autouse=True)
def short_fit(monkeypatch):
    monkeypatch.setattr(builders, "PLAN_STEPS", 20)


def recipe(**changes):
    return dataclasses.replace(recipe_from_name("digits-flow").tiny(), coupling=NAME, preview_every=0, **changes)


@pytest.mark.filterwarnings("ignore:the shares of the samples differ")
def test_resumed_equals_uninterrupted_and_fits_once(tmp_path):
    whole = train(recipe(steps=8), tmp_path / "whole")
    train(recipe(steps=8), tmp_path / "parts", until=5)
    plan = (tmp_path / "parts" / "semidiscrete.safetensors").read_bytes()
    train(recipe(steps=8), tmp_path / "parts")
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")
    assert (tmp_path / "parts" / "semidiscrete.safetensors").read_bytes() == plan
    batch = whole.task.encode(whole.task.dataset.batch(torch.arange(64)))
    noise = whole.coupling(batch.data, cond=batch.pairing_cond).flatten(1)
    offset = (batch.data - whole.coupling.plan.mean).flatten(1)
    assert float(torch.nn.functional.cosine_similarity(noise, offset).mean()) > 0.2


@pytest.mark.filterwarnings("ignore:the shares of the samples differ")
def test_runs_of_other_seeds_have_other_tables(tmp_path):
    trained = [train(recipe(steps=1, seed=seed), tmp_path / str(seed)) for seed in (0, 3)]
    index = torch.arange(64)
    one, other = (
        run.coupling(
            run.task.dataset.batch(index).data, cond={"index": index}, generator=torch.Generator().manual_seed(0)
        )
        for run in trained
    )
    assert not torch.allclose(one, other, atol=0.1)
    name = "semidiscrete:max_steps=0,seed=0,refresh_epochs=2"
    named = train(dataclasses.replace(recipe(steps=1, seed=3), coupling=name), tmp_path / "named")
    assert named.coupling.seed == 0
    assert named.coupling.refresh == -(-2 * len(named.task.dataset) // named.recipe.batch_size)


@pytest.mark.filterwarnings("ignore:the shares of the samples differ")
def test_a_fit_that_was_killed_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(semidiscrete_fit, "SECONDS", 0.0)
    monkeypatch.setattr(semidiscrete_fit, "EVERY", 5)
    update, seen = builders.Progress.update, []

    def killed(bar, step, *note, **figures):
        seen.append(step)
        if len(seen) == 3:
            raise KeyboardInterrupt
        update(bar, step, *note, **figures)

    monkeypatch.setattr(builders.Progress, "update", killed)
    with pytest.raises(KeyboardInterrupt):
        train(recipe(steps=2), tmp_path)
    assert (tmp_path / "semidiscrete_fit.safetensors").exists()
    train(recipe(steps=2), tmp_path)
    assert seen[:4] == [5, 10, 15, 15]
    assert not (tmp_path / "semidiscrete_fit.safetensors").exists()


def run(words):
    return main(words.split())


@pytest.mark.filterwarnings("ignore:the shares of the samples differ")
def test_it_is_analyzed_and_compared_by_name(tmp_path, capsys):
    few = "--max-images 60 --probes 20 --pairs 100 --thumbnails 0 --levels 0.9"
    assert run(f"analyze --data digits {few} --coupling semidiscrete --out {tmp_path / 'a'}") == 0
    assert "semidiscrete (estimated) [stays N(0, I)]" in capsys.readouterr().out
    within = f"--conditional --coupling {NAME},cond_key=label --seeds 0 --workers 1 --no-irreducible"
    assert run(f"compare digits-flow --tiny --steps 4 {within} --out {tmp_path / 'c'}") == 0
    calibrated = f"--conditional --coupling calibrated:{NAME}"  # its noise given a label is measured by index
    assert run(f"train digits-flow --tiny --steps 2 {calibrated} --out {tmp_path / 'd'}") == 0
    assert run(f"train digits-flow --tiny --coupling semidiscrete:noises=0 --out {tmp_path / 't'}") == 2
    assert "noises must be >= 1" in capsys.readouterr().err


def test_data_that_do_not_name_their_samples_are_an_error_before_the_fit(tmp_path, monkeypatch, capsys):
    indexed = ImageSet.indexed
    monkeypatch.setattr(ImageSet, "indexed", lambda *args: dataclasses.replace(indexed(*args), index=None))
    assert run(f"train digits-flow --tiny --coupling semidiscrete --out {tmp_path / 't'}") == 2
    assert "batches of digits do not name theirs" in capsys.readouterr().err
