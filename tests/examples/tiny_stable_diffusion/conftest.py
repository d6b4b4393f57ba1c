from pathlib import Path
from typing import Any

import pytest

from fixtures.tiny_stable_diffusion import settings, write_pictures
from immiscible_diffusion.smallsd import make_small_sd


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("small") / "pictures")


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> tuple[Path, dict[str, Any]]:
    """A whole small pipeline, and its figures."""
    folder = tmp_path_factory.mktemp("small") / "pipeline"
    return folder, make_small_sd(folder, settings(pictures))
