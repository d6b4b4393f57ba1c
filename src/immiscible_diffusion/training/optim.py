"""How weights are fitted: Adam, its rate over the steps, and the average of the weights."""

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn

from immiscible_diffusion.models.trainable import (
    copy_sharing_frozen,
    trainable_names,
    trainable_parameters,
)
from immiscible_diffusion.utils.optional_deps import require_extra

DECAYS = ("none", "linear", "cosine")


@dataclass(frozen=True)
class OptimizerConfig:
    """Adam, with warm-up, clipping and an average of the weights.

    Args:
        lr: learning rate after warm-up.
        warmup: steps of linear warm-up from 0.
        decay: of the learning rate after warm-up, to 0 at the last step: ``none`` (as published),
            ``linear`` or ``cosine``.
        clip: bound on the gradient's norm; 0 = none.
        betas: Adam's.
        weight_decay: decoupled (AdamW); 0 = Adam.
        ema: decay of the exponential moving average of the weights, in [0, 1).
        ema_ramp: let the decay grow as (1 + step) / (10 + step) up to ``ema``, so that short runs
            forget their start; off as published.
        ema_power: let it grow as 1 - (1 + step)^-power instead (Diffusion Policy: 0.75); 0 = off.
        eight_bit: keep Adam's state in 8 bits (2110.02861); needs CUDA.
    """

    lr: float = 2e-4
    warmup: int = 5000
    decay: Literal["none", "linear", "cosine"] = "none"
    clip: float = 1.0
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    ema: float = 0.9999
    ema_ramp: bool = False
    ema_power: float = 0.0
    eight_bit: bool = False

    def __post_init__(self) -> None:
        if not self.lr > 0 or self.warmup < 0 or self.clip < 0 or not 0 <= self.ema < 1:
            raise ValueError(
                f"expected lr > 0, warmup >= 0, clip >= 0 and 0 <= ema < 1; got lr={self.lr}, "
                f"warmup={self.warmup}, clip={self.clip}, ema={self.ema}"
            )
        if self.ema_power < 0 or (self.ema_power and self.ema_ramp):
            raise ValueError(
                f"ema_power must be >= 0 and is another ramp than ema_ramp; got {self.ema_power} "
                f"and ema_ramp={self.ema_ramp}"
            )
        if self.decay not in DECAYS:
            raise ValueError(f"decay must be one of {', '.join(DECAYS)}, got {self.decay!r}")

    def tiny(self) -> "OptimizerConfig":
        """Of a smoke run."""
        return replace(self, warmup=2, ema=0.9, ema_ramp=True, ema_power=0.0)

    @property
    def averaging(self) -> str:
        """How the weights that are judged were averaged."""
        if not self.ema:
            return "none"
        power = f", ramped up by a power of {self.ema_power:g}" if self.ema_power else ""
        return f"{self.ema:g}" + (", ramped up" if self.ema_ramp else power)


def make_optimizer(settings: OptimizerConfig, model: nn.Module, steps: int = 0) -> tuple[Any, Any]:
    """Adam (AdamW with weight decay) and its schedule of the learning rate over ``steps``."""
    kind: Any = torch.optim.AdamW if settings.weight_decay else torch.optim.Adam
    options: dict[str, Any] = {"foreach": True}
    if settings.eight_bit:
        kind, options = _eight_bit(), {}
    optimizer = kind(
        trainable_parameters(model),
        lr=settings.lr,
        betas=settings.betas,
        weight_decay=settings.weight_decay,
        **options,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: rate_at(settings, step, steps)
    )
    return optimizer, schedule


def _eight_bit() -> Any:
    with require_extra("bitsandbytes", "8-bit Adam (optimizer.eight_bit)"):
        from bitsandbytes.optim import AdamW8bit
    return AdamW8bit


def rate_at(settings: OptimizerConfig, step: int, steps: int) -> float:
    """Share of ``settings.lr`` at ``step`` of ``steps``: warm-up, then decay to 0."""
    warm = min(1.0, (step + 1) / max(1, settings.warmup))
    if settings.decay == "none":
        return warm
    if steps < 1:
        raise ValueError(f"decay {settings.decay} needs the number of steps, got {steps}")
    start = min(settings.warmup, steps - 1)
    left = 1 - min(1.0, max(0, step - start) / (steps - start))
    return warm * (left if settings.decay == "linear" else (1 - math.cos(math.pi * left)) / 2)


class EMA:
    """The exponential moving average of the weights that are trained, in a copy of the model."""

    def __init__(self, settings: OptimizerConfig, model: nn.Module) -> None:
        with require_extra("train", "the average of the weights"):
            from diffusers.training_utils import EMAModel
        self.model = copy_sharing_frozen(model).eval()
        self.names = trainable_names(model)
        self._places = trainable_parameters(self.model)
        self.model.requires_grad_(False)
        ramped = settings.ema_ramp or settings.ema_power > 0
        self._ema = EMAModel(
            trainable_parameters(model),
            decay=settings.ema,
            min_decay=0.0 if ramped else settings.ema,
            use_ema_warmup=settings.ema_power > 0,
            power=settings.ema_power,
            foreach=True,
        )

    def update(self, model: nn.Module) -> None:
        """Take up the weights after a step."""
        self._ema.step(trainable_parameters(model))

    def current(self) -> nn.Module:
        """The model with the averaged weights, in eval mode."""
        self._ema.copy_to(self._places)
        return self.model

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        state: dict[str, Any] = self._ema.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """From the checkpoint."""
        self._ema.load_state_dict(state)
        self._ema.to(device)
