"""Networks: thin builders; ``model(x_t, network_time, cond)``."""

from immiscible_diffusion.model.dit import DiT
from immiscible_diffusion.model.mlp import MLP
from immiscible_diffusion.model.policy_mlp import PolicyMLP
from immiscible_diffusion.model.stable_diffusion import LoRA, StableDiffusionUNet
from immiscible_diffusion.model.unet import UNet
from immiscible_diffusion.model.unet1d import UNet1D

__all__ = ["MLP", "DiT", "LoRA", "PolicyMLP", "StableDiffusionUNet", "UNet", "UNet1D"]
