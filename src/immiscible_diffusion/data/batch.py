"""The records that data sets yield."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

Cond = dict[str, Tensor]


@dataclass(frozen=True)
class Batch:
    """A batch as the model sees it.

    Attributes:
        data: ``[B, *shape]`` float32 (images in [-1, 1]).
        cond: named conditions, each ``[B, ...]``, row i of datum i, or None.
        mask: boolean, broadcasts to ``data``, True where data are valid; None = everywhere.
    """

    data: Tensor
    cond: Cond | None = None
    mask: Tensor | None = None

    def to(self, device: torch.device | str) -> "Batch":
        """The batch on ``device``."""
        cond = self.cond and {name: value.to(device) for name, value in self.cond.items()}
        mask = None if self.mask is None else self.mask.to(device)
        return Batch(self.data.to(device), cond, mask)

    def __len__(self) -> int:
        return len(self.data)


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
        """Shape of one datum."""

    @property
    def num_classes(self) -> int | None:
        """Number of classes if batches carry ``cond["label"]`` (int64), else None."""

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor, generator: torch.Generator | None = None) -> Batch:
        """The data at ``indices`` ([B] int64, CPU); augmented iff a generator is given."""
