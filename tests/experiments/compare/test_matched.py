"""Plain, matched and calibrated: one training serves the first two."""

import json

import pytest

from immiscible_diffusion.cli.main import main
from immiscible_diffusion.couplings import NoiseDistribution
from immiscible_diffusion.experiments.compare.plan import Plan, Trial
from immiscible_diffusion.experiments.compare.trial import is_carried, matched_trial
from immiscible_diffusion.recipes import recipe_from_name
from immiscible_diffusion.training.run_dir import RunDir

PLAIN, MATCHED = "knn:k=16", "matched:knn:k=16"


def compare(folder, couplings, *options):
    named = [word for coupling in couplings for word in ("--coupling", coupling)]
    base = ["compare", "digits-flow", "--tiny", "--device", "cpu", "--out", str(folder)]
    return main([*base, "--seeds", "0", *named, *options])


def trials_of(folder):
    found = json.loads((folder / "results.json").read_text())["trials"]
    return {trial["coupling"]: trial for trial in found}


def tiny_plan(folder, *couplings):
    return Plan(folder, recipe_from_name("digits-flow").tiny(), couplings, (0,))


def test_matched_is_evaluated_along_with_plain(tmp_path):
    assert compare(tmp_path, [MATCHED, PLAIN, "calibrated:knn:k=16"], "--workers", "2") == 0
    found = trials_of(tmp_path)
    assert len(found) == 4
    assert all(trial["finished"] for trial in found.values())
    assert found[PLAIN]["training"] == found[MATCHED]["training"]
    steps = [[(m["step"], m["sampling_steps"]) for m in found[c]["metrics"]] for c in (PLAIN, MATCHED)]
    assert steps[0] == steps[1]
    assert found[PLAIN]["metrics"] != found[MATCHED]["metrics"]
    assert not list(tmp_path.glob("trials/matched*/seed0/checkpoint.pt"))  # it trained nothing
    assert list(tmp_path.glob("trials/calibrated*/seed0/calibration.safetensors"))
    [law] = tmp_path.glob("trials/knn*/seed0/noise_distribution.safetensors")
    assert isinstance(NoiseDistribution.load(law), NoiseDistribution)


@pytest.mark.subprocess
def test_matched_alone_gives_the_same_figures(tmp_path):
    assert compare(tmp_path / "one", [PLAIN, MATCHED], "--workers", "1") == 0
    assert compare(tmp_path / "two", [MATCHED], "--workers", "1") == 0
    one, two = (trials_of(tmp_path / name)[MATCHED] for name in ("one", "two"))
    assert one["metrics"] == two["metrics"]


@pytest.mark.subprocess
def test_matched_that_comes_later_trains_by_itself(tmp_path):
    assert compare(tmp_path, [PLAIN], "--workers", "1") == 0
    plain = trials_of(tmp_path)[PLAIN]
    assert compare(tmp_path, [PLAIN, MATCHED], "--workers", "1") == 0
    found = trials_of(tmp_path)
    assert found[PLAIN] == plain
    assert found[MATCHED]["finished"]
    assert len(found[MATCHED]["metrics"]) == len(plain["metrics"])


def test_in_a_job_array_the_matched_trial_waits_for_the_plain_one(tmp_path, capsys):
    assert compare(tmp_path, [MATCHED, PLAIN], "--trial", "1") == 0
    assert "is evaluated along with trial 2" in capsys.readouterr().err
    assert compare(tmp_path, [MATCHED, PLAIN], "--trial", "2") == 0
    capsys.readouterr()
    assert compare(tmp_path, [MATCHED, PLAIN], "--list") == 0
    states = [line.split()[1] for line in capsys.readouterr().out.strip().splitlines()]
    assert states == ["open", "finished", "finished"]


def test_who_is_carried_by_whom(tmp_path):
    plan = tiny_plan(tmp_path, "independent", PLAIN, MATCHED)
    plain, matched = Trial(PLAIN, 0), Trial(MATCHED, 0)
    assert matched_trial(plan, plain) == matched
    assert is_carried(plan, matched)
    assert not is_carried(plan, plain)
    assert plan.trial_recipe(matched).sampler.init_noise == "matched"
    assert plan.trial_recipe(matched).coupling == PLAIN
    RunDir(plan.trial_dir(plain)).begin(plan.trial_recipe(plain))
    assert matched_trial(plan, plain) is None  # under way without it
    assert not is_carried(plan, matched)
    alone = tiny_plan(tmp_path, "independent", MATCHED)
    assert not is_carried(alone, matched)


def test_sample_and_evaluate_with_matched_initial_noise(tmp_path, capsys):
    run = tmp_path / "run"
    train = ["train", "digits-flow", "--tiny", "--device", "cpu", "--out", str(run)]
    assert main([*train, "--coupling", PLAIN]) == 0
    assert not (run / "noise_distribution.safetensors").exists()
    assert main(["sample", str(run), "--count", "4", "--init-noise", "matched"]) == 0
    assert (run / "noise_distribution.safetensors").exists()
    [folder] = (path for path in (run / "images").iterdir() if path.is_dir())
    assert "matched" in folder.name
    assert main(["evaluate", str(run), "--samples", "128", "--init-noise", "matched"]) == 0
    assert main(["evaluate", str(run), "--samples", "128"]) == 0
    matched, plain = json.loads((run / "evaluation.json").read_text())
    assert (matched["sampler"], plain["sampler"]) == ("euler 2 matched", "euler 2")
    assert matched["frechet"] != plain["frechet"]
    assert main(["sample", str(run), "--init-noise", "elsewhere"]) == 2
    assert "init_noise must be one of normal, matched" in capsys.readouterr().err


@pytest.mark.parametrize("start", ["normal", "matched"])
def test_training_with_a_matched_start_differs_in_its_previews_alone(tmp_path, start):
    run = tmp_path / start
    options = ["--device", "cpu", "--out", str(run), "--coupling", PLAIN]
    assert main(["train", "digits-flow", "--tiny", *options, "--sampler.init_noise", start]) == 0
    assert (run / "noise_distribution.safetensors").exists() == (start == "matched")
