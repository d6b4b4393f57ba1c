"""The optimizer and the schedule of its learning rate."""

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from immiscible_diffusion.models.trainable import trainable_parameters
from immiscible_diffusion.utils.checks import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Probability,
    check_fields,
)
from immiscible_diffusion.utils.optional_deps import require_extra


@dataclass(frozen=True)
class OptimizerConfig:
    """Adam, or AdamW where there is weight decay.

    Args:
        lr: learning rate after warm-up.
        warmup_steps: steps of linear warm-up from 0.
        lr_schedule: after warm-up, by diffusers' names: ``constant`` (as published) or ``constant_with_warmup``, the
            same; decay to 0 at the last step by ``linear``, ``cosine``, ``cosine_with_restarts`` or ``polynomial``.
        lr_num_cycles: number of cycles of ``cosine_with_restarts``.
        lr_power: exponent of ``polynomial``.
        max_grad_norm: bound on the norm of the gradient; 0 = none.
        betas: Adam's.
        weight_decay: decoupled (AdamW); 0 = Adam.
        use_8bit_adam: keep Adam's state in 8 bits (2110.02861); needs CUDA.
        fused: update all weights in one kernel instead of several.
    """

    lr: PositiveFloat = 2e-4
    warmup_steps: NonNegativeInt = 5000
    lr_schedule: Literal[
        "constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"
    ] = "constant"
    lr_num_cycles: PositiveInt = 1
    lr_power: PositiveFloat = 1.0
    max_grad_norm: NonNegativeFloat = 1.0
    betas: tuple[Probability, Probability] = (0.9, 0.999)
    weight_decay: NonNegativeFloat = 0.0
    use_8bit_adam: bool = False
    fused: bool = False

    def __post_init__(self) -> None:
        check_fields(self, "optim.")

    @property
    def has_decay(self) -> bool:
        """Whether the rate depends on the number of steps."""
        return not self.lr_schedule.startswith("constant")

    def tiny(self) -> "OptimizerConfig":
        """Shrink to a smoke run."""
        return replace(self, warmup_steps=2)


def make_optimizer(config: OptimizerConfig, model: nn.Module, steps: int = 0) -> tuple[Any, Any]:
    """Return the optimizer of the trainable weights and its schedule over ``steps``."""
    kind: Any = torch.optim.AdamW if config.weight_decay else torch.optim.Adam
    options: dict[str, Any] = {"fused" if config.fused else "foreach": True}
    if config.use_8bit_adam:
        with require_extra("bitsandbytes", "8-bit Adam (optim.use_8bit_adam)"):
            from bitsandbytes.optim import AdamW8bit
        kind, options = AdamW8bit, {}
    options |= {"lr": config.lr, "betas": config.betas, "weight_decay": config.weight_decay}
    optimizer = kind(trainable_parameters(model), **options)
    return optimizer, LambdaLR(optimizer, lambda step: lr_factor(config, step, steps))


def lr_factor(config: OptimizerConfig, step: int, steps: int) -> float:
    """Return the fraction of ``config.lr`` at ``step`` of ``steps``: warm-up, then decay to 0."""
    warm = min(1.0, (step + 1) / max(1, config.warmup_steps))
    if not config.has_decay:
        return warm
    if steps < 1:
        raise ValueError(f"lr_schedule {config.lr_schedule} needs the number of steps, got {steps}")
    start = min(config.warmup_steps, steps - 1)
    left = 1 - min(1.0, max(0, step - start) / (steps - start))
    if config.lr_schedule in ("linear", "polynomial"):
        return warm * left ** (config.lr_power if config.lr_schedule == "polynomial" else 1)
    if config.lr_schedule == "cosine_with_restarts" and 0 < left < 1:
        left = 1 - config.lr_num_cycles * (1 - left) % 1
    return warm * (1 - math.cos(math.pi * left)) / 2
