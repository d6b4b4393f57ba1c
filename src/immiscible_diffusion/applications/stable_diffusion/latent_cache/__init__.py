"""The latent cache: pictures encoded once, drawn from ever after."""

from immiscible_diffusion.applications.stable_diffusion.latent_cache.dataset import (
    LatentSet,
    load_latents,
)
from immiscible_diffusion.applications.stable_diffusion.latent_cache.encode import (
    Encoding,
    encode,
    transform_of,
)
from immiscible_diffusion.applications.stable_diffusion.latent_cache.identity import (
    data_digest,
    vae_digest,
)
from immiscible_diffusion.applications.stable_diffusion.latent_cache.manifest import (
    Manifest,
    missing_shards,
)

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
