"""Pictures are diffused as they are."""

from dataclasses import dataclass

import torch
from torch import Tensor

from immiscible_diffusion.utils.batch import Batch


@dataclass(frozen=True)
class Pixels:
    """No codec: the identity."""

    def tiny(self) -> "Pixels":
        """Of a smoke run."""
        return self

    @property
    def at_once(self) -> int:
        """Any number."""
        return 1_000_000

    def shape(self, pictures: tuple[int, ...]) -> tuple[int, ...]:
        """That of the pictures."""
        return pictures

    def encode(self, batch: Batch, generator: torch.Generator | None = None) -> Batch:
        """``batch`` itself."""
        return batch

    def decode(self, data: Tensor) -> Tensor:
        """``data`` itself."""
        return data
