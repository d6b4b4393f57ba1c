"""A folder of latents as a data set."""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from immiscible_diffusion.applications.stable_diffusion.latent_cache.manifest import (
    Manifest,
    check_same,
    missing_shards,
)
from immiscible_diffusion.applications.stable_diffusion.latent_cache.shards import (
    Header,
    read_header,
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


@dataclass(frozen=True, eq=False)
class LatentSet(DataSet):
    """Latents ``(mean + std * noise - shift) * scaling``, as a VAE would draw them.

    Attributes:
        folder: where they are.
        manifest: what they are.
        headers: of its shards.
        flip: take mirror images at random when training.
    """

    folder: Path
    manifest: Manifest
    headers: Sequence[Header]
    flip: bool = False

    is_encoded = True  # a codec passes these data on as they are
    encoded = True  # until training asks for is_encoded

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
            vae: hash that its VAE must have, ``vae_digest``; unchecked by default.
            data: hash that its data set must have, ``data_digest``.
            transform: what must have been done to the pictures.

        Raises:
            ValueError: there are none, shards are missing, mirror images are asked for and not
                there, or something differs from what is asked for: says what.
        """
        manifest = Manifest.read(folder)
        given = {"vae": vae, "data": data, "transform": transform}
        wanted: dict[str, object] = {name: v for name, v in given.items() if v is not None}
        there: dict[str, object] = {name: getattr(manifest, name) for name in given}
        check_same(folder, there, wanted, "encode again into another folder")
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
        paths = [manifest.path(folder, shard) for shard in range(manifest.shards)]
        return cls(folder, manifest, [read_header(path) for path in paths], flip)

    @property
    def name(self) -> str:
        """Name for reports."""
        return self.manifest.name

    @property
    def note(self) -> str:
        """What every figure made on it must say."""
        return self.manifest.note

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, h, w) of a latent."""
        return self.manifest.shape

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """One per class, or None."""
        return self.manifest.classes

    @cached_property
    def labels(self) -> Tensor | None:
        """``[N]`` int64, or None."""
        if "label" not in self.headers[0].arrays:
            return None
        return torch.cat([header.whole("label") for header in self.headers])

    @cached_property
    def num_classes(self) -> int | None:
        """Number of classes, None without labels."""
        if self.labels is None:
            return None
        return len(self.class_names) if self.class_names else int(self.labels.max()) + 1

    @property
    def digest(self) -> str:
        """Hash of what they are."""
        return self.manifest.fingerprint

    @cached_property
    def captions(self) -> ListCaptions | None:
        """The captions of the pictures, or None where they had none."""
        if not self.manifest.captions:
            return None
        texts: list[list[str]] = []
        for header in self.headers:
            texts += json.loads(header.metadata["captions"])
        return ListCaptions(texts)

    def __len__(self) -> int:
        return self.manifest.count

    def batch(self, indices: Tensor, generator: torch.Generator | None = None) -> Batch:
        """Latents at ``indices`` ``[B]``: drawn, and mirrored at random, iff a generator is given.

        Without a generator, their means.
        """
        flips = draw_flips(len(indices), self.flip, generator)
        mean, log = self.laws(indices, flips)
        if generator is not None:
            noise = torch.randn(mean.shape, generator=generator)
            mean = mean + (0.5 * log.clamp(-30, 20)).exp() * noise
        labels = None if self.labels is None else {"label": self.labels[indices]}
        return Batch((mean - self.manifest.shift) * self.manifest.scaling, labels)

    def laws(self, indices: Tensor, flips: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean and log-variance ``[B, C, h, w]`` float32; of mirror images where ``flips``."""
        sides = [0] * len(indices) if flips is None else flips.long().tolist()
        by_shard: dict[int, list[int]] = defaultdict(list)
        size = self.manifest.shard_size
        for place, index in enumerate(indices.tolist()):
            by_shard[index // size].append(place)
        mean = torch.empty(len(indices), *self.shape)
        log = torch.empty_like(mean)
        for shard, places in by_shard.items():
            wanted = [(int(indices[place]) % size, sides[place]) for place in places]
            mean[places], log[places] = (
                part.float() for part in self.headers[shard].pieces(wanted, ("mean", "logvar"))
            )
        return mean, log


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
        ValueError: what ``LatentSet.open`` raises; nothing that could be said.
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
