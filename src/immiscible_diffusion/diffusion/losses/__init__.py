"""Losses: ``loss_fn(model, path, data, noise, t, cond) -> [B]``."""

from immiscible_diffusion.diffusion.losses.base import Loss
from immiscible_diffusion.diffusion.losses.consistency import ConsistencyLoss
from immiscible_diffusion.diffusion.losses.regression import RegressionLoss

__all__ = ["ConsistencyLoss", "Loss", "RegressionLoss"]
