"""Stable Diffusion's codec, named: which pipeline, and what is to be painted."""

import dataclasses
from dataclasses import dataclass

import torch

from immiscible_diffusion.applications.stable_diffusion.codec import LatentCodec
from immiscible_diffusion.applications.stable_diffusion.inpainting import Inpainting
from immiscible_diffusion.applications.stable_diffusion.load_pipeline import (
    check_given,
    frozen,
    load_part,
    precision_of,
    read_index,
    text_parts,
)
from immiscible_diffusion.applications.stable_diffusion.silence import quiet


@dataclass(frozen=True)
class StableDiffusionCodec:
    """The frozen VAE, tokenizer and text encoder of a pipeline.

    Args:
        pretrained: a folder written by ``save_pretrained``, or a name on the hub.
        batch_size: pictures in the VAE at a time.
        painting: hide a part of every picture, which the network paints; None = off.
    """

    pretrained: str | None = None
    batch_size: int = 16
    painting: Inpainting | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"codec.batch_size must be at least 1, got {self.batch_size}")

    def tiny(self) -> "StableDiffusionCodec":
        """Of a smoke run, which has to be given a pipeline: the published ones are not small."""
        return dataclasses.replace(self, pretrained=None)

    def load(
        self, device: torch.device | str = "cpu", precision: str = "no", *, digest: bool = False
    ) -> LatentCodec:
        """Load the parts; in half precision if ``precision`` is fp16 or bf16.

        Args:
            device: to work on.
            precision: no, fp16 or bf16.
            digest: hash the VAE's weights (before they are cast), to check a latent cache.

        Raises:
            ValueError: the pipeline is not there; says what to fetch or to make.
        """
        with quiet():
            return self._loaded(device, precision, digest)

    def _loaded(self, device: torch.device | str, precision: str, digest: bool) -> LatentCodec:
        pretrained = check_given(self.pretrained, "codec.pretrained")
        index, dtype = read_index(pretrained), precision_of(precision)
        vae = frozen(load_part(pretrained, index, "vae", torch_dtype=torch.float32))
        found = _digest(vae) if digest else None
        texts = text_parts(pretrained, index)
        # SDXL's first VAE overflows in float16, which it says itself.
        upcast = dtype == torch.float16 and bool(getattr(vae.config, "force_upcast", False))
        for text in texts:
            text.encoder.to(device, dtype)
        return LatentCodec(
            vae=vae.to(device, torch.float32 if upcast and len(texts) > 1 else dtype),
            texts=tuple(texts),
            batch_size=self.batch_size,
            painting=self.painting,
            vae_hash=found,
            zero_empty=bool(index.get("force_zeros_for_empty_prompt", False)),
        )


def _digest(vae: torch.nn.Module) -> str:
    from immiscible_diffusion.applications.stable_diffusion.latent_cache import vae_digest

    return vae_digest(vae)
