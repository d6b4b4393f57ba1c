"""A full disk, a second copy of a command, dry runs with something missing: one line, code 2, nothing lost."""

import contextlib
import dataclasses
import sys

import pytest

from fixtures.stable_diffusion import save_small_sd
from helpers import assert_same_weights
from immiscible_diffusion.applications.stable_diffusion.export import check_schedule
from immiscible_diffusion.applications.stable_diffusion.load_pipeline import load_reason
from immiscible_diffusion.cli import analyze
from immiscible_diffusion.cli.main import main
from immiscible_diffusion.cli.options import named_recipe
from immiscible_diffusion.couplings import SemidiscretePlan
from immiscible_diffusion.diffusion.paths import VPPath
from immiscible_diffusion.diffusion.samplers import SamplerConfig
from immiscible_diffusion.experiments.compare.plan import Plan
from immiscible_diffusion.recipes import RECIPES
from immiscible_diffusion.training.builders import make_accelerator
from immiscible_diffusion.training.dry_run import dry_run
from immiscible_diffusion.training.run_dir import RunDir
from immiscible_diffusion.training.trainer import Trainer
from immiscible_diffusion.utils import folder_lock as locks
from immiscible_diffusion.utils.folder_lock import folder_lock

TRAIN = ["train", "digits-flow", "--tiny", "--device", "cpu", "--model.width", "64", "--preview-every", "0"]


@contextlib.contextmanager
def limit(size):
    """Let files grow to ``size`` bytes: writing more is an error, as on a full disk."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def error_of(capsys, arguments):
    assert main(arguments) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("immiscible: error: ")
    return line


@pytest.mark.skipif(sys.platform == "win32", reason="resource limits")
def test_training_on_a_full_disk_keeps_the_last_checkpoint_and_goes_on(tmp_path, capsys):
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert main([*TRAIN, "--out", str(whole)]) == 0
    assert "1 process on" in capsys.readouterr().err
    words = [*TRAIN, "--out", str(run)]
    with limit(100_000):
        line = error_of(capsys, words)
    assert "weights/model.safetensors" in line
    with limit(200_000):  # of about 560,000
        line = error_of(capsys, words)
    assert "checkpoint.pt" in line
    assert "MiB are missing" in line
    assert not (run / "checkpoint.pt").exists()
    assert main([*words, "--steps", "4"]) == 0
    with limit(200_000):
        error_of(capsys, words)
    assert RunDir(run).load_checkpoint()["step"] == 4
    assert not list(run.rglob("*.tmp"))
    assert main(words) == 0
    assert_same_weights(whole, run)


@pytest.mark.parametrize(
    "arguments",
    [
        TRAIN,
        ["compare", "digits-flow", "--tiny", "--device", "cpu"],
        ["analyze", "--data", "digits", "--max-images", "50"],
        ["pilot", "--data", "digits", "--device", "cpu"],
    ],
    ids=lambda words: words[0],
)
def test_a_second_copy_of_a_command_is_refused(tmp_path, monkeypatch, capsys, arguments):
    monkeypatch.setattr(locks, "WAIT", 0.0)
    with folder_lock(tmp_path):
        line = error_of(capsys, [*arguments, "--out", str(tmp_path)])
    assert "in use by process" in line
    assert not list(tmp_path.iterdir())


def test_sampling_and_trials_are_refused_where_another_is_at_work(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(locks, "WAIT", 0.0)
    run, to = str(tmp_path / "run"), tmp_path / "images"
    assert main([*TRAIN, "--out", run]) == 0
    sample = ["sample", run, "--count", "6", "--format", "tar", "--shard-size", "3", "--to", str(to)]
    with folder_lock(to):
        assert "in use" in error_of(capsys, sample)
    assert main(sample) == 0
    assert sorted(file.name for file in to.iterdir()) == ["images-00000.tar", "images-00001.tar", "sampling.json"]
    out = tmp_path / "compare"
    trial = ["compare", "digits-flow", "--tiny", "--device", "cpu", "--trial", "0", "--out", str(out)]
    with folder_lock(out / "trials" / "independent" / "seed0"):
        assert "in use" in error_of(capsys, trial)
    assert main(trial) == 0


def test_tiny_takes_one_step_where_the_recipe_selects_steps_linearly():
    for name, make in RECIPES.items():
        tiny, kinds = make().tiny(), {"independent", "knn:k=4"}
        Plan("unused", tiny, tuple(kinds), (0,))
        assert tiny.sampler.spacing == "trailing", name
    linear = dataclasses.replace(tiny, path=VPPath(), sampler=SamplerConfig("ddim", spacing="linear"))
    with pytest.raises(ValueError, match="one linear step is step 0"):  # before anything is trained
        Plan("unused", linear, ("independent",), (0,))


def test_tiny_learns_what_the_small_pipeline_predicts(tmp_path, capsys):
    pipeline = str(save_small_sd(tmp_path / "pipeline", prediction="v_prediction"))
    for name in ("imagenet-sd-finetune", "sd-inpaint", "sd-lora"):
        recipe, rest = named_recipe(name, ["--tiny", "--codec.pretrained", pipeline])
        assert recipe.path.prediction == "v"
        assert rest == ["--codec.pretrained", pipeline]
        codec = dataclasses.replace(recipe.task.codec, pretrained=pipeline)
        check_schedule(dataclasses.replace(recipe, task=recipe.task.replace(codec=codec)))
    assert "digits stands in for imagenet-1k" in capsys.readouterr().err
    named_recipe("sd-lora", ["--tiny", "--data.name=folder", "--data.path", "mine"])
    assert not capsys.readouterr().err  # the folder is used, no stand-in


def test_a_dry_run_lists_all_that_is_missing(capsys):
    words = [
        "--mixed-precision",
        "no",
        "--codec.pretrained",
        "absent",
        "--data.name",
        "folder",
        "--data.path",
        "nowhere",
    ]
    assert main(["train", "imagenet-sd-scratch", "--dry-run", *words]) == 2
    lines = capsys.readouterr().out.splitlines()
    missing = [line for line in lines if line.startswith("missing: ")]
    assert ["absent" in line for line in missing] == [True, False]
    assert "nowhere" in missing[1]
    assert lines[0] == "{"  # the recipe comes first


def test_a_dry_run_on_a_cpu_takes_few_samples(tiny, monkeypatch, capsys):
    monkeypatch.setattr("immiscible_diffusion.training.dry_run.STEP_BYTES", 1)
    shapes = []
    train_step = Trainer.train_step

    def counted(trainer, batches):
        shapes.append(trainer.loader.batch_size)
        train_step(trainer, batches)

    monkeypatch.setattr(Trainer, "train_step", counted)
    assert dry_run(dataclasses.replace(tiny, gradient_accumulation_steps=2), "cpu", print)
    assert set(shapes) == {4}
    assert "scaled from 4 samples of 16" in capsys.readouterr().out


def test_a_dry_run_fits_no_plan(tiny, monkeypatch):
    fit, steps = SemidiscretePlan.fit, []
    monkeypatch.setattr(SemidiscretePlan, "fit", lambda *a, **kw: steps.append(kw["max_steps"]) or fit(*a, **kw))
    for coupling in ("semidiscrete", "shuffled:semidiscrete:max_steps=7"):
        assert dry_run(dataclasses.replace(tiny, coupling=coupling), "cpu", [].append)
    assert set(steps) == {0}


def test_a_misspelt_coupling_is_an_error_before_the_data_are_loaded(monkeypatch, capsys):
    monkeypatch.setattr(Trainer, "__init__", None)
    assert "k must be" in error_of(capsys, ["train", "digits-flow", "--coupling", "knn:k=0"])


def test_the_reason_is_the_network_where_there_is_none():
    error = OSError("no model_index.json")
    error.__cause__ = type("LocalEntryNotFoundError", (OSError,), {})("Cannot reach the hub: offline mode is enabled")
    assert load_reason(error) == "it is not on this machine, and the hub is out of reach: offline mode is enabled"


def test_columns_of_recipes_are_apart(capsys):
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()[: len(RECIPES)]
    assert all(line.startswith(f"{name} ") for name, line in zip(RECIPES, lines, strict=True))
    assert main(["recipes", "cifar10-flow"]) == 0
    assert "5.07 -> 3.68" in capsys.readouterr().err


def test_a_dry_analysis_says_first_what_it_would_do_and_measures_few_samples(tmp_path, monkeypatch):
    built = []
    monkeypatch.setattr(analyze, "MOST_TIMED", 50)
    monkeypatch.setattr(analyze, "estimate_seconds", lambda subject: built.append(len(subject.setup.images)) or 1.0)
    options = analyze.Options(data="digits", max_images=200, coupling=(("knn:k=4",),))
    lines = analyze.dry_run(options.load(), options, tmp_path)
    first = [next(lines) for _ in range(4)]
    assert first[0].startswith("data: digits, 200 of")
    assert not built
    rest = list(lines)
    assert built == [50, 50]
    assert rest[0] == "independent: at most about 4 s (closed form)"
    assert not list(tmp_path.iterdir())


def test_files_of_the_working_folder_replace_no_package(tmp_path, monkeypatch, capsys):
    """A run that was downloaded may bring a ``tyro.py``: only code that the user named is imported from there."""
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.chdir(tmp_path)
    assert main(["recipes"]) == 0
    assert str(tmp_path) not in sys.path
    (tmp_path / "of_my_own.py").write_text("def near(data, *, cond, generator):\n    return data\n")
    assert main(["describe", "of_my_own:near", "--shape", "3,4,4"]) == 0
    assert sys.path.index(str(tmp_path)) == len(sys.path) - 1


def test_half_precision_that_a_cpu_does_not_have_is_said(tiny, tmp_path, fresh_accelerate):
    with pytest.warns(UserWarning, match="fp16 has no effect on a CPU"):
        make_accelerator(dataclasses.replace(tiny, mixed_precision="fp16"), "cpu", RunDir(tmp_path))
