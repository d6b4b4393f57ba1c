"""``immiscible encode``: a folder of pictures to latents, and what it says of bad input."""

from pathlib import Path
from typing import Any

import pytest
import torch

from fixtures.two_processes import finish, start
from immiscible_diffusion.applications.stable_diffusion.latent_cache import LatentSet, load_latents
from immiscible_diffusion.cli.main import main

Image = pytest.importorskip("PIL.Image", reason="pictures are written with Pillow")


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    diffusers = pytest.importorskip("diffusers", reason="the VAE is diffusers'")
    vae = diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=2)
    folder = tmp_path_factory.mktemp("pipeline")
    vae.save_pretrained(folder / "vae")
    return folder


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    datasets = pytest.importorskip("datasets", reason="pictures are read with datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(3):
        Image.new("RGB", (8, 12), (80 * number, 10, 200)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"picture {number}")
    return folder


def arguments(pipeline: Path, pictures: Path, out: Path, **options: Any) -> list[str]:
    given = {"data": pictures, "out": out, "size": 8, "shard-size": 2, "device": "cpu"} | options
    return ["encode", str(pipeline), *(f"--{name}={value}" for name, value in given.items())]


def test_encode_a_folder_twice(
    pipeline: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "latents"
    assert main(arguments(pipeline, pictures, out)) == 0
    assert "latents (2, 8, 8) of 3 images in 2 shards; complete" in capsys.readouterr().err
    assert main(arguments(pipeline / "vae", pictures, out)) == 0  # the VAE alone is as good
    dataset = load_latents(out)
    assert dataset.texts(torch.arange(3)) == ["picture 0", "picture 1", "picture 2"]
    assert main(arguments(pipeline, pictures, out, size=6)) == 2
    assert "transform is" in capsys.readouterr().err


@pytest.mark.subprocess
def test_two_processes_say_once_that_all_is_encoded(pipeline: Path, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "latents"
    first, other = finish(start(2, *arguments(pipeline, pictures, out)))
    assert "in 2 shards; complete" in first
    assert "shards" not in other
    assert len(LatentSet.open(out)) == 3


def test_images_without_captions_and_classes(pipeline: Path, pictures: Path, tmp_path: Path) -> None:
    for file in pictures.glob("*.txt"):
        file.unlink()
    assert main(arguments(pipeline, pictures, tmp_path / "latents")) == 0
    assert LatentSet.open(tmp_path / "latents").captions is None


def test_a_vae_that_is_not_there(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(tmp_path / "none", pictures, tmp_path / "latents")) == 2
    error = capsys.readouterr().err
    assert "there is no VAE at" in error
    assert "hf download" in error
