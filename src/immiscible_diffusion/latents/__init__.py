"""The latent cache: pictures encoded once, drawn from ever after."""

from immiscible_diffusion.latents.dataset import LatentSet, load_latents
from immiscible_diffusion.latents.encode import Encoding, encode, transform_of
from immiscible_diffusion.latents.identity import data_digest, vae_digest
from immiscible_diffusion.latents.manifest import Manifest, missing_shards

__all__ = [
    "Encoding",
    "LatentSet",
    "Manifest",
    "data_digest",
    "encode",
    "load_latents",
    "missing_shards",
    "transform_of",
    "vae_digest",
]
