"""What the trainer needs of a data set."""

from typing import Protocol

import torch
from torch import Tensor

from immiscible_diffusion.utils.batch import Batch


class DataSet(Protocol):
    """What the trainer needs of data: addressable, so that order is a function of the seed."""

    @property
    def name(self) -> str:
        """Name for reports."""

    @property
    def note(self) -> str:
        """What every figure made on it must say, such as 'JPEG re-encoded'; may be empty."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample."""

    @property
    def num_classes(self) -> int | None:
        """Number of classes if batches carry ``cond["label"]`` (int64), else None."""

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor, generator: torch.Generator | None = None) -> Batch:
        """The data at ``indices`` ([B] int64, CPU); augmented iff a generator is given."""
