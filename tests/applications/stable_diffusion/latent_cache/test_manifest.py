"""The hash of a data set depends on its content, not on where it is."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from fixtures.tiny_vae import make_images, make_vae
from immiscible_diffusion.applications.stable_diffusion.latent_cache import vae_digest
from immiscible_diffusion.applications.stable_diffusion.latent_encoding import data_digest
from immiscible_diffusion.data import DataConfig, load_images
from immiscible_diffusion.data.captions import Captioned
from immiscible_diffusion.data.prompts import ListCaptions

Image = pytest.importorskip("PIL.Image", reason="images are written with Pillow")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    datasets = pytest.importorskip("datasets", reason="images are read with datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    for number in range(3):
        file = tmp_path / "a" / "ab"[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 6), (number, 0, 0)).save(file)
    return tmp_path / "a"


def lazy(folder: Path, **options: Any) -> str:
    config = DataConfig("folder", path=str(folder), in_memory_gib=0.0, **options)
    return data_digest(load_images(config))


def test_digest_of_lazy_sets(folder: Path) -> None:
    first = lazy(folder)
    moved = shutil.copytree(folder, folder.with_name("moved"))
    assert lazy(moved) == first
    assert lazy(moved, size=4) != first
    assert lazy(moved, max_samples=2) != first
    Image.new("RGB", (6, 6), (9, 9, 9)).save(moved / "a" / "0.png")
    assert lazy(moved) != first


def test_digest_depends_on_labels(folder: Path) -> None:
    first = lazy(folder)
    (folder / "a" / "0.png").rename(folder / "b" / "0.png")
    assert lazy(folder) != first


def test_digest_ignores_captions() -> None:
    images = make_images(3)
    captioned = Captioned(images, ListCaptions([["a"], ["b"], ["c"]]))
    assert data_digest(captioned) == data_digest(images)
    assert data_digest(make_images(3, seed=1)) != data_digest(images)


def test_digest_of_weights() -> None:
    vae = make_vae()
    digest = vae_digest(vae)
    assert digest == vae_digest(make_vae()) != vae_digest(make_vae(1))
    with torch.no_grad():
        next(vae.parameters()).view(-1)[0] += 1e-3
    assert vae_digest(vae) != digest
