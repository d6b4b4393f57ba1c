"""Encode a data set once: mean and log-variance of every picture and its mirror image."""

import hashlib
import json
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from immiscible_diffusion.applications.stable_diffusion.latent_cache.identity import (
    data_digest,
    vae_digest,
)
from immiscible_diffusion.applications.stable_diffusion.latent_cache.manifest import (
    Manifest,
    is_whole,
)
from immiscible_diffusion.data.aspect_buckets import BucketedImages
from immiscible_diffusion.data.base import DataSet
from immiscible_diffusion.data.captions import Captioned
from immiscible_diffusion.data.load import DataConfig
from immiscible_diffusion.data.prompts import ClassNamePrompts
from immiscible_diffusion.utils.atomic_files import atomic_path, remove_unfinished
from immiscible_diffusion.utils.background import prefetch_iterator
from immiscible_diffusion.utils.batch import Batch
from immiscible_diffusion.utils.optional_deps import require_extra

Told = Callable[[int], None]
KINDS = {"float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Encoding:
    """How to encode.

    Args:
        dtype: of what is kept: float16 or bfloat16.
        flips: encode mirror images too, as a VAE's latent of a mirror image is not the mirror
            image of the latent.
        shard_size: pictures in a shard; what an interruption loses at most, on each process.
        batch_size: pictures in the VAE at a time.
        transform: what was done to the pictures, in words.
    """

    dtype: Literal["float16", "bfloat16"] = "float16"
    flips: bool = True
    shard_size: int = 1024
    batch_size: int = 16
    transform: str = ""

    def __post_init__(self) -> None:
        if self.dtype not in KINDS:
            raise ValueError(f"dtype must be float16 or bfloat16, got '{self.dtype}'")
        if self.shard_size < 1 or self.batch_size < 1:
            raise ValueError(
                f"expected shard_size and batch_size >= 1, got {self.shard_size} and "
                f"{self.batch_size}"
            )


def encode(
    dataset: DataSet,
    vae: Any,
    folder: Path,
    how: Encoding | None = None,
    *,
    vae_hash: str | None = None,
    rank: int = 0,
    world: int = 1,
    told: Told | None = None,
) -> Manifest:
    """Write the latents of ``dataset`` to ``folder``; shards that are there already stay.

    A shard is written under another name first, so a half-written one never counts; run the same
    again after an interruption. With ``world`` processes each makes every world-th shard.

    Args:
        dataset: the pictures; those of a ``Captioned`` keep their captions.
        vae: diffusers' ``AutoencoderKL``, on its device, in the precision to encode with.
        folder: for the shards and ``latents.json``.
        how: options.
        vae_hash: ``vae_digest`` of the weights as they were before they were cast; by default of
            those that ``vae`` has.
        rank: this process.
        world: number of processes.
        told: called with the number of pictures of this process that are done.

    Raises:
        ValueError: the folder holds other latents (says what differs), pictures of several shapes,
            or not of the VAE's channels, or the VAE gives numbers that are not finite.
    """
    how = how or Encoding()
    manifest = manifest_of(dataset, vae, how, vae_hash)
    folder.mkdir(parents=True, exist_ok=True)
    manifest.claim(folder)
    done, own = 0, range(rank, manifest.shards, world)
    remove_unfinished(folder, {manifest.path(folder, shard).name for shard in own})
    for shard in own:
        if not is_whole(manifest, folder, shard):
            _write(manifest, folder, shard, _encoded(dataset, vae, how, manifest.rows(shard)))
        done += len(manifest.rows(shard))
        if told is not None:
            told(done)
    return manifest


def manifest_of(dataset: DataSet, vae: Any, how: Encoding, vae_hash: str | None = None) -> Manifest:
    """What latents of ``dataset`` by ``vae`` would say of themselves."""
    _check(dataset, vae)
    first = _pictures(dataset).batch(torch.arange(1)).data
    mean, _ = posterior(vae, first)
    return Manifest(
        count=len(dataset),
        shape=tuple(mean.shape[1:]),
        dtype=how.dtype,
        flips=how.flips,
        shard_size=how.shard_size,
        vae=vae_hash or vae_digest(vae),
        transform=how.transform,
        data=data_digest(dataset),
        scaling=float(vae.config.scaling_factor),
        shift=float(getattr(vae.config, "shift_factor", None) or 0.0),
        name=dataset.name,
        note=dataset.note,
        classes=getattr(dataset, "class_names", None),
        captions=captions_digest(dataset),
    )


def _check(dataset: DataSet, vae: Any) -> None:
    if isinstance(_pictures(dataset), BucketedImages):
        raise ValueError(
            "pictures in aspect-ratio buckets have latents of several shapes, which are not kept; "
            "train from the pictures, or encode them at one size"
        )
    channels = int(vae.config.in_channels)
    if dataset.shape[0] != channels:
        raise ValueError(
            f"the VAE takes {channels} channels and the pictures have {dataset.shape[0]}; set "
            f"data.channels {channels}"
        )


def _pictures(dataset: DataSet) -> DataSet:
    return dataset.images if isinstance(dataset, Captioned) else dataset


def has_captions(dataset: DataSet) -> bool:
    """Whether the data have captions of their own, not the names of classes."""
    return isinstance(dataset, Captioned) and not isinstance(dataset.prompts, ClassNamePrompts)


def captions_digest(dataset: DataSet) -> str | None:
    """Hash of all captions; None where data have none of their own."""
    if not isinstance(dataset, Captioned) or not has_captions(dataset):
        return None
    content = hashlib.sha256()
    for row in range(len(dataset)):
        content.update(json.dumps(list(dataset.prompts.all_of(row))).encode())
    return content.hexdigest()[:32]


def transform_of(config: DataConfig, channels: int | None) -> str:
    """What ``config`` does to pictures, in words."""
    side = f"shorter side {config.size}, center square"
    return f"{side if config.size else 'as they are'}, {'gray' if channels == 1 else 'color'}"


@torch.no_grad()
def posterior(vae: Any, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log-variance ``[B, C, h, w]`` of the latents of pictures in [-1, 1]."""
    place = next(vae.parameters())
    law = vae.encode(pictures.to(place.device, place.dtype)).latent_dist
    return law.mean, law.logvar


def _encoded(dataset: DataSet, vae: Any, how: Encoding, rows: range) -> dict[str, Any]:
    """The tensors of a shard, and the captions of its rows."""
    means, logs, labels = [], [], []
    for batch in prefetch_iterator(_batches(dataset, how, rows), 2, name="pictures", finish=False):
        mean, log = _both(vae, batch.data, how)
        means.append(mean)
        logs.append(log)
        if batch.cond and "label" in batch.cond:
            labels.append(batch.cond["label"])
    tensors: dict[str, Any] = {"mean": torch.cat(means), "logvar": torch.cat(logs)}
    if labels:
        tensors["label"] = torch.cat(labels)
    if isinstance(dataset, Captioned) and has_captions(dataset):
        tensors["captions"] = [list(dataset.prompts.all_of(row)) for row in rows]
    return tensors


def _batches(dataset: DataSet, how: Encoding, rows: range) -> Generator[Batch, None, None]:
    for part in torch.tensor(rows).split(how.batch_size):
        yield _pictures(dataset).batch(part)


def _both(vae: Any, pictures: Tensor, how: Encoding) -> tuple[Tensor, Tensor]:
    """Mean and log-variance ``[B, 1 or 2, C, h, w]``: of the pictures, then of their mirrors."""
    sides = [pictures, pictures.flip(-1)] if how.flips else [pictures]
    laws = [posterior(vae, side) for side in sides]
    kept = [
        torch.stack(part, dim=1).to("cpu", KINDS[how.dtype]) for part in zip(*laws, strict=True)
    ]
    if not all(bool(part.isfinite().all()) for part in kept):
        kind = str(next(vae.parameters()).dtype).removeprefix("torch.")
        raise ValueError(
            f"the VAE in {kind} gives latents that are not finite in {how.dtype}; encode in "
            f"float32 and keep bfloat16 (SDXL's first VAE overflows in float16)"
        )
    return kept[0], kept[1]


def _write(manifest: Manifest, folder: Path, shard: int, content: dict[str, Any]) -> None:
    with require_extra("train", "writing latents"):
        from safetensors.torch import save_file
    metadata = {"latents": manifest.fingerprint}
    captions = content.pop("captions", None)
    if captions is not None:
        metadata["captions"] = json.dumps(captions, ensure_ascii=False)
    with atomic_path(manifest.path(folder, shard)) as temporary:
        save_file(content, temporary, metadata=metadata)
