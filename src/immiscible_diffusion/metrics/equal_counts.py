"""Some of the real features, for metrics that compare at equal counts only."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from immiscible_diffusion.metrics.prdc import Manifold
from immiscible_diffusion.utils.random import keyed_generator

NEIGHBOURS = 10_000


@dataclass(frozen=True, eq=False)
class Neighbors:
    """Some real features and their balls, made when first asked for."""

    real: Tensor

    @cached_property
    def manifold(self) -> Manifold:
        """Balls to the 3rd neighbor, for precision."""
        return Manifold.of(self.real, 3)

    @cached_property
    def wide_manifold(self) -> Manifold:
        """Balls to the 5th neighbor, for density and coverage."""
        return Manifold.of(self.real, 5)


def chosen(features: Tensor, count: int, seed: int, name: str) -> Tensor:
    """``count`` of the features, chosen by the seed; all of them in their order."""
    if count == len(features):
        return features
    order = torch.randperm(len(features), generator=keyed_generator(seed, "neighbours", name))
    return features[order[:count]]
