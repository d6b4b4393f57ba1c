"""Checkpoints that are kept, what is scored of them, and going back to one."""

import dataclasses
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from fixtures.tar_shards import write_shards
from helpers import assert_same_weights, train, weights
from immiscible_diffusion.cli.main import main
from immiscible_diffusion.data import DataConfig
from immiscible_diffusion.evaluation.load_run import load_run
from immiscible_diffusion.models import UNet
from immiscible_diffusion.training.run_dir import RunDir
from immiscible_diffusion.training.trainer import Trainer


@pytest.fixture
def recipe(tiny):
    return dataclasses.replace(tiny, checkpoint_every=2, checkpoints_total_limit=None, preview_every=0)


@pytest.mark.parametrize(("limit", "steps"), [(None, [2, 4, 6, 8]), (3, [4, 6, 8]), (1, [])])
def test_as_many_checkpoints_are_kept_as_asked_for(recipe, tmp_path, limit, steps):
    train(dataclasses.replace(recipe, checkpoints_total_limit=limit), tmp_path)
    kept = RunDir(tmp_path).kept_checkpoints
    assert list(kept) == steps
    for folder in kept.values():
        assert (folder / "checkpoint.pt").is_file()


def test_a_kept_checkpoint_has_the_weights_of_its_step(recipe, tmp_path):
    train(recipe, tmp_path / "short", until=4)
    train(recipe, tmp_path / "long")
    kept = load_file(RunDir(tmp_path / "long").kept_checkpoint(4) / "weights" / "model.safetensors")
    assert all(torch.equal(kept[name], value) for name, value in weights(tmp_path / "short").items())
    run = load_run(tmp_path / "long", "cpu", step=4)
    assert run.step == 4
    assert all(torch.equal(kept[name], value) for name, value in run.model.state_dict().items())
    assert load_run(tmp_path / "long", "cpu").step == 8
    with pytest.raises(ValueError, match="there are: 2, 4, 6, 8"):
        load_run(tmp_path / "long", "cpu", step=5)


def test_a_run_that_goes_back_makes_the_same_steps_again(recipe, tmp_path):
    train(recipe, tmp_path / "whole")
    train(recipe, tmp_path / "back")
    trainer = Trainer(recipe, RunDir.open(tmp_path / "back", recipe), device="cpu")
    trainer.train(resume_from=4, until=4, quiet=True)
    run = RunDir(tmp_path / "back")
    assert trainer.step == 4
    assert list(run.kept_checkpoints) == [2, 4]
    assert {record["step"] for record in run.records("train")} == {2, 4}
    train(recipe, tmp_path / "back")
    assert_same_weights(tmp_path / "whole", tmp_path / "back")
    assert list(run.kept_checkpoints) == [2, 4, 6, 8]


@pytest.mark.parametrize("remove", [lambda run: run.keep_checkpoint(8, 1), lambda run: run.go_back_to(2)])
def test_a_checkpoint_that_is_half_removed_is_not_kept(recipe, tmp_path, monkeypatch, remove):
    train(recipe, tmp_path)
    run = RunDir(tmp_path)

    def killed(folder, ignore_errors=False):
        if not ignore_errors:  # those of temporary folders
            (folder / "checkpoint.pt").unlink()
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            remove(run)
    assert len(run.kept_checkpoints) == 3
    assert all((folder / "checkpoint.pt").is_file() for folder in run.kept_checkpoints.values())
    run.begin(recipe)
    assert len(list(run.root.glob("checkpoints/*"))) == 3, "the rest of it is removed"


def test_shards_are_removed_by_training_alone(recipe, tmp_path):
    """What begins a run without going to its checkpoint does not know which are needed."""
    run = RunDir(tmp_path)
    run.shards(4).mkdir(parents=True)
    run.begin(recipe)
    assert run.shards(4).exists()
    train(recipe, tmp_path, until=1)
    assert not run.shards(4).exists()


def test_a_run_stopped_by_a_damaged_shard_goes_on_without_it(tiny, tmp_path):
    shards = write_shards(tmp_path / "shards", 4)
    shards[2].write_bytes(shards[2].read_bytes()[:9000])

    def streamed(on_error):
        data = DataConfig("folder", str(tmp_path / "shards"), size=8, channels=1, stream=True, on_error=on_error)
        data = dataclasses.replace(data, max_samples=4, shuffle_buffer=1)
        task = dataclasses.replace(tiny.task, data=data)
        return dataclasses.replace(tiny, task=task, batch_size=4, checkpoint_every=1, prefetch=0)

    with pytest.raises(ValueError, match=r"shard-002\.tar cannot be read .*--data\.on_error skip"):
        train(streamed("raise"), tmp_path / "run")
    with pytest.warns(UserWarning, match="skipped"):
        train(streamed("skip"), tmp_path / "run")
    assert RunDir(tmp_path / "run").records("train")[-1]["step"] == tiny.steps


@pytest.mark.usefixtures("fresh_accelerate")
def test_a_run_of_before_goes_on_with_gradient_checkpointing(recipe, tmp_path):
    """Bit for bit, in bfloat16, with dropout; its recipe.json does not know the field."""
    model = UNet(channels=8, blocks=1, groups=4, head_channels=4, multipliers=(1, 2), attention=(), dropout=0.2)
    recipe = dataclasses.replace(recipe, model=model, mixed_precision="bf16")
    train(recipe, tmp_path / "whole")
    train(recipe, tmp_path / "parts", until=4)
    path = tmp_path / "parts" / "recipe.json"
    values = json.loads(path.read_text())
    del values["model"]["gradient_checkpointing"], values["checksum"]
    path.write_text(json.dumps(values))
    model = dataclasses.replace(model, gradient_checkpointing=True)
    trainer = train(dataclasses.replace(recipe, model=model), tmp_path / "parts")
    assert trainer.run.model.unet.is_gradient_checkpointing
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")


def test_kept_checkpoints_are_scored_in_a_table_with_best_and_mean(recipe, tmp_path, capsys):
    train(recipe, tmp_path)
    words = ["evaluate", str(tmp_path), "--samples", "120", "--device", "cpu", "--metrics", "frechet"]
    assert main([*words, "--checkpoints", "0"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[-6:]]
    results = json.loads((tmp_path / "evaluation.json").read_text())
    assert [result["step"] for result in results] == [2, 4, 6, 8]
    assert [row[0] for row in rows] == ["step", "2", "4", "6", "8", "mean"]
    assert float(rows[-1][1]) == pytest.approx(sum(r["frechet"] for r in results) / 4, rel=1e-3)
    [best] = [result for result in results if result["best"]]
    assert best["frechet"] == min(result["frechet"] for result in results)
    assert main([*words, "--checkpoint", "4"]) == 0
    assert json.loads((tmp_path / "evaluation.json").read_text())[-1]["frechet"] == results[1]["frechet"]


def test_a_run_that_keeps_none_says_so(tiny, tmp_path, capsys):
    train(dataclasses.replace(tiny, preview_every=0), tmp_path)
    assert main(["evaluate", str(tmp_path), "--checkpoints", "0", "--device", "cpu"]) == 2
    assert "train with --checkpoints_total_limit" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("below", "is_named"), [("run", True), ("trials/knn-k4/seed0", True), ("a/run", False), ("a/b/c/run", False)]
)
def test_a_wrong_folder_names_a_run_just_below_and_searches_no_further(tmp_path, below, is_named):
    (tmp_path / below).mkdir(parents=True)
    (tmp_path / below / "recipe.json").touch()
    with pytest.raises(ValueError, match="is not a run folder") as raised:
        RunDir.existing(tmp_path)
    assert (f"{tmp_path / below} is one" in str(raised.value)) == is_named
