"""What a model's configuration is, and how networks read their conditions."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from immiscible_diffusion.diffusion.paths import Cond

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]
"""Shapes of the continuous conditions of one sample, such as ``{"observation": (40,)}``."""


class ModelConfig:
    """The settings of a network, a frozen dataclass: ``build`` makes the network."""

    def build(
        self, shape: Shape, num_classes: int | None = None, conditions: Shapes | None = None
    ) -> nn.Module:
        """A fresh network ``model(x_t [B, *shape], network_time [B], cond) -> [B, *shape]``.

        Args:
            shape: of one sample as it is diffused.
            num_classes: of ``cond["label"]``; None = not conditioned on classes.
            conditions: further conditions.

        Raises:
            ValueError: data, classes or conditions that this network cannot take.
        """
        raise NotImplementedError

    def tiny(self) -> "ModelConfig":
        """The same network shrunk for a smoke run."""
        raise NotImplementedError


def refuse_conditions(config: ModelConfig, conditions: Shapes | None) -> None:
    """Raise ValueError for conditions other than labels, which images' networks cannot take."""
    if conditions:
        raise ValueError(
            f"{type(config).__name__} takes no conditions except labels, and the data have "
            f"{', '.join(conditions)}; use MLP or UNet1D"
        )


def label_of(cond: Cond | None) -> Tensor:
    """``cond["label"]`` ``[B]``; ValueError if it is missing."""
    if cond is None or "label" not in cond:
        raise ValueError("this model is class-conditional: give cond={'label': [B] int64}")
    return cond["label"]


class VectorConditions:
    """Continuous conditions as one vector ``[B, size]``: flattened, one after the other.

    Args:
        shapes: of the conditions of one sample.
    """

    def __init__(self, shapes: Shapes) -> None:
        self.shapes = dict(shapes)
        self.size = sum(math.prod(shape) for shape in self.shapes.values())

    def __call__(self, cond: Cond | None, count: int) -> Tensor:
        """The vectors of ``count`` samples; ValueError for a condition missing or misshapen."""
        for name, shape in self.shapes.items():
            value = (cond or {}).get(name)
            if value is None or value.shape != (count, *shape):
                raise ValueError(
                    f"this model needs cond['{name}'] of shape {(count, *shape)}, got "
                    f"{'none' if value is None else tuple(value.shape)}"
                )
        assert cond is not None
        return torch.cat([cond[name].flatten(1) for name in self.shapes], dim=1)
