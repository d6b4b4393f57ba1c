"""What tests do again and again: seeded generators, whole trainings, equal weights."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from immiscible_diffusion.training.recipe import Recipe
from immiscible_diffusion.training.run_dir import RunDir
from immiscible_diffusion.training.trainer import Trainer

ROOT = Path(__file__).parents[1]


def generator(seed: int = 0) -> torch.Generator:
    """A CPU generator seeded with ``seed``."""
    return torch.Generator().manual_seed(seed)


def train(recipe: Recipe, folder: Path, until: int | None = None) -> Trainer:
    """Train ``recipe`` in ``folder`` on the CPU, to step ``until`` or to its end."""
    trainer = Trainer(recipe, RunDir.open(folder, recipe), device="cpu")
    trainer.train(until=until, quiet=True)
    return trainer


def weights(folder: Path) -> dict[str, Tensor]:
    """The averaged weights of a run."""
    return load_file(folder / "weights" / "model.safetensors")


def assert_same_weights(one: Path, other: Path) -> None:
    """Fail unless two runs have weights of the same names and, bit for bit, the same values."""
    left, right = weights(one), weights(other)
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []
