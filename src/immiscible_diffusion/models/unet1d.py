"""The one-dimensional U-Net of Diffusion Policy: actions over time, modulated by observations."""

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from immiscible_diffusion.diffusion.paths import Cond
from immiscible_diffusion.models.base import ModelConfig, Shape, Shapes, VectorConditions
from immiscible_diffusion.models.mlp import time_features
from immiscible_diffusion.utils.checks import Size


@dataclass(frozen=True)
class UNet1D(ModelConfig):
    """Convolutions over the time of an action sequence, with FiLM (2303.04137, appendix A)."""

    channels: tuple[Size, ...] = (256, 512, 1024)  # channels of every level; each but the last halves the time
    kernel: Size = 5  # size of the convolutions, odd
    groups: Size = 8  # number of groups of the group norms; must divide every level's channels
    embedding: Annotated[int, ">= 2 and <= 65536"] = 256  # width of the embedding of the diffusion time

    can_checkpoint: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.channels or any(width % self.groups for width in self.channels):
            raise ValueError(
                f"model.groups {self.groups} must divide the channels of every level, got {self.channels}"
            )
        if self.kernel % 2 == 0 or self.embedding % 2:
            raise ValueError(f"expected an odd kernel and an even embedding, got {self.kernel} and {self.embedding}")

    def tiny(self) -> "UNet1D":
        """Shrink to a smoke run."""
        return replace(self, channels=(8, 16), embedding=16)

    def build(self, shape: Shape, num_classes: int | None = None, conditions: Shapes | None = None) -> nn.Module:
        """Return a fresh network for action sequences ``[B, T, A]`` that the levels can halve."""
        halvings = 2 ** (len(self.channels) - 1)
        if len(shape) != 2 or shape[0] % halvings:
            raise ValueError(
                f"a UNet1D of {len(self.channels)} levels takes action sequences [T, A] with T a multiple of "
                f"{halvings}, got {shape}; change the horizon, or give fewer model.channels"
            )
        if num_classes is not None or not conditions:
            raise ValueError(
                f"a UNet1D is conditioned on observations, not on classes; got the conditions "
                f"{dict(conditions or {})} and {num_classes} classes"
            )
        return ConditionalUNet1D(self, shape[1], conditions)


class ConditionalUNet1D(nn.Module):
    """``model(x_t [B, T, A], network_time [B], cond) -> [B, T, A]``."""

    def __init__(self, config: UNet1D, actions: int, conditions: Shapes) -> None:
        super().__init__()
        self.conditions, self.gradient_checkpointing = VectorConditions(conditions), config.gradient_checkpointing
        width, channels = config.embedding, config.channels
        self.time = nn.Sequential(nn.Linear(width, 4 * width), nn.Mish(), nn.Linear(4 * width, width))
        levels = list(zip((actions, *channels), channels, strict=False))
        context = width + self.conditions.size

        def two(before: int, after: int) -> nn.ModuleList:
            sizes = ((before, after), (after, after))
            return nn.ModuleList(Block(one, other, context, config) for one, other in sizes)

        self.down = nn.ModuleList(two(before, after) for before, after in levels)
        self.shorter = nn.ModuleList(nn.Conv1d(size, size, 3, stride=2, padding=1) for size in channels[:-1])
        self.middle = two(channels[-1], channels[-1])
        rising = levels[:0:-1]
        self.up = nn.ModuleList(two(2 * after, before) for before, after in rising)
        self.longer = nn.ModuleList(nn.ConvTranspose1d(before, before, 4, stride=2, padding=1) for before, _ in rising)
        last = nn.Conv1d(channels[0], actions, 1)
        for parameter in last.parameters():
            nn.init.zeros_(parameter)
        self.out = nn.Sequential(*_convolution(channels[0], channels[0], config), last)

    def forward(self, x: Tensor, time: Tensor, cond: Cond | None = None) -> Tensor:
        """Predict the target at ``x`` ``[B, T, A]`` and ``time`` ``[B]``."""
        weight = next(self.time.parameters())
        embedded = self.time(time_features(time, weight.shape[1]).to(weight.dtype))
        context = functional.mish(torch.cat([embedded, self.conditions(cond, len(x))], dim=1))
        hidden, skips = x.movedim(1, 2), []
        for level, blocks in enumerate(self.down):
            hidden = self._through(blocks, hidden, context)
            skips.append(hidden)
            if level < len(self.shorter):
                hidden = self.shorter[level](hidden)
        hidden = self._through(self.middle, hidden, context)
        for blocks, longer in zip(self.up, self.longer, strict=True):
            hidden = longer(self._through(blocks, torch.cat([hidden, skips.pop()], dim=1), context))
        return self.out(hidden).movedim(1, 2)

    def _through(self, blocks: nn.Module, hidden: Tensor, context: Tensor) -> Tensor:
        for block in blocks.children():
            if self.gradient_checkpointing and torch.is_grad_enabled():
                hidden = checkpoint(block, hidden, context, use_reentrant=False)
            else:
                hidden = block(hidden, context)
        return hidden


class Block(nn.Module):
    """Two convolutions, the first one scaled and shifted per channel (FiLM), and a shortcut."""

    def __init__(self, before: int, after: int, context: int, config: UNet1D) -> None:
        super().__init__()
        self.first = _convolution(before, after, config)
        self.second = _convolution(after, after, config)
        self.film = nn.Linear(context, 2 * after)
        self.past = nn.Conv1d(before, after, 1) if before != after else nn.Identity()

    def forward(self, hidden: Tensor, context: Tensor) -> Tensor:
        """``[B, before, T]`` and the ``context`` ``[B, context]`` to ``[B, after, T]``."""
        scale, shift = self.film(context)[..., None].chunk(2, dim=1)
        return self.second(scale * self.first(hidden) + shift) + self.past(hidden)


def _convolution(before: int, after: int, config: UNet1D) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv1d(before, after, config.kernel, padding=config.kernel // 2),
        nn.GroupNorm(config.groups, after),
        nn.Mish(),
    )
