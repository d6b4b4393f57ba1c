"""What stands between pictures and what is diffused: nothing, or a VAE and a text encoder."""

from immiscible_diffusion.codec.base import Codec
from immiscible_diffusion.codec.latent import LatentCodec
from immiscible_diffusion.codec.painting import Painting
from immiscible_diffusion.codec.pixels import Pixels
from immiscible_diffusion.codec.stable_diffusion import StableDiffusionCodec

__all__ = ["Codec", "LatentCodec", "Painting", "Pixels", "StableDiffusionCodec"]
