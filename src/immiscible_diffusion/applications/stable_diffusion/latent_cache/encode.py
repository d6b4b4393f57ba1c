"""Encode a data set once: mean and log-variance of every image and of its mirror image."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from immiscible_diffusion.applications.stable_diffusion.latent_cache.manifest import (
    Manifest,
    data_digest,
    is_complete,
    vae_digest,
)
from immiscible_diffusion.data.aspect_buckets import BucketedImages
from immiscible_diffusion.data.base import DataSet
from immiscible_diffusion.data.captions import Captioned
from immiscible_diffusion.data.load import DataConfig
from immiscible_diffusion.data.prompts import ClassNamePrompts, Prompts
from immiscible_diffusion.utils.atomic_files import atomic_path, remove_unfinished
from immiscible_diffusion.utils.background import prefetch_iterator
from immiscible_diffusion.utils.optional_deps import require_extra

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class EncodingConfig:
    """How to encode.

    Args:
        dtype: of what is stored: float16 or bfloat16.
        flips: encode mirror images too, as a VAE's latent of a mirror image is not the mirror
            image of the latent.
        shard_size: images per shard; what an interruption loses at most, on each process.
        batch_size: images in the VAE at a time.
        transform: how the images were resized and converted, in words.
    """

    dtype: Literal["float16", "bfloat16"] = "float16"
    flips: bool = True
    shard_size: int = 1024
    batch_size: int = 16
    transform: str = ""

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be float16 or bfloat16, got '{self.dtype}'")
        if self.shard_size < 1 or self.batch_size < 1:
            raise ValueError(
                f"expected shard_size and batch_size >= 1, got {self.shard_size} and {self.batch_size}"
            )


def encode(
    dataset: DataSet,
    vae: Any,
    folder: Path,
    config: EncodingConfig | None = None,
    *,
    vae_hash: str | None = None,
    rank: int = 0,
    world: int = 1,
    on_progress: Callable[[int], None] | None = None,
) -> Manifest:
    """Write the latents of ``dataset`` to ``folder``; complete shards are left as they are.

    A shard is written under a temporary name first, so an incomplete one never counts; run the same
    again after an interruption. With ``world`` processes each writes every world-th shard.

    Args:
        dataset: the images; those of a ``Captioned`` keep their captions.
        vae: diffusers' ``AutoencoderKL``, on its device, in the precision to encode with.
        folder: for the shards and ``latents.json``.
        config: options.
        vae_hash: ``vae_digest`` of the weights before they were cast; by default of ``vae``.
        rank: this process.
        world: number of processes.
        on_progress: called with the number of images that this process has done.

    Raises:
        ValueError: the folder holds other latents (says what differs), images of several shapes,
            or not of the VAE's channels, or the VAE's output is not finite.
    """
    config = config or EncodingConfig()
    images = dataset.images if isinstance(dataset, Captioned) else dataset
    captions = dataset.prompts if isinstance(dataset, Captioned) else None
    if isinstance(captions, ClassNamePrompts):  # are made from the labels
        captions = None
    if isinstance(images, BucketedImages):
        raise ValueError(
            "images in aspect-ratio buckets have latents of several shapes, which cannot be "
            "cached; train from the images, or encode them at one size"
        )
    channels = int(vae.config.in_channels)
    if images.shape[0] != channels:
        raise ValueError(
            f"the VAE takes {channels} channels and the images have {images.shape[0]}; set data.channels {channels}"
        )
    manifest = Manifest(
        count=len(images),
        shape=tuple(posterior(vae, images.batch(torch.arange(1)).data)[0].shape[1:]),
        dtype=config.dtype,
        flips=config.flips,
        shard_size=config.shard_size,
        vae=vae_hash or vae_digest(vae),
        transform=config.transform,
        data=data_digest(images),
        scaling=float(vae.config.scaling_factor),
        shift=float(getattr(vae.config, "shift_factor", None) or 0.0),
        name=dataset.name,
        note=dataset.note,
        classes=dataset.class_names,
        captions=None if captions is None else captions_digest(captions, len(images)),
    )
    folder.mkdir(parents=True, exist_ok=True)
    manifest.write(folder)
    done, own = 0, range(rank, manifest.shards, world)
    remove_unfinished(folder, {manifest.path(folder, shard).name for shard in own})
    for shard in own:
        if not is_complete(manifest, folder, shard):
            _write_shard(manifest, folder, shard, images, captions, vae, config)
        done += len(manifest.rows(shard))
        if on_progress is not None:
            on_progress(done)
    return manifest


def captions_digest(captions: Prompts, count: int) -> str:
    """Hash of all captions of ``count`` images."""
    content = hashlib.sha256()
    for row in range(count):
        content.update(json.dumps(list(captions.choices(row))).encode())
    return content.hexdigest()[:32]


def describe_transform(config: DataConfig, channels: int | None) -> str:
    """How ``config`` resizes and converts images, in words."""
    size = f"shorter side {config.size}, center square" if config.size else "as they are"
    return f"{size}, {'gray' if channels == 1 else 'color'}"


@torch.no_grad()
def posterior(vae: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log-variance ``[B, C, h, w]`` of the latents of images in [-1, 1]."""
    weight = next(vae.parameters())
    distribution = vae.encode(images.to(weight.device, weight.dtype)).latent_dist
    return distribution.mean, distribution.logvar


def _write_shard(
    manifest: Manifest,
    folder: Path,
    shard: int,
    images: DataSet,
    captions: Prompts | None,
    vae: Any,
    config: EncodingConfig,
) -> None:
    """Encode and write ``mean`` and ``logvar`` ``[rows, 1 or 2, C, h, w]``, and ``label``."""
    with require_extra("train", "writing latents"):
        from safetensors.torch import save_file
    rows = manifest.rows(shard)
    batches = (images.batch(part) for part in torch.tensor(rows).split(config.batch_size))
    parts: dict[str, list[Tensor]] = {"mean": [], "logvar": []}
    for batch in prefetch_iterator(batches, 2, name="images", finish=False):
        sides = [batch.data, batch.data.flip(-1)] if config.flips else [batch.data]
        posteriors = zip(*(posterior(vae, side) for side in sides), strict=True)
        for name, values in zip(("mean", "logvar"), posteriors, strict=True):
            part = torch.stack(values, dim=1).to("cpu", DTYPES[config.dtype])
            if not bool(part.isfinite().all()):
                precision = str(next(vae.parameters()).dtype).removeprefix("torch.")
                raise ValueError(
                    f"the VAE in {precision} gives latents that are not finite in {config.dtype}; "
                    f"encode in float32 and store bfloat16 (SDXL's first VAE overflows in float16)"
                )
            parts[name].append(part)
        if batch.cond and "label" in batch.cond:
            parts.setdefault("label", []).append(batch.cond["label"])
    metadata = {"latents": manifest.fingerprint}
    if captions is not None:
        texts = [list(captions.choices(row)) for row in rows]
        metadata["captions"] = json.dumps(texts, ensure_ascii=False)
    with atomic_path(manifest.path(folder, shard)) as temporary:
        save_file({name: torch.cat(values) for name, values in parts.items()}, temporary, metadata)
