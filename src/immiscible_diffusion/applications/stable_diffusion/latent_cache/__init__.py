"""The latent cache: images are encoded once, training draws from their posteriors."""

from immiscible_diffusion.applications.stable_diffusion.latent_cache.dataset import (
    LatentSet,
    load_latents,
)
from immiscible_diffusion.applications.stable_diffusion.latent_cache.encode import (
    EncodingConfig,
    describe_transform,
    encode,
)
from immiscible_diffusion.applications.stable_diffusion.latent_cache.manifest import (
    Manifest,
    data_digest,
    missing_shards,
    vae_digest,
)

__all__ = [
    "EncodingConfig",
    "LatentSet",
    "Manifest",
    "data_digest",
    "describe_transform",
    "encode",
    "load_latents",
    "missing_shards",
    "vae_digest",
]
