"""Networks: thin builders; ``model(x_t, network_time, cond)``."""

from immiscible_diffusion.model.dit import DiT
from immiscible_diffusion.model.mlp import MLP
from immiscible_diffusion.model.stable_diffusion import LoRA, StableDiffusionUNet
from immiscible_diffusion.model.unet import UNet

__all__ = ["MLP", "DiT", "LoRA", "StableDiffusionUNet", "UNet"]
