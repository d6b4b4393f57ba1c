"""Losses: ``loss_fn(model, path, data, noise, t, cond) -> [B]``."""

from immiscible_diffusion.loss.base import Loss, at_share, undisturbed
from immiscible_diffusion.loss.consistency import ConsistencyLoss
from immiscible_diffusion.loss.regression import RegressionLoss

__all__ = ["ConsistencyLoss", "Loss", "RegressionLoss", "at_share", "undisturbed"]
