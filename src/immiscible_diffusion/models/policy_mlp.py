"""A residual MLP for plans: learns a policy in minutes on a CPU, where convolutions take hours."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from immiscible_diffusion.diffusion.paths import Cond
from immiscible_diffusion.models.mlp import Block, time_features


@dataclass(frozen=True)
class PolicyMLP:
    """A residual MLP on flattened plans that sees an observation and is modulated by it and time.

    Args:
        width: of the residual stream.
        depth: residual blocks.
        dropout: inside the blocks.
        condition: what is observed, in ``cond``.
    """

    width: int = 512
    depth: int = 3
    dropout: float = 0.0
    condition: str = "observation"

    def tiny(self) -> "PolicyMLP":
        """Of a smoke run."""
        return replace(self, width=32, depth=1)

    def build(
        self,
        shape: tuple[int, ...],
        num_classes: int | None = None,
        *,
        conditions: Mapping[str, tuple[int, ...]] | None = None,
    ) -> nn.Module:
        """A fresh network for data ``[B, *shape]``, told a vector ``cond[condition]``.

        Args:
            shape: of a sample.
            num_classes: must be None: classes are not known here.
            conditions: shapes of the conditions of one sample, such as ``{"observation": (40,)}``.

        Raises:
            ValueError: classes, or no such condition.
        """
        size = (conditions or {}).get(self.condition)
        if num_classes is not None or size is None or len(size) != 1:
            raise ValueError(
                f"a PolicyMLP is told a vector '{self.condition}' and knows no classes; got the "
                f"conditions {dict(conditions or {})} and {num_classes} classes"
            )
        return ConditionalMLP(self, shape, size[0])


class ConditionalMLP(nn.Module):
    """``model(x_t [B, *shape], network_time [B], cond) -> [B, *shape]``."""

    def __init__(self, config: PolicyMLP, shape: tuple[int, ...], size: int) -> None:
        super().__init__()
        width, dim = config.width, math.prod(shape)
        self.condition, self.size = config.condition, size
        self.embed = nn.Linear(dim + size, width)
        self.time = nn.Sequential(nn.Linear(64, width), nn.SiLU(), nn.Linear(width, width))
        self.seen = nn.Sequential(nn.Linear(size, width), nn.SiLU(), nn.Linear(width, width))
        self.modulate = nn.Linear(width, 2 * width)
        self.blocks = nn.ModuleList(Block(width, config.dropout) for _ in range(config.depth))
        last = nn.Linear(width, dim)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.out = nn.Sequential(nn.LayerNorm(width), last)

    def forward(self, x: Tensor, time: Tensor, cond: Cond | None = None) -> Tensor:
        """Predict the target at ``x`` ``[B, *shape]`` and ``time`` ``[B]``.

        Raises:
            ValueError: ``cond`` lacks the observation, or it has another size.
        """
        seen = (cond or {}).get(self.condition)
        if seen is None or seen.shape != (len(x), self.size):
            got = "none" if seen is None else tuple(seen.shape)
            raise ValueError(
                f"this model needs cond['{self.condition}'] of shape {(len(x), self.size)}, got "
                f"{got}"
            )
        features = time_features(time, 64).to(self.embed.weight.dtype)
        modulation = self.modulate(functional.silu(self.time(features) + self.seen(seen)))
        hidden = self.embed(torch.cat([x.flatten(1), seen], dim=1))
        for block in self.blocks:
            hidden = block(hidden, modulation)
        return self.out(hidden).view(x.shape)
