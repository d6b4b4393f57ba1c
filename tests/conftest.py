"""Shared by all tests: one torch thread, no network, a temporary cache, Triton interpreted where there is no CUDA."""

import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

os.environ.setdefault("TRITON_INTERPRET", str(int(not torch.cuda.is_available())))  # before anything imports Triton

from fixtures.stable_diffusion import save_small_sd
from immiscible_diffusion.recipes import recipe_from_name
from immiscible_diffusion.training.recipe import Recipe

torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Classifiers trained in tests are not left in the user's cache, nor taken from it."""
    os.environ["IMMISCIBLE_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def tiny() -> Recipe:
    """digits-flow, shrunk: eight steps."""
    return recipe_from_name("digits-flow").tiny()


@pytest.fixture
def fresh_accelerate() -> Iterator[None]:
    """Accelerate keeps the precision of a process; tests of another one need this."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def small_sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a Stable Diffusion pipeline of a few random weights."""
    return save_small_sd(tmp_path_factory.mktemp("small_sd") / "pipeline")


@pytest.fixture(scope="session")
def small_sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in the form of SDXL: two text encoders."""
    return save_small_sd(tmp_path_factory.mktemp("small_sd") / "sdxl", sdxl=True)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the project; skips where there is none."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs ../shared/data beside the project (CIFAR-10 and Push-T), absent here")
    return folder
