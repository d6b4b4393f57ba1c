"""The small network of a probe: it may be told any conditions, and which positions are valid."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from immiscible_diffusion.diffusion.paths import Cond, FlowMatchingPath
from immiscible_diffusion.diffusion.paths.base import per_row
from immiscible_diffusion.models import MLP, UNet
from immiscible_diffusion.models.mlp import time_features
from immiscible_diffusion.training.optim import OptimizerConfig
from immiscible_diffusion.utils.random import hash_seed

VALID = "valid positions"
TIME_SCALE = FlowMatchingPath().time_scale
SOFT, TIMES = 0.1, 64
EMBEDDED = 16  # numbers that a condition becomes
LARGEST_IMAGE = 64
KINDS = ("auto", "mlp", "unet")


@dataclass(frozen=True)
class Network:
    """Which network, and how it is fitted.

    Attributes:
        config: of the network.
        optimizer: how it is fitted.
        batch_size: data a step.
    """

    config: MLP | UNet
    optimizer: OptimizerConfig
    batch_size: int

    @classmethod
    def choose(cls, kind: str, shape: tuple[int, ...], device: torch.device) -> "Network":
        """The network for data ``[N, *shape]``: by itself, an MLP on a CPU, a U-Net elsewhere.

        Raises:
            ValueError: an unknown kind, or a U-Net for data it cannot take.
        """
        if kind not in KINDS:
            raise ValueError(f"network must be one of {', '.join(KINDS)}, got {kind!r}")
        fits = len(shape) == 3 and shape[1] == shape[2] and shape[1] % 4 == 0
        fits = fits and 8 <= shape[1] <= LARGEST_IMAGE
        if kind == "unet" and not fits:
            raise ValueError(
                f"the U-Net takes images [C, S, S] with S a multiple of 4 from 8 to "
                f"{LARGEST_IMAGE}, got {shape}; use --network mlp"
            )
        if kind == "unet" or (kind == "auto" and fits and device.type != "cpu"):
            return cls(_UNET, OptimizerConfig(lr=1e-3, warmup_steps=50), 128)
        large = math.prod(shape) > 256
        return cls(
            MLP(width=256 if large else 160, depth=2),
            OptimizerConfig(lr=2e-3 if large else 4e-3, warmup_steps=50),
            128 if large else 256,
        )

    def build(self, shape: tuple[int, ...], told: Cond | None, seed: int) -> nn.Module:
        """The network with initial weights that depend on the seed alone; ``told`` of all data."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(hash_seed(seed, "weights"))
            return Told(self.config, shape, told)

    def __str__(self) -> str:
        if isinstance(self.config, UNet):
            return (
                f"a U-Net ({self.config.channels} channels, {len(self.config.multipliers)} levels)"
            )
        return f"a residual MLP (width {self.config.width}, {self.config.depth} blocks)"


_UNET = UNet(
    channels=32,
    multipliers=(1, 2, 2),
    blocks=1,
    attention=(),
    head_channels=16,
    groups=8,
    dropout=0,
)


class Told(nn.Module):
    """A network of ``model/`` that gets its conditions as more numbers (channels) of its input.

    ``model(x_t [B, *shape], network_time [B], cond) -> [B, *shape]``, 0 where not valid. An MLP
    narrower than the data could never pass the noise on that it must take off: it says what is to
    be added to ``x_t / t``, times a learned function of time: the noise, where there are no data.
    """

    def __init__(self, config: MLP | UNet, shape: tuple[int, ...], told: Cond | None) -> None:
        super().__init__()
        conditions = {name: value for name, value in (told or {}).items() if name != VALID}
        self.names = tuple(conditions)
        self.embed = nn.ModuleList(map(_embedding, conditions.values()))
        self.flat = not isinstance(config, UNet)
        more = EMBEDDED * len(self.names)
        inside = (math.prod(shape) + more,) if self.flat else (shape[0] + more, *shape[1:])
        self.inner = config.build(inside, None)
        narrow = isinstance(config, MLP) and math.prod(shape) > config.width
        self.gate = nn.Linear(TIMES, 1) if narrow else None
        if self.gate is not None:
            nn.init.zeros_(self.gate.weight)
            nn.init.ones_(self.gate.bias)

    def forward(self, x: Tensor, time: Tensor, cond: Cond | None = None) -> Tensor:
        """Predict the target at ``x`` ``[B, *shape]`` and ``time`` ``[B]``."""
        valid = None if cond is None else cond.get(VALID)
        x = x if valid is None else x * valid
        parts = [x.flatten(1) if self.flat else x]
        for name, embed in zip(self.names, self.embed, strict=True):
            told = embed((cond or {})[name])
            parts.append(told if self.flat else told[:, :, None, None].expand(-1, -1, *x.shape[2:]))
        said = self.inner(torch.cat(parts, dim=1), time)
        said = said[:, : parts[0].shape[1]].reshape(x.shape)
        if self.gate is not None:
            share = self.gate(time_features(time, TIMES)) / (time[:, None] / TIME_SCALE + SOFT)
            said = said + per_row(share[:, 0], x) * x
        return said if valid is None else said * valid


def _embedding(values: Tensor) -> nn.Module:
    if values.ndim == 1 and not values.is_floating_point():
        return nn.Embedding(int(values.max()) + 1, EMBEDDED)
    return Standardized(values.float())


class Standardized(nn.Module):
    """A linear layer on numbers brought to mean 0 and variance 1."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        flat = values.reshape(len(values), -1)
        self.register_buffer("mean", flat.mean(dim=0))
        self.register_buffer("deviation", flat.std(dim=0).clamp_min(1e-6))
        self.linear = nn.Linear(flat.shape[1], EMBEDDED)

    def forward(self, values: Tensor) -> Tensor:
        """``[B, ...]`` to ``[B, EMBEDDED]``."""
        flat = values.reshape(len(values), -1).float()
        return self.linear((flat - self.mean) / self.deviation)
