"""Policies through the one trainer: data with a mask and observations, scored by their actions."""

import dataclasses

import numpy as np
import pytest
import torch

from fixtures.demonstrations import replay_arrays
from helpers import assert_same_weights, train
from immiscible_diffusion.applications.pusht.evaluator import PolicyEvaluator
from immiscible_diffusion.applications.pusht.rollout import Rollouts
from immiscible_diffusion.cli.main import main
from immiscible_diffusion.couplings import Independent, WarmUp, parse_coupling
from immiscible_diffusion.diffusion.losses import RegressionLoss
from immiscible_diffusion.diffusion.paths import FlowMatchingPath
from immiscible_diffusion.diffusion.samplers import SamplerConfig
from immiscible_diffusion.evaluation.load_run import load_run
from immiscible_diffusion.models import UNet
from immiscible_diffusion.recipes import recipe_from_name
from immiscible_diffusion.training.recipe import Recipe
from immiscible_diffusion.training.run_dir import RunDir
from immiscible_diffusion.training.trainer import Trainer


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Twelve random demonstrations in the arrays of Diffusion Policy's store."""
    path = tmp_path_factory.mktemp("store") / "replay.npz"
    lengths = np.random.default_rng(0).integers(20, 40, 12)
    np.savez(path, **replay_arrays(tuple(lengths.tolist())))
    return str(path)


def with_task(recipe, data=None, evaluation=None):
    """The recipe with other options of its data and evaluation."""
    task = recipe.task
    data = dataclasses.replace(task.data, **(data or {}))
    evaluation = dataclasses.replace(task.eval, **(evaluation or {}))
    return dataclasses.replace(recipe, task=dataclasses.replace(task, data=data, eval=evaluation))


@pytest.fixture
def small(store):
    """The small recipe, shrunk, without a simulator."""
    recipe = recipe_from_name("pusht-policy-small").tiny()
    return with_task(recipe, {"path": store}, {"episodes": 0})


@pytest.mark.parametrize("coupling", ["knn:k=2", "assignment:start_step=3", "calibrated:knn:k=2"])
def test_it_trains_resumes_and_survives_json(small, tmp_path, coupling):
    recipe = dataclasses.replace(small, coupling=coupling)
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    train(recipe, tmp_path / "uninterrupted")
    train(recipe, tmp_path / "resumed", until=recipe.steps // 2)
    train(recipe, tmp_path / "resumed")
    assert_same_weights(tmp_path / "resumed", tmp_path / "uninterrupted")


def test_k_of_one_gives_the_weights_of_independent_noise_and_so_does_a_long_warm_up(small, tmp_path):
    names = ("independent", "knn:k=1", "knn:k=4,start_step=100", "knn:k=4,start_step=4")
    for number, name in enumerate(names):
        train(dataclasses.replace(small, coupling=name), tmp_path / str(number))
    independent = tmp_path / "0"
    assert_same_weights(independent, tmp_path / "1")
    assert_same_weights(independent, tmp_path / "2")
    with pytest.raises(AssertionError):
        assert_same_weights(independent, tmp_path / "3")


def test_a_start_step_is_an_option_of_every_coupling():
    coupling = parse_coupling("assignment:cost=norm,start_step=50")
    assert isinstance(coupling, WarmUp)
    assert coupling.at_step(49) == Independent()
    assert coupling.at_step(50) == parse_coupling("assignment:cost=norm")
    with pytest.raises(ValueError, match="start_step must be a whole number"):
        parse_coupling("knn:k=2,start_step=-1")


def test_padding_reaches_neither_network_nor_loss(small, tmp_path):
    """What lies beyond the end of an episode may be anything."""
    recipe = with_task(small, {"do_mask_loss_for_padding": True})
    task = Trainer(recipe, RunDir.open(tmp_path, recipe), device="cpu").task
    batch = task.dataset.batch(torch.arange(64))
    assert not bool(batch.mask.all())
    wild = dataclasses.replace(batch, data=batch.data.masked_fill(~batch.mask, 1e6))
    encoded = [task.encode(b) for b in (batch, wild)]
    assert torch.equal(encoded[0].data, encoded[1].data)
    t, noise = torch.full((len(batch),), 0.3), torch.randn(batch.data.shape)
    output = torch.randn(1, *batch.data.shape[1:]).expand_as(batch.data)
    losses = [
        RegressionLoss()(lambda *_, out=out: out, FlowMatchingPath(), encoded[0].data, noise, t, None, batch.mask)
        for out in (output, output + 1e3 * (~batch.mask))
    ]
    assert torch.equal(losses[0], losses[1])


def test_a_masked_loss_is_the_mean_over_valid_positions():
    data, noise = torch.zeros(2, 4, 1), torch.zeros(2, 4, 1)
    noise[0, :2] = 2.0
    noise[1] = 1.0
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]]).bool()[..., None]
    loss = RegressionLoss()(
        lambda x, *_: torch.zeros_like(x), FlowMatchingPath(), data, noise, torch.ones(2), None, mask
    )
    assert loss.tolist() == [4.0, 1.0]


def test_the_error_of_actions_is_of_those_that_are_carried_out(small, tmp_path):
    trainer = train(small, tmp_path)
    evaluator = trainer.task.evaluator()
    recorded = evaluator.probes.data
    pipeline = dataclasses.replace(trainer.pipeline, sampler=SamplerConfig("ddim", 4))

    class Oracle(torch.nn.Module):
        """Predicts the recorded actions, but for those that are not carried out."""

        def forward(self, x, time, cond):
            data = recorded.clone()
            data[:, 0], data[:, 9:] = 5.0, 5.0
            t = small.path.from_network_time(time)
            return small.path.mixture(t, x).convert(data, x, "data", small.path.prediction)

    assert evaluator.action_error(pipeline, Oracle()) < 1e-6
    errors = [evaluator.action_error(trainer.pipeline, trainer.run.model) for _ in range(2)]
    assert errors[0] == errors[1] > 0.1
    rows = {tuple(row.tolist()) for row in trainer.task.dataset.batch(torch.arange(5)).data[:, 0]}
    assert not rows & {tuple(row.tolist()) for row in recorded[:, 0]}  # other episodes


def test_policies_and_images_are_not_confused(small, tmp_path):
    with pytest.raises(ValueError, match="UNet1D or MLP; got UNet"):
        dataclasses.replace(small, model=UNet())
    with pytest.raises(ValueError, match="no image previews"):
        dataclasses.replace(small, preview_every=10)
    nowhere = with_task(small, {"path": None})
    with pytest.raises(ValueError, match=r"need data\.path"):
        Trainer(nowhere, RunDir.open(tmp_path, nowhere), device="cpu")


def test_other_demonstrations_are_refused(small, tmp_path):
    train(small, tmp_path, until=small.steps // 2)
    assert load_run(tmp_path, "cpu").step == small.steps // 2
    path = small.task.data.path
    with np.load(path) as file:
        arrays = dict(file)
    np.savez(path, **arrays | {"action": 2 * arrays["action"]})
    try:
        with pytest.raises(ValueError, match="the demonstrations differ"):
            load_run(tmp_path, "cpu")
        with pytest.raises(ValueError, match="the demonstrations differ"):
            train(small, tmp_path)
    finally:
        np.savez(path, **arrays)


def test_demonstrations_are_read_once(small, tmp_path, monkeypatch):
    dataset = Trainer(small, RunDir.open(tmp_path / "a", small), device="cpu").task.dataset
    monkeypatch.delattr("immiscible_diffusion.applications.pusht.demonstrations.load_demonstrations")
    again = Trainer(small, RunDir.open(tmp_path / "b", small), device="cpu", dataset=dataset)
    assert again.task.evaluator().validation is dataset.validation
    assert again.task.validation_data()[0] is dataset.validation


def test_evaluate_prints_the_error_and_sample_says_what_to_do(small, tmp_path, capsys):
    train(small, tmp_path)
    assert main(["evaluate", str(tmp_path), "--device", "cpu"]) == 0
    assert "action_error" in capsys.readouterr().out
    assert main(["sample", str(tmp_path)]) == 2
    assert "immiscible evaluate" in capsys.readouterr().err


def rollouts_with(scores):
    """Episodes that reached those scores."""
    coverage = np.full((len(scores), 5), np.nan)
    coverage[:, 0], coverage[:, 1] = 0.0, 0.95 * np.asarray(scores)
    states, actions = np.zeros((len(scores), 6, 5)), np.zeros((len(scores), 5, 2))
    return Rollouts(states, actions, coverage, ((0.5, len(scores)), (0.25, 1)))


def test_rollouts_come_back_from_their_file(tmp_path):
    rollouts = rollouts_with([0.5, 1.0])
    rollouts.save(tmp_path / "a.npz")
    again = Rollouts.load(tmp_path / "a.npz")
    np.testing.assert_array_equal(again.coverage, rollouts.coverage)
    assert again.latency == rollouts.latency
    whole = (tmp_path / "a.npz").read_bytes()
    for at in range(0, len(whole), 11):
        (tmp_path / "a.npz").write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        try:
            again = Rollouts.load(tmp_path / "a.npz")
        except ValueError:
            continue
        np.testing.assert_array_equal(again.coverage, rollouts.coverage)


def test_gains_are_of_the_same_seeds_and_episodes(tmp_path, monkeypatch):
    monkeypatch.setattr("immiscible_diffusion.applications.pusht.evaluator.save_video", lambda *_, **__: None)
    scores = {"independent": {0: 0.2, 1: 0.4}, "knn:k=2": {0: 0.3, 1: 0.5, 2: 0.9}}
    runs = {}
    for coupling, by_seed in scores.items():
        for seed, base in by_seed.items():
            run = RunDir(tmp_path / coupling / str(seed))
            run.root.mkdir(parents=True)
            runs.setdefault(coupling, {})[seed] = run
            for step, lower in ((4, 0.1), (8, 0.0)):
                rollouts = rollouts_with([base - lower, base - lower + 0.2])
                rollouts.save(run.root / "rollouts" / f"step_{step:06d}.npz")
                run.log("quality", step, score=float(rollouts.score.mean()))
    evaluator = PolicyEvaluator(None, None, validation=())
    monkeypatch.setattr(PolicyEvaluator, "probes", ())
    base, knn = evaluator.summary(runs, tmp_path, 8)["policies"]
    assert base.gain is None
    assert knn.gain[0] == pytest.approx(0.1)
    assert knn.gain[1] - 1e-9 <= 0.1 <= knn.gain[2] + 1e-9
    assert base.score[0] == pytest.approx(0.4)
    assert (base.last, base.best) == (pytest.approx(0.35), pytest.approx(0.4))
    assert (base.seeds, knn.seeds, knn.episodes) == (2, 3, 2)


@pytest.mark.subprocess
def test_compare_end_to_end(store, tmp_path, capsys):
    pytest.importorskip("gym_pusht", reason="needs the extra pusht")
    pytest.importorskip("pymunk")
    words = ["compare", "pusht-policy-small", "--tiny", "--data.path", store, "--device", "cpu"]
    words += ["--coupling", "knn:k=2", "--coupling", "matched:knn:k=2", "--seeds", "0"]
    words += ["--eval.episodes", "1", "--workers", "1", "--out", str(tmp_path / "out")]
    assert main(words) == 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert "In the simulator" in page
    assert "data:image/gif" in page
    assert "Best action error" in page
    assert "Frechet" not in page
