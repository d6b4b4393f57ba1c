"""A residual MLP: learns small images, actions and toy data in minutes on a CPU."""

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from immiscible_diffusion.diffusion.paths import Cond
from immiscible_diffusion.models.base import ModelConfig, Precondition, Shape, Shapes, VectorConditions, label_of
from immiscible_diffusion.utils.checks import Probability, Size

TIME_FEATURES = 64


@dataclass(frozen=True)
class MLP(ModelConfig):
    """A residual MLP on flattened data, modulated by time, class and other conditions."""

    width: Size = 256  # width of the residual stream
    depth: Size = 3  # residual blocks
    dropout: Probability = 0.0  # inside the blocks
    # what no linear map predicts is left to the network; on by default, as an MLP cannot pass the noise through
    precondition: Precondition = field(default="pairs", kw_only=True)

    def tiny(self) -> "MLP":
        """Shrink to a smoke run."""
        return replace(self, width=32, depth=1, dropout=0.0)

    def build(self, shape: Shape, num_classes: int | None = None, conditions: Shapes | None = None) -> nn.Module:
        """Return a fresh network for data of any shape, with whatever conditions there are."""
        return ResidualMLP(self, shape, num_classes, conditions or {})


class ResidualMLP(nn.Module):
    """``model(x_t [B, *shape], network_time [B], cond) -> [B, *shape]``.

    Continuous conditions are both part of the input and, through a layer of their own, of the context that modulates
    the blocks.
    """

    def __init__(self, config: MLP, shape: Shape, num_classes: int | None, conditions: Shapes) -> None:
        super().__init__()
        width, dim = config.width, math.prod(shape)
        self.conditions = VectorConditions(conditions) if conditions else None
        size = self.conditions.size if self.conditions else 0
        # The order of the layers is that of their random initial weights.
        self.embed = nn.Linear(dim + size, width)
        self.time = _two_layers(TIME_FEATURES, width)
        self.condition = _two_layers(size, width) if self.conditions else None
        self.modulate = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        self.label = nn.Embedding(num_classes, width) if num_classes else None
        self.blocks = nn.ModuleList(Block(width, config.dropout) for _ in range(config.depth))
        last = nn.Linear(width, dim)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.out = nn.Sequential(nn.LayerNorm(width), last)

    def forward(self, x: Tensor, time: Tensor, cond: Cond | None = None) -> Tensor:
        """Predict the target at ``x`` ``[B, *shape]`` and ``time`` ``[B]``."""
        features = time_features(time, TIME_FEATURES).to(self.embed.weight.dtype)
        context, inputs = self.time(features), x.flatten(1)
        if self.conditions is not None and self.condition is not None:
            vector = self.conditions(cond, len(x))
            context = context + self.condition(vector)
            inputs = torch.cat([inputs, vector], dim=1)
        if self.label is not None:
            context = context + self.label(label_of(cond))
        hidden, modulation = self.embed(inputs), self.modulate(context)
        for block in self.blocks:
            hidden = block(hidden, modulation)
        return self.out(hidden).view(x.shape)


class Block(nn.Module):
    """Norm, scale and shift by the context, two layers, residual.

    The modulation is shared by all blocks, except for an offset of each (PixArt-alpha, 2310.00426).
    """

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.offset = nn.Parameter(torch.zeros(2 * width))
        self.layers = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Dropout(dropout), nn.Linear(width, width))

    def forward(self, hidden: Tensor, modulation: Tensor) -> Tensor:
        """``[B, width]`` and its modulation ``[B, 2 width]`` to ``[B, width]``."""
        scale, shift = (modulation + self.offset).chunk(2, dim=1)
        return hidden + self.layers(self.norm(hidden) * (1 + scale) + shift)


def _two_layers(size: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(size, width), nn.SiLU(), nn.Linear(width, width))


def time_features(time: Tensor, count: int) -> Tensor:
    """Sines and cosines of ``time`` ``[B]`` at ``count / 2`` periods from 2 pi to 20,000 pi."""
    steps = torch.arange(count // 2, device=time.device)
    frequency = torch.exp(-math.log(1e4) * steps / (count // 2))
    angle = time.float()[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=1)
