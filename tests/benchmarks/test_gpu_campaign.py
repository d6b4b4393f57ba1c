"""What a GPU is to measure runs on the CPU: every step, in minutes that are kept, with seeds that add up."""

import importlib
import subprocess
import time
from dataclasses import replace

import pytest
import torch

from helpers import ROOT
from immiscible_diffusion.metrics import FeatureStatistics, PixelFeatures, Reference, frechet_distance
from immiscible_diffusion.models import UNet
from immiscible_diffusion.recipes import recipe_from_name
from immiscible_diffusion.training.run_dir import RunDir
from immiscible_diffusion.training.trainer import Trainer
from immiscible_diffusion.utils.atomic_files import read_record, write_record

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
ON_THE_CPU = ["--device", "cpu", "--tiny"]
ARMS = {2: 6, 3: 6, 4: 2, 5: 2, 7: 3}  # trials of a step; the baseline of 5 is that of 2


@pytest.fixture
def campaign(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.syspath_prepend(ROOT / "benchmarks" / "gpu")
    return importlib.import_module("campaign")


@pytest.fixture
def measured(campaign, tmp_path, capsys):
    """Run a step; its record and what it printed."""

    def run(step, minutes=5.0):
        before = set(tmp_path.glob("*.json"))
        words = ["--step", str(step), "--minutes", str(minutes), "--out", str(tmp_path), "--results", str(tmp_path)]
        assert campaign.main([*words, *ON_THE_CPU]) == 0
        (file,) = set(tmp_path.glob("*.json")) - before
        return read_record(file), capsys.readouterr().out

    return run


@pytest.mark.slow
@pytest.mark.subprocess
def test_every_step_leaves_figures_and_seeds_add_up(campaign, measured, tmp_path):
    for step in (1, 6):
        check_tables(*measured(step))
    for step, arms in ARMS.items():
        record, said = measured(step)
        trials = record["comparison"]["trials"]
        assert record["unfinished"] == []
        assert len(trials) == arms
        assert all(trial["finished"] and trial["seed"] == 0 for trial in trials)
        assert (", weight " in said) == (step == 4)  # of guidance
    options = ["--out", str(tmp_path), "--results", str(tmp_path), *ON_THE_CPU]
    options = campaign.parsed(["--step", "2", "--minutes", "1", *options])
    run = campaign.Run(options, new_values(), tmp_path, campaign.Deadline(1))
    assert all(name.endswith("seed 1") for name in campaign.STEPS[2](run))
    check_report(tmp_path)


def check_tables(record, said):
    assert record["unfinished"] == []
    for rows in record["tables"].values():
        assert all(value == value for row in rows for value in row.values())  # no NaN
    (training,) = (rows for rows in record["tables"].values() if "steps/s" in rows[0])
    assert training[0]["coupling"] == "independent"
    assert all(row["step, ms"] > 0 and row["of peak"] is None for row in training)
    assert "| independent |" in said


def check_report(folder):
    """Another seed of steps 2 and 5, a little worse, joins the first on the page."""
    for file in list(folder.glob("step[25]_*.json")):
        record = read_record(file)
        for trial in record["comparison"]["trials"]:
            trial["seed"] = 1
            trial["metrics"] = [m | {"frechet": 1.1 * m["frechet"]} for m in trial["metrics"]]
        write_record(file.with_name(f"{file.stem}_again.json"), record)
    report = importlib.import_module("report")
    report.main([str(folder), str(folder / "page.md"), "--html", str(folder / "html")])
    page = (folder / "page.md").read_text()
    assert page.count("## gpu-flow") == 1
    for coupling in ("independent", "semidiscrete"):
        (row,) = (line for line in page.splitlines() if line.startswith(f"| {coupling} | 2 |"))
        assert " to " in row
    assert (folder / "html" / "gpu-flow-tiny").is_dir()


def new_values():
    return {"tables": {}, "comparison": None, "command": "", "failures": {}, "seconds": {}}


def test_minutes_are_kept_and_what_is_left_is_named(measured):
    record, said = measured(6, minutes=0.0)
    assert record["unfinished"] == ["Stable Diffusion"]
    assert record["tables"] == {}
    assert "unfinished after 0 minutes: Stable Diffusion" in said


def test_parts_are_chosen_by_name(campaign, tmp_path, capsys):
    words = ["--step", "6", "--minutes", "0", "--out", str(tmp_path), *ON_THE_CPU]
    assert campaign.main([*words, "--only", "Unet"]) == 2
    assert "there are: Stable Diffusion" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    assert campaign.main([*words, "--only", "Stable"]) == 0


def test_a_part_that_fails_is_written_down_and_the_others_go_on(campaign, tmp_path):
    options = campaign.parsed(["--step", "6", "--minutes", "1", "--out", str(tmp_path), *ON_THE_CPU])
    run = campaign.Run(options, new_values(), tmp_path, campaign.Deadline(1))
    rows = [{"figure": 1.0}]
    run.take({"first": lambda: 1 / 0, "second": lambda: run.add_table("second", lambda: rows)})
    record = read_record(run.file)
    assert record["failures"] == {"first": "ZeroDivisionError: division by zero"}
    assert record["tables"] == {"second": rows}


def test_a_training_that_the_minutes_do_not_cover_stops_within(campaign, tmp_path):
    recipe = replace(recipe_from_name("digits-flow").tiny(), steps=10**7, validate_every=10**7, checkpoint_every=10**7)
    trainer = Trainer(replace(recipe, preview_every=0), RunDir(tmp_path / "run"), device="cpu")
    options = campaign.parsed(["--step", "2", "--minutes", "1", "--out", str(tmp_path), *ON_THE_CPU])
    run = campaign.Run(options, new_values(), tmp_path, campaign.Deadline(0.05))
    began, other = time.monotonic(), []
    run.take({"training": lambda: trainer.train(quiet=True), "another": lambda: other.append(1)})
    assert read_record(run.file)["unfinished"] == ["training", "another"]
    assert not other
    assert time.monotonic() - began < 60


def test_what_travels_is_ignored_by_git():
    folder = "benchmarks/gpu/carried/wheel.whl"
    done = subprocess.run(["git", "check-ignore", "-q", folder], cwd=ROOT, check=False)
    assert done.returncode in (0, 128)  # 128: this is no checkout


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.cuda, needs_cuda])])
def test_a_graphed_training_is_the_trainers(campaign, device, tmp_path):
    model = UNet(channels=8, blocks=1, groups=4, head_channels=4, multipliers=(1, 2), attention=(), dropout=0.0)
    recipe = replace(recipe_from_name("digits-flow").tiny(), model=model, conditional=True, cond_drop_prob=0.5)
    kinds = (Trainer, campaign.GraphedTrainer)
    assert campaign.GraphedTrainer.train_step is Trainer.train_step, "one way to end a step"
    trainers = [kind(recipe, RunDir(tmp_path / kind.__name__), device=device) for kind in kinds]
    for trainer in trainers:
        trainer.train(quiet=True)
    averages = (trainer.ema.model.parameters() for trainer in trainers)
    for usual, graphed in zip(*averages, strict=True):
        torch.testing.assert_close(usual, graphed, rtol=1e-4, atol=1e-5)
    again = campaign.GraphedTrainer(replace(recipe, steps=10), trainers[1].run_dir, device=device)
    with pytest.raises(ValueError, match="begins at step 0, not at 8"):
        again.train(quiet=True)


def test_the_distance_on_the_device_is_the_librarys(campaign):
    generator = torch.Generator().manual_seed(0)
    real, images = torch.randn(400, 3, 4, 4, generator=generator), torch.rand(200, 3, 4, 4, generator=generator) - 0.2
    features = PixelFeatures((3, 4, 4))
    reference = Reference.of(features(real), features.name)
    evaluator = campaign.Distances(features, reference, None, 200)
    expected = frechet_distance(FeatureStatistics.of(features(images)), reference.statistics)
    assert evaluator.measure(iter(images.split(64))).frechet == pytest.approx(expected, rel=1e-9)
