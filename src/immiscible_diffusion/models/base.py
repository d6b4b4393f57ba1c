"""What a model's configuration is, and how networks read their conditions."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from immiscible_diffusion.diffusion.paths import Cond
from immiscible_diffusion.utils.checks import check_fields

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]
"""Shapes of the continuous conditions of one sample, such as ``{"observation": (40,)}``."""


Precondition = Literal["none", "data", "pairs"]


@dataclass(frozen=True)
class ModelConfig(ABC):
    """The settings of a network, a frozen dataclass: ``build`` makes the network."""

    # leave to the network what no linear map predicts (EDM's skip, for every path): ``data`` by mean and variance of
    # the data, ``pairs`` by those of the noise and their covariance too; ``none`` as published (EDMPath: sigma_data)
    precondition: Precondition = field(default="none", kw_only=True)
    # keep the inputs of blocks alone and compute what is inside them once more for the gradients
    gradient_checkpointing: bool = field(default=False, kw_only=True)

    can_checkpoint: ClassVar[bool] = False
    """``build`` heeds ``gradient_checkpointing``."""

    def __post_init__(self) -> None:
        check_fields(self, "model.")
        if self.gradient_checkpointing and not self.can_checkpoint:
            raise ValueError(
                f"{type(self).__name__} keeps its activations, and model.gradient_checkpointing was asked for; "
                f"give more gradient_accumulation_steps instead, or use UNet, UNet1D or DiT"
            )

    @abstractmethod
    def build(self, shape: Shape, num_classes: int | None = None, conditions: Shapes | None = None) -> nn.Module:
        """Return a fresh network ``model(x_t [B, *shape], network_time [B], cond) -> [B, *shape]``.

        Without ``num_classes`` it has no ``cond["label"]``; ``conditions`` are those besides labels. ValueError for
        data, classes or conditions that this network cannot take.
        """

    @abstractmethod
    def tiny(self) -> "ModelConfig":
        """Shrink to a smoke run."""


def check_images(config: ModelConfig, shape: Shape, multiple: int, option: str, conditions: Shapes | None) -> None:
    """Raise ValueError unless data are images ``[C, S, S]``, S a ``multiple`` set by ``option``, with labels only."""
    name = type(config).__name__
    if conditions:
        raise ValueError(
            f"{name} takes no conditions except labels, and the data have {', '.join(conditions)}; use MLP or UNet1D"
        )
    if len(shape) != 3 or shape[1] != shape[2] or shape[1] % multiple:
        raise ValueError(
            f"this {name} takes images [C, S, S] with S a multiple of {multiple}, got {shape}; set "
            f"data.size or {option}"
        )


def label_of(cond: Cond | None) -> Tensor:
    """Return ``cond["label"]`` ``[B]``; ValueError if it is missing."""
    if cond is None or "label" not in cond:
        raise ValueError("this model is class-conditional: give cond={'label': [B] int64}")
    return cond["label"]


class VectorConditions:
    """Continuous conditions of ``shapes`` as one vector ``[B, size]``: flattened, one by one."""

    def __init__(self, shapes: Shapes) -> None:
        self.shapes = dict(shapes)
        self.size = sum(math.prod(shape) for shape in self.shapes.values())

    def __call__(self, cond: Cond | None, count: int) -> Tensor:
        """Return the vectors of ``count`` samples; ValueError for one missing or misshapen."""
        values = []
        for name, shape in self.shapes.items():
            value = (cond or {}).get(name)
            if value is None or value.shape != (count, *shape):
                raise ValueError(
                    f"this model needs cond['{name}'] of shape {(count, *shape)}, got "
                    f"{'none' if value is None else tuple(value.shape)}"
                )
            values.append(value.flatten(1))
        return torch.cat(values, dim=1)
