"""Images to the latents of a VAE, prompts to the states of a text encoder."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from immiscible_diffusion.applications.stable_diffusion.inpainting import Inpainting
from immiscible_diffusion.applications.stable_diffusion.load_pipeline import TextPart
from immiscible_diffusion.utils.batch import Batch, Cond

TOKENS = ("tokens", "tokens_2")


@dataclass(frozen=True, eq=False)
class LatentCodec:
    """``data = (sample of vae(images) - shift) * scaling``, ``cond["text"]`` of the tokens.

    Conditions of the result: ``text`` ``[B, L, W]``; with two text encoders (SDXL) also ``pooled`` ``[B, P]`` and
    ``time_ids`` ``[B, 6]``; for in-painting ``inpaint_mask`` ``[B, 1, h, w]`` (1 is to be painted) and
    ``masked_latents`` ``[B, C, h, w]``, the latents of the visible part. Others, such as ``label``, are passed on.
    """

    vae: Any  # diffusers' ``AutoencoderKL``, frozen
    texts: tuple[TextPart, ...]  # tokenizers and text encoders, frozen
    max_batch_size: int = 16  # images in the VAE at a time
    inpainting: Inpainting | None = None  # which part of an image is hidden
    passthrough: bool = False  # the data are latents already and are passed on
    vae_hash: str | None = None  # of the VAE's weights, to check cached latents
    # The unconditional input of guidance is zeros, as in SDXL's pipeline, instead of the states of the empty prompt.
    zero_uncond: bool = False

    def __post_init__(self) -> None:
        if self.passthrough and self.inpainting is not None:
            raise ValueError(
                "in-painting hides parts of images, and these data are latents already; train from the images"
            )

    @property
    def device(self) -> torch.device:
        """Device of the VAE and the text encoders."""
        return next(self.vae.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the VAE."""
        return next(self.vae.parameters()).dtype

    @property
    def downsample_factor(self) -> int:
        """Side of an image divided by the side of its latent."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    @property
    def text_width(self) -> int:
        """Width of the text states."""
        return sum(int(text.encoder.config.hidden_size) for text in self.texts)

    def shape(self, images: tuple[int, ...]) -> tuple[int, ...]:
        """Return ``(C, h, w)`` of the latents; ValueError for images that the VAE cannot take."""
        if self.passthrough:
            return images
        channels, step = int(self.vae.config.in_channels), self.downsample_factor
        if len(images) != 3 or images[0] != channels or any(side % step for side in images[1:]):
            raise ValueError(
                f"the VAE takes images of {channels} channels with sides that are multiples of "
                f"{step}, got {images}; set data.channels {channels} and data.size"
            )
        return (int(self.vae.config.latent_channels), *(side // step for side in images[1:]))

    # -- images -----------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(self, batch: Batch, generator: torch.Generator | None = None) -> Batch:
        """Turn images into latents and tokens into text states.

        With ``generator`` latents are sampled, else their mean is taken. Random numbers are drawn
        for the latents, then the masks, then the latents of the visible part, each at once for the
        whole batch, so that they do not depend on ``max_batch_size``.
        """
        cond = dict(batch.cond or {})
        tokens = {name: cond.pop(name) for name in TOKENS if name in cond}
        cond = {name: value.to(self.device) for name, value in cond.items()}
        if tokens:
            factor = self.downsample_factor if self.passthrough else 1
            height, width = (side * factor for side in batch.data.shape[-2:])
            cond = {**self._text_states(tokens, (height, width)), **cond}
        if self.passthrough:
            return replace(batch, data=batch.data.to(self.device), cond=cond or None)
        data = self.latents(batch.data, generator)
        if self.inpainting is not None:
            size = (data.shape[2], data.shape[3])
            mask = self.inpainting.sample_masks(len(data), size, generator)
            cond |= self.mask_images(batch.data, mask, generator)
        return replace(batch, data=data, cond=cond or None)

    @torch.no_grad()
    def latents(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Encode images ``[B, C, H, W]`` in [-1, 1] to ``[B, C, h, w]`` float32."""
        posteriors = [
            self.vae.encode(part.to(self.device, self.dtype)).latent_dist for part in images.split(self.max_batch_size)
        ]
        latents = torch.cat([posterior.mean for posterior in posteriors])
        if generator is not None:
            options: Any = {"device": generator.device, "dtype": self.dtype}
            noise = torch.randn(latents.shape, generator=generator, **options).to(self.device)
            latents = latents + torch.cat([posterior.std for posterior in posteriors]) * noise
        return (latents.float() - self._shift) * float(self.vae.config.scaling_factor)

    @torch.no_grad()
    def mask_images(self, images: Tensor, mask: Tensor, generator: torch.Generator | None = None) -> Cond:
        """Return the conditions of an in-painting network; ``mask`` is ``[B, 1, h, w]``."""
        expected = (len(images), 1, *self.shape(tuple(images.shape[1:]))[1:])
        if tuple(mask.shape) != expected:
            raise ValueError(f"the mask must be {expected}, on the latents' grid, got {tuple(mask.shape)}")
        mask, step = mask.to(self.device), self.downsample_factor
        visible = 1 - mask.repeat_interleave(step, 2).repeat_interleave(step, 3)
        latents = self.latents(images.to(self.device) * visible, generator)
        return {"inpaint_mask": mask, "masked_latents": latents}

    @torch.no_grad()
    def decode(self, data: Tensor) -> Tensor:
        """Decode latents to images ``[B, C, H, W]`` float32."""
        latents = data / float(self.vae.config.scaling_factor) + self._shift
        parts = latents.to(self.device, self.dtype).split(self.max_batch_size)
        return torch.cat([self.vae.decode(part).sample.float() for part in parts])

    @property
    def _shift(self) -> float:
        return float(getattr(self.vae.config, "shift_factor", None) or 0.0)

    # -- text -------------------------------------------------------------------------------------

    def tokenize(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Return ``tokens`` (and ``tokens_2``) ``[B, L]`` int64, cut and padded to full length."""
        options: Any = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
        return {
            name: tokenizer(list(texts), max_length=tokenizer.model_max_length, **options).input_ids
            for name, (tokenizer, _) in zip(TOKENS, self.texts, strict=False)
        }

    def encode_prompts(self, texts: Sequence[str], size: tuple[int, int] = (0, 0)) -> Cond:
        """Return the conditions of ``texts``; for SDXL, of images of ``size`` (H, W)."""
        return self._text_states(self.tokenize(texts), size)

    @cached_property
    def empty_prompt(self) -> Cond:
        """The conditions of the empty prompt, one row."""
        cond = self.encode_prompts([""])
        return {name: row for name, row in cond.items() if name != "time_ids"}

    @cached_property
    def uncond_embedding(self) -> Cond:
        """The unconditional input of classifier-free guidance, one row."""
        if not self.zero_uncond:
            return self.empty_prompt
        return {name: torch.zeros_like(row) for name, row in self.empty_prompt.items()}

    @torch.no_grad()
    def _text_states(self, tokens: Cond, size: tuple[int, int]) -> Cond:
        """``text`` of one encoder; of two, their last but one states side by side, and ``pooled``.

        Equal rows go through the encoders once.
        """
        joined = torch.cat([rows.cpu() for rows in tokens.values()], dim=1)
        unique, place = joined.unique(dim=0, return_inverse=True)
        parts = unique.to(self.device).split([rows.shape[1] for rows in tokens.values()], dim=1)
        two, outputs = len(self.texts) > 1, []
        for (tokenizer, encoder), ids in zip(self.texts, parts, strict=True):
            mask = None
            if getattr(encoder.config, "use_attention_mask", False):  # BERT needs it, CLIP does not
                mask = (ids != tokenizer.pad_token_id).long()
            outputs.append(encoder(ids, attention_mask=mask, output_hidden_states=two))
        if not two:
            return {"text": outputs[0][0][place.to(self.device)]}
        states = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
        cond = {"text": states, "pooled": outputs[-1][0]}
        cond = {name: value[place.to(self.device)] for name, value in cond.items()}
        ids = torch.tensor([*size, 0, 0, *size], dtype=torch.float32, device=self.device)
        return cond | {"time_ids": ids.expand(len(place), -1)}
