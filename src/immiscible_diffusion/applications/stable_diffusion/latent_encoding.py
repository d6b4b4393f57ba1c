"""Images are encoded once, to the shards of a latent cache."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from immiscible_diffusion.applications.stable_diffusion.latent_cache import (
    STORED,
    Manifest,
    missing_shards,
    vae_digest,
)
from immiscible_diffusion.data.aspect_buckets import BucketedImages
from immiscible_diffusion.data.base import DataSet
from immiscible_diffusion.data.captions import Captioned
from immiscible_diffusion.data.prompts import ClassNamePrompts, Prompts
from immiscible_diffusion.utils.atomic_files import atomic_path, remove_unfinished
from immiscible_diffusion.utils.background import prefetch_iterator
from immiscible_diffusion.utils.checks import PositiveInt, check_fields
from immiscible_diffusion.utils.optional_deps import require_extra
from immiscible_diffusion.utils.random import keyed_generator
from immiscible_diffusion.utils.tensor_files import crc32, to_metadata

HASHED_ROWS = 64  # of a data set that is decoded lazily


@dataclass(frozen=True)
class EncodingConfig:
    """How to encode."""

    dtype: Literal["float16", "bfloat16"] = "float16"  # of what is stored
    flips: bool = True  # encode mirror images too: a VAE's latent of one is not the mirror image of the latent
    shard_size: PositiveInt = 1024  # images per shard; an interruption loses at most one of each process
    batch_size: PositiveInt = 16  # images in the VAE at a time
    transform: str = ""  # how the images were resized and converted, in words

    def __post_init__(self) -> None:
        check_fields(self)


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
        rank: of this process among ``world``.
        world: number of processes.
        on_progress: called with the number of images that this process has done.

    Raises:
        ValueError: the folder holds other latents (says what differs), images of several shapes,
            or not of the VAE's channels, or the VAE's output is not finite.
    """
    with require_extra("train", "writing latents"):
        from safetensors.torch import save_file
    config = config or EncodingConfig()
    images, captions = _images_and_captions(dataset)
    manifest = _manifest(dataset, vae, config, vae_hash)
    folder.mkdir(parents=True, exist_ok=True)
    manifest.write(folder)
    done, own = 0, range(rank, manifest.shards, world)
    remove_unfinished(folder, {manifest.path(folder, shard).name for shard in own})
    missing = missing_shards(manifest, folder)
    for shard in own:
        rows = manifest.rows(shard)
        if shard in missing:
            metadata = {"latents": manifest.fingerprint}
            if captions is not None:
                texts = [list(captions.choices(row)) for row in rows]
                metadata["captions"] = json.dumps(texts, ensure_ascii=False)
            tensors = _encode_rows(images, rows, vae, config)
            small = {name: values for name, values in tensors.items() if name not in STORED}
            size = sum(values.nbytes for values in tensors.values())
            with atomic_path(manifest.path(folder, shard), size) as temporary:
                save_file(tensors, temporary, to_metadata(small, metadata))
        done += len(rows)
        if on_progress is not None:
            on_progress(done)
    return manifest


def _manifest(dataset: DataSet, vae: Any, config: EncodingConfig, vae_hash: str | None) -> Manifest:
    """Say what the latents will be; ValueError for images that cannot be encoded."""
    images, captions = _images_and_captions(dataset)
    if isinstance(images, BucketedImages):
        raise ValueError(
            "images in aspect-ratio buckets have latents of several shapes; train from the images, "
            "or encode them at one size"
        )
    channels = int(vae.config.in_channels)
    if images.shape[0] != channels:
        raise ValueError(
            f"the VAE takes {channels} channels and the images have {images.shape[0]}; set data.channels {channels}"
        )
    texts = hashlib.sha256()
    if captions is not None:
        for row in range(len(images)):  # one by one: there may be millions
            texts.update(json.dumps(list(captions.choices(row))).encode())
    stored: dict[str, Any] = {k: v for k, v in vars(config).items() if k != "batch_size"}
    return Manifest(
        **stored,
        count=len(images),
        shape=tuple(posterior(vae, images.batch(torch.arange(1)).data)[0].shape[1:]),
        vae=vae_hash or vae_digest(vae),
        data=data_digest(images),
        scaling=float(vae.config.scaling_factor),
        shift=float(getattr(vae.config, "shift_factor", None) or 0.0),
        name=dataset.name,
        note=dataset.note,
        classes=dataset.class_names,
        captions=None if captions is None else texts.hexdigest()[:32],
    )


@torch.no_grad()
def posterior(vae: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log-variance ``[B, C, h, w]`` of the latents of images in [-1, 1]."""
    weight = next(vae.parameters())
    distribution = vae.encode(images.to(weight.device, weight.dtype)).latent_dist
    return distribution.mean, distribution.logvar


def _encode_rows(images: DataSet, rows: range, vae: Any, config: EncodingConfig) -> dict[str, Tensor]:
    """``mean`` and ``logvar`` ``[rows, 1 or 2, C, h, w]``, and ``label``."""
    batches = (images.batch(part) for part in torch.tensor(rows).split(config.batch_size))
    parts: dict[str, list[Tensor]] = {name: [] for name in STORED}
    for batch in prefetch_iterator(batches, 2, name="images", finish=False):
        sides = [batch.data, batch.data.flip(-1)] if config.flips else [batch.data]
        for name, values in zip(STORED, zip(*(posterior(vae, side) for side in sides), strict=True), strict=True):
            part = torch.stack(values, dim=1).to("cpu", getattr(torch, config.dtype))
            if not bool(part.isfinite().all()):
                precision = str(next(vae.parameters()).dtype).removeprefix("torch.")
                raise ValueError(
                    f"the VAE in {precision} gives latents that are not finite in {config.dtype}; "
                    f"encode in float32 and store bfloat16 (SDXL's first VAE overflows in float16)"
                )
            parts[name].append(part)
        if batch.cond and "label" in batch.cond:
            parts.setdefault("label", []).append(batch.cond["label"])
    tensors = {name: torch.cat(values) for name, values in parts.items()}
    # Training reads single latents, hence a checksum for each.
    return tensors | {
        f"{name}_crc32": torch.tensor([[crc32(side) for side in row] for row in tensors[name]]) for name in STORED
    }


def data_digest(dataset: DataSet) -> str:
    """Hash of a data set that does not depend on where its files are.

    Of images in memory all are hashed. Of images decoded lazily: their number, all labels, and the
    files of 64 of them, chosen by their number. So other data, another order or other labels are
    recognized, but not a few images that were exchanged among many.
    """
    source: Any = _images_and_captions(dataset)[0]
    if not hasattr(source, "rows"):
        if source.digest is None:
            raise ValueError(f"the data set {dataset.name} has no digest, so nothing can be cached")
        return str(source.digest)[:32]
    content = hashlib.sha256(json.dumps([len(source), list(source.shape)]).encode())
    if source.num_classes is not None:
        content.update(source.labels.numpy().tobytes())
    order = torch.randperm(len(source), generator=keyed_generator(len(source), "digest"))
    for row in order[:HASHED_ROWS].sort().values.tolist():
        for cell in source.rows[row].values():
            if not isinstance(cell, dict):  # no image
                content.update(json.dumps(cell, default=str).encode())
            elif cell.get("bytes") is not None:
                content.update(cell["bytes"])
            elif cell.get("path"):
                content.update(Path(cell["path"]).read_bytes())
    return content.hexdigest()[:32]


def _images_and_captions(dataset: DataSet) -> tuple[DataSet, Prompts | None]:
    if not isinstance(dataset, Captioned):
        return dataset, None
    # Prompts of class names are made from the labels.
    return dataset.images, None if isinstance(dataset.prompts, ClassNamePrompts) else dataset.prompts
