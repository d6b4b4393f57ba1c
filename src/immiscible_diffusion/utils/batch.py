"""A batch of data, as data sets yield it and couplings pair it."""

from dataclasses import dataclass

import torch
from torch import Tensor

Cond = dict[str, Tensor]


@dataclass(frozen=True)
class Batch:
    """A batch of samples with their conditions.

    Attributes:
        data: ``[B, *shape]`` float32 (images in [-1, 1]).
        cond: named conditions, each ``[B, ...]``, row i of sample i, or None.
        mask: boolean, broadcasts to ``data``, True where data are valid; None = everywhere.
        index: ``[B]`` int64, which sample of the data set each is (``DataSet.indexed``), or None where nobody knows.
    """

    data: Tensor
    cond: Cond | None = None
    mask: Tensor | None = None
    index: Tensor | None = None

    @property
    def pairing_cond(self) -> Cond | None:
        """The conditions for a coupling: with ``index``, which no network is to see."""
        return self.cond if self.index is None else {**(self.cond or {}), "index": self.index}

    def to(self, device: torch.device | str) -> "Batch":
        """Return the batch on ``device``; to a CUDA device by pinned memory, and the host does not wait for it."""

        def moved(tensor: Tensor) -> Tensor:
            pinned = torch.device(device).type == "cuda" and tensor.device.type == "cpu"
            return (tensor.pin_memory() if pinned else tensor).to(device, non_blocking=pinned)

        cond = self.cond and {name: moved(value) for name, value in self.cond.items()}
        mask, index = (None if tensor is None else moved(tensor) for tensor in (self.mask, self.index))
        return Batch(moved(self.data), cond, mask, index)

    def __len__(self) -> int:
        return len(self.data)
