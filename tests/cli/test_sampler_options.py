"""Sampling: the same images however the work is split, and options that change the sampler."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from immiscible_diffusion.cli.sample import share_of
from immiscible_diffusion.cli.sampler_options import SamplerChanges
from immiscible_diffusion.data import DataConfig
from immiscible_diffusion.diffusion.paths import VPPath
from immiscible_diffusion.diffusion.samplers import SamplerConfig
from immiscible_diffusion.models import UNet
from immiscible_diffusion.recipes import recipe_from_name
from immiscible_diffusion.training.run_dir import RunDir
from immiscible_diffusion.training.trainer import Trainer


def pictures(folder):
    files = sorted(folder.glob("[0-9]*.png"))
    return [file.name for file in files], np.stack([np.array(Image.open(f)) for f in files])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A convolutional network and a sampler that adds noise on its way: the hardest to split."""
    recipe = dataclasses.replace(
        recipe_from_name("digits-flow").tiny(),
        data=DataConfig(name="digits", limit=64),
        model=UNet(8, (1, 2), blocks=1, attention=(4,), head_channels=4, groups=4, dropout=0.0),
        path=VPPath(),
        sampler=SamplerConfig("ddpm", 4, clip=1.0),
        steps=4,
        preview_every=0,
    )
    folder = tmp_path_factory.mktemp("run")
    Trainer(recipe, RunDir.open(folder, recipe), device="cpu").train(quiet=True)
    return folder


def test_one_rank_two_ranks_and_batches_of_seven_make_the_same_images(run, tmp_path):
    """1 x 64, 2 x 32 and 1 x 7."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    made = {}
    for name, before, size in (("one", [], 64), ("two", launch, 32), ("seven", [], 7)):
        out = tmp_path / name
        options = ["--count", "64", "--batch-size", str(size), "--out", str(out)]
        command = [sys.executable, *before, "-m", "immiscible_diffusion", "sample", str(run)]
        said = subprocess.run(
            [*command, *options], check=True, capture_output=True, text=True, timeout=300
        )
        assert said.stderr.count("64 images of step") == 1  # shared, not made twice
        made[name] = pictures(out)
        assert (tmp_path / f"{name}-grid.png").exists()
    names, images = made["one"]
    assert names == [f"{row:06d}.png" for row in range(64)]
    for other, found in made.values():
        assert other == names
        assert np.abs(found.astype(int) - images).max() <= 1  # rounding to bytes
    assert images.std() > 10


def test_shares_of_ranks_are_all_images_once():
    for count, world in ((64, 2), (7, 3), (2, 5), (50_000, 8)):
        shares = [share_of(count, rank, world) for rank in range(world)]
        assert [row for share in shares for row in share] == list(range(count))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_options_change_the_recipe_s_sampler_and_nothing_else():
    recipe = SamplerConfig("ddim", 20, clip=1.0)
    assert SamplerChanges().of(recipe) == recipe
    changed = SamplerChanges(spacing="quadratic", steps=10, guidance=2.0).of(recipe)
    assert changed == SamplerConfig("ddim", 10, clip=1.0, spacing="quadratic", guidance=2.0)
    assert SamplerChanges(eta=0.0, guidance=1.0).of(
        SamplerConfig("ddim", eta=0.5, guidance=3.0)
    ) == (SamplerConfig("ddim"))
    with pytest.raises(ValueError, match="spacing means something in ddim and ddpm and dpm only"):
        SamplerChanges(spacing="quadratic").of(SamplerConfig("euler"))
    with pytest.raises(ValueError, match="clip means something"):
        SamplerChanges(clip=1.0, method="dpm").of(recipe)
    with pytest.raises(ValueError, match="eta must be from 0 to 1"):
        SamplerChanges(eta=2.0).of(recipe)
