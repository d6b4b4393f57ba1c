"""What a codec is."""

from typing import Protocol

import torch
from torch import Tensor

from immiscible_diffusion.utils.batch import Batch


class Codec(Protocol):
    """Pictures to what is diffused and back; frozen, without gradient."""

    @property
    def at_once(self) -> int:
        """How many data may go through it, or through the network for samples, at a time."""

    def shape(self, pictures: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of one sample as it is diffused, for pictures of this shape.

        Raises:
            ValueError: it cannot take such pictures.
        """

    def encode(self, batch: Batch, generator: torch.Generator | None = None) -> Batch:
        """What is diffused of a batch of pictures in [-1, 1], with its conditions.

        Drawn with ``generator`` (on the device of the codec) where there is something to draw;
        without one, what is expected.
        """

    def decode(self, data: Tensor) -> Tensor:
        """Pictures ``[B, C, H, W]`` in about [-1, 1]."""
