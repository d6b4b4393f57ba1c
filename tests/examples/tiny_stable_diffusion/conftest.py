from pathlib import Path
from typing import Any

import pytest

from examples.tiny_stable_diffusion.build import build
from fixtures.tiny_stable_diffusion import tiny_config, write_images


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("tiny") / "images")


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory: pytest.TempPathFactory, images: Path) -> tuple[Path, dict[str, Any]]:
    """The folder of a pipeline, and its figures."""
    folder = tmp_path_factory.mktemp("tiny") / "pipeline"
    return folder, build(folder, tiny_config(images))
