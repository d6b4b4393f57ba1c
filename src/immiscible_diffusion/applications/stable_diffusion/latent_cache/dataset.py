"""A folder of latents as a data set."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from immiscible_diffusion.applications.stable_diffusion.latent_cache.manifest import (
    Manifest,
    missing_shards,
)
from immiscible_diffusion.data.base import DataSet
from immiscible_diffusion.data.captions import Captioned, Captions
from immiscible_diffusion.data.images import draw_flips
from immiscible_diffusion.data.prompts import (
    ClassNamePrompts,
    ListCaptions,
    Tokenize,
    load_class_names,
)
from immiscible_diffusion.utils.batch import Batch
from immiscible_diffusion.utils.optional_deps import require_extra


@dataclass(frozen=True, eq=False)
class LatentSet(DataSet):
    """Latents ``(mean + std * noise - shift) * scaling``, as the VAE would sample them.

    Attributes:
        folder: where they are.
        manifest: what they are.
        flip: take mirror images at random when training.
    """

    folder: Path
    manifest: Manifest
    flip: bool = False

    is_encoded = True  # a codec passes these data on as they are

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        flip: bool = False,
        vae: str | None = None,
        data: str | None = None,
        transform: str | None = None,
    ) -> "LatentSet":
        """The latents of ``folder``.

        Args:
            folder: as ``encode`` wrote it.
            flip: take mirror images at random when training.
            vae: hash that the VAE must have, ``vae_digest``; unchecked by default.
            data: hash that the data set must have, ``data_digest``.
            transform: what must have been done to the images.

        Raises:
            ValueError: there are none, shards are missing, mirror images are asked for and not
                there, or a hash or the transform differs.
        """
        manifest = Manifest.read(folder)
        expected = {"vae": vae, "data": data, "transform": transform}
        expected = {name: value for name, value in expected.items() if value is not None}
        manifest.check(folder, expected, "encode again into another folder")
        if missing := missing_shards(manifest, folder):
            raise ValueError(
                f"{folder}: {len(missing)} of {manifest.shards} shards are missing or broken, such "
                f"as {manifest.path(folder, missing[0]).name}; run the same `immiscible encode` "
                f"again, which makes these only"
            )
        if flip and not manifest.flips:
            raise ValueError(
                f"{folder} holds no mirror images; encode with flips, or set flip false"
            )
        return cls(folder, manifest, flip)

    @property
    def name(self) -> str:
        """Name for reports."""
        return self.manifest.name

    @property
    def note(self) -> str:
        """A caveat of the images, for reports."""
        return self.manifest.note

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, h, w) of a latent."""
        return self.manifest.shape

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """One per class, or None."""
        return self.manifest.classes

    @property
    def digest(self) -> str:
        """Hash of what they are."""
        return self.manifest.fingerprint

    @cached_property
    def _shards(self) -> list[Any]:
        """The files, mapped into memory."""
        with require_extra("train", "reading latents"):
            from safetensors import safe_open
        paths = [self.manifest.path(self.folder, shard) for shard in range(self.manifest.shards)]
        return [safe_open(str(path), framework="pt") for path in paths]

    @cached_property
    def labels(self) -> Tensor | None:
        """``[N]`` int64, or None."""
        if "label" not in self._shards[0].keys():  # noqa: SIM118
            return None
        return torch.cat([shard.get_tensor("label") for shard in self._shards])

    @cached_property
    def captions(self) -> ListCaptions | None:
        """The captions of the images, or None if they had none."""
        if not self.manifest.captions:
            return None
        parts = [json.loads(shard.metadata()["captions"]) for shard in self._shards]
        return ListCaptions([texts for part in parts for texts in part])

    def __len__(self) -> int:
        return self.manifest.count

    def batch(self, indices: Tensor, generator: torch.Generator | None = None) -> Batch:
        """Latents at ``indices`` ``[B]``: sampled and mirrored at random iff a generator is given.

        Without a generator, their means.
        """
        flips = draw_flips(len(indices), self.flip, generator)
        mean, logvar = self.posterior(indices, flips)
        if generator is not None:
            noise = torch.randn(mean.shape, generator=generator)
            mean = mean + (0.5 * logvar.clamp(-30, 20)).exp() * noise
        labels = None if self.labels is None else {"label": self.labels[indices]}
        return Batch((mean - self.manifest.shift) * self.manifest.scaling, labels)

    def posterior(self, indices: Tensor, flips: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean and log-variance ``[B, C, h, w]`` float32; of mirror images where ``flips``."""
        sides = [0] * len(indices) if flips is None else flips.long().tolist()
        places = [divmod(index, self.manifest.shard_size) for index in indices.tolist()]
        mean, logvar = (
            torch.stack(
                [
                    self._shards[shard].get_slice(name)[row, side]
                    for (shard, row), side in zip(places, sides, strict=True)
                ]
            ).float()
            for name in ("mean", "logvar")
        )
        return mean, logvar


def load_latents(
    folder: Path,
    captions: Captions | None = None,
    tokenize: Tokenize | None = None,
    *,
    flip: bool = False,
    vae: str | None = None,
    transform: str | None = None,
) -> Captioned:
    """The latents of ``folder`` with their prompts: captions, or the names of their classes.

    Raises:
        ValueError: what ``LatentSet.open`` raises; neither captions nor class names.
    """
    if not Manifest.read(folder).transform:  # written in Python, without saying
        transform = None
    latents = LatentSet.open(folder, flip=flip, vae=vae, transform=transform)
    captions = captions or Captions()
    if latents.captions is not None:
        return Captioned(latents, latents.captions, tokenize)
    if latents.labels is None or not latents.class_names:
        raise ValueError(f"{folder} holds latents without captions and without classes")
    names = load_class_names(latents.class_names, captions.names, None)
    prompts = ClassNamePrompts(latents.labels, names, captions.template, captions.synonyms)
    return Captioned(latents, prompts, tokenize)
