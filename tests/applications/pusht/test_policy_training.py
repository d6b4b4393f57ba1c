"""A policy through the one trainer: data with a mask and observations, judged by its actions."""

import dataclasses

import numpy as np
import pytest
import torch
from immiscible_diffusion.applications.pusht.compare import all_rollouts, policy_entries
from safetensors.torch import load_file

from immiscible_diffusion.applications.pusht.evaluator import PolicyEvaluator
from immiscible_diffusion.applications.pusht.rollout import Rollouts
from immiscible_diffusion.cli.main import main
from immiscible_diffusion.couplings import Independent, WarmUp, parse_coupling
from immiscible_diffusion.data import DataConfig
from immiscible_diffusion.diffusion.losses import RegressionLoss
from immiscible_diffusion.diffusion.paths import FlowMatchingPath
from immiscible_diffusion.diffusion.samplers import SamplerConfig
from immiscible_diffusion.evaluation.config import Evaluation
from immiscible_diffusion.evaluation.load_run import LoadedRun
from immiscible_diffusion.experiments.compare.plan import Plan
from immiscible_diffusion.recipes import recipe_from_name
from immiscible_diffusion.training.recipe import Recipe
from immiscible_diffusion.training.run_dir import RunDir
from immiscible_diffusion.training.trainer import Trainer


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Twelve made-up demonstrations in the arrays of Diffusion Policy's store."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(20, 40, 12)
    count = int(lengths.sum())
    path = tmp_path_factory.mktemp("store") / "made.npz"
    np.savez(
        path,
        state=rng.uniform(1, 500, (count, 5)).astype(np.float32),
        action=rng.uniform(1, 500, (count, 2)).astype(np.float32),
        keypoint=rng.uniform(1, 500, (count, 9, 2)).astype(np.float32),
        episode_ends=np.cumsum(lengths).astype(np.int64),
    )
    return str(path)


@pytest.fixture
def small(store):
    """The twin, shrunk, without a simulator."""
    recipe = recipe_from_name("pusht-policy-small").tiny()
    return dataclasses.replace(
        recipe,
        data=dataclasses.replace(recipe.data, path=store),
        evaluation=dataclasses.replace(recipe.evaluation, episodes=0),
    )


def trained(recipe, folder, until=None):
    trainer = Trainer(recipe, RunDir.open(folder, recipe), device="cpu")
    trainer.train(until=until, quiet=True)
    return trainer, load_file(folder / "weights" / "model.safetensors")


@pytest.mark.parametrize("coupling", ["knn:k=2", "assignment:start_step=3", "calibrated:knn:k=2"])
def test_it_trains_resumes_and_survives_json(small, tmp_path, coupling):
    recipe = dataclasses.replace(small, coupling=coupling)
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    _, whole = trained(recipe, tmp_path / "whole")
    trained(recipe, tmp_path / "parts", until=recipe.steps // 2)
    _, parts = trained(recipe, tmp_path / "parts")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_k_of_one_gives_the_weights_of_independent_noise_and_so_does_a_long_warm_up(
    small, tmp_path
):
    names = ("independent", "knn:k=1", "knn:k=4,start_step=100", "knn:k=4,start_step=4")
    found = [
        trained(dataclasses.replace(small, coupling=name), tmp_path / str(number))[1]
        for number, name in enumerate(names)
    ]
    for other, same in zip(found[1:], (True, True, False), strict=True):
        assert all(torch.equal(found[0][part], other[part]) for part in other) == same


def test_a_start_step_is_an_option_of_every_coupling():
    coupling = parse_coupling("assignment:cost=norm,start_step=50")
    assert isinstance(coupling, WarmUp)
    assert coupling.at_step(49) == Independent()
    assert coupling.at_step(50) == parse_coupling("assignment:cost=norm")
    with pytest.raises(ValueError, match="start_step must be a whole number"):
        parse_coupling("knn:k=2,start_step=-1")


def test_padding_reaches_neither_network_nor_loss(small, tmp_path):
    """What lies beyond the end of an episode may be anything."""
    data = dataclasses.replace(small.data, do_mask_loss_for_padding=True)
    recipe = dataclasses.replace(small, coupling="knn:k=2", data=data)
    trainer = Trainer(recipe, RunDir.open(tmp_path, recipe), device="cpu")
    batch = next(trainer.feed.batches(0))
    assert not bool(batch.mask.all())
    wild = dataclasses.replace(batch, data=batch.data.masked_fill(~batch.mask, 1e6))
    made = [trainer.feed.prepare(b) for b in (batch, wild)]
    assert torch.equal(made[0].data, made[1].data)
    t, noise = torch.full((len(batch),), 0.3), torch.randn(batch.data.shape)
    fixed = torch.randn(1, *batch.data.shape[1:])
    said = fixed.expand_as(batch.data)
    beyond = said + 1e3 * (~batch.mask)
    losses = [
        RegressionLoss()(
            lambda *_, out=out: out, FlowMatchingPath(), made[0].data, noise, t, None, batch.mask
        )
        for out in (said, beyond)
    ]
    assert torch.equal(losses[0], losses[1])


def test_a_masked_loss_is_the_mean_over_valid_positions():
    data, noise = torch.zeros(2, 4, 1), torch.zeros(2, 4, 1)
    noise[0, :2] = 2.0
    noise[1] = 1.0
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]]).bool()[..., None]
    loss = RegressionLoss()(
        lambda x, *_: torch.zeros_like(x),
        FlowMatchingPath(),
        data,
        noise,
        torch.ones(2),
        None,
        mask,
    )
    assert loss.tolist() == [4.0, 1.0]


def test_the_error_of_actions_is_that_of_what_is_carried_out(small, tmp_path):
    trainer, _ = trained(small, tmp_path)
    judge = PolicyEvaluator.of(small, trainer.dataset)
    probes = judge.probes

    class Knows(torch.nn.Module):
        """The network whose word is the recorded actions, but for those that are not done."""

        def forward(self, x, time, cond):
            data = probes.data.clone()
            data[:, 0], data[:, 9:] = 5.0, 5.0
            t = small.path.from_network_time(time)
            return small.path.mixture(t, x).convert(data, x, "data", small.path.prediction)

    assert judge.action_error(Knows(), SamplerConfig("ddim", 4)) < 1e-6
    again = [judge.action_error(trainer.average.current(), small.sampler) for _ in range(2)]
    assert again[0] == again[1] > 0.1
    observed = {tuple(row.tolist()) for row in trainer.dataset.batch(torch.arange(5)).data[:, 0]}
    assert not observed & {tuple(row.tolist()) for row in probes.data[:, 0]}  # held out


def test_policies_and_images_are_not_confused(small, store, tmp_path):
    with pytest.raises(ValueError, match="judged by PolicyEvaluation"):
        dataclasses.replace(small, evaluation=Evaluation())
    with pytest.raises(ValueError, match="judged by PolicyEvaluation"):
        dataclasses.replace(small, data=DataConfig("digits"))
    with pytest.raises(ValueError, match="previews are pictures"):
        dataclasses.replace(small, preview_every=10)
    nowhere = dataclasses.replace(small, data=dataclasses.replace(small.data, path=None))
    with pytest.raises(ValueError, match=r"need data\.path"):
        Trainer(nowhere, RunDir.open(tmp_path, nowhere), device="cpu")


def test_ranges_are_kept_and_other_demonstrations_refused(small, tmp_path):
    trained(small, tmp_path)
    assert LoadedRun.load(RunDir(tmp_path), "cpu").step == small.steps
    with np.load(small.data.path) as file:
        arrays = dict(file)
    np.savez(small.data.path, **arrays | {"action": 2 * arrays["action"]})
    try:
        with pytest.raises(ValueError, match="the demonstrations differ"):
            LoadedRun.load(RunDir(tmp_path), "cpu")
        with pytest.raises(ValueError, match="the demonstrations differ"):
            trained(small, tmp_path)  # a resumed run
    finally:
        np.savez(small.data.path, **arrays)


def test_evaluate_prints_the_error_and_sample_says_what_to_do(small, tmp_path, capsys):
    trained(small, tmp_path)
    assert main(["evaluate", str(tmp_path), "--device", "cpu"]) == 0
    assert "action_error" in capsys.readouterr().out
    assert main(["sample", str(tmp_path)]) == 2
    assert "immiscible evaluate" in capsys.readouterr().err


def made_rollouts(scores):
    """Episodes that reached those scores."""
    coverage = np.full((len(scores), 5), np.nan)
    coverage[:, 0], coverage[:, 1] = 0.0, 0.95 * np.asarray(scores)
    states, actions = np.zeros((len(scores), 6, 5)), np.zeros((len(scores), 5, 2))
    return Rollouts(states, actions, coverage, ((0.5, len(scores)), (0.25, 1)))


def test_rollouts_are_kept_as_they_were(tmp_path):
    done = made_rollouts([0.5, 1.0])
    done.save(tmp_path / "a.npz")
    again = Rollouts.load(tmp_path / "a.npz")
    np.testing.assert_array_equal(again.coverage, done.coverage)
    assert again.latency == done.latency
    assert Rollouts.load(tmp_path / "b.npz") is None


def test_gains_are_of_the_same_seeds_and_episodes(small, tmp_path):
    plan = Plan(tmp_path, small, ("independent", "knn:k=2"), (0, 1))
    scores = {"independent": (0.2, 0.4), "knn:k=2": (0.3, 0.5)}
    for trial in plan.trials:
        run = RunDir(plan.trial_dir(trial))
        base = scores[trial.coupling][trial.seed]
        for step, lower in ((4, 0.1), (8, 0.0)):
            done = made_rollouts([base - lower, base - lower + 0.2])
            done.save(run.root / "rollouts" / f"step_{step:06d}.npz")
            run.log("quality", step, budget=2, action_error=1.0, score=float(done.score.mean()))
    base, knn = policy_entries(plan, all_rollouts(plan))
    assert base.gain is None
    assert knn.gain[0] == pytest.approx(0.1)
    assert knn.gain[1] - 1e-9 <= 0.1 <= knn.gain[2] + 1e-9
    assert (base.score[0], knn.score[0]) == (pytest.approx(0.4), pytest.approx(0.5))
    assert (knn.last, knn.best) == (pytest.approx(0.45), pytest.approx(0.5))


@pytest.mark.subprocess
def test_compare_end_to_end(store, tmp_path, capsys):
    pytest.importorskip("gym_pusht", reason="needs the extra pusht")
    pytest.importorskip("pymunk")
    words = ["compare", "pusht-policy-small", "--tiny", "--data.path", store, "--device", "cpu"]
    words += ["--coupling", "knn:k=2", "--coupling", "matched:knn:k=2", "--seeds", "0"]
    words += ["--evaluation.episodes", "1", "--workers", "1", "--out", str(tmp_path / "out")]
    assert main(words) == 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert "In the simulator" in page
    assert "data:image/gif" in page
    assert "Final action error" in page
    assert "Frechet" not in page
