"""Loss by level, the best possible loss, and their difference."""

import dataclasses
import json

import pytest
import torch
from torch import nn

from immiscible_diffusion import KNN, Independent, LinearAssignment
from immiscible_diffusion.analysis.posterior import OptimalDenoiser
from immiscible_diffusion.cli.main import main
from immiscible_diffusion.couplings import Shuffled
from immiscible_diffusion.data import DataSet
from immiscible_diffusion.diffusion.losses import ConsistencyLoss
from immiscible_diffusion.diffusion.paths import EDMPath, FlowMatchingPath, VPPath
from immiscible_diffusion.diffusion.samplers import SamplerConfig
from immiscible_diffusion.experiments.compare import excess_loss
from immiscible_diffusion.experiments.compare.excess_loss import (
    LEVELS,
    Probes,
    images_at,
    keep_losses,
    load_losses,
    losses_by_level,
    measure_excess,
    no_bound,
    optimal_losses,
    too_large,
)
from immiscible_diffusion.experiments.compare.plan import Plan, Trial
from immiscible_diffusion.recipes import recipe_from_name
from immiscible_diffusion.training.builders import build_coupling
from immiscible_diffusion.training.run_dir import RunDir
from immiscible_diffusion.training.trainer import Trainer
from immiscible_diffusion.utils.batch import Batch

CPU = torch.device("cpu")


class Toy(DataSet):
    """Forty points about three centers, as pictures of one line."""

    name, shape, num_classes = "toy", (1, 1, 2), 3

    def __init__(self):
        generator = torch.Generator().manual_seed(5)
        self.label = torch.arange(len(self)) % 3
        centers = torch.tensor([[1.5, 0.0], [-1.0, 1.0], [-1.0, -1.5]])
        points = centers[self.label] + 0.3 * torch.randn(len(self), 2, generator=generator)
        self.data = points[:, None, None]

    def __len__(self):
        return 40

    def batch(self, indices, generator=None):
        return Batch(self.data[indices], {"label": self.label[indices]})


class Mirrored(Toy):
    """With the mirror image of every point."""

    index_count = 80

    def indexed(self, index):
        batch = self.batch(index % 40)
        return Batch(torch.where((index >= 40).view(-1, 1, 1, 1), batch.data.flip(-1), batch.data), batch.cond)


class Optimal(nn.Module):
    """The optimal denoiser as a network, ``offset`` away from the truth."""

    def __init__(self, data, coupling, path, offset=0.0):
        super().__init__()
        self.denoiser, self.offset = OptimalDenoiser.of(data, coupling, path), offset

    def forward(self, x, time, cond=None):
        path = self.denoiser.path
        level = next(t for t in LEVELS if path.network_time(torch.tensor([t])) == time[0])
        return self.denoiser.target(x, level) + self.offset


@pytest.fixture
def toy(tiny):
    return tiny, Toy()


def above(recipe, dataset, coupling, model):
    """Excess loss and its error, ``[levels]`` each."""
    probes = Probes.draw(recipe, dataset, coupling)
    losses = losses_by_level(recipe, model, probes, CPU)
    excess = losses - optimal_losses(recipe, dataset, coupling).reached
    return excess.mean(dim=1), excess.std(dim=1) / len(probes.rows) ** 0.5


@pytest.mark.parametrize("path", [FlowMatchingPath(), VPPath(min_snr=5), EDMPath()])
@pytest.mark.parametrize("coupling", [Independent(), KNN(4)])
def test_the_optimal_denoiser_has_no_excess_and_any_other_network_has(toy, coupling, path):
    """Whatever the path's weight."""
    recipe, dataset = dataclasses.replace(toy[0], path=path), toy[1]
    best = Optimal(dataset.data, coupling, recipe.path)
    excess, _ = above(recipe, dataset, coupling, best)
    torch.testing.assert_close(excess, torch.zeros_like(excess), atol=1e-4, rtol=0)
    worse = Optimal(dataset.data, coupling, recipe.path, offset=0.3)
    excess, error = above(recipe, dataset, coupling, worse)
    assert bool((excess > 0).all())
    assert bool(((excess - 0.09).abs() < 4 * error + 1e-4).all())


@pytest.mark.parametrize("coupling", [Independent(), KNN(4)])
def test_irreducible_is_reached_on_average(toy, coupling, monkeypatch):
    monkeypatch.setattr(excess_loss, "PROBES", 4000)
    best = optimal_losses(*toy, coupling)
    for irreducible_, reached in zip(best.irreducible, best.reached, strict=True):
        error = (irreducible_ - reached).std() / 4000**0.5
        assert abs(irreducible_.mean() - reached.mean()) < 4 * error + 1e-6


def test_probes_are_the_same_images_for_every_coupling_with_noise_of_its_own(toy):
    one, other = (Probes.draw(*toy, coupling) for coupling in (Independent(), KNN(64)))
    again = Probes.draw(*toy, KNN(64))
    assert torch.equal(one.rows, other.rows)
    assert torch.equal(one.images.data, other.images.data)
    assert torch.equal(other.noise, again.noise)
    assert not torch.equal(one.noise, other.noise)
    assert one.noise.shape == (excess_loss.PROBES, *Toy.shape)


def test_an_assignment_sees_batches_as_in_training(toy):
    recipe, dataset = toy
    seen = []

    class RecordingModel(LinearAssignment):
        def __call__(self, data, **options):
            seen.append(len(data))
            return super().__call__(data, **options)

    Probes.draw(recipe, dataset, RecordingModel())
    assert set(seen) == {recipe.batch_size}


def test_mirror_images_count_where_training_mirrors(toy):
    recipe, dataset = toy
    every = images_at(recipe, Mirrored(), torch.arange(80))
    assert torch.equal(every.data[40:], every.data[:40].flip(-1))
    assert torch.equal(every.cond["label"][40:], every.cond["label"][:40])
    plain, mirrored = (optimal_losses(recipe, data, Independent()) for data in (dataset, Mirrored()))
    assert float(mirrored.irreducible[8].mean()) > float(plain.irreducible[8].mean())
    assert max(Probes.draw(recipe, Mirrored(), Independent()).rows) >= 40


def test_a_conditional_recipe_is_given_the_label(toy):
    recipe, dataset = toy
    given = dataclasses.replace(recipe, conditional=True)
    known, unknown = (optimal_losses(r, dataset, Independent()) for r in (given, recipe))
    own = torch.stack([dataset.data[dataset.label == c].flatten(1).var(dim=0, correction=0) for c in range(3)]).mean(
        dim=1
    )
    rows = Probes.draw(given, dataset, Independent()).rows
    pure = known.irreducible[LEVELS.index(1.0)]  # at t = 1 only the label is known
    torch.testing.assert_close(pure, own[dataset.label[rows]].double(), rtol=1e-4, atol=1e-6)
    assert bool((known.irreducible.mean(dim=1)[5:] < unknown.irreducible.mean(dim=1)[5:]).all())


def test_losses_are_kept_with_their_means(tmp_path):
    run = RunDir(tmp_path)
    losses = torch.rand(len(LEVELS), 50)
    keep_losses(run, 7, losses)
    [record] = run.records("denoising")
    assert record["step"] == 7
    assert record["levels"] == list(LEVELS)
    assert [mean["value"] for mean in record["loss"]] == pytest.approx(losses.mean(dim=1).tolist())
    torch.testing.assert_close(load_losses(run, 7), losses.double())
    assert load_losses(run, 8) is None


def test_only_an_estimate_says_so(toy):
    assert optimal_losses(*toy, KNN(4)).estimate == ""
    assert optimal_losses(*toy, Shuffled(Independent())).estimate == ""
    assert "estimated from" in optimal_losses(*toy, LinearAssignment()).estimate


def test_of_a_large_set_fewer_probes_are_used_or_none_with_the_reason(toy, monkeypatch):
    work = 12 * 40 * 2
    assert too_large(*toy) == ""
    whole = optimal_losses(*toy, KNN(4))
    monkeypatch.setattr(excess_loss, "MOST_WORK", 100.5 * work)
    fewer = optimal_losses(*toy, KNN(4))
    assert fewer.reached.shape == (12, 100)
    torch.testing.assert_close(fewer.reached, whole.reached[:, :100])
    monkeypatch.setattr(excess_loss, "MOST_WORK", 63.5 * work)
    assert "64 noisy images x 40 images x 12 levels x 2 dimensions are 6.1e+04" in too_large(*toy)
    monkeypatch.setattr(excess_loss, "MOST_ELEMENTS", 79)
    assert "is the most that is held at once" in too_large(*toy)


def test_a_loss_without_the_bound_is_left_out_with_its_reason(toy):
    assert no_bound(toy[0]) == ""
    other = dataclasses.replace(
        toy[0], path=EDMPath(), loss=ConsistencyLoss(), sampler=SamplerConfig("consistency", 1)
    )
    assert "ConsistencyLoss, whose network is no denoiser" in no_bound(other)


def test_no_trained_network_is_below_the_irreducible_loss(tiny, tmp_path):
    recipe = dataclasses.replace(
        tiny, coupling="knn:k=16", steps=400, batch_size=64, preview_every=0, checkpoint_every=400
    )
    trainer = Trainer(recipe, RunDir.open(tmp_path, recipe), device="cpu")
    trainer.train(quiet=True)
    model = trainer.ema.model.eval()
    excess, error = above(recipe, trainer.task.dataset, trainer.run.coupling, model)
    assert bool((excess > -4 * error).all())
    assert float(excess[:10].mean()) > 0.05


@pytest.mark.subprocess
def test_a_comparison_shows_it_keeps_it_and_can_do_without(tmp_path, monkeypatch):
    command = ["compare", "digits-flow", "--tiny", "--device", "cpu", "--out", str(tmp_path)]
    command += ["--seeds", "0", "--coupling", "knn:k=4", "--coupling", "matched:knn:k=4"]
    assert main([*command, "--workers", "1"]) == 0
    found = json.loads((tmp_path / "results.json").read_text())
    assert {entry["coupling"] for entry in found["excess"]["couplings"]} == {"independent", "knn:k=4"}
    for trial in found["trials"]:
        assert [point["step"] for point in trial["excess"]] == [4, 8]
        for point in trial["excess"]:
            assert all(value > -4 * error for value, error in zip(point["excess"], point["error"], strict=True))
    assert found["trials"][1]["excess"] == found["trials"][2]["excess"]
    page = (tmp_path / "report.html").read_text()
    assert "Excess loss by t at the last step" in page
    again = []
    monkeypatch.setattr(excess_loss, "optimal_losses", lambda *a: again.append(a))
    assert main([*command, "--gather"]) == 0
    assert again == []
    assert json.loads((tmp_path / "results.json").read_text())["excess"] == found["excess"]
    assert main([*command, "--gather", "--no-irreducible"]) == 0
    assert json.loads((tmp_path / "results.json").read_text())["excess"] is None
    assert "Excess loss by t" not in (tmp_path / "report.html").read_text()


@pytest.mark.subprocess
def test_every_seed_has_the_optimal_loss_of_its_own_coupling(tmp_path):
    """A calibrated coupling is measured anew for every seed; plain KNN is the same at all."""
    name = "calibrated:knn:k=16"
    command = ["compare", "digits-flow", "--tiny", "--device", "cpu", "--out", str(tmp_path)]
    command += ["--seeds", "0", "1", "--coupling", "knn:k=16", "--coupling", name]
    assert main([*command, "--workers", "1"]) == 0
    plan = Plan(tmp_path, recipe_from_name("digits-flow").tiny(), ("knn:k=16", name), (0, 1))
    task = plan.recipe.task.build(plan.recipe, CPU)
    excess, optimal = measure_excess(plan, task)
    assert torch.equal(*(optimal[Trial("knn:k=16", seed)].reached for seed in (0, 1)))
    best = [optimal[Trial(name, seed)].reached for seed in (0, 1)]
    assert not torch.equal(*best)
    for seed, own in enumerate(best):
        run = RunDir(plan.trial_dir(Trial(name, seed)))
        coupling = build_coupling(run.recipe(), task, run, CPU)
        expected = optimal_losses(run.recipe(), task.dataset, coupling).reached
        torch.testing.assert_close(own, expected)
    [mean] = [entry.reached for entry in excess.couplings if entry.coupling == name]
    assert mean == pytest.approx(torch.stack(best).mean(dim=(0, 2)).tolist())
