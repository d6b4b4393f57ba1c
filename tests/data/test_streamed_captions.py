"""Training on a stream, whose first images are in memory."""

import dataclasses
from itertools import islice
from pathlib import Path

import pytest
import torch

from fixtures.tar_shards import PER_SHARD, write_shards
from fixtures.two_processes import finish, start
from helpers import assert_same_weights, weights
from immiscible_diffusion.data import DataConfig
from immiscible_diffusion.data.aspect_buckets import Buckets
from immiscible_diffusion.data.streaming import load_stream
from immiscible_diffusion.recipes import recipe_from_name
from immiscible_diffusion.training.recipe import Recipe
from immiscible_diffusion.training.run_dir import RunDir
from immiscible_diffusion.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("hf_cache")


def stream_recipe(name: str, folder: Path, task: dict[str, object] | None = None) -> Recipe:
    """The smoke run of a recipe, on the shards of ``folder``; ``task`` changes its task."""
    recipe = recipe_from_name(name).tiny()
    data = DataConfig("folder", path=str(folder), size=8, channels=3, stream=True, max_samples=4)
    return dataclasses.replace(
        recipe,
        task=dataclasses.replace(recipe.task, data=data, **(task or {})),  # type: ignore[arg-type]
        steps=4,
        checkpoint_every=2,
        preview_every=2,
        batch_size=6,
    )


def make_trainer(recipe: Recipe, folder: Path) -> Trainer:
    return Trainer(recipe, RunDir.open(folder, recipe), device="cpu")


def test_training_reads_all_shards_and_the_first_images_are_addressed(tmp_path: Path) -> None:
    write_shards(tmp_path / "shards", 3)
    trainer = make_trainer(stream_recipe("cifar10-ddim", tmp_path / "shards"), tmp_path / "run")
    assert len(trainer.task.dataset) == 4
    assert "the first 4 images are in memory" in trainer.task.dataset.note
    colors = set()
    with trainer.paired_loader() as loader:
        for batch in islice(loader, 9):
            assert batch.noise.shape == batch.data.shape
            colors |= {round(float(value)) for value in (batch.data[:, 0, 0, 0] + 1) * 127.5}
    assert colors == set(range(3 * PER_SHARD))


@pytest.mark.parametrize("coupling", ["knn:k=4", "assignment:pool=3"])
def test_it_trains_resumes_exactly_and_has_previews(tmp_path: Path, coupling: str) -> None:
    """Three steps are six micro-batches: where pools of three end. Two are within a pool."""
    write_shards(tmp_path / "shards", 2)
    recipe = stream_recipe("cifar10-ddim", tmp_path / "shards")
    recipe = dataclasses.replace(recipe, coupling=coupling, gradient_accumulation_steps=2)
    make_trainer(recipe, tmp_path / "whole").train(quiet=True)
    for until in (2, 3, None):
        trainer = make_trainer(recipe, tmp_path / "run")
        trainer.train(until=until, quiet=True)
    assert trainer.step == 4
    assert_same_weights(tmp_path / "whole", tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run" / "samples").glob("*.png"))


def test_a_text_to_image_network_gets_the_captions_of_the_stream(small_sd: Path, tmp_path: Path) -> None:
    write_shards(tmp_path / "shards", 2)
    codec = dataclasses.replace(recipe_from_name("coco-sd").task.codec, pretrained=str(small_sd))
    recipe = stream_recipe("coco-sd", tmp_path / "shards", {"codec": codec})
    trainer = make_trainer(recipe, tmp_path / "run")
    words = [str(n) for n in range(2 * PER_SHARD)]
    states = trainer.task.codec.encode_prompts(words)["text"]
    with trainer.paired_loader() as loader:
        batch = next(iter(loader))
    for row in batch.cond["text"]:
        assert (row == states).flatten(1).all(1).sum() == 1
    trainer.train(quiet=True)
    assert (tmp_path / "run" / "model_index.json").is_file()


def test_damage_is_named_or_skipped(tmp_path: Path) -> None:
    first, _ = write_shards(tmp_path / "shards", 2)
    first.write_bytes(first.read_bytes()[: first.stat().st_size // 2])
    data = DataConfig("folder", path=str(tmp_path / "shards"), size=8, stream=True)
    with pytest.raises(ValueError, match=r"shard-000\.tar cannot be read to its end"):
        load_stream(data)
    with pytest.warns(UserWarning, match=r"skipped.*shard-000"):
        dataset = load_stream(dataclasses.replace(data, on_error="skip"))
    assert PER_SHARD <= len(dataset) < 2 * PER_SHARD
    assert torch.isfinite(dataset.batch(torch.arange(len(dataset))).data).all()


def test_latents_and_buckets_need_an_addressable_set(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a stream has images of one size"):
        stream_recipe("coco-sd", tmp_path, {"buckets": Buckets(size=8, step=8)})
    with pytest.raises(ValueError, match=r"data\.shuffle_buffer must be >= 1"):
        DataConfig("folder", stream=True, shuffle_buffer=0)


@pytest.mark.slow
@pytest.mark.subprocess
def test_two_processes_go_on_exactly_from_a_kept_checkpoint(tmp_path: Path) -> None:
    write_shards(tmp_path / "shards", 4)
    options = "--data.name folder --data.stream --data.shuffle_buffer 4 --data.size 8 --data.max_samples 4"
    data = [*options.split(), "--data.path", str(tmp_path / "shards")]
    command = ["train", "cifar10-ddim", "--tiny", "--device", "cpu", "--checkpoints_total_limit", "None", *data]
    finish(start(2, *command, "--out", str(tmp_path / "run")))
    before = weights(tmp_path / "run")
    finish(start(2, *command, "--out", str(tmp_path / "run"), "--resume_from_checkpoint", "4"))
    assert [entry["step"] for entry in RunDir(tmp_path / "run").starts()] == [0, 4]
    assert all(torch.equal(value, before[name]) for name, value in weights(tmp_path / "run").items())
