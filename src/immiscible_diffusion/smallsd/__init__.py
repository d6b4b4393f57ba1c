"""A small Stable Diffusion pipeline, made on the spot from local pictures."""

from immiscible_diffusion.smallsd.build import make_small_sd
from immiscible_diffusion.smallsd.settings import SmallSD, TextSettings, UNetSettings, VAESettings

__all__ = ["SmallSD", "TextSettings", "UNetSettings", "VAESettings", "make_small_sd"]
