"""The one-dimensional U-Net of Diffusion Policy: actions over time, modulated by observations."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from immiscible_diffusion.diffusion.paths import Cond
from immiscible_diffusion.models.mlp import time_features


@dataclass(frozen=True)
class UNet1D:
    """Convolutions over the time of a plan with FiLM (arXiv 2303.04137, appendix A).

    Args:
        channels: of every level; each but the last halves the time.
        kernel: of the convolutions, odd.
        groups: of the group norms; must divide every level's channels.
        embedding: of the diffusion time.
        condition: the condition that modulates, in ``cond``.
    """

    channels: tuple[int, ...] = (256, 512, 1024)
    kernel: int = 5
    groups: int = 8
    embedding: int = 256
    condition: str = "observation"

    def __post_init__(self) -> None:
        if not self.channels or any(width % self.groups for width in self.channels):
            raise ValueError(
                f"model.groups {self.groups} must divide the channels of every level, got "
                f"{self.channels}"
            )
        if self.kernel < 1 or self.kernel % 2 == 0 or self.embedding < 2 or self.embedding % 2:
            raise ValueError(
                f"expected an odd kernel and an even embedding, got {self.kernel} and "
                f"{self.embedding}"
            )

    def tiny(self) -> "UNet1D":
        """Of a smoke run."""
        return replace(self, channels=(8, 16), embedding=16)

    def build(
        self,
        shape: tuple[int, ...],
        num_classes: int | None = None,
        *,
        conditions: Mapping[str, tuple[int, ...]] | None = None,
    ) -> nn.Module:
        """A fresh network for plans ``[B, T, A]``.

        Args:
            shape: ``(T, A)``, T a multiple of 2 to the number of levels less one.
            num_classes: must be None: classes are not known here.
            conditions: shapes of the conditions of one sample, such as ``{"observation": (40,)}``.

        Raises:
            ValueError: a plan that the levels cannot halve, classes, or no such condition.
        """
        halvings = 2 ** (len(self.channels) - 1)
        if len(shape) != 2 or shape[0] % halvings:
            raise ValueError(
                f"a UNet1D of {len(self.channels)} levels takes plans [T, A] with T a multiple of "
                f"{halvings}, got {shape}; change the horizon, or give fewer model.channels"
            )
        if num_classes is not None:
            raise ValueError("a UNet1D knows no classes; give conditional=False")
        size = (conditions or {}).get(self.condition)
        if size is None or len(size) != 1:
            raise ValueError(
                f"a UNet1D is modulated by a vector '{self.condition}'; the data have the "
                f"conditions {dict(conditions or {})}"
            )
        return ConditionalUNet1D(self, shape[1], size[0])


class ConditionalUNet1D(nn.Module):
    """``model(x_t [B, T, A], network_time [B], cond) -> [B, T, A]``."""

    def __init__(self, config: UNet1D, actions: int, condition: int) -> None:
        super().__init__()
        self.condition, self.size = config.condition, condition
        width, (first, *_) = config.embedding, config.channels
        self.time = nn.Sequential(
            nn.Linear(width, 4 * width), nn.Mish(), nn.Linear(4 * width, width)
        )
        levels = list(zip((actions, *config.channels), config.channels, strict=False))
        told = width + condition

        def pair(before: int, after: int) -> nn.ModuleList:
            return nn.ModuleList(
                [Block(before, after, told, config), Block(after, after, told, config)]
            )

        self.down = nn.ModuleList(pair(before, after) for before, after in levels)
        self.shorter = nn.ModuleList(
            nn.Conv1d(width, width, 3, stride=2, padding=1) for width in config.channels[:-1]
        )
        self.middle = pair(config.channels[-1], config.channels[-1])
        rising = levels[:0:-1]
        self.up = nn.ModuleList(pair(2 * after, before) for before, after in rising)
        self.longer = nn.ModuleList(
            nn.ConvTranspose1d(before, before, 4, stride=2, padding=1) for before, _ in rising
        )
        last = nn.Conv1d(first, actions, 1)
        nn.init.zeros_(last.weight)
        if last.bias is not None:
            nn.init.zeros_(last.bias)
        self.out = nn.Sequential(*_convolution(first, first, config), last)

    def forward(self, x: Tensor, time: Tensor, cond: Cond | None = None) -> Tensor:
        """Predict the target at ``x`` ``[B, T, A]`` and ``time`` ``[B]``.

        Raises:
            ValueError: ``cond`` lacks the condition, or it has another size.
        """
        told = torch.cat([self._time(time), self._condition(cond, len(x))], dim=1)
        told = functional.mish(told)
        hidden, kept = x.movedim(1, 2), []
        for level, blocks in enumerate(self.down):
            hidden = _through(blocks, hidden, told)
            kept.append(hidden)
            if level < len(self.shorter):
                hidden = self.shorter[level](hidden)
        hidden = _through(self.middle, hidden, told)
        for blocks, longer in zip(self.up, self.longer, strict=True):
            hidden = longer(_through(blocks, torch.cat([hidden, kept.pop()], dim=1), told))
        return self.out(hidden).movedim(1, 2)

    def _time(self, time: Tensor) -> Tensor:
        weight = next(self.time.parameters())
        features: Tensor = self.time(time_features(time, weight.shape[1]).to(weight.dtype))
        return features

    def _condition(self, cond: Cond | None, count: int) -> Tensor:
        found = (cond or {}).get(self.condition)
        if found is None or found.shape != (count, self.size):
            got = "none" if found is None else tuple(found.shape)
            raise ValueError(
                f"this model is modulated by cond['{self.condition}'] of shape "
                f"{(count, self.size)}, got {got}"
            )
        return found


class Block(nn.Module):
    """Two convolutions, the first one scaled and shifted a channel (FiLM), and a way past them."""

    def __init__(self, before: int, after: int, told: int, config: UNet1D) -> None:
        super().__init__()
        self.first = _convolution(before, after, config)
        self.second = _convolution(after, after, config)
        self.film = nn.Linear(told, 2 * after)
        self.past = nn.Conv1d(before, after, 1) if before != after else nn.Identity()

    def forward(self, hidden: Tensor, told: Tensor) -> Tensor:
        """``[B, before, T]`` and what is told ``[B, told]`` to ``[B, after, T]``."""
        scale, shift = self.film(told)[..., None].chunk(2, dim=1)
        out: Tensor = self.second(scale * self.first(hidden) + shift)
        return out + self.past(hidden)


def _convolution(before: int, after: int, config: UNet1D) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv1d(before, after, config.kernel, padding=config.kernel // 2),
        nn.GroupNorm(config.groups, after),
        nn.Mish(),
    )


def _through(blocks: nn.Module, hidden: Tensor, told: Tensor) -> Tensor:
    for block in blocks.children():
        hidden = block(hidden, told)
    return hidden
