"""What a network of a recipe is before it is built."""

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import nn


class ModelConfig(ABC):
    """A network by its settings: a frozen dataclass that builds ``model(x_t, time, cond)``."""

    @abstractmethod
    def build(
        self,
        shape: tuple[int, ...],
        num_classes: int | None = None,
        conditions: Mapping[str, tuple[int, ...]] | None = None,
    ) -> nn.Module:
        """Build the network for data of ``shape``; weights are drawn from torch's generator.

        Args:
            shape: of one sample.
            num_classes: of the labels that it is conditioned on; None = no labels.
            conditions: shapes of other conditions, by name.
        """

    @abstractmethod
    def tiny(self) -> "ModelConfig":
        """Shrink to a smoke run."""
