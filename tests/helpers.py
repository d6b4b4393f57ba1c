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


def assert_equal_but_for_rounding(one: Path, other: Path) -> None:
    """Fail unless two runs' averaged weights are equal to 1e-5: each of them, and their norm."""
    left, right = weights(one), weights(other)
    assert left.keys() == right.keys()
    mine, theirs = (torch.cat([state[name].flatten().double() for name in left]) for state in (left, right))
    assert (mine - theirs).norm() < 1e-5 * mine.norm()
    for name, weight in left.items():
        # Softmax ignores what all keys share: the gradient of their bias is rounding alone, which Adam scales up. In
        # one process, micro-batches of another size move it as far (4e-5), and in float64 all are equal to 1e-13.
        far = 1e-3 if name.endswith("to_k.bias") else 1e-5
        torch.testing.assert_close(weight, right[name], rtol=1e-5, atol=far)
