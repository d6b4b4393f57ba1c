"""Controls and weights of guidance, evaluated with the last weights of a comparison."""

import dataclasses
import json

import pytest
import torch

from immiscible_diffusion.cli.main import main
from immiscible_diffusion.diffusion.samplers import SamplerConfig
from immiscible_diffusion.evaluation.load_run import load_run
from immiscible_diffusion.experiments.compare.collect import variants as collected
from immiscible_diffusion.experiments.compare.plan import BASELINE, Plan, Trial
from immiscible_diffusion.experiments.compare.sweep import SHIFTS, STARTS, Sweep, SweepRunner
from immiscible_diffusion.experiments.compare.trial import TrialRunner
from immiscible_diffusion.metrics.features import classifier
from immiscible_diffusion.recipes import recipe_from_name

KNN, MATCHED = "knn:k=4", "matched:knn:k=4"
SHARED = {("shift", shift) for shift in SHIFTS}
GUIDED = ("--conditional", "--cond_drop_prob", "0.1")


def compare(folder, *options, recipe="digits-flow", couplings=(KNN,)):
    named = [word for coupling in couplings for word in ("--coupling", coupling)]
    base = ["compare", recipe, "--tiny", "--device", "cpu", "--out", str(folder), "--seeds", "0", *named]
    return main([*base, *options])


def variants(folder):
    return json.loads((folder / "results.json").read_text())["variants"]


def settings(records, coupling, *steps):
    chosen = [r for r in records if r["coupling"] == coupling and r["sampling_steps"] in (steps or (1, 2))]
    pairs = [(r["option"], r["setting"]) for r in chosen]
    assert len(set(pairs)) * len(steps or (1, 2)) == len(pairs)
    return set(pairs)


@pytest.mark.subprocess
def test_controls_come_after_the_training_and_only_what_is_missing(tmp_path, capsys):
    assert compare(tmp_path, "--workers", "2", couplings=(KNN, MATCHED)) == 0
    assert variants(tmp_path) == []
    before = {file: file.read_bytes() for file in tmp_path.rglob("model.safetensors")}
    assert compare(tmp_path, "--workers", "2", "--controls", couplings=(KNN, MATCHED)) == 0
    assert "other samplers" in capsys.readouterr().err
    found = variants(tmp_path)
    for steps in (1, 2):
        assert settings(found, BASELINE, steps) == SHARED | set(STARTS)
        assert settings(found, KNN, steps) == settings(found, MATCHED, steps) == SHARED
    assert all(r["frechet"] > 0 and r["pixels"] > 0 and r["seed"] == 0 for r in found)
    assert before == {file: file.read_bytes() for file in tmp_path.rglob("model.safetensors")}
    # One step does not depend on the grid, two do.
    shifted = {
        steps: [
            r["frechet"] for r in found if (r["coupling"], r["option"], r["sampling_steps"]) == (KNN, "shift", steps)
        ]
        for steps in (1, 2)
    }
    assert len(set(shifted[1])) == 1
    assert len(set(shifted[2])) == len(SHIFTS)
    # A killed process left a line unfinished and some out.
    [log] = tmp_path.glob("trials/knn*/seed0/metrics.jsonl")
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[:-3]) + lines[-3][:20])
    assert compare(tmp_path, "--workers", "1", "--controls", couplings=(KNN, MATCHED)) == 0
    assert variants(tmp_path) == found
    assert log.read_text().splitlines(keepends=True)[:-3] == lines[:-3]
    assert compare(tmp_path, "--gather", "--controls", couplings=(KNN, MATCHED)) == 0
    assert variants(tmp_path) == found
    assert compare(tmp_path, "--list", "--controls") == 0


def test_a_variant_is_what_the_sampler_gives(tmp_path):
    assert compare(tmp_path, "--trial", "0", "--controls", "--eval.sampling_steps", "3") == 0
    assert compare(tmp_path, "--gather", "--controls", "--eval.sampling_steps", "3") == 0
    found = {(r["option"], r["setting"]): r for r in variants(tmp_path)}
    assert found.keys() == SHARED | set(STARTS)
    run = load_run(next(tmp_path.glob("trials/independent/seed0")), "cpu")
    evaluator = run.task.evaluator()
    for option, value in (("shift", 3.0), ("init_scale", 0.95), ("prune", 2.0)):
        pipeline = run.with_sampler(SamplerConfig(steps=3, **{option: value})).pipeline(64)
        scores = evaluator.evaluate(pipeline, run.model, 0, ("frechet",)).scores
        assert found[option, value]["frechet"] == pytest.approx(scores["frechet"], rel=1e-4)
        assert found[option, value]["pixels"] == pytest.approx(scores["pixels"], rel=1e-4)
    usual = run.pipeline()
    pruned = run.with_sampler(SamplerConfig(steps=3, prune=2.0)).pipeline()
    assert len(pruned.pruning.axes) > 0
    assert usual.pruning is None
    images = [torch.cat([data for data, _ in one(run.model, 60, seed=0)]) for one in (pruned, usual.with_steps(3))]
    same = (images[0] == images[1]).flatten(1).all(dim=1)
    assert 0 < same.sum() < 60


def test_trials_of_a_job_array_do_their_part(tmp_path):
    assert compare(tmp_path, "--trial", "1", "--controls", couplings=(KNN, MATCHED)) == 0
    assert compare(tmp_path, "--gather", couplings=(KNN, MATCHED)) == 0
    found = variants(tmp_path)
    assert settings(found, KNN) == settings(found, MATCHED) == SHARED


def test_guidances_of_every_coupling(tmp_path):
    words = (*GUIDED, "--guidances", "1", "2.5")
    for trial in ("0", "1"):
        assert compare(tmp_path, *words, "--trial", trial) == 0
    assert compare(tmp_path, *words, "--gather") == 0
    found = variants(tmp_path)
    for coupling in (BASELINE, KNN):
        assert settings(found, coupling) == {("guidance", 1.0), ("guidance", 2.5)}
    results = json.loads((tmp_path / "results.json").read_text())
    plain = {
        (t["coupling"], m["sampling_steps"]): m for t in results["trials"] for m in t["metrics"] if m["step"] == 8
    }
    for record in found:
        usual = plain[record["coupling"], record["sampling_steps"]]
        same = record["frechet"] == pytest.approx(usual["frechet"], rel=1e-4)
        assert same == (record["setting"] == 1)


def test_what_makes_no_sense_is_refused_before_training(tmp_path, capsys):
    for recipe, option, message in (
        ("digits-flow", ("--guidances", "2"), "guidances need a network that was trained without conditions"),
        ("digits-consistency", ("--controls",), "digits-consistency-tiny has a consistency model"),
    ):
        assert compare(tmp_path / "out", *option, recipe=recipe) == 2
        assert message in capsys.readouterr().err
        assert compare(tmp_path / "out", *option, "--trial", "0", recipe=recipe) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_is_evaluated_of_which_recipe(tmp_path):
    recipe = recipe_from_name("digits-ddim").tiny()
    plan = Plan(tmp_path, recipe, (BASELINE, KNN), (0,))
    sweep = Sweep(controls=True)
    steps = recipe.task.eval.sampling_steps
    assert sweep.settings(plan, Trial(BASELINE, 0)) == [(*start, n) for start in STARTS for n in steps]
    assert sweep.settings(plan, Trial(KNN, 0)) == []
    assert Sweep().settings(plan, Trial(BASELINE, 0)) == []
    adaptive = dataclasses.replace(recipe_from_name("digits-flow").tiny(), sampler=SamplerConfig("dopri5"))
    settings = sweep.settings(dataclasses.replace(plan, recipe=adaptive), Trial(KNN, 0))
    assert {name for name, _, _ in settings} == {"shift"}  # of Euler's steps


def test_scores_of_another_length_of_training_do_not_count(tmp_path):
    plan = Plan(tmp_path, recipe_from_name("digits-flow").tiny(), (BASELINE,), (0,))
    trial, sweep = plan.trials[0], Sweep(controls=True)
    runner = TrialRunner(plan, "cpu")
    runner(trial)
    SweepRunner(runner, sweep)(trial)
    assert sweep.missing(plan, trial) == []
    longer = dataclasses.replace(plan, recipe=dataclasses.replace(plan.recipe, steps=9))
    assert sweep.missing(longer, trial) == sweep.settings(longer, trial)


def test_large_samples_have_no_pruned_start(tmp_path, monkeypatch):
    monkeypatch.setattr(classifier, "_MIN_STEPS", 1)
    recipe = recipe_from_name("digits-flow").tiny()
    recipe = dataclasses.replace(
        recipe, task=recipe.task.replace(data=dataclasses.replace(recipe.task.data, size=72, max_samples=200))
    )
    recipe = dataclasses.replace(
        recipe, task=recipe.task.replace(eval=dataclasses.replace(recipe.task.eval, pixels=False))
    )
    with pytest.warns(UserWarning, match="a sample has 5184 values"):
        sweep = Sweep(controls=True).check(TrialRunner(Plan(tmp_path, recipe, (BASELINE,), (0,)), "cpu"))
    assert {name for name, _ in sweep.starts} == {"init_scale"}


def test_a_matched_start_has_no_pruned_one(tmp_path):
    recipe = recipe_from_name("digits-flow").tiny()
    recipe = dataclasses.replace(recipe, sampler=dataclasses.replace(recipe.sampler, init_noise="matched"))
    with pytest.warns(UserWarning, match="the pruned start is left out: .* init_noise is matched"):
        sweep = Sweep(controls=True).check(TrialRunner(Plan(tmp_path, recipe, (BASELINE,), (0,)), "cpu"))
    assert {name for name, _ in sweep.starts} == {"init_scale"}


def test_a_pruned_start_that_refuses_nearly_everything_is_left_out_with_a_notice(tmp_path):
    plan = Plan(tmp_path, recipe_from_name("digits-flow").tiny(), (BASELINE,), (0,))
    [trial], sweep = plan.trials, Sweep(controls=True, starts=(("prune", 0.2), ("prune", 2.7)))
    runner = TrialRunner(plan, "cpu")
    runner(trial)
    with pytest.warns(UserWarning, match="independent, seed 0: prune 0.2 accepts 0.0% of the starts"):
        SweepRunner(runner, sweep)(trial)
    assert sweep.missing(plan, trial) == []
    assert {v.setting for v in collected(plan, trial) if v.option == "prune"} == {2.7}
