"""Pictures to the latents of a VAE, words to the states of a text encoder."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
    """``data = (draw of vae(pictures) - shift) * scaling``, ``cond["text"]`` of the tokens.

    Conditions that come out: ``text`` ``[B, L, W]``; of two text encoders (SDXL) also ``pooled``
    ``[B, P]`` and ``time_ids`` ``[B, 6]``; where a part is hidden, ``hole`` ``[B, 1, h, w]`` (1 is
    to be painted) and ``masked`` ``[B, C, h, w]``, the latents of what is seen. Others, such as
    ``label``, pass.

    Attributes:
        vae: diffusers' ``AutoencoderKL``, frozen.
        texts: tokenizers and text encoders, frozen.
        batch_size: pictures in the VAE at a time.
        painting: which part is hidden.
        vae_hash: of the VAE's weights.
        encoded: the data are latents already and pass.
        zero_empty: guidance pushes away from zeros, as SDXL's pipeline does, not from the states of
            the empty prompt.
    """

    vae: Any
    texts: tuple[TextPart, ...]
    batch_size: int = 16
    painting: Inpainting | None = None
    vae_hash: str | None = None
    encoded: bool = False
    zero_empty: bool = False

    def __post_init__(self) -> None:
        if self.encoded and self.painting is not None:
            raise ValueError(
                "painting hides parts of pictures, and these data are latents already; train "
                "from the pictures"
            )

    @property
    def at_once(self) -> int:
        """Pictures in the VAE at a time."""
        return self.batch_size

    @cached_property
    def place(self) -> tuple[torch.device, torch.dtype]:
        """Device and precision of the VAE."""
        weight = next(self.vae.parameters())
        return weight.device, weight.dtype

    @property
    def shrinks(self) -> int:
        """How many times shorter the sides of latents are."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    @property
    def width(self) -> int:
        """Of the text states."""
        return sum(int(text.encoder.config.hidden_size) for text in self.texts)

    def of_latents(self) -> "LatentCodec":
        """The same for data that are latents already."""
        return dataclasses.replace(self, encoded=True)

    def shape(self, pictures: tuple[int, ...]) -> tuple[int, ...]:
        """``(C, h, w)`` of the latents; ValueError for pictures that the VAE cannot take."""
        if self.encoded:
            return pictures
        channels, step = int(self.vae.config.in_channels), self.shrinks
        if len(pictures) != 3 or pictures[0] != channels or any(s % step for s in pictures[1:]):
            raise ValueError(
                f"the VAE takes pictures of {channels} channels with sides that are multiples of "
                f"{step}, got {pictures}; set data.channels {channels} and data.size"
            )
        return (int(self.vae.config.latent_channels), *(side // step for side in pictures[1:]))

    # -- pictures ---------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(self, batch: Batch, generator: torch.Generator | None = None) -> Batch:
        """Latents of the pictures, text of the tokens; drawn with ``generator``, else expected.

        What is drawn: the latents, then holes, then the latents of what is seen, each in one go for
        the whole batch, so that it does not depend on ``batch_size``.
        """
        cond = self._told(batch)
        if self.encoded:
            return Batch(batch.data.to(self.place[0]), cond, batch.mask)
        data = self.latents(batch.data, generator)
        if self.painting is not None:
            size = (data.shape[2], data.shape[3])
            hole = self.painting.holes(len(data), size, generator).to(data.device)
            cond = {**(cond or {}), **self.hidden(batch.data, hole, generator)}
        return Batch(data, cond, batch.mask)

    @torch.no_grad()
    def latents(self, pictures: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """``[B, C, h, w]`` float32 of pictures ``[B, C, H, W]`` in [-1, 1]."""
        device, dtype = self.place
        laws = [
            self.vae.encode(part.to(device, dtype)).latent_dist
            for part in pictures.split(self.batch_size)
        ]
        mean = torch.cat([law.mean for law in laws])
        if generator is not None:
            noise = torch.randn(
                mean.shape, device=generator.device, dtype=dtype, generator=generator
            )
            mean = mean + torch.cat([law.std for law in laws]) * noise.to(device)
        return (mean.float() - self._shift) * float(self.vae.config.scaling_factor)

    @torch.no_grad()
    def hidden(
        self, pictures: Tensor, hole: Tensor, generator: torch.Generator | None = None
    ) -> Cond:
        """What a network that paints is told: ``hole`` and the latents ``masked`` of the rest.

        Raises:
            ValueError: ``hole`` is not ``[B, 1, h, w]`` of the latents' size.
        """
        want = (len(pictures), 1, *self.shape(tuple(pictures.shape[1:]))[1:])
        if tuple(hole.shape) != want:
            raise ValueError(f"the hole must be {want}, on the latents' grid, got {hole.shape}")
        hole = hole.to(self.place[0])
        seen = 1 - hole.repeat_interleave(self.shrinks, 2).repeat_interleave(self.shrinks, 3)
        masked = self.latents(pictures.to(self.place[0]) * seen, generator)
        return {"hole": hole, "masked": masked}

    @torch.no_grad()
    def decode(self, data: Tensor) -> Tensor:
        """Pictures ``[B, C, H, W]`` float32 of latents."""
        device, dtype = self.place
        latents = data / float(self.vae.config.scaling_factor) + self._shift
        parts = [
            self.vae.decode(part.to(device, dtype)).sample.float()
            for part in latents.split(self.batch_size)
        ]
        return torch.cat(parts)

    @property
    def _shift(self) -> float:
        return float(getattr(self.vae.config, "shift_factor", None) or 0.0)

    # -- words ------------------------------------------------------------------------------------

    def tokenize(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """``tokens`` (and ``tokens_2``) ``[B, L]`` int64, cut and padded to the full length."""
        found = {}
        for name, part in zip(TOKENS, self.texts, strict=False):
            found[name] = part.tokenizer(
                list(texts),
                padding="max_length",
                max_length=part.tokenizer.model_max_length,
                truncation=True,
                return_tensors="pt",
            ).input_ids
        return found

    def tell(self, texts: Sequence[str], size: tuple[int, int] | None = None) -> Cond:
        """The conditions that ``texts`` are to the network; of pictures of ``size`` (H, W)."""
        return self._states(self.tokenize(texts), len(texts), size)

    @cached_property
    def empty(self) -> Cond:
        """The conditions of the empty prompt, one row; what no prompt is."""
        return {name: row for name, row in self.tell([""]).items() if name != "time_ids"}

    @cached_property
    def nothing(self) -> Cond:
        """What guidance pushes away from, one row."""
        if not self.zero_empty:
            return self.empty
        return {name: torch.zeros_like(row) for name, row in self.empty.items()}

    def _told(self, batch: Batch) -> Cond | None:
        cond = dict(batch.cond or {})
        tokens = {name: cond.pop(name) for name in TOKENS if name in cond}
        cond = {name: value.to(self.place[0]) for name, value in cond.items()}
        if tokens:
            high, wide = batch.data.shape[-2:]
            size = (high * self.shrinks, wide * self.shrinks) if self.encoded else (high, wide)
            cond = {**self._states(tokens, len(batch), size), **cond}
        return cond or None

    @torch.no_grad()
    def _states(self, tokens: Cond, count: int, size: tuple[int, int] | None) -> Cond:
        """Every different row goes through the encoders once."""
        widths = [rows.shape[1] for rows in tokens.values()]
        joined = torch.cat([rows.cpu() for rows in tokens.values()], dim=1)
        unique, place = joined.unique(dim=0, return_inverse=True)
        cond = _of_encoders(self.texts, unique.split(widths, dim=1))
        cond = {name: value[place.to(value.device)] for name, value in cond.items()}
        if "pooled" in cond:
            high, wide = size or (0, 0)
            ids = torch.tensor([high, wide, 0, 0, high, wide], dtype=torch.float32)
            cond["time_ids"] = ids.expand(count, -1).to(self.place[0])
        return cond


def _of_encoders(texts: Sequence[TextPart], tokens: Sequence[Tensor]) -> Cond:
    """States ``text`` of one encoder; of two, their last but one, side by side, and ``pooled``."""
    if len(texts) == 1:
        return {"text": _run(texts[0], tokens[0])[0]}
    found = [_run(part, rows, hidden=True) for part, rows in zip(texts, tokens, strict=True)]
    states = torch.cat([one.hidden_states[-2] for one in found], dim=-1)
    return {"text": states, "pooled": found[-1][0]}


def _run(part: TextPart, tokens: Tensor, hidden: bool = False) -> Any:
    encoder: Callable[..., Any] = part.encoder
    tokens = tokens.to(next(part.encoder.parameters()).device)
    mask = None
    if getattr(part.encoder.config, "use_attention_mask", False):
        mask = (tokens != part.tokenizer.pad_token_id).long()
    return encoder(tokens, attention_mask=mask, output_hidden_states=hidden)
