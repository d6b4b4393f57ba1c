"""A residual MLP: learns small images and toy worlds in minutes on a CPU."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from immiscible_diffusion.diffusion.paths import Cond


@dataclass(frozen=True)
class MLP:
    """A residual MLP on flattened data, modulated by time (and class).

    Args:
        width: of the residual stream.
        depth: residual blocks.
        dropout: inside the blocks.
    """

    width: int = 256
    depth: int = 3
    dropout: float = 0.0

    def tiny(self) -> "MLP":
        """Of a smoke run."""
        return MLP(width=32, depth=1)

    def build(self, shape: tuple[int, ...], num_classes: int | None) -> nn.Module:
        """A fresh network for data ``[B, *shape]``, conditioned on ``label`` if there are any."""
        return ResidualMLP(self, shape, num_classes)


class ResidualMLP(nn.Module):
    """``model(x_t [B, *shape], network_time [B], cond) -> [B, *shape]``."""

    def __init__(self, config: MLP, shape: tuple[int, ...], num_classes: int | None) -> None:
        super().__init__()
        width, dim = config.width, math.prod(shape)
        self.embed = nn.Linear(dim, width)
        self.time = nn.Sequential(nn.Linear(64, width), nn.SiLU(), nn.Linear(width, width))
        self.modulate = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        self.label = nn.Embedding(num_classes, width) if num_classes else None
        self.blocks = nn.ModuleList(Block(width, config.dropout) for _ in range(config.depth))
        last = nn.Linear(width, dim)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.out = nn.Sequential(nn.LayerNorm(width), last)

    def forward(self, x: Tensor, time: Tensor, cond: Cond | None = None) -> Tensor:
        """Predict the target at ``x`` ``[B, *shape]`` and ``time`` ``[B]``."""
        context = self.time(time_features(time, 64).to(self.embed.weight.dtype))
        if self.label is not None:
            if cond is None or "label" not in cond:
                raise ValueError("this model is class-conditional: give cond={'label': [B] int64}")
            context = context + self.label(cond["label"])
        hidden, modulation = self.embed(x.flatten(1)), self.modulate(context)
        for block in self.blocks:
            hidden = block(hidden, modulation)
        return self.out(hidden).view(x.shape)


class Block(nn.Module):
    """Norm, scale and shift by the context, two layers, residual.

    The modulation is shared by all blocks but for an offset of each (PixArt-alpha, 2310.00426).
    """

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.offset = nn.Parameter(torch.zeros(2 * width))
        self.layers = nn.Sequential(
            nn.Linear(width, width), nn.SiLU(), nn.Dropout(dropout), nn.Linear(width, width)
        )

    def forward(self, hidden: Tensor, modulation: Tensor) -> Tensor:
        """``[B, width]`` and its modulation ``[B, 2 width]`` to ``[B, width]``."""
        scale, shift = (modulation + self.offset).chunk(2, dim=1)
        return hidden + self.layers(self.norm(hidden) * (1 + scale) + shift)


def time_features(time: Tensor, count: int) -> Tensor:
    """Sines and cosines of ``time`` ``[B]`` at ``count / 2`` periods from 2 pi to 20,000 pi."""
    frequency = torch.exp(
        -math.log(1e4) * torch.arange(count // 2, device=time.device) / (count // 2)
    )
    angle = time.float()[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=1)
