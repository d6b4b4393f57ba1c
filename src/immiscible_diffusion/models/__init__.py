"""Networks: thin builders; ``model(x_t, network_time, cond)``."""

from immiscible_diffusion.models.base import ModelConfig
from immiscible_diffusion.models.dit import DiT
from immiscible_diffusion.models.mlp import MLP
from immiscible_diffusion.models.unet import UNet
from immiscible_diffusion.models.unet1d import UNet1D

__all__ = ["MLP", "DiT", "ModelConfig", "UNet", "UNet1D"]
