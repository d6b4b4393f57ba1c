from pathlib import Path
from typing import Any

import pytest

from fixtures.tiny_vae import make_images, make_vae
from immiscible_diffusion.data import ImageSet


@pytest.fixture(scope="session")
def vae() -> Any:
    return make_vae()


@pytest.fixture(scope="session")
def other_vae() -> Any:
    return make_vae(1)


@pytest.fixture
def images() -> ImageSet:
    return make_images(11)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "latents"
