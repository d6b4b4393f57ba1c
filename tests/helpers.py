"""What tests do again and again: seeded generators, whole trainings, equal weights."""

from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).parents[1]


def generator(seed: int = 0) -> torch.Generator:
    """A CPU generator seeded with ``seed``."""
    return torch.Generator().manual_seed(seed)


def assert_same_weights(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    """Fail unless both have the same names and, bit for bit, the same values."""
    assert one.keys() == other.keys()
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert not different
