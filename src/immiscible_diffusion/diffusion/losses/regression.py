"""The loss of diffusion and flow matching."""

from dataclasses import dataclass

import torch
from torch import Tensor

from immiscible_diffusion.diffusion.losses.base import Loss, mean_over
from immiscible_diffusion.diffusion.paths import Cond, Model, Path
from immiscible_diffusion.utils.checks import NonNegativeFloat, check_fields


@dataclass(frozen=True)
class RegressionLoss(Loss):
    """``path.weight(t) * mean((model(x_t, t) - target)^2)``.

    Both options change the noise after it was paired, and draw from torch's global generator.

    Args:
        noise_offset: adds this times a random constant per channel to the noise of images, in the target too, as
            diffusers' scripts do; 0 = off.
        input_perturbation: adds this times more noise to the network's input, not to the target (2301.11706); 0 = off.
    """

    noise_offset: NonNegativeFloat = 0.0
    input_perturbation: NonNegativeFloat = 0.0

    def __post_init__(self) -> None:
        check_fields(self, "loss.")

    def without_augmentation(self) -> "RegressionLoss":
        """The same without noise offset and input perturbation."""
        return RegressionLoss()

    def __call__(
        self,
        model: Model,
        path: Path,
        data: Tensor,
        noise: Tensor,
        t: Tensor,
        cond: Cond | None,
        mask: Tensor | None = None,
        *,
        progress: float = 1.0,
    ) -> Tensor:
        """Loss ``[B]``: mean over the valid dimensions of a sample, times ``path.weight(t)``."""
        if self.noise_offset:
            if noise.ndim < 3:
                raise ValueError(f"noise_offset needs noise with channels [B, C, ...], got {tuple(noise.shape)}")
            offset = torch.randn(noise.shape[:2], device=noise.device, dtype=noise.dtype)
            noise = noise + self.noise_offset * offset.view(*offset.shape, *(1,) * (noise.ndim - 2))
        point = path.sample(data, noise, t)
        x_t = point.x_t
        if self.input_perturbation:
            perturbed = noise + self.input_perturbation * torch.randn_like(noise)
            x_t = path.sample(data, perturbed, t).x_t
        prediction = model(x_t, path.network_time(t), cond)
        error = (prediction.float() - point.target.float()).square()
        return path.weight(t) * mean_over(error, mask)
